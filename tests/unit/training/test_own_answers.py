"""Answers that are a row's own, against the same scored one candidate at a time with plain transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_objectives import METHOD, Made, continued, decoded
from torch.testing import assert_close
from training_fixtures import MadeRun, make_run, recipe, said

from orchestrator.data.store import SplitWriter
from orchestrator.errors import BadData
from orchestrator.recipe.schema import JobRecipe
from orchestrator.training.distributed import Processes
from orchestrator.training.job import build_prompt
from orchestrator.training.objectives import build_objective
from orchestrator.training.objectives.asking import Asked, answer
from orchestrator.training.objectives.objective import Share
from orchestrator.training.pattern_weights import Patterns
from orchestrator.training.predict import Predictor
from orchestrator.tuning import Prompt, RowBatch, forward

#: Unlike numbers of candidates, of one to three tokens; several of them right.
ROWS = [
    {"text": "red cat and", "list": '["cat", "blue house", "the red bird"]', "right": "blue house",
     "a": "cat", "b": "a red bird", "label": "0"},
    {"text": "stone", "list": "bird\nwhite tree", "right": '["white tree", "bird"]',
     "a": "blue tree", "b": "river", "label": "1"},
    {"text": "the black tree is cold and", "list": '["tree", "river", "black stone", "a bird", "house"]',
     "right": '["river", "black stone"]', "a": "white stone and cat", "b": "tree", "label": "1"},
    {"text": "white", "list": '["cat"]', "right": "cat", "a": "the cat", "b": "the bird", "label": "0"},
]  # fmt: skip
LIST = {"type": "classify", "candidates": "{list}", "label": "{right}", "metrics": ["record_em", "record_f1"]}
PAIR = {"type": "classify", "labels": {"0": ["{a}"], "1": ["{b}"]}}
TASKS = {"list": LIST, "pair": PAIR}


def offered(task: dict[str, Any], row: dict[str, str]) -> tuple[dict[str, str], list[str]]:
    """({name: its word}, the names that are right), by hand."""
    if task is PAIR:
        return {"0": row["a"], "1": row["b"]}, [row["label"]]
    listed = json.loads(row["list"]) if row["list"].startswith("[") else row["list"].split("\n")
    right = json.loads(row["right"]) if row["right"].startswith("[") else [row["right"]]
    return {word: word for word in listed}, right


def loss_of(made: Made, rows: Any) -> torch.Tensor:
    """All rows in one forward."""
    examples = [made.objective.example(row) for row in rows]
    output = forward(made.host, RowBatch.collate([e.row for e in examples], pad_id=0), [made.prompt])
    return made.objective.loss_sum(Share.of(output, 0, range(len(rows)), len(rows)), examples, None)


def probabilities(made: Made, *, most: int) -> list[dict[str, float]]:
    (found,) = answer(made.host, [Asked(made.objective, made.prompt, None, ROWS)], most=most)
    assert [one.text for one in found] == [
        max(one.probabilities or {}, key=(one.probabilities or {}).get) for one in found
    ]  # type: ignore[arg-type]
    return [one.probabilities or {} for one in found]


@pytest.mark.parametrize("task", list(TASKS))
@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_likelihoods_of_a_rows_own_words(name: str, task: str, bases: dict[str, Path]) -> None:
    made = Made(bases[name], name, {**TASKS[task], "input": "the {text}", "separator": "is "})
    losses, expected = [], []
    for row in ROWS:
        words, right = offered(TASKS[task], row)
        each = {}
        for called, word in words.items():
            ids = made.ids(f"the {row['text']}")
            if name == "gpt2":
                each[called] = continued(made, [*ids, *made.ids("is")], made.ids(word))
            else:
                each[called] = decoded(made, [*ids, 2], [*made.ids(word), 2])
        losses += [each[called].sum() for called in right]
        shares = torch.stack([-one.mean() for one in each.values()]).softmax(0)
        expected.append(dict(zip(each, shares.tolist(), strict=True)))
    rows = made.objective.usable(ROWS)
    assert len(rows) == len(losses) == (6 if task == "list" else 4)
    assert_close(loss_of(made, rows), torch.stack(losses).sum())
    for most in (2, 100):
        for found, wanted in zip(probabilities(made, most=most), expected, strict=True):
            assert list(found) == list(wanted)
            assert found == pytest.approx(wanted, rel=1e-4)


class Pet:
    """The equations of PET's §3.1 (Schick & Schütze 2021), with virtual tokens in front of what the base reads."""

    def __init__(self, made: Made) -> None:
        self.made, self.mask = made, made.tokenizer.mask_token_id

    def logs(self, z: list[int]) -> torch.Tensor:
        """[tokens, V]"""
        return self.made.model(inputs_embeds=self.made.embedded(z)).logits[0, 2:].log_softmax(-1)

    def masked(self, row: dict[str, str], masks: int) -> tuple[list[int], list[int]]:
        text = f"the {row['text']} is {' '.join(['[MASK]'] * masks)} and red"
        z = list(self.made.tokenizer(text)["input_ids"])
        return z, [i for i, token in enumerate(z) if token == self.mask]

    def q(self, tokens: list[int], z: list[int], places: list[int]) -> torch.Tensor:
        if not tokens:
            return torch.zeros(())
        logs = self.logs(z)
        each = [logs[place, token] for place, token in zip(places, tokens, strict=True)]
        j = max(range(len(each)), key=lambda i: float(each[i]))
        z = [tokens[j] if i == places[j] else t for i, t in enumerate(z)]
        return each[j] + self.q(tokens[:j] + tokens[j + 1 :], z, places[:j] + places[j + 1 :])

    def hinge(self, row: dict[str, str], words: dict[str, str], right: str) -> torch.Tensor:
        spelled = {name: self.made.ids(word) for name, word in words.items()}
        z, places = self.masked(row, max(map(len, spelled.values())))
        logs = self.logs(z)
        scores = {
            name: torch.stack([logs[places[i], token] for i, token in enumerate(tokens)]).sum()
            for name, tokens in spelled.items()
        }
        others = [1 - scores[right] + score for name, score in scores.items() if name != right]
        return sum((torch.clamp(other, min=0) for other in others), torch.zeros(()))


