"""PET beyond one mask and one loss, against the papers' equations written out on transformers' own BERT."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_objectives import ROWS
from test_resume import interrupted_at
from torch.nn.functional import cross_entropy
from training_fixtures import make_run, recipe
from transformers import AutoModelForMaskedLM, AutoTokenizer

from orchestrator.data.store import SplitWriter
from orchestrator.events import NoEvents
from orchestrator.jobspec import JobSpec
from orchestrator.recipe.schema import JobRecipe
from orchestrator.training import evaluate, pattern_weights
from orchestrator.training.distributed import Processes
from orchestrator.training.job import TrainedJob, build_prompt
from orchestrator.training.objectives import asking, build_objective
from orchestrator.training.objectives.asking import Asked, Talks
from orchestrator.training.objectives.objective import Share
from orchestrator.training.pattern_weights import Patterns
from orchestrator.training.predict import Predictor
from orchestrator.training.rows import Rows
from orchestrator.training.stop import STOPPED_EXIT_CODE
from orchestrator.tuning import BaseHost, Prompt, RowBatch, forward, load

LABELS = {"warm": ["red"], "cold": ["black stone", "white river bird"]}
PATTERNS = ["the {text} is [MASK]", "[MASK] and {text}"]


def made(**changes: Any) -> dict[str, Any]:
    task = {"type": "classify", "input": PATTERNS[0], "labels": LABELS}
    one = recipe({"type": "pet", "patterns": PATTERNS[1:]}, task=task, **changes)
    del one["train"]["lr"]
    if one["train"].get("base_lr") is None:
        del one["train"]["steps"]
    return one


class Written:
    """The equations of the multi-mask paper's §3.1, a row and a label word at a time."""

    def __init__(self, base: Path) -> None:
        self.model = AutoModelForMaskedLM.from_pretrained(base).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(base)
        self.mask = self.tokenizer.mask_token_id

    def ids(self, pattern: str, row: dict[str, str], masks: int) -> list[int]:
        """P^k(x)"""
        text = pattern.format(text=row["text"]).replace("[MASK]", " ".join(["[MASK]"] * masks))
        return list(self.tokenizer(text)["input_ids"])

    def words(self) -> list[list[list[int]]]:
        return [[self.tokenizer(w, add_special_tokens=False)["input_ids"] for w in words] for words in LABELS.values()]

    def q(self, tokens: list[int], z: list[int], places: list[int]) -> torch.Tensor:
        """log q(t_1 … t_k | z): the token that is the likeliest at its own mask first."""
        if not tokens:
            return torch.zeros(())
        logs = self.model(torch.tensor([z])).logits[0].log_softmax(-1)
        each = [logs[place, token] for place, token in zip(places, tokens, strict=True)]
        j = max(range(len(each)), key=lambda i: float(each[i]))
        z = [tokens[j] if i == places[j] else t for i, t in enumerate(z)]
        return each[j] + self.q(tokens[:j] + tokens[j + 1 :], z, places[:j] + places[j + 1 :])

    def scores(self, pattern: str, row: dict[str, str]) -> torch.Tensor:
        found = []
        for words in self.words():
            of_words = []
            for word in words:
                z = self.ids(pattern, row, len(word))
                of_words.append(self.q(word, z, [i for i, t in enumerate(z) if t == self.mask]))
            found.append(torch.stack(of_words).mean())
        return torch.stack(found)

    def hinge(self, pattern: str, row: dict[str, str]) -> torch.Tensor:
        """Every other label has to stay 1 behind the right one; all masks are read in one forward."""
        most = max(len(word) for words in self.words() for word in words)
        z = self.ids(pattern, row, most)
        places = [i for i, t in enumerate(z) if t == self.mask]
        logs = self.model(torch.tensor([z])).logits[0].log_softmax(-1)
        scores = [
            sum(sum(logs[places[i], token] for i, token in enumerate(word)) for word in words) / len(words)
            for words in self.words()
        ]
        right = list(LABELS).index(row["label"])
        others = [1 - scores[right] + score for number, score in enumerate(scores) if number != right]
        return sum((torch.clamp(torch.as_tensor(other), min=0) for other in others), torch.zeros(()))


