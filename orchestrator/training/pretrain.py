"""Pretrain a small base from a recipe (see `recipe.pretrain`). One process, fp32.

    python -m orchestrator.training.pretrain SPEC.json

SPEC.json: {"recipe": a PretrainRecipe, "dataset": folder of the dataset version, "output": folder to make,
"threads": n}.
`ptq base pretrain` writes it and runs this program.
"""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from orchestrator.paths import folder_written_atomically, read_json
from orchestrator.recipe.pretrain import PretrainRecipe, PretrainSchedule
from orchestrator.tasks.template import parse
from orchestrator.training.rows import Rows
from orchestrator.training.small_models import build_model
from orchestrator.training.small_tokenizers import (
    SENTINELS,
    AnyTokenizer,
    train_sentence_pieces,
    train_tokenizer,
    train_wordpieces,
)
from orchestrator.training.span_corruption import corrupted, noise_mask
from orchestrator.tuning.rows import NO_LABEL

Texts = list[list[int]]  #: a document: its one text, or its input and its target
Draw = Callable[[random.Random, int], list[Texts]]  #: so many documents


def pretrain(recipe: PretrainRecipe, dataset: Path, output: Path) -> None:
    """Train tokenizer and model, write them to `output`; progress goes to standard output."""
    torch.manual_seed(recipe.train.seed)
    rows = list(Rows.open(dataset, "train"))
    forms = [[parse(text) for text in (d.input, d.target) if text is not None] for d in recipe.documents]
    texts = [[[part.render_text(row) for part in parts] for parts in forms] for row in rows]
    way, context = _ways()[recipe.architecture.type], recipe.architecture.context
    tokenizer = way.train_tokenizer((text for row in texts for pair in row for text in pair), recipe.vocab)
    encoded = [[way.encode(tokenizer, pair, context) for pair in row] for row in texts]
    drawn = way.drawn(encoded, [document.weight for document in recipe.documents], context)
    model = build_model(recipe.architecture, tokenizer)
    print(
        f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer)} tokens, {len(rows):,} rows",
        flush=True,
    )
    _train(model, tokenizer, drawn, recipe.train, way)
    with folder_written_atomically(output) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


@dataclass(frozen=True)
class _Way:
    """How one kind of architecture reads its documents."""

    train_tokenizer: Callable[[Iterable[str], int], AnyTokenizer]
    encode: Callable[[AnyTokenizer, Sequence[str], int], Texts]
    #: One of the batch: (what the model reads, what it is asked)
    asked: Callable[[Texts, AnyTokenizer, random.Random], tuple[list[int], list[int]]]
    sees_padding: bool  #: a causal base never sees what stands behind a text
    drawn: Callable[[list[list[Texts]], list[float], int], Draw]


def _ways() -> dict[str, _Way]:
    causal = _Way(train_tokenizer, _encode, lambda texts, *_: (texts[0], texts[0]), False, _a_rows_form)
    return {
        "gpt2": causal,
        "llama": causal,
        "bert": _Way(train_wordpieces, _encode_text, _hidden, True, _a_rows_form),
        "t5": _Way(train_sentence_pieces, _encode_each, _asked_in_text, True, _a_form_of_rows),
    }


def _a_rows_form(rows: list[list[Texts]], weights: list[float], _: int) -> Draw:
    """`rows`: each row in each form."""
    return lambda rng, count: [rng.choices(row, weights)[0] for row in rng.choices(rows, k=count)]


def _a_form_of_rows(rows: list[list[Texts]], weights: list[float], context: int) -> Draw:
    """Texts without a target stand one behind the other, cut into pieces as long as the context, as T5 reads them: of a
    short text its code would take the end alone."""
    forms = [list(form) for form in zip(*rows, strict=True)]
    for number, form in enumerate(forms):
        if len(form[0]) == 1:
            joined = [token for (text,) in form for token in text]
            forms[number] = [[joined[at : at + context - 1]] for at in range(0, max(1, len(joined)), context - 1)]
    return lambda rng, count: [rng.choice(form) for form in rng.choices(forms, weights, k=count)]


def learning_rate(step: int, schedule: PretrainSchedule) -> float:
    """Linear warm-up, then cosine decay to a tenth."""
    if step < schedule.warmup:
        return schedule.lr * (step + 1) / schedule.warmup
    done = (step - schedule.warmup) / max(1, schedule.steps - schedule.warmup)
    return schedule.lr * (0.1 + 0.45 * (1 + math.cos(math.pi * done)))


