"""The words nearest to virtual tokens, against all cosines at once."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from tiny_bases import V, host
from torch.nn import functional

from orchestrator.tuning import BaseHost
from orchestrator.tuning import neighbours as module
from orchestrator.tuning.neighbours import neighbours


class Words:
    """Word w7 is id 7; a space before a word makes no difference but for w9, which is two tokens then."""

    unk_token_id = 3

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        ids = [int(word[1:]) if word[1:].isdigit() else 3 for word in text.split()]
        return {"input_ids": [4, *ids] if text == " w9" else ids}

    def convert_ids_to_tokens(self, id_: int) -> str | None:
        return f"w{id_}" if id_ < V - 1 else None


@pytest.fixture
def base() -> BaseHost:
    made = host("gpt2")
    made.tokenizer = Words()
    return made


def near(report: dict[str, Any], number: int) -> list[int]:
    return [one["id"] for one in report["virtual_tokens"][number - 1]["neighbours"]]


@pytest.mark.parametrize("at_a_time", [7, 10_000])
def test_the_largest_cosines(base: BaseHost, at_a_time: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_AT_A_TIME", at_a_time)
    torch.manual_seed(0)
    prompt = torch.randn(4, base.embedding_width) * torch.tensor([[1.0], [300.0], [0.01], [5.0]])
    table = base.model.get_input_embeddings().weight.detach()
    every = functional.cosine_similarity(prompt[:, None], table[None], dim=-1)
    report = neighbours(base, prompt)
    for number, row in enumerate(every, start=1):
        assert near(report, number) == row.topk(5).indices.tolist()
        found = [one["cosine"] for one in report["virtual_tokens"][number - 1]["neighbours"]]
        assert found == pytest.approx(row.topk(5).values.tolist(), abs=1e-6)
        assert report["virtual_tokens"][number - 1]["norm"] == pytest.approx(float(prompt[number - 1].norm()), rel=1e-6)
    assert json.loads(json.dumps(report)) == report


def test_duplicates_and_label_words(base: BaseHost) -> None:
    table = base.model.get_input_embeddings().weight.detach()
    report = neighbours(base, table[[20, 9, 20, V - 1, 31]] * 3, ["w20", "w9", "w50", "neverseen", "w7 w8"], top=1)
    assert [near(report, n) for n in range(1, 6)] == [[20], [9], [20], [V - 1], [31]]
    assert report["duplicates"] == [{"id": 20, "token": "w20", "numbers": [1, 3]}]
    assert report["label_words"] == {"w20": [1, 3], "w9": [2], "w50": [], "neverseen": [], "w7 w8": []}
    assert report["virtual_tokens"][3]["neighbours"][0]["token"] == f"[{V - 1}]"