def test_words_of_several_tokens_are_filled_in_surest_first(bases: dict[str, Path]) -> None:
    written, host = Written(bases["bert"]), BaseHost.load(bases["bert"], kind="masked")
    one = JobRecipe.model_validate(made())
    encoder, _ = build_prompt(one, host, context=64)
    for tuned, shares, most in ((True, [], 4), (True, [0.75, 0.25], 100), (False, [0.75, 0.25], 100)):
        objective = build_objective(one, encoder, shares)
        assert isinstance(objective, Talks)
        patterns = dict(zip(PATTERNS, shares or [0.5, 0.5], strict=True)) if tuned else {PATTERNS[0]: 1.0}
        with torch.no_grad():
            (found,) = asking.answer(host, [Asked(objective, Prompt.empty(), None, ROWS[:3], tuned)], most=most)
            for row, said in zip(ROWS[:3], found, strict=True):
                each = [share * written.scores(pattern, row) for pattern, share in patterns.items()]
                expected = torch.stack(each).sum(0).softmax(-1)
                assert list(said.probabilities or {}) == list(LABELS)
                torch.testing.assert_close(
                    torch.tensor(list((said.probabilities or {}).values())), expected, rtol=1e-4, atol=1e-6
                )
                assert said.text == list(LABELS)[int(expected.argmax())]
    shown = objective.shown([ROW_COLD])
    assert host.tokenizer.decode(shown[0]) == f"the {ROW_COLD['text']} is black stone"


ROW_COLD = {"text": "blue cat", "label": "cold", "target": "cat"}


def test_their_loss_is_a_margin_in_one_forward(bases: dict[str, Path]) -> None:
    """With its gradients into the base, which is what PET trains."""
    written, host = Written(bases["bert"]), BaseHost.load(bases["bert"], kind="masked")
    one = JobRecipe.model_validate(made(train__base_lr=1e-3))
    encoder, _ = build_prompt(one, host, context=64)
    objective = build_objective(one, encoder)
    rows = objective.usable(ROWS)
    assert len(rows) == 2 * len(ROWS)
    examples = [objective.example(row) for row in rows]
    host.model.requires_grad_(True)
    output = forward(host, RowBatch.collate([e.row for e in examples], pad_id=0), [Prompt.empty()])
    loss = objective.loss_sum(Share.of(output, 0, range(len(rows)), len(rows)), examples, None)
    loss.backward()
    expected = sum((written.hinge(pattern, row) for row in ROWS for pattern in PATTERNS), torch.zeros(()))
    expected.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(loss.detach(), expected.detach(), rtol=1e-5, atol=1e-5)
    theirs = dict(written.model.named_parameters())
    for name, parameter in host.model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-3, atol=1e-4)


SHORT = {"warm": ["river", "tree"], "cold": ["blue"]}
THREE = ["the {text} is [MASK]", "[MASK] {text}", "is {text} [MASK] or the"]


class Weighed:
    """timoschick/pet's wmean: each pattern's logits times its accuracy before training, over their sum."""

    def __init__(self, base: Path) -> None:
        self.model = AutoModelForMaskedLM.from_pretrained(base).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(base)

    @torch.no_grad()
    def logits(self, pattern: str, text: str) -> torch.Tensor:
        ids = self.tokenizer(pattern.format(text=text))["input_ids"]
        scores = self.model(torch.tensor([ids])).logits[0, ids.index(self.tokenizer.mask_token_id)]
        words = [self.tokenizer.convert_tokens_to_ids(words) for words in SHORT.values()]
        return torch.stack([scores[theirs].mean() for theirs in words])

    def accuracies(self, rows: Sequence[Mapping[str, str]]) -> list[float]:
        labelled = [row for row in rows if row["label"]]
        right = [
            [list(SHORT)[int(self.logits(pattern, row["text"]).argmax())] == row["label"] for row in labelled]
            for pattern in THREE
        ]
        return [sum(one) / len(one) for one in right]

    def probabilities(self, accuracies: list[float], text: str) -> dict[str, float]:
        each = [right * self.logits(pattern, text) for pattern, right in zip(THREE, accuracies, strict=True)]
        found = (torch.stack(each).sum(0) / sum(accuracies)).softmax(-1)
        return dict(zip(SHORT, found.tolist(), strict=True))


