"""Which words are nearest to the virtual tokens (Lester et al. 2021, §7).

Weak evidence: a prompt can be forced to lie near any words (Khashabi et al. 2022)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from orchestrator.tuning.host import BaseHost

TOP = 5

_AT_A_TIME = 8192  # words whose embeddings are looked up in one call: 32 MiB at a width of 1,024


@torch.no_grad()
def neighbours(host: BaseHost, embeddings: Tensor, words: Sequence[str] = (), *, top: int = TOP) -> dict[str, Any]:
    """The report on virtual tokens [n, H] as JSON: for each its norm and the words with the largest cosines; which of
    them share their nearest word; and which of `words` (class labels) are near any.

    With ZeRO-3 every rank must call it: the embeddings are gathered.
    """
    prompt = embeddings.detach().float().to(host.device)
    cosines, ids = _nearest(host, prompt, min(top, host.vocab_size))
    near = [
        {
            "number": number,
            "norm": float(row.norm()),
            "neighbours": [
                {"id": id_, "token": _text(host, id_), "cosine": cosine}
                for id_, cosine in zip(ids[number - 1].tolist(), cosines[number - 1].tolist(), strict=True)
            ],
        }
        for number, row in enumerate(prompt, start=1)
    ]
    first = ids[:, 0].tolist()
    shared = [id_ for id_ in dict.fromkeys(first) if first.count(id_) > 1]
    return {
        "format": 1,
        "measure": "cosine",
        "virtual_tokens": near,
        "duplicates": [
            {"id": id_, "token": _text(host, id_), "numbers": [n for n, own in enumerate(first, start=1) if own == id_]}
            for id_ in shared
        ],
        "label_words": {word: _numbers_near(host, word, ids.tolist()) for word in words},
    }


def _nearest(host: BaseHost, prompt: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """([n, top] cosines, [n, top] ids), the largest first."""
    unit = functional.normalize(prompt, dim=-1)
    best = unit.new_full((len(unit), 0), 0.0)
    ids = torch.zeros(len(unit), 0, dtype=torch.long, device=unit.device)
    for start in range(0, host.vocab_size, _AT_A_TIME):
        here = torch.arange(start, min(start + _AT_A_TIME, host.vocab_size), device=unit.device)
        table = functional.normalize(host.embed(here[None])[0].float(), dim=-1)
        best = torch.cat([best, unit @ table.T], dim=1)
        ids = torch.cat([ids, here.expand(len(unit), -1)], dim=1)
        best, order = best.topk(min(top, best.shape[1]), dim=1)
        ids = ids.gather(1, order)
    return best, ids


def _numbers_near(host: BaseHost, word: str, ids: Iterable[Sequence[int]]) -> list[int]:
    """Virtual tokens that have the word among their neighbours: as one token, with or without a space before it."""
    spellings = [host.tokenizer(text, add_special_tokens=False)["input_ids"] for text in (word, f" {word}")]
    single = {tokens[0] for tokens in spellings if len(tokens) == 1}
    unknown = getattr(host.tokenizer, "unk_token_id", None)
    return [number for number, near in enumerate(ids, start=1) if (single - {unknown}) & set(near)]


def _text(host: BaseHost, id_: int) -> str:
    """The token as the vocabulary writes it; rows of the table beyond the vocabulary have no name."""
    token = host.tokenizer.convert_ids_to_tokens(id_) if host.tokenizer is not None else None
    return f"[{id_}]" if token is None else str(token)
