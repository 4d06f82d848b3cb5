"""`orchestrator.training.predict`: an artifact gives what its own evaluation gave, and bad input is told."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import every_method
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet
from safetensors.torch import load_file, save_file
from training_fixtures import MadeRun, make_run, recipe

from orchestrator.cli.predict_rows import file_rows, stdin_rows
from orchestrator.data.rows import ReadOptions
from orchestrator.data.staging import stage
from orchestrator.errors import BadInput
from orchestrator.manifest import write_manifest
from orchestrator.paths import HomePaths, read_json, write_json
from orchestrator.training import predict
from orchestrator.training.objectives import asking
from orchestrator.training.predict import Predictor, main
from orchestrator.training.rows import Rows

METHODS: dict[str, dict[str, Any]] = {
    "prompt": {"type": "prompt-tuning", "length": 3},
    "prefix": {"type": "prefix-tuning", "length": 2, "reparameterization": {"hidden": 8}},
    "head": {"type": "p-tuning", "reparameterization": {"type": "mlp"}},
}


def trained(root: Path, name: str, bases: dict[str, Path], dataset: Path) -> MadeRun:
    made = recipe(METHODS[name])
    base, kind = ("bert", "masked") if name == "head" else ("gpt2", "causal")
    if name == "head":
        labels = {"type": "classify", "labels": ["warm", "cold"], "head": {"pooling": "mean"}}
        made["task"] = {**labels, "input": "[P:2] the {text} [P:1]"}
    run = make_run(root, [made], base=bases[base], dataset=dataset, kind=kind)
    assert run.train() == 0
    return run


@pytest.fixture(scope="module")
def artifact(bases: dict[str, Path], dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("trained"), "head", bases, dataset).jobs[0].artifact(1)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_predictions_are_those_of_the_evaluation(
    name: str, bases: dict[str, Path], dataset: Path, tmp_path: Path
) -> None:
    run = trained(tmp_path, name, bases, dataset)
    samples = run.artifact()["samples"]
    rows = list(Rows.open(dataset, "validation"))
    base = bases["bert" if name == "head" else "gpt2"]
    found = list(Predictor.load(run.jobs[0].artifact(1), base).predict(rows))
    assert [{k: v for k, v in one.items() if k != "prediction"} for one in found] == rows
    assert [one["prediction"] for one in found][: len(samples)] == [sample["tuned"] for sample in samples]


def run_main(
    spec: dict[str, Any], lines: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[int, list[list[dict[str, Any]]]]:
    write_json(tmp_path / "spec.json", spec)
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(lines.encode()), encoding="latin-1"))
    monkeypatch.setattr("sys.stdout", out)
    code = main([str(tmp_path / "spec.json")])
    out.flush()
    return code, [json.loads(line) for line in out.buffer.getvalue().decode().splitlines()]  # type: ignore[attr-defined]


def test_the_program_reads_and_writes_utf8_whatever_the_locale(
    artifact: Path, bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = {"artifacts": [str(artifact)], "base": str(bases["bert"]), "threads": 1}
    lines = '{"text": "总体评价 🙂", "n": 1.5, "deep": {"b": [1, 2], "a": null}}\n{"text": ""}\n'
    code, found = run_main(spec, lines, tmp_path, monkeypatch)
    assert code == 0
    assert len(found) == 2
    for [answer] in found:
        assert answer["text"] in {"warm", "cold"}
        assert sum(answer["probabilities"].values()) == pytest.approx(1)


def test_rows_are_texts_as_datasets_hold_them() -> None:
    lines = ['{"text": "总体评价 🙂", "n": 1.5, "deep": {"b": [1, 2], "a": null}}']
    [row] = predict._rows(lines)
    assert row == {"text": "总体评价 🙂", "n": "1.5", "deep": '{"a":null,"b":[1,2]}'}
    assert list(predict._rows(['{"text": null, "n": true}'])) == [{"text": "", "n": "true"}]


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_null_is_empty_as_in_a_dataset(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a file, from standard input and in a dataset the row is the same row."""
    path = tmp_path / f"rows.{suffix}"
    if suffix == "parquet":
        parquet.write_table(pa.table({"text": pa.array(["cat", None]), "n": pa.array([1, 2])}), path)
    else:
        path.write_text('{"text": "cat", "n": 1}\n{"text": null, "n": 2}\n')
    expected = [{"text": "cat", "n": "1"}, {"text": "", "n": "2"}]
    assert list(file_rows(path, ["text"])) == expected
    with stage(HomePaths(tmp_path / "home"), {"train": [path]}, ReadOptions(required=())) as staged:
        assert list(Rows.open(staged.folder, "train")) == expected
    monkeypatch.setattr("sys.stdin", io.StringIO('{"text": "cat", "n": 1}\n{"text": null, "n": 2}\n'))
    assert list(stdin_rows(["text"])) == expected


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("[1]", "input line 2: not a JSON object of fields"),
        ("nonsense", "input line 2: not a JSON object of fields"),
        ('{"text": "\\ud83d"}', "input line 2: the field text holds half a character"),
        ('{"text": "a\\u0000"}', "input line 2: the field text holds a NUL character"),
        ('{"text": NaN}', "input line 2: the field text is nan, which is not a number"),
        ('{"other": "x"}', "has no field `text`"),
    ],
)
def test_a_bad_row_is_told_by_its_line(
    line: str,
    said: str,
    artifact: Path,
    bases: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spec = {"artifacts": [str(artifact)], "base": str(bases["bert"]), "threads": 1}
    code, _ = run_main(spec, '{"text": "cat"}\n' + line + "\n", tmp_path, monkeypatch)
    assert code == 2
    assert said in capsys.readouterr().err


def test_another_base_is_refused(artifact: Path, bases: dict[str, Path]) -> None:
    with pytest.raises(BadInput, match="not the weights"):
        Predictor.load(artifact, bases["gpt2"])


@pytest.mark.parametrize(
    ("key", "value"),
    [("slots", "../../etc"), ("recipe", {"name": "x"}), ("base", {}), ("base", None), ("slots", None)],
)
def test_a_forged_description_is_refused(
    key: str, value: Any, artifact: Path, bases: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(artifact, tmp_path / "forged")
    write_json(folder / "artifact.json", {**read_json(folder / "artifact.json"), key: value})
    with pytest.raises(BadInput, match="damaged"):
        Predictor.load(folder, bases["bert"])
    write_manifest(folder)
    with pytest.raises(BadInput, match="does not describe an artifact"):
        Predictor.load(folder, bases["bert"])


def test_a_head_of_other_labels_is_refused(artifact: Path, bases: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(artifact, tmp_path / "forged")
    tensors = load_file(folder / "prompt.safetensors")
    save_file({n: t[:1] if n.startswith("head.") else t for n, t in tensors.items()}, folder / "prompt.safetensors")
    write_manifest(folder)
    with pytest.raises(BadInput, match="does not fit its recipe"):
        Predictor.load(folder, bases["bert"])


def test_a_pickle_in_place_of_safetensors_is_never_loaded(
    artifact: Path, bases: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(artifact, tmp_path / "forged")
    (folder / "prompt.safetensors").write_bytes(b"cos\nsystem\n(S'touch " + str(tmp_path).encode() + b"/ran'\ntR.")
    write_manifest(folder)
    with pytest.raises(BadInput, match="safetensors"):
        Predictor.load(folder, bases["bert"])
    assert not (tmp_path / "ran").exists()


SCORED = {"type": "classify", "labels": {"warm": ["warm", "red"], "cold": ["cold"]}, "input": "the {text} is "}
MASKED = {"type": "classify", "labels": {"warm": ["warm"], "cold": ["cold"]}, "input": "the {text} is [MASK]"}
HEADED = {"type": "classify", "labels": ["warm", "cold"], "head": {"pooling": "mean"}, "input": "the {text}"}
PROMPT, PREFIX = METHODS["prompt"], {"type": "prefix-tuning", "length": 4}


@pytest.mark.parametrize(
    ("base", "kind", "parts"),
    [
        ("gpt2", "causal", [(PROMPT, {}), (PREFIX, {}), (PREFIX, {"task": SCORED}), (PROMPT, {"task": SCORED})]),
        ("bert", "masked", [(PROMPT, {"task": MASKED}), (PREFIX, {"task": HEADED}), (PREFIX, {"task": MASKED})]),
    ],
)
def test_several_artifacts_in_one_forward_answer_as_one_by_one(
    base: str, kind: str, parts: list[Any], bases: dict[str, Path], dataset: Path, tmp_path: Path
) -> None:
    recipes = [{**recipe(method, train__seeds=[n]), **more} for n, (method, more) in enumerate(parts)]
    if kind == "causal":  # cannot be written together with the others
        recipes[0]["task"] = {**recipes[0]["task"], "max_new_tokens": 3}
    run = make_run(tmp_path, recipes, base=bases[base], dataset=dataset, kind=kind)
    assert run.train() == 0
    folders = [job.artifact(1) for job in run.jobs]
    rows = list(Rows.open(dataset, "validation"))
    together = list(Predictor.load(folders[0], bases[base], *folders[1:]).answers(rows))
    assert [len(found) for found in together] == [len(parts)] * len(rows)
    for number, folder in enumerate(folders):
        for found, [alone] in zip(together, Predictor.load(folder, bases[base]).answers(rows), strict=True):
            assert found[number].text == alone.text
            assert (found[number].probabilities or {}) == pytest.approx(alone.probabilities or {}, rel=1e-5)


def test_tags_spans_and_words_at_several_masks_share_the_forwards_of_the_others(
    bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of these ask in the first forward; only words of several tokens ask again, one token at a time."""
    data = every_method.make_rows(tmp_path / "data")
    jobs = [one for one in every_method.every("masked") if "keep" not in one["train"]]
    for one in jobs:
        one["train"] |= {"eval_batch_size": 999} | ({"steps": 1} if "steps" in one["train"] else {})
    assert {"tag", "span", "cloze", "classify"} == {one["task"]["type"] for one in jobs}
    run = make_run(tmp_path, jobs, base=bases["bert"], dataset=data, kind="masked")
    assert run.train() == 0
    folders, rows = [job.artifact(1) for job in run.jobs], list(Rows.open(data, "validation"))
    alone = [[one for (one,) in Predictor.load(folder, bases["bert"]).answers(rows)] for folder in folders]
    together = Predictor.load(folders[0], bases["bert"], *folders[1:])
    asked: list[int] = []
    forward = asking.forward
    monkeypatch.setattr(
        asking, "forward", lambda *args, **more: (asked.append(len(args[1])), forward(*args, **more))[1]
    )
    found = list(together.answers(rows))
    longest = max(len(word.split()) for words in every_method.LONG_WORDS.values() for word in words)
    assert len(asked) == longest
    assert asked[0] > len(jobs) * len(rows) > max(asked[1:])
    for number, theirs in enumerate(alone):
        for row, answer in zip(found, theirs, strict=True):
            assert row[number].text == answer.text
            assert (row[number].probabilities or {}) == pytest.approx(answer.probabilities or {}, rel=1e-4)


def test_artifacts_of_different_precision_are_not_mixed(artifact: Path, bases: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(artifact, tmp_path / "other")
    facts = read_json(folder / "artifact.json")
    facts["recipe"]["base"]["dtype"] = "bf16"
    write_json(folder / "artifact.json", facts)
    write_manifest(folder)
    with pytest.raises(BadInput, match="bf16, the first artifact as fp32"):
        Predictor.load(artifact, bases["bert"], folder)


@pytest.mark.parametrize(
    ("gpus", "said"), [(["GPU-a"], "leased were GPU-a; torch sees none"), ([], "torch sees no GPU")]
)
def test_a_card_that_torch_does_not_see_is_said_before_anything_is_loaded(
    gpus: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("orchestrator.training.cards.visible", lambda: [])
    spec = {"artifacts": ["nowhere"], "base": "nowhere", "threads": 1, "device": "cuda", "gpus": gpus}
    assert run_main(spec, "", tmp_path, monkeypatch) == (1, [])
    assert said in capsys.readouterr().err


def test_a_card_that_is_too_small_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def load(*_folders: Path, device: str) -> Any:
        raise torch.OutOfMemoryError(f"{device} out of memory")

    monkeypatch.setattr("orchestrator.training.cards.visible", lambda: ["a"])
    monkeypatch.setattr(Predictor, "load", load)
    spec = {"artifacts": ["nowhere"], "base": "nowhere", "threads": 1, "device": "cuda", "gpus": ["GPU-a"]}
    assert run_main(spec, "", tmp_path, monkeypatch) == (1, [])
    assert "ptq: the GPU's memory does not suffice: cuda out of memory" in capsys.readouterr().err