def weighed(**changes: Any) -> dict[str, Any]:
    one = made(**changes)
    one["task"] |= {"input": THREE[0], "labels": SHORT}
    one["method"] = {"type": "pet", "patterns": THREE[1:], "weights": "accuracy"}
    return one


def test_patterns_weigh_what_they_get_right_untrained(bases: dict[str, Path], dataset: Path, tmp_path: Path) -> None:
    """In scores and in use, in company and alone."""
    jobs = [recipe({"type": "prompt-tuning", "length": 2}, task=weighed()["task"]), weighed()]
    run = make_run(tmp_path, jobs, base=bases["bert"], dataset=dataset, kind="masked")
    assert run.train() == 0
    written, rows = Weighed(bases["bert"]), list(Rows.open(dataset, "train"))
    accuracies = written.accuracies(rows)
    assert len(set(accuracies)) > 1
    told = run.artifact(1)["patterns"]
    assert [one["input"] for one in told] == THREE
    assert [one["accuracy"] for one in told] == accuracies
    assert [one["weight"] for one in told] == pytest.approx([right / sum(accuracies) for right in accuracies])
    said = list(Predictor.load(run.jobs[1].artifact(1), bases["bert"]).answers(rows))
    for row, (answer,) in zip(rows, said, strict=True):
        assert answer.probabilities == pytest.approx(written.probabilities(accuracies, row["text"]), rel=1e-4)
    alike = [written.probabilities([1.0] * 3, row["text"]) for row in rows]
    assert any(a.probabilities != pytest.approx(b, rel=0.01) for (a,), b in zip(said, alike, strict=True))
    right = [row["label"] == answer.text for row, (answer,) in zip(rows[:10], said, strict=False)]
    validation = list(Rows.open(dataset, "validation"))
    assert [row["text"] for row in validation] == [row["text"] for row in rows[:10]]
    assert run.artifact(1)["metrics"]["validation"]["accuracy"] == sum(right) / 10
    assert run.artifact(0)["patterns"] is None


