"""Methods and tasks x model classes on tiny random models, through the parts of a real job: works, or refused with a
reason.

`docs/generate_matrix.py` writes docs/reference/methods.md from it; a test checks that the page says what is so.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from training_fixtures import COLOURS, THINGS, make_tokenizer, said

from orchestrator.recipe.bases import BaseFacts, read_base_facts
from orchestrator.recipe.fit import fit_faults
from orchestrator.recipe.schema import JobRecipe
from orchestrator.recipe.trained import trained_weights
from orchestrator.training.job import build_prompt
from orchestrator.training.objectives import Example, Objective, build_objective
from orchestrator.training.objectives.asking import Writes
from orchestrator.training.objectives.objective import Share
from orchestrator.tuning import (
    BaseHost,
    Prompt,
    Row,
    RowBatch,
    TunedMethod,
    forward,
    generate,
    load_prompt,
    save_prompt,
)
from orchestrator.tuning.own_weights import OwnWeights

TOLERANCE = 1e-5  #: between a row alone and in a batch, and between both sides of padding, of the largest number

_DEEP = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40}
_GROUPED = _DEEP | {"num_key_value_heads": 2, "max_position_embeddings": 96}
_ENCODER = _DEEP | {"max_position_embeddings": 96}
_BART: dict[str, Any] = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 40, "decoder_ffn_dim": 40, "max_position_embeddings": 96, "decoder_start_token_id": 1,
    "forced_eos_token_id": None,
}  # fmt: skip
_T5: dict[str, Any] = {
    "d_model": 32, "d_kv": 6, "d_ff": 40, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0,
}  # fmt: skip
_GATED = _T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}

#: name in the table -> (kind, model class, settings of its configuration)
MODELS: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "GPT-2": ("causal", hf.GPT2LMHeadModel, {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 96}),
    "GPT-NeoX": ("causal", hf.GPTNeoXForCausalLM, _ENCODER),
    "Llama": ("causal", hf.LlamaForCausalLM, _GROUPED),
    "Qwen3": ("causal", hf.Qwen3ForCausalLM, _GROUPED | {"head_dim": 12}),
    "Mistral": ("causal", hf.MistralForCausalLM, _GROUPED | {"sliding_window": None}),
    "Gemma 3": ("causal", hf.Gemma3ForCausalLM, _GROUPED | {"head_dim": 8, "sliding_window": 64}),
    "Phi-3": ("causal", hf.Phi3ForCausalLM, _GROUPED),
    "OPT": ("causal", hf.OPTForCausalLM, _ENCODER | {"ffn_dim": 40, "word_embed_proj_dim": 16}),
    "BERT": ("masked", hf.BertForMaskedLM, _ENCODER),
    "RoBERTa": ("masked", hf.RobertaForMaskedLM, _ENCODER),
    "ELECTRA": ("masked", hf.ElectraForMaskedLM, _ENCODER | {"embedding_size": 16}),
    "ALBERT": ("masked", hf.AlbertForMaskedLM, _ENCODER | {"embedding_size": 16}),
    "BART": ("seq2seq", hf.BartForConditionalGeneration, _BART),
    "Pegasus": ("seq2seq", hf.PegasusForConditionalGeneration, _BART | {"scale_embedding": True}),
    "T5 v1.0": ("seq2seq", hf.T5ForConditionalGeneration, _T5),
    "T5 v1.1": ("seq2seq", hf.T5ForConditionalGeneration, _GATED),
    "mT5": ("seq2seq", hf.MT5ForConditionalGeneration, _GATED),
}

#: name in the table -> (method, what the task is changed to)
METHODS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "prompt-tuning": ({"type": "prompt-tuning", "length": 3}, {}),
    "prefix-tuning": ({"type": "prefix-tuning", "length": 3, "reparameterization": {"hidden": 8}}, {}),
    "prefix-tuning, infix": ({"type": "prefix-tuning", "length": 3, "placement": "infix"}, {}),
    "prefix-tuning, embedding-only": ({"type": "prefix-tuning", "length": 3, "embedding_only": True}, {}),
    "p-tuning": ({"type": "p-tuning"}, {"input": "[P:2] {text} [P]"}),
    "p-tuning-v2": ({"type": "p-tuning-v2", "length": 3, "dropout": 0}, {}),
    "warp": ({"type": "warp", "init": {"type": "vocab"}}, {"input": "[P:2] {text} [P]", "type": "classify"}),
    "autoprompt": (
        {"type": "autoprompt", "init": {"type": "vocab"}},
        {"input": "[T:2] {text} [T]", "type": "classify"},
    ),
    "pet": ({"type": "pet", "patterns": ["a {text} "]}, {"type": "classify"}),
    "head": ({"type": "head"}, {"type": "classify", "head": {}}),
    "prompt-design": ({"type": "prompt-design"}, {}),
    "fine-tuning": ({"type": "fine-tuning"}, {}),
    "lora": ({"type": "lora", "rank": 2}, {}),
    "fine-tuning, biases": ({"type": "fine-tuning", "weights": "biases"}, {}),
    "lm-adapt": ({"type": "lm-adapt"}, {"type": "text"}),
}

ROWS = [
    {
        "text": f"{COLOURS[i % 5]} {THINGS[i]}" + " and warm" * i,
        "target": THINGS[-1 - i],
        "label": ("warm", "cold")[i % 2],
        "tags": "O X" + " O O" * i,
        "answer": THINGS[i],
    }
    for i in range(4)
]
_LABELS = {"warm": ["red"], "cold": ["black"]}

#: name in the table -> what the task of a recipe is
TASKS: dict[str, dict[str, Any]] = {
    "generate": {"type": "generate", "target": "{target}", "max_new_tokens": 3},
    "classify, by what follows": {"type": "classify", "labels": _LABELS},
    "classify, at [MASK]": {"type": "classify", "labels": _LABELS},
    "classify, by a head": {"type": "classify", "labels": _LABELS, "head": {}},
    "cloze": {"type": "cloze", "target": "{target}"},
    "tag": {"type": "tag", "words": "text", "labels": ["O", "X"], "metrics": ["tag_accuracy"]},
    "span": {"type": "span", "context": "{text}", "answers": "{answer}"},
}
_READS_ALL = "prefix-tuning"  #: the method of the table of tasks: it enters every attention layer
WITH_EACH_METHOD = ("GPT-2", "BERT", "BART", "T5 v1.1")  #: one class of each way to read and write


@dataclass(frozen=True)
class Model:
    host: BaseHost
    facts: BaseFacts


def models(names: Sequence[str] = tuple(MODELS)) -> dict[str, Model]:
    """Each saved to a folder and loaded from it, as a base is."""
    found = {}
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            kind = saved(Path(folder), name)
            host = BaseHost.load(Path(folder), kind=kind)  # type: ignore[arg-type]
            found[name] = Model(host, read_base_facts(Path(folder)))
    return found


def saved(folder: Path, name: str, **changes: Any) -> str:
    """Save a random model of the class, with changes of its configuration, and a tokenizer; its kind."""
    kind, architecture, settings = MODELS[name]
    words = make_tokenizer({"causal": "gpt2", "seq2seq": "t5", "masked": "bert"}[kind])
    if kind == "seq2seq":
        mark = {"extra_special_tokens": ["<extra_id_0>"]} if "T5" in name else {"mask_token": "<mask>"}
        words.add_special_tokens(mark)
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "vocab_size": len(words)}
    torch.manual_seed(0)
    model = architecture(architecture.config_class(**{**settings, **changes}, **ids))
    with torch.no_grad():  # large enough that every input matters
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.2)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return kind


def recipe(kind: str, method: str) -> JobRecipe:
    """The method on the task that is natural for the kind of base."""
    config, change = METHODS[method]
    task: dict[str, Any] = {"type": "generate" if kind != "masked" else "classify", "input": "the {text} "} | change
    if task["type"] == "generate":
        task |= {"target": "{target}", "max_new_tokens": 3}
    elif task["type"] == "classify":
        task["labels"] = _LABELS
        if (kind == "masked" or (kind == "seq2seq" and method == "warp")) and "head" not in task:
            task["input"] += " [MASK]"
            config = config | (
                {"patterns": [text + "[MASK]" for text in config["patterns"]]} if "patterns" in config else {}
            )
    train = {} if method in {"prompt-design", "pet"} else {"steps": 1, "lr": 0.1}
    if method == "autoprompt":
        del train["lr"]
    raw = {"name": "n", "base": "this base", "dataset": "d", "task": task, "method": config, "train": train}
    return JobRecipe.model_validate(raw)


def recipe_of_task(kind: str, method: str, name: str) -> JobRecipe:
    """The method on the task; [MASK] where a task has one."""
    config, change = METHODS[method]
    task = dict(TASKS[name])
    searched = {"input": change["input"]} if "input" in change else {}
    mask = " [MASK]" if name == "classify, at [MASK]" or (name == "cloze" and kind != "causal") else ""
    task["input"] = searched.get("input", "the {text} ") + mask
    config = config | ({"patterns": [text + mask for text in config["patterns"]]} if "patterns" in config else {})
    train: dict[str, Any] = {} if method in {"prompt-design", "pet"} else {"steps": 1, "lr": 0.1}
    if method == "autoprompt":
        del train["lr"]
    raw = {"name": "n", "base": "this base", "dataset": "d", "task": task, "method": config, "train": train}
    return JobRecipe.model_validate(raw)


def outcome(model: Model, method: str, task: str | None = None) -> str | None:
    """Why it is refused at submit; None: it works, which is checked here. `task`: default the natural one."""
    return outcome_of(model, asked(model, method, task))


def asked(model: Model, method: str, task: str | None) -> JobRecipe:
    kind = model.host.kind
    return recipe(kind, method) if task is None else recipe_of_task(kind, method, task)


def outcome_of(model: Model, one: JobRecipe) -> str | None:
    faults = fit_faults(one, model.facts, list(ROWS[0]), {"train": 4})
    if faults:
        of_the_method = [fault for fault in faults if fault.startswith("method.")]
        return (of_the_method or faults)[0].partition(": ")[2]
    try:
        _check(model.host, one)
    finally:
        model.host.model.requires_grad_(False)
    return None


def _check(host: BaseHost, one: JobRecipe) -> None:
    encoder, method = build_prompt(one, host, context=96)
    objective = build_objective(one, encoder)
    torch.manual_seed(1)
    head = objective.head(host)
    which = trained_weights(one)
    weights = None if which == "none" else OwnWeights(host, which)
    examples = [objective.example(row) for row in ROWS]
    trained = [
        *method.parameters(),
        *(() if head is None else head.parameters()),
        *(weights.parameters if weights else ()),
    ]
    if trained:
        every = weights is None and one.task.type != "span"  # no loss depends on the bias of a span's head
        _learns(lambda: _loss(host, objective, examples, method.prompt(), head), host, trained, every=every)
    _folds(host, objective, examples, method)
    if isinstance(objective, Writes):
        _writes(host, objective, method.prompt().detach())
    elif objective.reads_hidden:
        _answers(host, objective, method.prompt().detach(), head)


def _learns(
    loss: Callable[[], torch.Tensor], host: BaseHost, trained: list[torch.nn.Parameter], *, every: bool
) -> None:
    """All that is trained gets a gradient, the same with each layer computed again in the backward."""
    found = []
    for on in (False, True):
        host.set_checkpointing(on)
        loss().backward()
        found.append([None if p.grad is None else p.grad.clone() for p in trained])
        for parameter in trained:
            parameter.grad = None
    host.set_checkpointing(False)
    plain, again = ([g for g in gradients if g is not None] for gradients in found)
    assert plain, "nothing gets a gradient"
    assert all(bool(g.isfinite().all()) for g in plain)
    largest = max(float(g.abs().max()) for g in plain)
    assert largest > 0
    assert not every or len(plain) == len(trained), "a part that is trained gets no gradient"
    assert len(again) == len(plain)
    distance = max(float((a - b).abs().max()) for a, b in zip(plain, again, strict=True))
    assert distance <= TOLERANCE * largest, f"gradient checkpointing changes a gradient by {distance}"


@torch.no_grad()
def _answers(host: BaseHost, objective: Objective, prompt: Prompt, head: Any) -> None:
    """The same answers alone, in a batch and shuffled; the untuned base's too."""
    for tuned in (True, False):
        alone = [said(host, objective, prompt, head, [row], tuned=tuned)[0] for row in ROWS]
        assert said(host, objective, prompt, head, ROWS[::-1], tuned=tuned) == alone[::-1], "the batch changes answers"