@pytest.mark.parametrize("task", list(TASKS))
def test_masks_for_a_rows_own_words(task: str, bases: dict[str, Path]) -> None:
    """As ReCoRD's and COPA's helpers of PET score them; a right candidate is learnt without the other right ones."""
    made = Made(bases["bert"], "bert", {**TASKS[task], "input": "the {text} is [MASK] and red"})
    pet, losses, expected = Pet(made), [], []
    for row in ROWS:
        words, right = offered(TASKS[task], row)
        for one in right:
            kept = {name: word for name, word in words.items() if name == one or name not in right}
            losses.append(pet.hinge(row, kept, one))
        with torch.no_grad():
            spelled = {name: made.ids(word) for name, word in words.items()}
            scores = [pet.q(tokens, *pet.masked(row, len(tokens))) for tokens in spelled.values()]
        expected.append(dict(zip(words, torch.stack(scores).softmax(0).tolist(), strict=True)))
    rows = made.objective.usable(ROWS)
    assert len(rows) == len(losses)
    assert_close(loss_of(made, rows), torch.stack(losses).sum(), rtol=1e-5, atol=1e-5)
    for most in (3, 100):
        for found, wanted in zip(probabilities(made, most=most), expected, strict=True):
            assert list(found) == list(wanted)
            assert found == pytest.approx(wanted, rel=1e-4, abs=1e-7)


def test_words_that_a_base_reads_alike_teach_nothing(bases: dict[str, Path]) -> None:
    """An uncased base, a vocabulary without a name: a whole dataset is not refused for one such row."""
    made = Made(bases["bert"], "bert", {**LIST, "input": "{text} [MASK]"})
    row = {"text": "red", "list": '["Paris", "Oslo", "cat"]', "right": "Paris"}
    (found,) = made.objective.usable([row])
    only = Made(bases["bert"], "bert", {**LIST, "input": "{text} [MASK]"})
    fewer = {**row, "list": '["Paris", "cat"]'}
    assert_close(loss_of(made, [found]), loss_of(only, [fewer]))


def test_references_are_all_that_is_right(bases: dict[str, Path]) -> None:
    made = Made(bases["bert"], "bert", {**LIST, "input": "{text} [MASK]"})
    assert made.objective.references(ROWS)[1][1:3] == [["white tree", "bird"], ["river", "black stone"]]
    task = {**LIST, "metrics": ["wsc"], "holds": "{label}", "input": "{text} [MASK]"}
    some = Made(bases["bert"], "bert", task)
    numbers, found = some.objective.references(ROWS)
    assert (numbers, [len(row) for row in found]) == ([0, 1, 2, 3], [2, 2, 2, 2])
    rows = some.objective.usable(ROWS)
    assert [row["text"] for row in rows] == ["stone", "stone", ROWS[2]["text"], ROWS[2]["text"]]


