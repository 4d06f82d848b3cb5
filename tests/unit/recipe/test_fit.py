from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from orchestrator.recipe.bases import BaseFacts
from orchestrator.recipe.fit import fit_faults, virtual_tokens
from orchestrator.recipe.schema import JobRecipe
from orchestrator.tasks import captions

GPT2 = BaseFacts("causal", "gpt2", "GPT2LMHeadModel", 768, 12, 50257, 1024, False, True, 124_000_000, False)
BERT = BaseFacts("masked", "bert", "BertForMaskedLM", 768, 12, 30522, 512, True, True, 110_000_000, False)
MINILM = replace(BERT, architecture="BertModel", lm_head=False)
T5 = BaseFacts("seq2seq", "t5", "T5ForConditionalGeneration", 512, 6, 32128, None, False, True, 60_000_000, False)
FILLING = replace(T5, sentinel=True)
BART = replace(T5, model_type="bart", mask_token=True)
PEGASUS = replace(T5, model_type="pegasus", architecture="P", mask_token=True)

WRITE = {"type": "generate", "input": "{text}", "target": "{label}"}
WORDS = {"type": "classify", "input": "{text} it was", "labels": {"1": ["good"], "0": ["bad"]}}
MASK = {"type": "classify", "input": "{text} it was [MASK].", "labels": {"1": ["good"], "0": ["bad"]}}
HEAD = {"type": "classify", "input": "{text}", "labels": {"1": ["1"], "0": ["0"]}, "head": {"pooling": "mean"}}
POOLED = {how: {**HEAD, "head": {"pooling": how}} for how in ("cls", "mean", "pooler", "last")}

PROMPT = {"type": "prompt-tuning", "length": 5}
PREFIX = {"type": "prefix-tuning", "length": 5}
P_TUNING = {"type": "p-tuning", "length": 5}
DEEP = {"type": "p-tuning-v2", "length": 5}
ROWS = {"train": 100, "validation": 10}


def job(task: dict[str, Any], method: dict[str, Any], **changes: Any) -> JobRecipe:
    train = {"steps": 3, "lr": 0.1}
    whole = {"name": "n", "base": "b", "dataset": "d", "task": task, "method": method, "train": train, **changes}
    return JobRecipe.model_validate(whole)


def faults(
    task: dict[str, Any], method: dict[str, Any], facts: BaseFacts, splits: dict[str, int] = ROWS, **changes: Any
) -> list[str]:
    recipe = JobRecipe.model_validate(
        {
            "name": "n",
            "base": "b",
            "dataset": "d",
            "task": task,
            "method": method,
            "train": {"steps": 3, "lr": 0.1},
            **changes,
        }
    )
    return fit_faults(recipe, facts, ["text", "label"], splits)


@pytest.mark.parametrize("method", [PROMPT, PREFIX, P_TUNING], ids=lambda m: m["type"])
@pytest.mark.parametrize(
    ("task", "facts"),
    [(WRITE, GPT2), (WRITE, T5), (WORDS, GPT2), (WORDS, T5), (MASK, BERT), (HEAD, BERT), (HEAD, MINILM)],
    ids=["write-gpt2", "write-t5", "words-gpt2", "words-t5", "mask-bert", "head-bert", "head-minilm"],
)
def test_what_fits(task: dict[str, Any], method: dict[str, Any], facts: BaseFacts) -> None:
    assert faults(task, method, facts) == []


@pytest.mark.parametrize(("task", "facts"), [(WRITE, GPT2), (WORDS, GPT2), (MASK, BERT), (HEAD, BERT), (HEAD, MINILM)])
def test_deep_prompts_fit_one_stack_of_layers(task: dict[str, Any], facts: BaseFacts) -> None:
    assert faults(task, DEEP, facts) == []
    assert faults(task, {**DEEP, "length": 224}, facts) == []


INFIX = {"type": "prefix-tuning", "length": 5, "placement": "infix"}