@torch.no_grad()
def _writes(host: BaseHost, objective: Writes, prompt: Prompt) -> None:
    """The same texts alone and in a batch, sorted and shuffled, padded on the left and on the right."""
    rows = objective.beginnings(ROWS, tuned=True)

    def written(some: Sequence[Row], side: str = "right") -> list[list[int]]:
        batch = RowBatch.collate(some, pad_id=host.pad_id, side=side)  # type: ignore[arg-type]
        return generate(host, batch, [prompt], max_new_tokens=4, eos_token_ids=[])

    alone = [written([row])[0] for row in rows]
    assert written(rows, "left") == alone, "padding on the left changes what is written"
    assert written(rows[::-1], "right") == alone[::-1], "padding on the right changes what is written"


def _loss(host: BaseHost, objective: Objective, examples: list[Example], prompt: Prompt, head: Any) -> torch.Tensor:
    batch = RowBatch.collate([example.row for example in examples], pad_id=host.pad_id)
    output = forward(host, batch, [prompt], hidden=objective.reads_hidden)
    return objective.loss_sum(Share.of(output, 0, range(len(examples)), len(examples)), examples, head)


@torch.no_grad()
def _folds(host: BaseHost, objective: Objective, examples: list[Example], method: TunedMethod) -> None:
    """What is saved is what was trained, without its network; with it, padding changes nothing."""
    with tempfile.TemporaryDirectory() as folder:
        save_prompt(Path(folder), method.prompt(), {})
        saved, _ = load_prompt(Path(folder))
    before, after = method.prompt().tensors(), saved.tensors()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before), "folding changes the result"
    rows = [example.row for example in examples]
    sides = [
        forward(host, RowBatch.collate(rows, pad_id=host.pad_id, side=side), [saved], hidden=objective.reads_hidden)  # type: ignore[arg-type]
        for side in ("left", "right")
    ]
    first = RowBatch.collate(rows[:1], pad_id=host.pad_id)
    alone = forward(host, first, [saved], hidden=objective.reads_hidden)
    left, right = sides
    if objective.reads_hidden:
        assert left.hidden is not None
        assert right.hidden is not None
        assert alone.hidden is not None
        if host.kind == "seq2seq":  # the decoder's, in columns of its own
            places = [(n, column) for n, row in enumerate(rows) for column in range(len(row.decoder_ids or ()))]
            row_of, columns = torch.tensor(places).unbind(1)
            _alike(left.hidden[row_of, columns], right.hidden[row_of, columns])
        else:
            _alike(left.hidden[left.text_mask], right.hidden[right.text_mask])
        _alike(alone.hidden[0], right.hidden[0, : alone.hidden.shape[1]])
        return
    _alike(left.logits, right.logits)
    _alike(alone.logits, right.logits[right.row_of == 0])


