"""Cloze, tags and spans against the same thing written out with plain transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_objectives import Made
from torch.nn.functional import cross_entropy
from torch.testing import assert_close
from training_fixtures import make_run, recipe, said
from training_tokenizers import encoder

from orchestrator.data.store import SplitWriter
from orchestrator.errors import BadData, BadRecipe
from orchestrator.recipe.tasks import Cloze
from orchestrator.tasks.metrics import score
from orchestrator.training.objectives.cloze import ClozeWord
from orchestrator.training.objectives.objective import Share
from orchestrator.training.predict import Predictor
from orchestrator.training.rows import Rows
from orchestrator.tuning import RowBatch, forward


def loss(made: Made, rows: list[dict[str, str]]) -> torch.Tensor:
    examples = [made.objective.example(row) for row in rows]
    batch = RowBatch.collate([example.row for example in examples], pad_id=0)
    output = forward(made.host, batch, [made.prompt], hidden=made.objective.reads_hidden)
    share = Share.of(output, 0, range(len(rows)), len(rows))
    return made.objective.loss_sum(share, examples, made.head) / sum(example.units for example in examples)


def predictions(made: Made, rows: list[dict[str, str]]) -> list[str]:
    with torch.no_grad():
        together = said(made.host, made.objective, made.prompt, made.head, rows, tuned=True)
        alone = [said(made.host, made.objective, made.prompt, made.head, [row], tuned=True)[0] for row in rows]
    assert together == alone
    return together


FACTS = [
    {"sub": "red cat and blue house", "obj_label": "river"},
    {"sub": "stone", "obj_label": "bird"},
    {"sub": "tree", "obj_label": "a river"},
    {"sub": "tree", "obj_label": "Paris"},
]


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_a_missing_word_among_those_of_a_vocabulary(name: str, bases: dict[str, Path], tmp_path: Path) -> None:
    words = tmp_path / "words.txt"
    words.write_text("river\nbird\nhouse\nwarm water\nParis\n\n", encoding="utf-8")
    task = {"type": "cloze", "input": "the {sub} is [MASK] ." if name == "bert" else "the {sub} is"}
    made = Made(bases[name], name, task | {"vocabulary": str(words)})
    usable = list(made.objective.usable(FACTS))
    assert usable == FACTS[:2]  # of several tokens, and not in the base's vocabulary
    river, bird = (str(made.tokenizer.convert_tokens_to_ids(word)) for word in ("river", "bird"))
    assert made.objective.references(FACTS) == ([0, 1], [[river], [bird]])
    with pytest.raises(BadData, match="'a river' is not one token"):
        made.objective.example(FACTS[2])
    losses, expected, free = [], [], []
    for row in usable:
        text = made.tokenizer(task["input"].replace("{sub}", row["sub"]))["input_ids"]
        at = text.index(made.tokenizer.mask_token_id) if name == "bert" else len(text) - 1
        logits = made.model(inputs_embeds=made.embedded(text)).logits[0, 2 + at]
        ids = made.tokenizer.convert_tokens_to_ids(["river", "bird", "house"])
        losses.append(cross_entropy(logits, torch.tensor(ids[["river", "bird"].index(row["obj_label"])])))
        expected.append(["river", "bird", "house"][int(logits[ids].argmax())])
        free.append(made.tokenizer.decode([int(logits.argmax())]).strip())
    assert_close(loss(made, usable), torch.stack(losses).mean())
    assert predictions(made, usable) == expected
    assert predictions(Made(bases[name], name, task), usable) == free


def test_words_that_read_alike_are_told_apart_by_their_tokens() -> None:
    """`Ġthe` in running text and `the` at its start: LAMA compares tokens, and so do the scores."""
    text = encoder("gpt2", context=64)
    task = Cloze.model_validate({"type": "cloze", "input": "{sub}", "target": "{obj}"})
    objective = ClozeWord(task, text)
    running, bare = (text.tokens(word)[0] for word in (" the", "the"))
    assert running != bare
    rows = [{"sub": "a red", "obj": "the"}]
    assert objective.references(rows) == ([0], [[str(running)]])
    right, wrong = objective.chosen(torch.tensor([running, bare]), rows * 2)
    assert right.text == wrong.text == objective.word(str(running)) == "the"
    assert [score(["p_at_1"], [said.scored], [[str(running)]])["p_at_1"] for said in (right, wrong)] == [1, 0]


def test_vocabularies_that_cannot_be_used(bases: dict[str, Path], tmp_path: Path) -> None:
    task = {"type": "cloze", "input": "the {sub} is [MASK] .", "vocabulary": str(tmp_path / "none.txt")}
    with pytest.raises(BadRecipe, match="cannot be read"):
        Made(bases["bert"], "bert", task)
    (tmp_path / "none.txt").write_text("Paris\n", encoding="utf-8")
    with pytest.raises(BadRecipe, match="no word that is one token"):
        Made(bases["bert"], "bert", task)
    made = Made(bases["bert"], "bert", {"type": "cloze", "input": "the {sub} is [MASK] ."})
    for call in (made.objective.usable, made.objective.references):
        with pytest.raises(BadData, match="of 1 rows none has a word"):
            call(FACTS[3:])


TAGGED = [
    {"tokens": '["red", "cat", "and", "white", "house"]', "tags": '["O", "B-X", "O", "B-X", "I-X"]'},
    {"tokens": "stone", "tags": "O"},
    {"tokens": "blue warm bird", "tags": "I-X O O"},
]
TAGS = ["O", "B-X", "I-X"]


def test_every_word_gets_the_tag_of_its_first_token(bases: dict[str, Path]) -> None:
    made = Made(
        bases["bert"], "bert", {"type": "tag", "input": "the {tokens} .", "labels": TAGS, "max_input_tokens": 6}
    )
    losses, expected = [], []
    for row, kept in zip(TAGGED, (5, 1, 3), strict=True):
        words = json.loads(row["tokens"]) if row["tokens"][0] == "[" else row["tokens"].split()
        tags = json.loads(row["tags"]) if row["tags"][0] == "[" else row["tags"].split()
        text = [4, *made.ids("the " + " ".join(words[:kept]) + (" ." if kept < 5 else "")), 5]
        hidden = made.model.bert(inputs_embeds=made.embedded(text)).last_hidden_state[0, 4 : 4 + kept]
        scores = made.head(hidden)  # type: ignore[misc]
        losses.append(cross_entropy(scores, torch.tensor([TAGS.index(t) for t in tags[:kept]]), reduction="none"))
        expected.append(" ".join([*(TAGS[i] for i in scores.argmax(-1)), *["O"] * (len(words) - kept)]))
    assert_close(loss(made, TAGGED), torch.cat(losses).mean())
    assert predictions(made, TAGGED) == expected
    assert made.objective.references(TAGGED)[1][0] == ["O B-X O B-X I-X"]


def test_a_row_without_words_has_no_tags(bases: dict[str, Path]) -> None:
    """GPT-2 opens a text with nothing, so nothing would be left of the row."""
    made = Made(bases["gpt2"], "gpt2", {"type": "tag", "input": "{tokens}", "labels": TAGS, "max_input_tokens": 6})
    assert predictions(made, [{"tokens": "", "tags": ""}]) == [""]


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"tokens": "a cat", "tags": "O"}, "2 words and 1 tags"),
        ({"tokens": "a", "tags": "B-Y"}, "the tag 'B-Y'"),
        ({"tokens": "", "tags": ""}, "no word"),
        ({"tokens": '[{"a": 1}]', "tags": "O"}, "not a list of texts"),
    ],
)
def test_rows_that_cannot_be_tagged(row: dict[str, str], what: str, bases: dict[str, Path]) -> None:
    made = Made(bases["bert"], "bert", {"type": "tag", "labels": TAGS})
    with pytest.raises(BadData, match=what):
        made.objective.example(row)
    if row["tokens"]:
        with pytest.raises(BadData, match=what):
            made.objective.references([row])  # before any library counts


CONTEXT = "the red cat and the blue house and a white bird is warm"
ASKED = [
    {"question": "the cat", "context": CONTEXT, "answers": '[{"text": "white bird", "answer_start": 37}]'},
    {"question": "house", "context": CONTEXT, "answers": '{"text": ["blue house"], "answer_start": [20]}'},
    {"question": "is", "context": "stone", "answers": "stone"},
]


def test_a_span_is_the_best_pair_of_its_ends(bases: dict[str, Path]) -> None:
    made = Made(bases["bert"], "bert", {"type": "span", "max_input_tokens": 40, "max_answer_tokens": 3})
    losses, expected = [], []
    for row, (first, last) in zip(ASKED, ((9, 10), (5, 6), (0, 0)), strict=True):
        context = row["context"].split()
        text = [4, *made.ids(row["question"]), 5, *made.ids(row["context"])]
        begin = len(text) - len(context)
        # The fixture's tokenizer puts nothing between two texts.
        text = [token for i, token in enumerate(text) if i != begin - 1] + [5]
        hidden = made.model.bert(inputs_embeds=made.embedded(text)).last_hidden_state[0, 2 + begin - 1 :][
            : len(context)
        ]
        start, end = made.head(hidden.detach()).T  # type: ignore[misc]
        losses.append((cross_entropy(start, torch.tensor(first)) + cross_entropy(end, torch.tensor(last))) / 2)
        pairs = [(i, j) for i in range(len(context)) for j in range(i, min(len(context), i + 3))]
        i, j = max(pairs, key=lambda pair: float((start[pair[0]] + end[pair[1]]).detach()))
        expected.append(" ".join(context[i : j + 1]))
    assert_close(loss(made, ASKED), torch.stack(losses).mean())
    assert predictions(made, ASKED) == expected
    assert made.objective.references(ASKED)[1] == [["white bird"], ["blue house"], ["stone"]]


def test_long_contexts_become_windows_that_overlap(bases: dict[str, Path]) -> None:
    made = Made(bases["bert"], "bert", {"type": "span", "max_input_tokens": 16, "stride": 4})
    words = [
        f"{colour} {thing}" for colour in ("red", "blue", "white") for thing in ("cat", "stone", "tree", "bird")
    ] * 2
    context = " and ".join(words)
    at = context.rindex("white stone")
    answers = json.dumps([{"text": "white stone", "answer_start": at}])
    row = {"question": "the", "context": context, "answers": answers}
    windows = made.objective._windows(row, tuned=True)  # type: ignore[attr-defined]
    ids = made.ids(context)
    seen = [window.row.ids[window.first : window.first + len(window.characters)] for window in windows]
    assert all(len(part) <= 15 for part in seen)
    assert seen[0][-4:] == seen[1][:4]
    assert seen[-1][-1] == ids[-1]
    example = made.objective.example(row)
    first, last = example.targets
    assert made.tokenizer.decode(example.row.ids[first : last + 1]) == "white stone"
    assert predictions(made, [row, ASKED[0]])[0] in context


def test_rows_without_an_answer(bases: dict[str, Path]) -> None:
    row = {"question": "the", "context": "red cat", "answers": "[]"}
    with pytest.raises(BadData, match="a row has no answer"):
        Made(bases["bert"], "bert", {"type": "span"}).objective.example(row)
    made = Made(bases["bert"], "bert", {"type": "span", "unanswerable": True})
    assert made.objective.example(row).targets == (2, 2)  # [CLS], behind two virtual tokens
    assert made.objective.references([row])[1] == [[""]]
    with torch.no_grad():
        made.head.bias.zero_()  # type: ignore[union-attr, operator]
        made.head.weight.zero_()  # type: ignore[union-attr, operator]
    assert predictions(made, [row]) == [""]
    with pytest.raises(BadData, match="does not stand in its context"):
        made.objective.example(row | {"answers": "bird"})


@pytest.mark.parametrize(
    "method", [{"type": "p-tuning-v2", "length": 2, "dropout": 0}, {"type": "fine-tuning"}, {"type": "head"}]
)
@pytest.mark.parametrize("kind", ["tag", "span", "cloze"])
def test_from_the_job_to_its_use(kind: str, method: dict[str, Any], bases: dict[str, Path], tmp_path: Path) -> None:
    if (kind, method["type"]) == ("cloze", "head"):
        return  # a cloze has no head
    tasks = {
        "tag": {"type": "tag", "labels": TAGS},
        "span": {"type": "span"},
        "cloze": {"type": "cloze", "input": "{sub} [MASK]"},
    }
    rows = {"tag": TAGGED, "span": ASKED, "cloze": FACTS[:2]}[kind]
    for split in ("train", "validation"):
        (tmp_path / "data").mkdir(exist_ok=True)
        writer = SplitWriter(tmp_path / "data" / f"{split}.arrow", list(rows[0]))
        for row in rows:
            writer.add(list(row.values()))
        writer.close()
    one = recipe(method, task=tasks[kind], train__lr=3e-3 if method["type"] != "p-tuning-v2" else 0.1, train__steps=12)
    run = make_run(tmp_path / "run", [one], base=bases["bert"], dataset=tmp_path / "data", kind="masked")
    assert run.train() == 0
    facts, losses = run.artifact(), run.losses()
    assert losses[12] < losses[1]
    folder = run.jobs[0].artifact(1)
    said = [
        r["prediction"] for r in Predictor.load(folder, bases["bert"]).predict(Rows.open(tmp_path / "data", "train"))
    ]
    assert said[:5] == [sample["tuned"] for sample in facts["samples"]]