def test_an_infix_stands_before_a_separator_on_bases_that_add_positions() -> None:
    assert faults(WRITE, INFIX, GPT2) == []
    assert faults({**WORDS, "separator": " so "}, INFIX, GPT2) == []
    (fault,) = faults(WORDS, INFIX, GPT2)
    assert fault.startswith("task.separator: must not be empty")
    (fault,) = faults({**WRITE, "separator": ""}, INFIX, GPT2)
    assert fault.startswith("task.separator: must not be empty")
    (fault,) = faults(WRITE, INFIX, T5)
    assert fault.startswith("method.placement: an infix stands between input and target, which only a causal base")
    (fault,) = faults(WRITE, INFIX, replace(GPT2, model_type="llama"))
    assert fault.startswith("method.placement: b (llama) puts positions into its keys")
    (fault,) = faults(WRITE, {**INFIX, "embedding_only": True}, GPT2)
    assert fault.startswith("method.embedding_only: stands in front of the text only")
    assert faults(WRITE, {**PREFIX, "embedding_only": True}, T5) == []


def test_a_head_alone_and_a_placed_p_tuning_fit() -> None:
    assert faults(HEAD, {"type": "head"}, MINILM) == []
    assert faults({**MASK, "input": "[P:3] {text} [P] [MASK]"}, {"type": "p-tuning"}, BERT) == []


@pytest.mark.parametrize(
    ("task", "method", "facts", "said"),
    [
        (WRITE, DEEP, T5, "method.type: p-tuning-v2 is for one stack of layers; b is an encoder-decoder; use prefix"),
        (
            {**HEAD, "input": "[P] {text}"},
            DEEP,
            BERT,
            "task.input: p-tuning-v2 puts its virtual tokens in front of every",
        ),
        (WRITE, PREFIX, BERT, "task.type: b (BertForMaskedLM, masked encoder) cannot write text; use a causal"),
        (MASK, PREFIX, GPT2, "task.input: b (GPT2LMHeadModel, causal) has no [MASK]; take [MASK] out"),
        (
            MASK,
            PREFIX,
            T5,
            "task.input: the tokenizer of b (T5ForConditionalGeneration, encoder-decoder) has no",
        ),
        (
            MASK,
            PREFIX,
            PEGASUS,
            "task.input: b (P, encoder-decoder) was not pretrained to fill in single",
        ),
        (
            {**MASK, "labels": {"0": ["{text}"], "1": ["b"]}},
            PREFIX,
            FILLING,
            "task.input: the rows' own answers",
        ),
        (MASK, {"type": "pet", "mlm": 0.1}, FILLING, "method.mlm: hides words as masked bases do"),
        (HEAD, {**PREFIX, "placement": "infix"}, GPT2, "method.placement: an infix stands between input and target"),
        (MASK, PREFIX, MINILM, "base.model: the weights of b (BertModel, masked encoder) hold no language-model head"),
        (MASK, PREFIX, replace(BERT, mask_token=False), "task.input: the tokenizer of b"),
        (WORDS, PREFIX, BERT, "task.input: b (BertForMaskedLM, masked encoder) cannot continue a text; put [MASK]"),
        (WRITE, PREFIX, replace(GPT2, lm_head=False), "base.model: the weights of b"),
        (
            POOLED["mean"],
            PREFIX,
            GPT2,
            "task.head.pooling: mean is for encoders; of b (GPT2LMHeadModel, causal)",
        ),
        (
            POOLED["cls"],
            PREFIX,
            T5,
            "task.head.pooling: cls is for encoders; of b (T5ForConditionalGeneration",
        ),
        (POOLED["last"], PREFIX, BERT, "task.head.pooling: last is for bases that read in one direction"),
        (
            POOLED["pooler"],
            DEEP,
            BERT,
            "task.head.pooling: the weights of b (BertForMaskedLM, ",
        ),
        (WORDS, {"type": "head"}, GPT2, "task.head: is missing; the method `head` trains it"),
        (WRITE, {"type": "head"}, GPT2, "method.type: `head` trains a classifier"),
        ({**HEAD, "input": "{text} [MASK]"}, PREFIX, BERT, "task.input: a head reads the whole text, not a [MASK]"),
        ({**MASK, "input": "{text} [MASK] [MASK]"}, PREFIX, BERT, "task.input: 2 times [MASK]"),
        ({**WRITE, "input": "{text} [MASK]"}, PREFIX, GPT2, "task.input: [MASK] belongs to `type: classify`"),
        ({**WRITE, "input": "[P] {text}"}, PROMPT, GPT2, "task.input: prompt-tuning puts its virtual tokens in front"),
        (
            {**WRITE, "input": "{text} [P:2]"},
            PREFIX,
            GPT2,
            "task.input: prefix-tuning puts its virtual tokens",
        ),
        ({**HEAD, "input": "{text} [P:2]"}, {"type": "head"}, BERT, "task.input: head has no virtual tokens"),
        (WRITE, {"type": "p-tuning"}, GPT2, "method.length: p-tuning has no virtual tokens; give method.length"),
        (
            {**WRITE, "input": "[P:2] {text}"},
            P_TUNING,
            GPT2,
            "method.length: task.input already places 2",
        ),
        ({**WRITE, "input": "no field"}, PREFIX, GPT2, "task.input: names no field of the data"),
        (
            {**WRITE, "input": "{txt}"},
            PREFIX,
            GPT2,
            "task.input: the dataset d has no field `txt`; did you mean",
        ),
        (
            {**WRITE, "target": "{q}"},
            PREFIX,
            GPT2,
            "task.target: the dataset d has no field `q`; its fields: text,",
        ),
        (
            {**MASK, "label": "{lable}"},
            PREFIX,
            BERT,
            "task.label: the dataset d has no field `lable`; did you",
        ),
        ({**MASK, "labels": {"1": ["a"], "0": ["a"]}}, PREFIX, BERT, "task.labels: the word `a` stands under"),
        (
            WRITE,
            {**PROMPT, "length": 5001},
            T5,
            "method.init.top: 5001 virtual tokens cannot start from 5000",
        ),
        (WRITE, {**PROMPT, "length": 200}, replace(T5, vocab=100), "method.length: 200 virtual tokens cannot start"),
    ],
)
def test_what_does_not_fit(task: dict[str, Any], method: dict[str, Any], facts: BaseFacts, said: str) -> None:
    found = faults(task, method, facts)
    assert any(fault.startswith(said) for fault in found), found