def _encode(tokenizer: AnyTokenizer, pair: Sequence[str], context: int) -> Texts:
    """Text is never more than text: `<|eos|>` in a row ends no document."""
    first, second = tokenizer(list(pair), split_special_tokens=True)["input_ids"]
    return [[*first, tokenizer.bos_token_id, *second, tokenizer.eos_token_id][:context]]


def _encode_text(tokenizer: AnyTokenizer, pair: Sequence[str], context: int) -> Texts:
    ids: list[int] = tokenizer(pair[0], split_special_tokens=True)["input_ids"]
    return [ids if len(ids) <= context else [*ids[: context - 1], ids[-1]]]


def _encode_each(tokenizer: AnyTokenizer, pair: Sequence[str], context: int) -> Texts:
    """Without the end mark, for which there is room. A Unigram model takes `</s>` in a row for the piece it holds."""
    pieces, unknown = range(tokenizer.unk_token_id, len(tokenizer) - len(SENTINELS)), tokenizer.unk_token_id
    read = tokenizer(list(pair), add_special_tokens=False, split_special_tokens=True)["input_ids"]
    cut = context - 1 if len(pair) == 2 else None  # a text alone is cut where it is joined with the others
    return [[i if i in pieces else unknown for i in ids[:cut]] for ids in read]


def _hidden(texts: Texts, tokenizer: AnyTokenizer, rng: random.Random) -> tuple[list[int], list[int]]:
    """15 % of the words asked for, of which 80 % are hidden and 10 % others (Devlin et al. 2019)."""
    (ids,) = texts
    inputs, labels = list(ids), [NO_LABEL] * len(ids)
    inner = range(1, len(ids) - 1)
    for place in rng.sample(inner, min(len(inner), max(1, round(0.15 * len(inner))))):
        labels[place], luck = ids[place], rng.random()
        if luck < 0.8:
            inputs[place] = tokenizer.mask_token_id
        elif luck < 0.9:
            inputs[place] = rng.randrange(len(tokenizer))
    return inputs, labels


def _asked_in_text(texts: Texts, tokenizer: AnyTokenizer, rng: random.Random) -> tuple[list[int], list[int]]:
    """What a decoder writes of what an encoder reads: a target, or the spans that are taken out of the one text."""
    if len(texts) == 1:
        first = len(tokenizer) - 1  # <extra_id_0> is the last token, <extra_id_99> the hundredth from the end
        mask = noise_mask(len(texts[0]), rng)
        texts = list(corrupted(texts[0], mask, range(first, first - len(SENTINELS), -1)))
    read, written = texts
    return [*read, tokenizer.eos_token_id], [*written, tokenizer.eos_token_id]


def _train(
    model: PreTrainedModel,
    tokenizer: AnyTokenizer,
    drawn: Draw,
    schedule: PretrainSchedule,
    way: _Way,
) -> None:
    rng = random.Random(schedule.seed)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=schedule.lr, weight_decay=schedule.weight_decay, betas=(0.9, 0.98)
    )
    model.train()
    for step in range(schedule.steps):
        asked = [way.asked(texts, tokenizer, rng) for texts in drawn(rng, schedule.batch_size)]
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, schedule)
        loss = model(**_padded(asked, sees_padding=way.sees_padding)).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0 or step == schedule.steps - 1:
            print(f"step {step} of {schedule.steps}: loss {loss.item():.4f}", flush=True)


def _padded(asked: Sequence[tuple[list[int], list[int]]], *, sees_padding: bool) -> dict[str, Tensor]:
    """0 is the padding of every tokenizer here."""
    ids = pad_sequence([torch.tensor(d) for d, _ in asked], batch_first=True, padding_value=0)
    labels = pad_sequence([torch.tensor(d) for _, d in asked], batch_first=True, padding_value=NO_LABEL)
    seen = {"attention_mask": (ids != 0).long()} if sees_padding else {}
    return {"input_ids": ids, "labels": labels, **seen}


def main(arguments: Sequence[str]) -> None:
    spec = read_json(Path(arguments[0]))
    torch.set_num_threads(int(spec["threads"]))
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    pretrain(PretrainRecipe.model_validate(spec["recipe"]), Path(spec["dataset"]), Path(spec["output"]))


if __name__ == "__main__":
    main(sys.argv[1:])
