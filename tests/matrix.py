"""Methods x model classes on tiny random models, through the parts of a real job: works, or refused with a reason.

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
from training_fixtures import COLOURS, THINGS, make_tokenizer

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
    "Pegasus": ("seq2seq", hf.PegasusForConditionalGeneration, _BART),
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
    "warp": ({"type": "warp"}, {"input": "[P:2] {text} [P]", "type": "classify"}),
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
    }
    for i in range(4)
]
_LABELS = {"warm": ["red"], "cold": ["black"]}


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
        if kind == "masked" and "head" not in task:
            task["input"] += " [MASK]"
            config = config | (
                {"patterns": [text + "[MASK]" for text in config["patterns"]]} if "patterns" in config else {}
            )
    train = {} if method in {"prompt-design", "pet"} else {"steps": 1, "lr": 0.1}
    if method == "autoprompt":
        del train["lr"]
    raw = {"name": "n", "base": "this base", "dataset": "d", "task": task, "method": config, "train": train}
    return JobRecipe.model_validate(raw)


def outcome(model: Model, method: str) -> str | None:
    """Why it is refused at submit; None: it works, which is checked here."""
    one = recipe(model.host.kind, method)
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
        _learns(lambda: _loss(host, objective, examples, method.prompt(), head), host, trained, every=weights is None)
    _folds(host, objective, examples, method)
    if isinstance(objective, Writes):
        _writes(host, objective, method.prompt().detach())


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
        _alike(left.hidden[left.text_mask], right.hidden[right.text_mask])
        _alike(alone.hidden[0], right.hidden[0, : len(rows[0].ids)])
        return
    _alike(left.logits, right.logits)
    _alike(alone.logits, right.logits[right.row_of == 0])


def _alike(actual: torch.Tensor, expected: torch.Tensor) -> None:
    distance = float((actual - expected).abs().max())
    assert distance <= TOLERANCE * float(expected.abs().max()), f"padding changes the result by {distance}"


def table() -> tuple[list[list[str]], list[str]]:
    """(rows of `yes` or the letter of a reason, the reasons)."""
    made, reasons, rows = models(), {}, []
    for name, model in made.items():
        cells = [name]
        for method in METHODS:
            reason = outcome(model, method)
            if reason is not None:
                general = (
                    reason.replace(f"this base ({model.facts.architecture}, ", "this base (")
                    .replace(f"this base ({model.facts.model_type})", "this base")
                    .replace(model.facts.architecture, "this base")
                )
                reason = reasons.setdefault(general, "abcdefghijklmnopqrstuvwxyz"[len(reasons)])
            cells.append(reason or "yes")
        rows.append(cells)
    return rows, [f"{letter}: {text}" for text, letter in reasons.items()]


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


PAGE = """# Which method works on which model

<!-- Made by docs/generate_matrix.py on tiny random models; change the code, then run `make docs`. -->

Each cell is run in the tests on a tiny random model of the class, on the task that is natural for it: writing for
causal and encoder-decoder bases, a verbalizer at [MASK] for masked ones; `autoprompt` and `pet` choose labels by words
everywhere, `lm-adapt` reads running text. `yes`: everything that is trained gets a gradient, what is saved is the
folded prompt, a row's logits are the same to 0.001 % alone and in a batch, padded on the left and on the right, and
where it writes, so are its texts; gradient checkpointing changes no gradient. A letter: `ptq submit` refuses it, for
the reason below.

{table}

{reasons}

Tasks: `generate` on causal and encoder-decoder bases; `classify` by words on all, by a head on masked ones; `cloze` on
masked and causal bases; `tag` and `span` on masked ones; `text` (for lm-adapt) on all. Methods that train the base's
own weights have the base for themselves: no fused run, no DeepSpeed, fp32.

## Padding, beside PEFT

Prompt tuning of a short row in a batch with a longer one, padded on the left: how far its next-word scores are from
those of the row alone, in parts of the largest. PEFT puts the virtual tokens before the padding and lets positions
count over both.

{padding}
"""


def page() -> str:
    cells, reasons = table()
    return PAGE.format(
        table=_markdown(["model", *METHODS], cells),
        reasons="\n".join(f"- {reason}" for reason in reasons),
        padding=_markdown(["model", "ptq", "PEFT"], padding_beside_peft()),
    )


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])