@pytest.mark.parametrize("method", [PROMPT, PREFIX, P_TUNING], ids=lambda m: m["type"])
def test_virtual_tokens_must_leave_room_in_the_context(method: dict[str, Any]) -> None:
    """Of 512 positions 510 virtual tokens and two others fill all; 511 leave one for a whole text."""
    assert faults(HEAD, {**method, "length": 510}, BERT) == []
    assert faults(HEAD, {**method, "length": 511}, BERT) == [
        "method.length: 511 virtual tokens leave no room in b's context of 512 positions"
    ]
    assert faults(WRITE, {**method, "length": 5000}, T5) == []


def test_placed_virtual_tokens_count_too() -> None:
    task = {**MASK, "input": "[P:300] {text} [P:300] [MASK]"}
    assert faults(task, {"type": "p-tuning"}, BERT)[0].startswith("task.input: 600 virtual tokens leave no room")


def test_new_tokens_need_room_on_a_causal_base() -> None:
    assert faults({**WRITE, "max_new_tokens": 1018}, PREFIX, GPT2) == []
    (fault,) = faults({**WRITE, "max_new_tokens": 1019}, PREFIX, GPT2)
    assert fault.startswith("task.max_new_tokens: 5 virtual tokens and 1019 new ones leave no room for the input")
    assert "at most 1018 fit" in fault


@pytest.mark.parametrize(
    ("splits", "said"),
    [
        ({}, "dataset: d is empty"),
        ({"train": 0, "test": 0}, "dataset: d is empty"),
        ({"test": 3}, "dataset: d has no rows to train on; it has test (3 rows)"),
        ({"train": 0, "test": 3}, "dataset: d has no rows to train on; it has train (0 rows), test (3 rows)"),
    ],
)
def test_there_must_be_rows_to_train_on(splits: dict[str, int], said: str) -> None:
    assert faults(WRITE, PREFIX, GPT2, splits) == [said]


def test_evaluating_while_training_needs_validation_rows() -> None:
    train = {"steps": 3, "lr": 0.1, "eval_every": 1}
    assert faults(WRITE, PREFIX, GPT2, {"train": 5}, train=train)[0].startswith(
        "train.eval_every: d has no validation rows"
    )
    assert faults(WRITE, PREFIX, GPT2, train=train) == []