def test_patterns_have_their_mean(bases: dict[str, Path]) -> None:
    """PET's ensemble of two patterns over unlike numbers of candidates, causal and masked, and what each has right."""
    for name, texts in (
        ("gpt2", ["the {text} is ", "a {text} and "]),
        ("bert", ["the {text} [MASK]", "[MASK] is {text}"]),
    ):
        made = Made(bases[name], name, {**LIST, "input": texts[0]})
        raw = recipe({"type": "pet", "patterns": texts[1:]}, task={**LIST, "input": texts[0]})
        del raw["train"]["steps"], raw["train"]["lr"]
        both = JobRecipe.model_validate(raw)
        encoder, _ = build_prompt(both, made.host, context=64)
        objective = build_objective(both, encoder)
        assert len(objective.usable(ROWS)) == 12
        (found,) = answer(made.host, [Asked(objective, Prompt.empty(), None, ROWS)], most=100)
        logs: list[dict[str, float]] = [{} for _ in ROWS]
        raw["method"]["weights"] = "accuracy"
        alone = Processes(None, 0, 1, torch.device("cpu"), None)  # type: ignore[arg-type]
        weighed = Patterns.open(JobRecipe.model_validate(raw), made.host, encoder, ROWS, alone, {})
        accuracies = []
        for text in texts:
            one = both.model_copy(
                update={
                    "task": both.task.model_copy(update={"input": text}),
                    "method": JobRecipe.model_validate(recipe(METHOD)).method,
                }
            )
            (its,) = answer(made.host, [Asked(build_objective(one, encoder), Prompt.empty(), None, ROWS)], most=100)
            right = [of.text in offered(LIST, row)[1] for of, row in zip(its, ROWS, strict=True)]
            accuracies.append(sum(right) / len(right))
            for log, of in zip(logs, its, strict=True):
                for word, share in (of.probabilities or {}).items():
                    log[word] = log.get(word, 0.0) + torch.tensor(share).log().item() / 2
        assert weighed.accuracies == accuracies
        assert 0 < sum(accuracies) < 2
        for one_row, log in zip(found, logs, strict=True):
            wanted = dict(zip(log, torch.tensor(list(log.values())).softmax(0).tolist(), strict=True))
            assert one_row.probabilities == pytest.approx(wanted, rel=1e-4, abs=1e-7)


@pytest.fixture(scope="module")
def own_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    for split, count in {"train": 16, "validation": 6}.items():
        names = [*ROWS[0], "target"]
        writer = SplitWriter(folder / f"{split}.arrow", names)
        for i in range(count):
            writer.add([*ROWS[i % 4].values(), "cat"])
        writer.close()
    return folder


def jobs(kind: str, methods: list[dict[str, Any]]) -> list[dict[str, Any]]:
    mask = " [MASK]" if kind == "masked" else ""
    found = []
    for number, method in enumerate(methods):
        task = (LIST, PAIR)[number % 2]
        slot = "[P:2] " if method["type"] == "p-tuning" else ""
        text = {"input": f"{slot}the {{text}} is{mask}"} | ({} if mask else {"separator": " "})
        found.append(recipe(method, task=task | text, train__seeds=[number], train__steps=3))
    return found


METHODS: list[dict[str, Any]] = [
    {"type": "prompt-tuning", "length": 3},
    {"type": "p-tuning"},
    {"type": "prefix-tuning", "length": 2},
    {"type": "p-tuning-v2", "length": 2, "dropout": 0.0},
]
GENERATE = {"type": "generate", "input": "{text}", "target": "{target}", "max_new_tokens": 3}
BESIDE = recipe({"type": "prompt-tuning", "length": 2}, train__steps=3, task=GENERATE)
CLOZE = BESIDE | {"task": {"type": "cloze", "input": "{text} [MASK]", "target": "{target}"}}