def _alike(actual: torch.Tensor, expected: torch.Tensor) -> None:
    distance = float((actual - expected).abs().max())
    assert distance <= TOLERANCE * float(expected.abs().max()), f"padding changes the result by {distance}"


class Reasons:
    """Each reason once, in the words that hold for any base, by a letter."""

    def __init__(self) -> None:
        self._letters: dict[str, str] = {}
        self._known: dict[tuple[int, str], str | None] = {}  #: cells that stand in several tables are run once

    def cell(self, model: Model, method: str, task: str | None = None) -> str:
        one = asked(model, method, task)
        key = id(model), one.model_dump_json()
        if key not in self._known:
            self._known[key] = outcome_of(model, one)
        reason = self._known[key]
        if reason is None:
            return "yes"
        general = (
            reason.replace(f"this base ({model.facts.architecture}, ", "this base (")
            .replace(f"this base ({model.facts.model_type})", "this base")
            .replace(model.facts.architecture, "this base")
        )
        letters = [*"abcdefghijklmnopqrstuvwxyz", *(f"a{letter}" for letter in "abcdefghijklmnopqrstuvwxyz")]
        return self._letters.setdefault(general, letters[len(self._letters)])

    @property
    def lines(self) -> list[str]:
        return [f"{letter}: {text}" for text, letter in self._letters.items()]


