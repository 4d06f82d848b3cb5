"""Starting values, drawn from a given generator and nowhere else."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from orchestrator.errors import MethodDoesNotFit, PtqError
from orchestrator.recipe.starts import (
    ArtifactInit,
    FileInit,
    Init,
    LabelsInit,
    MaskInit,
    NormalInit,
    PromptInit,
    RandomInit,
    TextInit,
    VocabInit,
    WordsInit,
)
from orchestrator.tuning.artifact import load_prompt
from orchestrator.tuning.host import BaseHost


def embeddings(init: Init | MaskInit, host: BaseHost, length: int, generator: torch.Generator) -> Tensor:
    """[n, H] fp32."""
    if isinstance(init, RandomInit):
        return (torch.rand(length, host.embedding_width, generator=generator) * 2 - 1) * init.scale
    if isinstance(init, NormalInit):
        return torch.randn(length, host.embedding_width, generator=generator) * init.std
    if isinstance(init, FileInit):
        return array(Path(init.path), (length, host.embedding_width))
    if isinstance(init, PromptInit):
        return _mixed_embeddings(init, host, length)
    if isinstance(init, ArtifactInit):
        raise unresolved()
    if isinstance(init, LabelsInit):
        return _label_embeddings(init, host, length, generator)
    return embedded(host, tokens(init, host, length, generator))


def unresolved() -> MethodDoesNotFit:
    """Names of artifacts mean something to a registry only."""
    return MethodDoesNotFit(
        "names of artifacts are looked up by `ptq submit`",
        where="method.init",
        hint="write `type: prompt` with folders",
    )


def mixed_prompts(init: PromptInit) -> dict[str, Tensor]:
    """The weighted sum of the folders' prompts, by the names of their tensors. Raises MethodDoesNotFit."""
    total: dict[str, Tensor] = {}
    for folder, share in zip(init.path, init.shares, strict=True):
        try:
            found = load_prompt(Path(folder))[0].tensors()
        except PtqError as error:
            raise MethodDoesNotFit(error.message, where=error.where) from error
        shapes = {name: tensor.shape for name, tensor in found.items()}
        if total and shapes != {name: tensor.shape for name, tensor in total.items()}:
            raise MethodDoesNotFit(
                f"{folder} holds another kind of prompt than {init.path[0]}", where="method.init.path"
            )
        total = {name: tensor.float() * share + total.get(name, 0) for name, tensor in found.items()}
    return total


def array(path: Path, shape: tuple[int, int]) -> Tensor:
    """[n, H] fp32 from a .npy file. Raises MethodDoesNotFit. Pickled objects are never loaded."""
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise MethodDoesNotFit(f"not a .npy file that can be read: {error}", where=str(path)) from error
    if not isinstance(found, np.ndarray) or found.shape != shape or found.dtype.kind != "f":
        what = f"{found.dtype} of shape {list(found.shape)}" if isinstance(found, np.ndarray) else "several arrays"
        raise MethodDoesNotFit(f"holds {what}; numbers of shape {list(shape)} are needed", where=str(path))
    if not np.isfinite(found).all():
        raise MethodDoesNotFit("holds numbers that are not finite", where=str(path))
    return torch.from_numpy(found.astype(np.float32))


def tokens(
    init: VocabInit | TextInit | WordsInit | MaskInit, host: BaseHost, length: int, generator: torch.Generator
) -> Tensor:
    """[n] ids."""
    if isinstance(init, MaskInit):
        return mask_tokens(host, length)
    if isinstance(init, VocabInit):
        return vocab_tokens(host, length, init.top, generator)
    text, where = (init.text, "text") if isinstance(init, TextInit) else (" ".join(init.words), "words")
    return text_tokens(text, host, length, where=f"method.init.{where}")


def mask_tokens(host: BaseHost, length: int) -> Tensor:
    """[n] times the mask token. Raises MethodDoesNotFit."""
    token = getattr(host.tokenizer, "mask_token_id", None)
    if token is None:
        raise MethodDoesNotFit("the base's tokenizer has no mask token to start from", where="method.init")
    return torch.full((length,), int(token))


def embedded(host: BaseHost, ids: Tensor) -> Tensor:
    """[n] -> [n, H] fp32."""
    with torch.no_grad():
        return host.embed(ids[None])[0].float().cpu()


def _label_embeddings(init: LabelsInit, host: BaseHost, length: int, generator: torch.Generator) -> Tensor:
    """[n, H]: google-research/prompt-tuning, prompts.py, from_embedded_list over from_sample_of_embeddings."""
    if init.words is None:
        raise MethodDoesNotFit("the task has no labels to start from", where="method.init.words")
    start = embedded(host, vocab_tokens(host, length, init.top, generator))
    for number, word in enumerate(init.words[:length]):
        ids = text_tokens(word, host, None, where="method.init.words")
        start[number] = embedded(host, ids).mean(0)
    return start


def _mixed_embeddings(init: PromptInit, host: BaseHost, length: int) -> Tensor:
    found = mixed_prompts(init).get("embeddings")
    shape = (length, host.embedding_width)
    if found is None or found.shape != shape:
        what = "no input embeddings" if found is None else f"embeddings of shape {list(found.shape)}"
        raise MethodDoesNotFit(f"the prompt holds {what}; {list(shape)} is needed", where="method.init.path")
    return found


def vocab_tokens(host: BaseHost, length: int, top: int, generator: torch.Generator) -> Tensor:
    """[n] ids among the first `top`, without replacement (again from the start where n is larger)."""
    size = min(top, host.vocab_size, len(host.tokenizer) if host.tokenizer is not None else top)
    rounds = [torch.randperm(size, generator=generator) for _ in range(math.ceil(length / size))]
    return torch.cat(rounds)[:length]


def text_tokens(text: str, host: BaseHost, length: int | None, *, where: str) -> Tensor:
    """[n] ids of the text, repeated or cut to `length` if there is one."""
    ids = host.tokenizer(text, add_special_tokens=False)["input_ids"]
    if not ids:
        raise MethodDoesNotFit(f"the base's tokenizer finds no token in {text!r}", where=where)
    rounds = 1 if length is None else math.ceil(length / len(ids))
    return torch.tensor(ids).repeat(rounds)[:length]


def linear(inputs: int, outputs: int, generator: torch.Generator) -> nn.Linear:
    """A linear layer with torch's own default distribution."""
    layer = nn.Linear(inputs, outputs, device="meta").to_empty(device="cpu")
    nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5), generator=generator)
    nn.init.uniform_(layer.bias, -1 / math.sqrt(inputs), 1 / math.sqrt(inputs), generator=generator)
    return layer


def tanh_perceptron(inputs: int, hidden: int, outputs: int, layers: int, generator: torch.Generator) -> nn.Sequential:
    """`layers` hidden layers with Tanh, and a linear one."""
    widths = [inputs, *[hidden] * layers]
    parts: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        parts += [linear(before, after, generator), nn.Tanh()]
    return nn.Sequential(*parts, linear(hidden, outputs, generator))


def lstm(inputs: int, hidden: int, dropout: float, generator: torch.Generator) -> nn.LSTM:
    """Two layers, both directions, with torch's own default distribution."""
    layer = nn.LSTM(inputs, hidden, num_layers=2, bidirectional=True, dropout=dropout, device="meta")
    layer = layer.to_empty(device="cpu")
    for weight in layer.parameters():
        nn.init.uniform_(weight, -1 / math.sqrt(hidden), 1 / math.sqrt(hidden), generator=generator)
    return layer