def test_the_weights_outlive_a_stop(
    bases: dict[str, Path], few_labels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measured once, by the base as it was, over the rows that have a label; the trained base is then weighed so."""
    one = weighed(train__base_lr=2e-2)
    one["method"]["mlm"] = 1e-4
    with monkeypatch.context() as patch:
        interrupted_at(3, patch)
        broken = make_run(tmp_path, [one], base=bases["bert"], dataset=few_labels, kind="masked")
        assert broken.train() == STOPPED_EXIT_CODE
    monkeypatch.setattr(pattern_weights, "evaluate", lambda *_, **__: pytest.fail("measured again"))
    again = make_run(tmp_path, [one], base=bases["bert"], dataset=few_labels, kind="masked", attempt=2)
    assert again.train() == 0
    written, folder = Weighed(bases["bert"]), again.jobs[0].artifact(2)
    accuracies = written.accuracies(list(Rows.open(few_labels, "train")))
    assert [told["accuracy"] for told in again.artifact(attempt=2)["patterns"]] == accuracies
    written.model.load_state_dict(load_file(folder / "base.safetensors"), strict=False)
    rows = list(Rows.open(few_labels, "validation"))
    for row, (answer,) in zip(rows, Predictor.load(folder, bases["bert"]).answers(rows), strict=True):
        assert answer.probabilities == pytest.approx(written.probabilities(accuracies, row["text"]), rel=1e-3)


def test_a_stop_while_patterns_are_measured_costs_nothing_twice(
    bases: dict[str, Path], dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the patterns have answered by then is not asked again, and they weigh the same."""
    asked, answer = [0], evaluate.answer

    def stop_at(turn: int) -> None:
        asked[0] = 0

        def counted(*args: Any, **kwargs: Any) -> Any:
            asked[0] += 1
            if asked[0] == turn:
                os.kill(os.getpid(), signal.SIGTERM)
            return answer(*args, **kwargs)

        monkeypatch.setattr(evaluate, "answer", counted)

    made = {"base": bases["bert"], "dataset": dataset, "kind": "masked"}
    stop_at(0)
    whole = make_run(tmp_path / "whole", [weighed()], **made)
    assert whole.train() == 0
    turns = asked[0]
    stop_at(3)
    broken = make_run(tmp_path / "broken", [weighed()], **made)
    assert broken.train() == STOPPED_EXIT_CODE
    assert asked[0] == 3
    assert broken.events(0)[-1]["kind"] == "stopped"
    stop_at(0)
    again = make_run(tmp_path / "broken", [weighed()], attempt=2, **made)
    assert again.train() == 0
    assert asked[0] == turns - 3
    assert again.artifact(attempt=2)["patterns"] == whole.artifact()["patterns"]


def test_patterns_that_are_never_right_count_alike() -> None:
    assert Patterns(["a", "b"], [0.0, 0.0]).weights == [0.5, 0.5]
    assert Patterns(["a", "b"], [0.5, 1.0]).weights == pytest.approx([1 / 3, 2 / 3])
    assert Patterns().weights == []


@pytest.fixture
def few_labels(tmp_path: Path) -> Path:
    """Of every four training rows one has a label."""
    folder = tmp_path / "data"
    folder.mkdir()
    for split, count in {"train": 24, "validation": 8}.items():
        writer = SplitWriter(folder / f"{split}.arrow", ["text", "label"])
        for i in range(count):
            labelled = split == "validation" or i % 4 == 0
            row = ROWS[i % len(ROWS)]
            writer.add([row["text"], row["label"] if labelled else ""])
        writer.close()
    return folder


def opened(run: Any, base: Path) -> tuple[TrainedJob, BaseHost]:
    host = BaseHost.load(base, kind="masked")
    alone = Processes(None, 0, 1, torch.device("cpu"), None)  # type: ignore[arg-type]
    job = TrainedJob.open(JobSpec.read(run.jobs[0].spec), host, NoEvents(), alone)
    return job, host


def test_a_bad_label_among_rows_without_one_is_told_by_its_row(bases: dict[str, Path], tmp_path: Path) -> None:
    """Of twelve rows every fourth has a label; the third of these is the ninth row."""
    folder = tmp_path / "data"
    folder.mkdir()
    for split in ("train", "validation"):
        writer = SplitWriter(folder / f"{split}.arrow", ["text", "label"])
        for i in range(12):
            label = "hot" if split == "train" and i == 8 else ROWS[i % len(ROWS)]["label"]
            writer.add([ROWS[i % len(ROWS)]["text"], "" if split == "train" and i % 4 else label])
        writer.close()
    one = made(train__base_lr=1e-3)
    one["method"]["mlm"] = 0.25
    run = make_run(tmp_path / "run", [one], base=bases["bert"], dataset=folder, kind="masked")
    assert run.train() == 1
    (failed,) = run.events(kind="failed")
    assert failed["reason"] == "bad_data"
    assert "train row 9:" in failed["message"]


@pytest.mark.parametrize("several", [False, True])
def test_hidden_words_stand_beside_the_labels(
    several: bool, bases: dict[str, Path], few_labels: Path, tmp_path: Path
) -> None:
    """The loss of a step is the two papers' sum, whose second part reads the rows without labels."""
    alpha, one = 0.25, made(train__base_lr=1e-3, train__accumulation=3)
    one["method"]["mlm"] = alpha
    if not several:
        one["task"]["labels"] = {"warm": ["red"], "cold": ["black"]}
    run = make_run(tmp_path / "run", [one], base=bases["bert"], dataset=few_labels, kind="masked")
    job, _ = opened(run, bases["bert"])
    assert len(job.rows) == 2 * 6
    written = Written(bases["bert"])
    special = set(written.tokenizer.all_special_ids)
    batch = job.batch()
    assert len(batch) == 8
    unlabelled = {row["text"] for row in Rows.open(few_labels, "train") if not row["label"]}
    first, second = torch.zeros(()), []
    in_order = [LABELS[label][0].split()[0] for label in job.recipe.task.labels]  # type: ignore[union-attr]
    words_of_labels = written.tokenizer.convert_tokens_to_ids(in_order)
    with torch.no_grad():
        for example in batch:
            ids, labels = torch.tensor([example.row.ids]), torch.tensor(example.row.labels)
            logits = written.model(ids).logits[0]
            if example.units == 0:
                original = [t if w == -100 else w for t, w in zip(example.row.ids, labels.tolist(), strict=True)]
                text = written.tokenizer.decode(original)
                assert any(row in text for row in unlabelled)
                assert original.count(written.mask) == 1, "the label's own [MASK] stays"
                words = [i for i, token in enumerate(original) if token not in special]
                hidden = [i for i, w in enumerate(labels.tolist()) if w != -100]
                assert set(hidden) <= set(words)
                assert len(hidden) == max(1, round(0.15 * len(words)))
                second.append(cross_entropy(logits, labels))
            elif not several:
                scores = logits[labels != -100][0][words_of_labels]
                first = first + cross_entropy(scores, labels.max())
        if several:
            for number in range(4):
                place = next(i for i in range(len(job.rows)) if job._example(i) is batch[number])
                row = dict(job.rows[place])
                first = first + written.hinge(PATTERNS[place % 2], row)
    expected = (1 - alpha) * first / 4 + alpha * torch.stack(second).mean()
    assert len(second) == 4
    assert run.train() == 0
    assert run.losses()[1] == pytest.approx(float(expected), rel=1e-4)
    again, _ = opened(run, bases["bert"])
    assert [e.row for e in again.batch_of(0)] == [e.row for e in batch], "drawn by seed and step alone"


def test_from_patterns_to_a_classifier(bases: dict[str, Path], few_labels: Path, dataset: Path, tmp_path: Path) -> None:
    """A trained base for each pattern, their mean probabilities for other rows, a head that learns these."""
    trained = []
    for number, pattern in enumerate(PATTERNS):
        one = made(train__base_lr=2e-3)
        one["task"]["input"], one["method"] = pattern, {"type": "pet", "mlm": 1e-4}
        one["task"]["labels"] = {"warm": ["red cat"], "cold": ["black stone"]}
        run = make_run(tmp_path / str(number), [one], base=bases["bert"], dataset=few_labels, kind="masked")
        assert run.train() == 0
        trained.append(run.jobs[0].artifact(1))
    rows = list(Rows.open(dataset, "train"))
    together = list(Predictor.load(trained[0], bases["bert"], trained[1]).answers(rows))
    alone = [list(Predictor.load(folder, bases["bert"]).answers(rows)) for folder in trained]
    for number, answers in enumerate(together):
        for one, its in zip(answers, alone, strict=True):
            assert one.probabilities == pytest.approx(its[number][0].probabilities, rel=1e-4)
    assert any(a.probabilities != pytest.approx(b.probabilities, rel=0.1) for a, b in together)
    soft = tmp_path / "soft"
    soft.mkdir()
    means = [{label: (a.probabilities[label] + b.probabilities[label]) / 2 for label in LABELS} for a, b in together]  # type: ignore[index]
    for split in ("train", "validation"):
        writer = SplitWriter(soft / f"{split}.arrow", ["text", "label", "probabilities"])
        for row, mean in zip(rows, means, strict=True):
            writer.add([row["text"], max(mean, key=lambda label: mean[label]), json.dumps(mean)])
        writer.close()
    task = {"type": "classify", "input": "{text}", "labels": list(LABELS), "head": {}, "soft": "{probabilities}"}
    last = recipe({"type": "fine-tuning"}, task=task | {"temperature": 2}, train__steps=150, train__lr=2e-3)
    run = make_run(tmp_path / "last", [last], base=bases["bert"], dataset=soft, kind="masked")
    assert run.train() == 0
    # Student and teachers meet at PET's temperature of 2, so at 1 the student says what they said.
    wanted = torch.tensor([[mean[label] for label in LABELS] for mean in means])
    student = list(Predictor.load(run.jobs[0].artifact(1), bases["bert"]).answers(rows))
    said = torch.tensor([[one.probabilities[label] for label in LABELS] for (one,) in student])  # type: ignore[index]
    assert (said - wanted).square().mean() < 0.2 * (wanted.mean(0) - wanted).square().mean()
    loaded = load(run.jobs[0].artifact(1), bases["bert"]).host.model.state_dict()
    before = BaseHost.load(bases["bert"], kind="masked").model.state_dict()
    assert any(not torch.equal(loaded[name], before[name]) for name in before), "the trained base, not the one it was"