def test_a_prefix_needs_keys_and_values_of_one_width() -> None:
    uneven = replace(GPT2, model_type="deepseek_v2", remote_code=False, uneven_heads=True)
    assert faults(WRITE, PREFIX, uneven)[0].startswith(
        "method.type: keys and values of b (deepseek_v2) differ in width"
    )
    assert faults(WRITE, {**PREFIX, "embedding_only": True}, uneven) == []


def test_code_of_a_base_runs_only_when_asked_for() -> None:
    own = replace(GPT2, model_type="own_model", remote_code=True)
    assert faults(WRITE, PREFIX, own)[0].startswith("base.trust_remote_code: b brings its own Python code")
    assert faults(WRITE, PREFIX, own, base={"model": "b", "trust_remote_code": True}) == []
    assert faults(WRITE, PREFIX, replace(GPT2, remote_code=True)) == []


def test_all_faults_come_together() -> None:
    found = faults({**WRITE, "input": "{txt}", "target": "{lbl}"}, {**PREFIX, "length": 600}, BERT, {})
    assert [fault.split(":")[0] for fault in found] == [
        "task.input",
        "task.target",
        "dataset",
        "task.type",
        "method.length",
    ]


def test_virtual_tokens_of_a_recipe() -> None:
    def count(method: dict[str, Any], text: str = "{text}") -> int:
        return virtual_tokens(job({**HEAD, "input": text}, method))

    assert count({"type": "head"}) == 0
    assert count(PREFIX) == 5
    assert count({"type": "p-tuning"}, "[P:3]{text}[P]") == 4


DESIGN = {"type": "prompt-design", "shots": 2}
CLOZE = {"type": "cloze", "input": "{text} is [MASK]", "target": "{label}"}
TAG = {"type": "tag", "input": "{text}", "words": "text", "tags": "{label}", "labels": ["O", "B-X"]}
SPAN = {"type": "span", "input": "{text}", "context": "{text}", "answers": "{label}"}
TEXT = {"type": "text", "input": "{text}"}


@pytest.mark.parametrize(
    ("task", "method", "facts"),
    [
        (CLOZE, PROMPT, BERT),
        (CLOZE, DESIGN, BERT),
        ({**CLOZE, "input": "{text} is"}, PREFIX, GPT2),
        (CLOZE, PROMPT, FILLING),
        (CLOZE, DESIGN, BART),
        (MASK, PROMPT, FILLING),
        (MASK, {"type": "warp", "length": 2}, BART),
        (TAG, DEEP, MINILM),
        (TAG, DEEP, GPT2),
        (TAG, PREFIX, T5),
        (SPAN, DEEP, MINILM),
        (SPAN, DEEP, GPT2),
        ({**SPAN, "unanswerable": True}, PREFIX, BART),
        (POOLED["last"], DEEP, GPT2),
        ({**HEAD, "head": {}}, PREFIX, T5),
        ({**HEAD, "head": {}}, {"type": "head"}, GPT2),
        (POOLED["pooler"], DEEP, replace(MINILM, pooler=True)),
        (TAG, {"type": "fine-tuning"}, BERT),
        (SPAN, {"type": "head"}, BERT),
        (TEXT, {"type": "lm-adapt"}, T5),
        (TEXT, {"type": "lm-adapt"}, GPT2),
        (WORDS, DESIGN, GPT2),
    ],
)
def test_tasks_and_methods_that_fit(task: dict[str, Any], method: dict[str, Any], facts: BaseFacts) -> None:
    train = {"train": {}} if method is DESIGN else {}
    assert faults(task, method, facts, **train) == []


