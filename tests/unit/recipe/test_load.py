from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from recipe_texts import DESIGN, SMALL

from orchestrator.errors import BadRecipe, NotFound
from orchestrator.recipe.load import load_recipe
from orchestrator.recipe.methods import PrefixMlp
from orchestrator.recipe.optimizers import Adafactor, AdamW
from orchestrator.recipe.tasks import Classify

Faults = Callable[..., list[str]]
Write = Callable[[str | bytes], Path]


def test_the_designs_example_is_accepted_as_it_stands(write: Write) -> None:
    loaded = load_recipe(write(DESIGN))
    assert loaded.source == DESIGN
    assert loaded.recipe.train.lr == 5e-5
    assert loaded.recipe.resources.time_limit == 4 * 3600
    assert loaded.recipe.method.reparameterization == PrefixMlp(hidden=512)  # type: ignore[union-attr]


def test_the_designs_classification_is_accepted(write: Write) -> None:
    text = SMALL.replace(
        'task: {type: generate, input: "{a}", target: "{b}"}\nmethod: {type: prompt-tuning}',
        """\
task:
  type: classify
  input: "[P:4] {text} 总体评价是 [MASK] 的"
  labels: {Positive: [好, 棒], Negative: [差]}
  label: "{label}"
method: {type: p-tuning, reparameterization: {type: lstm}}""",
    )
    task = load_recipe(write(text)).recipe.task
    assert isinstance(task, Classify)
    assert task.labels == {"Positive": ["好", "棒"], "Negative": ["差"]}


def test_all_faults_come_in_one_report_with_their_lines(faults: Faults) -> None:
    text = """\
name: has spaces
base:
  modle: gpt2
  dtype: fp8
dataset: d
task:
  type: generate
  input: "{a"
  metrics: [bleu,
    rogue_l]
method: {type: prefix-tuning, lenght: 2, reparameterization: {hiden: 512}}
train:
  steps: true
  lr: fast
  seeds: [1, x]
resources: {time_limit: 4 hours, priority: hihg}
"""
    assert faults(text) == [
        "1: name: 'has spaces' does not fit the pattern ^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$",
        "2: base.model: is missing",
        "3: base.modle: unknown key; did you mean `model`?",
        "4: base.dtype: 'fp8' is not one of fp32, bf16, fp16",
        "6: task.target: is missing",
        "8: task.input: `{` at character 1 stands alone; write {field}, or {{ for a plain brace",
        "10: task.metrics[1]: 'rogue_l' is not one of bleu, nist, webnlg_bleu, webnlg_ter, dart_bleu, ter,"
        " meteor, cider, rouge_l_coco, rouge_1, rouge_2, rouge_l, exact_match, squad_em,"
        " squad_f1, record_em, record_f1, wsc, accuracy, macro_f1, positive_f1, cb,"
        " group_exact_match; did you mean `rouge_l`?",
        "11: method.reparameterization.hiden: unknown key; did you mean `hidden`?",
        "11: method.lenght: unknown key; did you mean `length`?",
        "13: train.steps: must be a number, not true",
        "14: train.lr: must be a valid number, not 'fast'",
        "15: train.seeds[1]: must be a valid integer, not 'x'",
        "16: resources.time_limit: not a duration; write for example 90s, 30m, 4h or 1d12h",
        "16: resources.priority: 'hihg' is not one of low, normal, high; did you mean `high`?",
    ]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("type: prompt-tuning", "type: promt-tuning", "5: method.type: 'promt-tuning' is not one of prompt-tuning,"),
        ("type: prompt-tuning", "type: promt-tuning", "did you mean `prompt-tuning`?"),
        ("{type: prompt-tuning}", "{length: 3}", "5: method.type: is missing; one of prompt-tuning, prefix-tuning"),
        (
            "{type: prompt-tuning}",
            "prompt-tuning",
            "5: method: must be a mapping (`key: value` lines), not",
        ),
        ("type: generate", "type: 7", "4: task.type: '7' is not one of generate, classify"),
        ("lr: 0.1", "lr: .inf", "6: train.lr: must be a finite number, not inf"),
        ("lr: 0.1", "lr: 1e999", "6: train.lr: must be a finite number, not inf"),
        ("lr: 0.1", "lr: null", "6: train.lr: is missing"),
        ("lr: 0.1", "lr: true", "6: train.lr: must be a number, not true"),
        ("lr: 0.1", "lr: 0.1, warmup: x", "6: train.warmup: must be a valid number, not 'x'"),
        ("lr: 0.1", "lr: 0.1, epochs: 2", "6: train: give either steps or epochs"),
        ("lr: 0.1", "lr: 0.1, seeds: [1, 1]", "6: train.seeds: a seed is named twice"),
        ("lr: 0.1", "lr: 0.1, seeds: [true]", "6: train.seeds[0]: must be a number, not true"),
        ("lr: 0.1", "lr: 0.1, sed: 1", "6: train.sed: unknown key; did you mean `seed`?"),
        ("lr: 0.1", "lr: 0.1, xyz: 1", "6: train.xyz: unknown key; known here: accumulation, "),
        ("steps: 3", "steps: 0", "6: train.steps: must be greater than or equal to 1, not 0"),
        ("steps: 3", "steps: 2.5", "6: train.steps: must be a valid integer"),
        ("base: gpt2", "base: 2", "2: base: must be a mapping"),
        ("name: small", "name: 2024", "1: name: must be text, not 2024; put quotes around it"),
        ("dataset: d", "dataset: d@0", "3: dataset: 'd@0' does not fit the pattern"),
        ('target: "{b}"', 'target: "[MASK] {b}"', "4: task.target: [P:k], [MASK] and [SEP] stand in `input` only"),
        ('target: "{b}"', 'target: "b"', "4: task.target: names no field of the data"),
        ('input: "{a}"', 'input: "[P:3] {a}"', "4: task.input: prompt-tuning puts its virtual tokens in front"),
        (
            "type: prompt-tuning",
            "type: p-tuning",
            "5: method.length: p-tuning has no virtual tokens; give method.length",
        ),
        ("name: small", "pretrain: small", "1: a recipe that pretrains a base is not submitted"),
    ],
)
def test_one_fault(faults: Faults, old: str, new: str, said: str) -> None:
    assert old in SMALL
    report = faults(SMALL.replace(old, new))
    assert len(report) == 1
    assert said in report[0]


