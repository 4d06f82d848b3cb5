"""The frozen base: loading, its attention sites, its positions, and the proof that no weight moved."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
)
from transformers.activations import FastGELUActivation, NewGELUActivation
from transformers.utils import logging as transformers_logging

from orchestrator.errors import BadInput
from orchestrator.recipe.bases import pooler_name
from orchestrator.tuning import injection, rotary, varlen
from orchestrator.tuning.fast import Fast
from orchestrator.tuning.injection import Injector, Site
from orchestrator.tuning.prompt import Prompt
from orchestrator.tuning.scaling import scale_of
from orchestrator.weights import weight_files

Kind = Literal["causal", "seq2seq", "masked"]

_AUTO = {"causal": AutoModelForCausalLM, "seq2seq": AutoModelForSeq2SeqLM, "masked": AutoModelForMaskedLM}
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}

#: the part of a checkpoint's generation settings that says what its tokens mean; lengths and beams are the caller's
_GENERATION_TOKENS = (
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "decoder_start_token_id",
    "forced_bos_token_id",
    "forced_eos_token_id",
)


class BaseHost:
    """Owns one frozen model: no parameter requires a gradient, dropout is off, weights never change."""

    fast = Fast()
    checkpointing = False
    packs: bool | None = None  #: whether its rows may be packed; found at the first forward (`forward.packs`)
    turns_by_length = False  #: its rotary angles depend on how long a row is (`rotary`)

    def __init__(self, model: PreTrainedModel, tokenizer: Any, kind: Kind, *, has_lm_head: bool) -> None:
        """Use :meth:`load` or :meth:`from_model`."""
        self.model = model
        self.tokenizer = tokenizer
        self.kind: Kind = kind
        self.has_lm_head = has_lm_head
        self.folder: Path | None = None  #: with the checkpoint that it was loaded from
        #: A weight as a whole, inside the context; where an engine has cut the weights into pieces it sets its own way.
        self.gathered: Callable[[Tensor], AbstractContextManager[Tensor]] = nullcontext
        self.module: Any = model  #: what a forward calls; an engine's wrapper of `model` may be set here

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        kind: Kind,
        dtype: str = "fp32",
        device: str | torch.device = "cpu",
        trust_remote_code: bool = False,
    ) -> BaseHost:
        """From a local folder with config.json, tokenizer and safetensors. BadInput where anything is missing."""
        weight_files(folder)  # refuses pickles
        local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": trust_remote_code}
        try:
            with _quiet():
                tokenizer = AutoTokenizer.from_pretrained(folder, **local)
                model, loaded = _AUTO[kind].from_pretrained(
                    folder, dtype=_DTYPES[dtype], use_safetensors=True, output_loading_info=True, **local
                )
        except (OSError, ValueError, KeyError) as error:
            raise BadInput(f"transformers cannot load this base: {error}", where=str(folder)) from error
        body, has_lm_head = _without_random_weights(model, set(loaded["missing_keys"]), kind, folder)
        host = cls.from_model(body.to(device), tokenizer, kind, has_lm_head=has_lm_head)
        host.folder = folder
        return host

    @classmethod
    def from_model(
        cls, model: PreTrainedModel, tokenizer: Any, kind: Kind, *, has_lm_head: bool | None = None
    ) -> BaseHost:
        """Take over a model in memory: it is frozen, put into eval mode, and given our attention function."""
        injection.register()
        model.requires_grad_(False)
        model.eval()
        if cls.fast.activation:
            _fuse_activations(model)
        if all(part._can_set_attn_implementation() for part in model.modules() if isinstance(part, PreTrainedModel)):
            model.set_attn_implementation(injection.NAME)
        settings = getattr(model, "generation_config", None)
        if settings is not None:
            model.generation_config = GenerationConfig(**{k: getattr(settings, k, None) for k in _GENERATION_TOKENS})
        if has_lm_head is None:
            has_lm_head = model.get_output_embeddings() is not None
        host = cls(model, tokenizer, kind, has_lm_head=has_lm_head)
        host.turns_by_length = rotary.install(model)
        return host

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    @property
    def vocab_size(self) -> int:
        """V: rows of the input embedding (with ZeRO-3: of the whole one)."""
        return self._embedding_shape[0]

    @property
    def embedding_width(self) -> int:
        """Width of an input embedding; H of most bases, narrower in ALBERT and ELECTRA."""
        return self._embedding_shape[1]

    @property
    def pad_id(self) -> int:
        """Id to pad with; what it is does not matter, padding is masked."""
        for owner in (self.tokenizer, self.model.config):
            candidate = getattr(owner, "pad_token_id", None)
            if isinstance(candidate, int) and candidate >= 0:
                return candidate
        return 0

    @property
    def body(self) -> nn.Module:
        """Whose `last_hidden_state` a classification head reads: the encoder, or the model without its own head."""
        if self.kind == "seq2seq":
            return self.model.get_encoder()
        # OPT's language model calls the decoder within its base model.
        return self.model.get_decoder() if self.kind == "causal" else self.model.base_model

    @property
    def state_width(self) -> int:
        """Of a last hidden state: H, or what OPT narrows it to."""
        config = self.model.config.get_text_config()
        return int(getattr(config, "word_embed_proj_dim", config.hidden_size))

    @cached_property
    def pooler(self) -> tuple[Tensor, Tensor] | None:
        """Weight [H, H] and bias [H] of BERT's pooler, which the checkpoint may hold beside what this model uses."""
        name = None if self.folder is None else pooler_name(self.folder, self.model.config.model_type)
        if self.folder is None or name is None:
            return None
        names = [f"{name}.weight", f"{name}.bias"]
        found: dict[str, Tensor] = {}
        for path in weight_files(self.folder):
            with safe_open(path, "pt") as file:
                found |= {key: file.get_tensor(key) for key in names if key in file.keys()}  # noqa: SIM118
        return found[names[0]].to(self.device), found[names[1]].to(self.device)

    def embed(self, ids: Tensor) -> Tensor:
        """[B, S] ids -> [B, S, H] input embeddings as the layers see them, but for positions.

        Through the module, so that ZeRO-3's hooks gather its weights.
        """
        found = self.model.get_input_embeddings()(ids.to(self.device))
        return found if self.embedding_scale == 1.0 else found * self.embedding_scale

    @cached_property
    def embedding_scale(self) -> float:
        """See `scaling`. Found, like the injector, by tiny forwards on all ranks."""
        pads = {self.pad_id, *(m.padding_idx for m in self.model.modules() if isinstance(m, nn.Embedding))}
        plain = [number for number in range(3, 20) if number not in pads]  # RoBERTa counts no position for a pad
        ids = torch.tensor([plain[:3]], device=self.device) % self.vocab_size
        return scale_of(self.body, self.model.get_input_embeddings(), ids, config=self.model.config)

    def set_dropout(self, on: bool) -> None:
        """The base's own dropout; off from the start."""
        # Both are found by forwards, which must neither see dropout nor use up random numbers.
        _ = self.injector, self.first_position, self.embedding_scale
        self.model.train(on)

    def set_checkpointing(self, on: bool) -> None:
        """Recompute each layer in the backward: less memory, about a third more work, the same gradients."""
        if on != self.checkpointing:
            injection.checkpoint_layers(self.model, self.injector, on)
            self.checkpointing = on

    @property
    def sites(self) -> list[Site]:
        """Every attention layer that takes a prefix, in the order of a forward.

        Empty where the architecture does not call transformers' attention interface.
        """
        return self.injector.sites

    @cached_property
    def injector(self) -> Injector:
        """Found by one tiny forward. Not while loading: under ZeRO-3 the engine must be there first, on all ranks."""
        calls = self.record(torch.tensor([[3, 4, 5]]) % self.vocab_size, torch.tensor([[3, 4]]) % self.vocab_size)
        encoder = set(self.body.modules()) if self.kind != "causal" else set()
        counts: dict[str, int] = {}
        found = []
        for call in calls:
            own = "encoder" if call.module in encoder else "decoder"
            name: Any = "cross" if own == "decoder" and self.kind == "seq2seq" and call.key.shape[2] == 3 else own
            layer = counts.get(name, 0)
            counts[name] = layer + 1
            shape = (call.key.shape[1], call.key.shape[3], call.value.shape[3])
            found.append((call.module, Site(name, layer, *shape)))
        return Injector(found)

    def record(self, ids: Tensor, decoder_ids: Tensor | None = None) -> list[injection.Call]:
        """Run [1, S] plain tokens through the base and keep what every attention layer was given."""
        inputs = {"input_ids": ids.to(self.device), "attention_mask": torch.ones_like(ids, device=self.device)}
        if self.kind == "seq2seq":
            inputs["decoder_input_ids"] = (ids if decoder_ids is None else decoder_ids).to(self.device)
        with torch.no_grad(), injection.recording() as calls:
            self.module(**inputs)
        return calls

    def misfit(self, prompt: Prompt) -> str | None:
        """Why this prompt cannot be used here, though it is one; None: it can."""
        width = self.embedding_width
        if prompt.embeddings is not None and prompt.embeddings.shape[1] != width:
            return f"its virtual tokens are {prompt.embeddings.shape[1]} wide, this base's embeddings {width}"
        for name, tensor in prompt.keys_values.items():
            layers = [(site.kv_heads, site.head_dim) for site in self.sites if site.name == name]
            given = [(tensor.shape[2], tensor.shape[4])] * tensor.shape[0]
            if given != layers:
                return (
                    f"its {name} prefix has {len(given)} layers of {given[:1]}, this base {len(layers)} of {layers[:1]}"
                )
        return None

    @cached_property
    def takes_positions(self) -> bool:
        """Whether the forward takes explicit position ids. Encoder-decoder bases count columns from the left."""
        return self.kind != "seq2seq" and "position_ids" in inspect.signature(self.model.forward).parameters

    @cached_property
    def separator(self) -> int | None:
        """The token behind which the second of two texts has an embedding of its own, on bases that tell texts apart so
        (BERT, ALBERT, ELECTRA); None on others."""
        two = int(getattr(self.model.config, "type_vocab_size", 0) or 0) > 1
        token = getattr(self.tokenizer, "sep_token_id", None)
        takes = "token_type_ids" in inspect.signature(self.model.forward).parameters
        return int(token) if self.kind == "masked" and two and takes and token is not None else None

    @cached_property
    def ragged(self) -> bool:
        """Whether attention over rows of unlike lengths is one call here (`varlen`): causal bases on a GPU."""
        config = self.model.config.get_text_config()
        capped = getattr(config, "attn_logit_softcapping", None) is not None
        sinks = any(name.endswith(".sinks") for name, _ in self.model.named_parameters())
        if self.kind != "causal" or not self.sites or capped or sinks:
            return False
        heads = config.num_attention_heads
        shapes = {(site.kv_heads, site.head_dim) for site in self.sites}
        return all(varlen.works(self.device, self.dtype, heads, kv_heads, width) for kv_heads, width in shapes)

    @cached_property
    def first_position(self) -> int:
        """Position id of a row's first token: 0, or padding_idx + 1 where a model says so (RoBERTa).

        Found by asking which explicit positions give the output that the model gives without any.
        """
        tables = [m for m in self.model.modules() if isinstance(m, nn.Embedding) and m.padding_idx is not None]
        candidates = sorted({0, *(table.padding_idx + 1 for table in tables if table.padding_idx is not None)})
        if not self.takes_positions or len(candidates) == 1:
            return 0
        embeddings = self.embed(torch.tensor([[3, 4, 5]]) % self.vocab_size)
        with torch.no_grad():
            told = [self._hidden(embeddings, torch.arange(3, device=self.device)[None] + first) for first in candidates]
            free = self._hidden(embeddings, None)
        distances = [float((hidden - free).abs().max()) for hidden in told]
        # Rotary positions are relative, so every candidate fits up to rounding; then 0 it is.
        return 0 if distances[0] <= 1e-3 * float(free.abs().max()) else candidates[distances.index(min(distances))]

    def checksum(self, without: Collection[str] = ()) -> str:
        """A digest over the bits of all parameters and saved buffers in memory (with ZeRO-3: over this rank's shards).

        Each tensor's 8-byte words are summed with odd weights modulo 2^64, on its own device: one changed word always
        changes the sum.
        """
        total = hashlib.sha256()
        tensors = [*self.model.named_parameters(), *_saved_buffers(self.model)]
        for name, tensor in sorted((pair for pair in tensors if pair[0] not in without), key=lambda pair: pair[0]):
            data = getattr(tensor, "ds_tensor", tensor).detach()
            total.update(json.dumps([name, str(data.dtype), list(data.shape), _word_sum(data)]).encode())
        return "sum64:" + total.hexdigest()

    @property
    def _embedding_shape(self) -> tuple[int, int]:
        weight = self.model.get_input_embeddings().weight
        rows, width = getattr(weight, "ds_shape", weight.shape)
        return int(rows), int(width)

    def _hidden(self, embeddings: Tensor, position_ids: Tensor | None) -> Tensor:
        mask = torch.ones(embeddings.shape[:2], dtype=torch.long, device=self.device)
        positions = {} if position_ids is None else {"position_ids": position_ids}
        return self.body(inputs_embeds=embeddings, attention_mask=mask, **positions).last_hidden_state