@pytest.mark.parametrize(
    ("task", "method", "facts", "fault"),
    [
        (
            {**CLOZE, "input": "{text} is"},
            PROMPT,
            FILLING,
            "task.input: b (T5ForConditionalGeneration, ",
        ),
        (
            CLOZE,
            PROMPT,
            PEGASUS,
            "task.input: b (P, encoder-decoder) was not pretrained to fill in single",
        ),
        (
            CLOZE,
            PROMPT,
            replace(PEGASUS, model_type="bart", mask_token=False),
            "task.input: the tokenizer of b (P,",
        ),
        (CLOZE, PROMPT, GPT2, "task.input: b (GPT2LMHeadModel, causal) has no [MASK]"),
        (CLOZE, PROMPT, MINILM, "base.model: the weights of b"),
        (
            {**CLOZE, "vocabulary": "/nowhere/words.txt"},
            PROMPT,
            BERT,
            "task.vocabulary: /nowhere/words.txt: there is no",
        ),
        (
            {**CLOZE, "input": "{text} is"},
            PROMPT,
            BERT,
            "task.input: b (BertForMaskedLM, masked encoder) cannot continue",
        ),
        ({**CLOZE, "input": "{text} [MASK] [MASK]"}, PROMPT, BERT, "task.input: 2 times [MASK]"),
        ({**TAG, "input": "words"}, DEEP, BERT, "task.input: names no field"),
        ({**TAG, "input": "{text} [MASK]"}, DEEP, BERT, "task.input: [MASK] belongs to"),
        ({**TAG, "labels": ["O", "O"]}, DEEP, BERT, "task.labels: a label stands twice"),
        ({**SPAN, "unanswerable": True}, DEEP, GPT2, "task.unanswerable: is said by the first token"),
        ({**SPAN, "context": "{ctx}"}, DEEP, BERT, "task.context: the dataset d has no field `ctx`"),
        (SPAN, DESIGN, BERT, "method.type: prompt-design trains no head"),
        (HEAD, DESIGN, BERT, "task.head: prompt-design trains no head"),
        (TEXT, PROMPT, GPT2, "task.type: `type: text` is for lm-adapt"),
        (WRITE, {"type": "lm-adapt"}, GPT2, "task.type: lm-adapt needs `type: text`"),
        (CLOZE, {"type": "head"}, BERT, "method.type: `head` trains a classifier"),
        ({**WORDS, "soft": "{label}"}, PROMPT, GPT2, "task.soft: needs a head"),
        ({**HEAD, "soft": "{p}"}, PROMPT, BERT, "task.soft: the dataset d has no field `p`"),
        ({**WORDS, "metrics": ["group_exact_match"]}, PROMPT, GPT2, "task.group: is missing"),
        ({**WRITE, "length_penalty": 0.6}, PROMPT, GPT2, "task.length_penalty: weighs texts of several beams"),
    ],
)
def test_tasks_that_do_not_fit(task: dict[str, Any], method: dict[str, Any], facts: BaseFacts, fault: str) -> None:
    train = {"train": {}} if method is DESIGN else {}
    assert any(found.startswith(fault) for found in faults(task, method, facts, **train))


@pytest.mark.parametrize(
    ("method", "changes", "fault"),
    [
        (PROMPT, {"train": {"steps": 3}}, "train.lr: is missing"),
        (PROMPT, {"train": {"lr": 0.1}}, "train.steps: is missing; give steps or epochs"),
        (DESIGN, {}, "train.lr: prompt-design trains nothing"),
        ({"type": "fine-tuning"}, {"base": {"model": "b", "dtype": "bf16"}}, "base.dtype: bf16 is too coarse"),
        (PROMPT, {"train": {"steps": 1, "lr": 1, "base_lr": 1}, "resources": {"zero": 2}}, "resources.zero: DeepSpeed"),
        ({"type": "lora"}, {"base": {"model": "b", "dtype": "fp16"}}, "base.dtype: small gradients vanish in fp16"),
        ({"type": "lora"}, {"train": {"steps": 1, "lr": 1, "base_lr": 1}}, "train.base_lr: lora changes a base"),
        (PROMPT, {"train": {"steps": 1, "lr": 1, "base_weight_decay": 0.1}}, "train.base_weight_decay: is of the base"),
        (PROMPT, {"train": {"steps": 1, "lr": 1, "lr_decay": 0.5}}, "train.lr_decay: belongs to `schedule: exponent"),
    ],
)
def test_what_training_needs(method: dict[str, Any], changes: dict[str, Any], fault: str) -> None:
    assert any(found.startswith(fault) for found in faults(WORDS, method, GPT2, **changes))