@pytest.mark.parametrize("text", ["5e-5", "5.0e-5", "'5e-5'", "0.00005", "5E-05", ".5e-4"])
def test_numbers_are_read_however_they_are_written(write: Write, text: str) -> None:
    assert load_recipe(write(SMALL.replace("0.1", text))).recipe.train.lr == 5e-5


def test_words_that_yaml_1_1_takes_for_truth_values_stay_words(write: Write) -> None:
    task = 'task: {type: classify, input: "{a}", labels: {no: [off], yes: [on], 1: 0}, head: {}}'
    text = SMALL.replace('task: {type: generate, input: "{a}", target: "{b}"}', task)
    assert load_recipe(write(text)).recipe.task.labels == {"no": ["off"], "yes": ["on"], "1": ["0"]}  # type: ignore[union-attr]


def test_truth_values_as_labels_are_written_as_the_data_hold_them(write: Write) -> None:
    """BoolQ's JSON holds true and false, and datasets keep them as this text."""
    task = 'task: {type: classify, input: "{a}", labels: [true, false], head: {}}'
    text = SMALL.replace('task: {type: generate, input: "{a}", target: "{b}"}', task)
    assert list(load_recipe(write(text)).recipe.task.labels) == ["true", "false"]  # type: ignore[union-attr]


def test_yes_and_no_still_switch(write: Write) -> None:
    assert load_recipe(write(SMALL.replace("lr: 0.1", "lr: 0.1, base_dropout: yes"))).recipe.train.base_dropout is True


def test_one_seed_is_a_list_of_one(write: Write) -> None:
    assert load_recipe(write(SMALL.replace("lr: 0.1", "lr: 0.1, seed: 7"))).recipe.train.seeds == [7]


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound) as caught:
        load_recipe(tmp_path / "none.yaml")
    assert caught.value.exit_code == 3


def test_a_report_of_several_faults_names_their_number(write: Write) -> None:
    path = write(SMALL.replace("lr: 0.1", "lr: x").replace("steps: 3", "steps: x"))
    with pytest.raises(BadRecipe) as caught:
        load_recipe(path)
    assert caught.value.exit_code == 2
    assert str(caught.value).splitlines() == [
        "the recipe has 2 faults",
        f"  {path}:6: train.steps: must be a valid integer, not 'x'",
        f"  {path}:6: train.lr: must be a valid number, not 'x'",
    ]


def test_a_sweeps_faults_stand_at_its_line(faults: Faults) -> None:
    sweep = "sweep:\n  method.length: [5, 0]\n  method.lenght: [1]\n  train.lr: []\n"
    assert faults(SMALL + sweep) == ["10: sweep.train.lr: has no values"]
    assert faults(SMALL + sweep.replace("[]", "[0.1, -1]")) == [
        "8: sweep.method.length: 0: must be greater than or equal to 1, not 0",
        "9: sweep.method.lenght: 1: unknown key; did you mean `length`?",
        "10: sweep.train.lr: -1: must be greater than 0, not -1",
    ]


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("", AdamW(type="adamw")),
        ("optimizer: adafactor", Adafactor(type="adafactor")),
        ("optimizer: {type: adafactor, decay: 0.7}", Adafactor(type="adafactor", decay=0.7)),
    ],
)
def test_an_optimizer_may_be_a_bare_name(write: Write, written: str, expected: object) -> None:
    text = SMALL.replace("train: {", f"train: {{{written}, " if written else "train: {")
    assert load_recipe(write(text)).recipe.train.optimizer == expected


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("optimizer: adafacto", "did you mean"),
        ("optimizer: 3", "train.optimizer: must be"),
        ("optimizer: {type: adafacto}", "did you mean"),
        ("optimizer: {type: adafactor, beta1: 0.9}", "train.optimizer.beta1: unknown key"),
    ],
)
def test_an_optimizer_that_there_is_not(faults: Faults, written: str, said: str) -> None:
    (fault,) = faults(SMALL.replace("train: {", f"train: {{{written}, "))
    assert said in fault