def tables() -> tuple[list[list[list[str]]], list[str]]:
    """([methods x models, tasks x models, methods x tasks of some models], the reasons); a row begins with its name."""
    made, reasons = models(), Reasons()
    by_method = [[name, *(reasons.cell(model, method) for method in METHODS)] for name, model in made.items()]
    by_task = [[name, *(reasons.cell(model, _READS_ALL, task) for task in TASKS)] for name, model in made.items()]
    both = [
        [f"{name}, {method}", *(reasons.cell(made[name], method, task) for task in TASKS)]
        for name in WITH_EACH_METHOD
        for method in METHODS
        if method != "lm-adapt"
    ]
    return [by_method, by_task, both], reasons.lines


def padding_beside_peft() -> list[list[str]]:
    """Prompt tuning of a short row beside a long one: how far its logits move when padding stands on the left."""
    import peft

    found = []
    for name, model in models(("GPT-2", "Llama")).items():
        host, words = model.host, [5, 9, 7, 11, 6, 8]
        prompt = Prompt(torch.randn(4, 32, generator=torch.Generator().manual_seed(3)))
        rows = [Row([-1, -2, -3, -4, *ids], [-100] * (3 + len(ids)) + [5], prompt=0) for ids in (words, words[:3])]
        ours = [
            forward(host, RowBatch.collate(some, pad_id=0, side="left"), [prompt]).logits[-1]
            for some in (rows, rows[1:])
        ]
        config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of transformers, about what PEFT asks it
            theirs_model = peft.get_peft_model(host.model, config).eval()
        theirs_model.prompt_encoder["default"].embedding.weight.data.copy_(prompt.embeddings)  # type: ignore[arg-type]
        padded = torch.tensor([words, [0, 0, 0, *words[:3]]]), torch.tensor([[1] * 6, [0] * 3 + [1] * 3])
        with torch.no_grad():
            theirs = theirs_model(input_ids=padded[0], attention_mask=padded[1]).logits[1, -1]
            plain = theirs_model(input_ids=padded[0][:1, :3], attention_mask=torch.ones(1, 3)).logits[0, -1]
        scale = float(plain.abs().max())
        found.append([name, *(_size(float((a - b).abs().max()) / scale) for a, b in (ours, (theirs, plain)))])
    return found