def test_metrics_that_need_java_are_refused_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captions, "why_not", lambda: "a Java runtime")
    assert faults({**WRITE, "metrics": ["bleu", "nist"]}, PROMPT, GPT2) == []
    (fault,) = faults({**WRITE, "metrics": ["bleu", "meteor"]}, PROMPT, GPT2)
    assert fault == "task.metrics: meteor: a Java runtime is missing; add it, or take them out"


WARP, AUTO, PET = {"type": "warp"}, {"type": "autoprompt"}, {"type": "pet", "patterns": ["{text} is [MASK]"]}
SLOTS = {**MASK, "input": "[P:2] {text} it was [MASK] [P]."}
TRIGGERS = {**MASK, "input": "[T:2] {text} it was [MASK] [T]."}
NO_RATE = {"train": {"steps": 3}}


def test_methods_that_live_by_their_template() -> None:
    assert faults(SLOTS, WARP, BERT) == []
    assert faults(MASK, {**WARP, "length": 4}, BERT) == []
    assert faults(TRIGGERS, AUTO, BERT, **NO_RATE) == []
    assert faults({**CLOZE, "input": "[T:2] {text} [MASK]"}, AUTO, BERT, **NO_RATE) == []
    written = {**WORDS, "input": "[T:2] {text} is"}
    assert faults(written, {**AUTO, "init": {"type": "vocab"}}, GPT2, **NO_RATE) == []
    assert faults(MASK, PET, BERT, train={}) == []
    assert faults(MASK, PET, BERT, train={"steps": 1, "base_lr": 1e-5}) == []


@pytest.mark.parametrize(
    ("task", "method", "facts", "fault"),
    [
        (MASK, WARP, BERT, "method.length: warp has no virtual tokens"),
        ({**WORDS, "input": "[P] {text}"}, WARP, GPT2, "task.input: warp scores labels at [MASK]"),
        ({**HEAD, "input": "[P] {text}"}, WARP, BERT, "method.type: warp works through words"),
        ({**CLOZE, "input": "[P] {text} [MASK]"}, WARP, BERT, "task.type: warp needs `type: classify`"),
        (SLOTS, AUTO, BERT, "task.input: autoprompt finds the words at the template's trigger slots"),
        (MASK, AUTO, BERT, "task.input: autoprompt finds the words"),
        (TRIGGERS, P_TUNING, BERT, "task.input: [T] is for autoprompt"),
        (TRIGGERS, PROMPT, BERT, "task.input: [T] is for autoprompt"),
        (TRIGGERS, AUTO, BERT, "train.lr: autoprompt tries words"),
        ({**WORDS, "input": "[T] {text}"}, AUTO, GPT2, "method.init: the tokenizer of b has no mask token"),
        ({**CLOZE, "input": "[T] {text} [MASK]"}, {**AUTO, "label_words": 2}, BERT, "method.label_words: are found"),
        (HEAD, PET, BERT, "method.type: pet works through words"),
        (WRITE, PET, GPT2, "task.type: pet needs `type: classify`"),
        (MASK, {**PET, "patterns": ["{text}"]}, BERT, "method.patterns[0]: has [MASK] where"),
        (MASK, {**PET, "patterns": ["{texts} [MASK]"]}, BERT, "method.patterns: the dataset d has no field `texts`"),
        (MASK, {**PET, "patterns": ["[P] {text} [MASK]"]}, BERT, "method.patterns[0]: holds [P] or [T]"),
        (MASK, PET, BERT, "train.lr: pet trains nothing"),
    ],
)
def test_templates_that_a_method_cannot_use(
    task: dict[str, Any], method: dict[str, Any], facts: BaseFacts, fault: str
) -> None:
    found = faults(task, method, facts)
    assert any(one.startswith(fault) for one in found), found


@pytest.mark.parametrize("method", [PROMPT, PREFIX, {"type": "fine-tuning"}], ids=lambda m: m["type"])
def test_what_is_trained_is_not_trained_through_fp16(method: dict[str, Any]) -> None:
    base = {"base": {"model": "b", "dtype": "fp16"}}
    (fault,) = faults(WRITE, method, GPT2, **base)
    assert fault.startswith("base.dtype: ")
    assert "fp32" in fault
    assert faults(WRITE, PROMPT, GPT2, base={"model": "b", "dtype": "bf16"}) == []
    assert faults(WRITE, {"type": "prompt-design"}, GPT2, train={}, **base) == []