@pytest.mark.parametrize(
    ("base", "kind", "methods"),
    [("gpt2", "causal", METHODS), ("t5", "seq2seq", METHODS[:3]), ("bert", "masked", METHODS)],
)
def test_beside_other_jobs_each_is_as_if_alone(
    base: str, kind: str, methods: list[dict[str, Any]], bases: dict[str, Path], own_rows: Path, tmp_path: Path
) -> None:
    recipes = [*jobs(kind, methods), CLOZE if kind == "masked" else BESIDE]
    fused = make_run(tmp_path / "fused", recipes, base=bases[base], dataset=own_rows, kind=kind)
    assert fused.train() == 0
    for number in (0, len(methods) - 1):
        alone = make_run(tmp_path / f"{number}", [recipes[number]], base=bases[base], dataset=own_rows, kind=kind)
        assert alone.train() == 0
        assert len(alone.losses()) == 3
        assert fused.losses(number) == pytest.approx(alone.losses(), rel=2e-5)
        mine, theirs = (
            load_file(run.artifact(1) / "prompt.safetensors") for run in (fused.jobs[number], alone.jobs[0])
        )
        assert_close(mine, theirs, rtol=2e-4, atol=2e-5)
        assert fused.artifact(number)["metrics"] == alone.artifact()["metrics"]
    _predict_alike([fused.jobs[number].artifact(1) for number in range(len(methods))], bases[base])


def _predict_alike(folders: list[Path], base: Path) -> None:
    """Together in one forward, and each alone; a row's answer is one of its own, and needs no right one."""
    rows = [{name: row[name] for name in ("text", "list", "a", "b")} for row in ROWS]
    together = list(Predictor.load(folders[0], base, *folders[1:]).answers(rows))
    for number, folder in enumerate(folders):
        alone = [found for (found,) in Predictor.load(folder, base).answers(rows)]
        for row, mine, its in zip(ROWS, (found[number] for found in together), alone, strict=True):
            assert list(mine.probabilities or {}) == list(offered((LIST, PAIR)[number % 2], row)[0])
            assert mine.probabilities == pytest.approx(its.probabilities, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("method", ["fine-tuning", "lora", "pet", "prompt-design"])
def test_methods_that_have_the_base_for_themselves(
    method: str, bases: dict[str, Path], own_rows: Path, tmp_path: Path
) -> None:
    settings = {"fine-tuning": {}, "lora": {"targets": ["query"]}, "pet": {"mlm": 1e-3}, "prompt-design": {"shots": 3}}
    task = {**LIST, "input": "{text} [MASK]"}
    one = recipe({"type": method, **settings[method]}, task=task, train__steps=3, train__lr=1e-2)
    if method == "pet":
        one["train"]["base_lr"] = one["train"].pop("lr")
    if method == "prompt-design":
        del one["train"]["steps"], one["train"]["lr"]
    run = make_run(tmp_path / "run", [one], base=bases["bert"], dataset=own_rows, kind="masked")
    assert run.train() == 0, run.events(0, "failed")
    facts = run.artifact()
    assert set(facts["metrics"]["validation"]) == {"record_em", "record_f1"}
    assert len(facts["demonstrations"]) == (3 if method == "prompt-design" else 0)
    assert all("\0" not in key for row in facts["demonstrations"] for key in row)
    _predict_alike([run.jobs[0].artifact(1)], bases["bert"])


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"list": "[]"}, "no candidates"),
        ({"right": "lake"}, "`lake` is not among"),
        ({"list": "cat\ncat"}, "`cat` twice"),
    ],
)
def test_a_bad_row_is_told_by_its_number(change: dict[str, str], what: str, bases: dict[str, Path]) -> None:
    made = Made(bases["bert"], "bert", {**LIST, "input": "{text} [MASK]"})
    with pytest.raises(BadData, match=what) as caught:
        made.objective.usable([*ROWS, ROWS[0] | change])
    assert caught.value.where == "train row 5"
    assert said(made.host, made.objective, made.prompt, None, ROWS[:1], tuned=False)


def test_what_does_not_fit_a_base_is_told_by_its_row_too(bases: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for split in ("train", "validation"):
        writer = SplitWriter(folder / f"{split}.arrow", ["text", "list", "right"])
        writer.add(["red", '["cat", "bird"]', '["cat", "bird"]'])
        writer.add(["red", json.dumps(["cat", "cat " * 70]), "cat"])
        writer.close()
    one = recipe(METHOD, task={**LIST, "input": "{text} is", "separator": ""})
    run: MadeRun = make_run(tmp_path / "run", [one], base=bases["gpt2"], dataset=folder)
    assert run.train() == 1
    (failed,) = run.events(0, "failed")
    assert (failed["reason"], "train row 2" in failed["message"]) == ("bad_data", True), failed