def _size(relative: float) -> str:
    return "less than 0.001 %" if relative < TOLERANCE else f"more than {'10 %' if relative > 0.1 else '0.001 %'}"


PAGE = """# Which method works on which model, and for which task

<!-- Made by docs/generate_matrix.py on tiny random models; change the code, then run `make docs`. -->

Each cell is run in the tests on a tiny random model of the class. `yes`: everything that is trained gets a gradient,
what is saved is the folded prompt, a row's logits or states are the same to 0.001 % alone and in a batch, padded on the
left and on the right, and so are its answers; gradient checkpointing changes no gradient. A letter: `ptq submit`
refuses it, for the reason below.

## Methods

On the task that is natural for the class: writing for causal and encoder-decoder bases, a verbalizer at [MASK] for
masked ones; `autoprompt` and `pet` choose labels by words everywhere, `warp` at [MASK] where there is one, `lm-adapt`
reads running text.

{methods}

## Tasks

With prefix tuning, which enters every attention layer. A head reads the first token of an encoder, the last one of a
causal base, and the decoder of an encoder-decoder base, which is fed the text too; a tag is read at the word's first
token, on a causal base at its last. At [MASK], BART's decoder is fed the text up to the mask, and T5's `<extra_id_0>`.

{tasks}

## Methods and tasks

For one class of each way to read and write.

{both}

{reasons}

Methods that train the base's own weights have the base for themselves: no fused run, no DeepSpeed, fp32.

## Padding, beside PEFT

Prompt tuning of a short row in a batch with a longer one, padded on the left: how far its next-word scores are from
those of the row alone, in parts of the largest. PEFT puts the virtual tokens before the padding and lets positions
count over both.

{padding}
"""


def page() -> str:
    (by_method, by_task, both), reasons = tables()
    return PAGE.format(
        methods=_markdown(["model", *METHODS], by_method),
        tasks=_markdown(["model", *TASKS], by_task),
        both=_markdown(["model and method", *TASKS], both),
        reasons="\n".join(f"- {reason}" for reason in reasons),
        padding=_markdown(["model", "ptq", "PEFT"], padding_beside_peft()),
    )


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])