def _without_random_weights(
    model: PreTrainedModel, missing: set[str], kind: Kind, folder: Path
) -> tuple[PreTrainedModel, bool]:
    """The model, or its body alone where the checkpoint has no language-model head (transformers made one up)."""
    prefix = model.base_model_prefix + "."
    in_body = sorted(key for key in missing if key.startswith(prefix))
    if in_body or (missing and kind != "masked"):
        shown = ", ".join(in_body[:3] or sorted(missing)[:3])
        what = f"the weights lack {len(missing)} tensors of this architecture, for example {shown}"
        raise BadInput(what, where=str(folder))
    return (model.base_model, False) if missing else (model, True)


def _fuse_activations(model: nn.Module) -> None:
    """torch's own kernel for the tanh form of GELU, which transformers writes out in eight operations."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, NewGELUActivation | FastGELUActivation):
                setattr(module, name, nn.GELU(approximate="tanh"))


def _saved_buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Those that belong to the weights: of the others some are worked with (rotary angles of the last rows)."""
    for where, module in model.named_modules():
        for name, buffer in module.named_buffers(where, recurse=False):
            if name.rpartition(".")[2] not in module._non_persistent_buffers_set:
                yield name, buffer


def _word_sum(data: Tensor) -> int:
    """The sum modulo 2^64 of the tensor's 8-byte words, each times an odd number of its own."""
    bits = data.contiguous().view(-1).view(torch.uint8)
    whole = len(bits) // 8 * 8
    words = bits[:whole].view(torch.int64) if bits.storage_offset() % 8 == 0 else bits[:whole].clone().view(torch.int64)
    total = 0
    for start in range(0, len(words), 1 << 24):  # 128 MiB at a time
        part = words[start : start + (1 << 24)]
        weights = torch.arange(2 * start + 1, 2 * (start + len(part)) + 1, 2, device=part.device)
        total += int((part * weights).sum())
    tail = bits[whole:].tolist()
    return (total + sum(byte * (3 + 2 * (len(words) * 8 + i)) << 8 * i for i, byte in enumerate(tail))) % (1 << 64)


@contextmanager
def _quiet() -> Iterator[None]:
    """No bars and no reports of what was loaded: what matters of them is checked and raised as an error."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
