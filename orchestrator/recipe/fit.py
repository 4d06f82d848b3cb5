"""Does the method suit the task, the base and the data? Everything that can be refused at submit is refused here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from orchestrator.recipe.architectures import NATIVE, POSITIONS_ADDED
from orchestrator.recipe.bases import BaseFacts
from orchestrator.recipe.faults import Finding, KeyPath, did_you_mean, dotted
from orchestrator.recipe.fit_choices import choice_findings
from orchestrator.recipe.fit_patterns import pattern_findings
from orchestrator.recipe.fit_scores import score_findings, score_templates
from orchestrator.recipe.fit_starts import in_layers, starting_file_findings, starting_findings
from orchestrator.recipe.fit_tasks import task_findings
from orchestrator.recipe.fit_trained import base_training_findings, lora_findings, training_findings
from orchestrator.recipe.methods import (
    AutoPrompt,
    FineTuning,
    Head,
    LmAdapt,
    Pet,
    PrefixTuning,
    PromptDesign,
    PromptTuning,
    PTuning,
    PTuningV2,
    Warp,
)
from orchestrator.recipe.schema import Recipe
from orchestrator.recipe.starts import LabelsInit, MaskInit, VocabInit
from orchestrator.recipe.tasks import (
    Classify,
    Cloze,
    Generate,
    PlainText,
    Tag,
    own_choices,
    reads_states,
    task_templates,
)
from orchestrator.recipe.trained import trained_weights
from orchestrator.tasks.template import Template, parse
from orchestrator.tasks.verbalizer import label_faults

INPUT: KeyPath = ("task", "input")
LENGTH: KeyPath = ("method", "length")


def fit_faults(recipe: Recipe, facts: BaseFacts, fields: Sequence[str], splits: Mapping[str, int]) -> list[str]:
    """What is wrong with this recipe on this base and dataset, one line `key: what and what instead` each.

    `fields` are the dataset's columns, `splits` its splits with their numbers of rows. Empty: it can be queued.
    """
    found = [
        *recipe_findings(recipe),
        *_field_findings(recipe, fields),
        *_split_findings(recipe, splits),
        *task_findings(recipe, facts),
        *_method_findings(recipe, facts),
        *lora_findings(recipe, facts),
        *_length_findings(recipe, facts),
        *starting_file_findings(recipe, facts, virtual_tokens(recipe)),
        *_code_findings(recipe, facts),
    ]
    return [f"{dotted(finding.path)}: {finding.message}" for finding in dict.fromkeys(found)]


def recipe_findings(recipe: Recipe) -> list[Finding]:
    """What is wrong whatever the base and the data: the method against the template, the labels, the head."""
    found = [*_placement(recipe), *_infix_placement(recipe), *starting_findings(recipe, virtual_tokens(recipe))]
    template = parse(recipe.task.input)
    if not template.fields:
        found.append(Finding(INPUT, "names no field of the data; write for example {text}"))
    found += [*training_findings(recipe), *base_training_findings(recipe), *pattern_findings(recipe)]
    found += [*score_findings(recipe), *_separator_findings(recipe, template)]
    if isinstance(recipe.task, Classify):
        return found + _classify_findings(recipe, recipe.task)
    return found + _other_task_findings(recipe)


def _separator_findings(recipe: Recipe, template: Template) -> list[Finding]:
    if template.separators and not isinstance(recipe.task, Classify | Cloze):
        return [Finding(INPUT, f"[SEP] parts two texts that are classified; `type: {recipe.task.type}` reads one")]
    if template.separators > 1:
        return [Finding(INPUT, f"{template.separators} times [SEP]; there are two texts at most")]
    return []


def _other_task_findings(recipe: Recipe) -> list[Finding]:
    found, template, task = [], parse(recipe.task.input), recipe.task
    if template.masks and not isinstance(task, Cloze):
        what = f"[MASK] belongs to `type: classify` and `type: cloze`; {_WITHOUT_MASK[task.type]}"
        found.append(Finding(INPUT, what))
    if template.masks > 1:
        found.append(Finding(INPUT, f"{template.masks} times [MASK]; one word is missing"))
    if isinstance(task, Generate) and task.beams == 1 and task.length_penalty != 1:
        what = "weighs texts of several beams, and `beams` is 1: give more, or take it out"
        found.append(Finding(("task", "length_penalty"), what))
    if isinstance(task, Tag) and template.fields.count(task.words) != 1:
        found.append(Finding(INPUT, f"must hold the words: {{{task.words}}}"))
    if isinstance(task, Tag) and len(set(task.labels)) != len(task.labels):
        found.append(Finding(("task", "labels"), "a label stands twice"))
    if isinstance(recipe.method, Head) and not reads_states(task):
        found.append(
            Finding(("method", "type"), "`head` trains a classifier; it needs `type: classify` with `head: {}`")
        )
    if isinstance(recipe.method, PromptDesign) and (reads_states(task) or isinstance(task, PlainText)):
        found.append(Finding(("method", "type"), f"prompt-design trains no head, which `type: {task.type}` needs"))
    return found


def virtual_tokens(recipe: Recipe) -> int:
    """n: how many positions the method adds to every row."""
    if isinstance(recipe.method, Head | PromptDesign | FineTuning | LmAdapt | Pet):
        return 0
    return getattr(recipe.method, "length", None) or parse(recipe.task.input).virtual_tokens


def _placement(recipe: Recipe) -> list[Finding]:
    method, template = recipe.method, parse(recipe.task.input)
    placed, searched = template.virtual_tokens, template.searched_tokens
    if isinstance(method, AutoPrompt):
        if searched and searched == placed:
            return []
        advice = "place them with [T:k], and no [P]"
        return [Finding(INPUT, f"autoprompt finds the words at the template's trigger slots; {advice}")]
    if searched:
        return [Finding(INPUT, f"[T] is for autoprompt, which finds words; {method.type} trains no words: use [P:k]")]
    if not isinstance(method, PTuning | Warp):
        where = {"prompt-tuning": "in front of the text", "prefix-tuning": "in front of every layer"}
        where["p-tuning-v2"] = where["prefix-tuning"]
        why = f"puts its virtual tokens {where[method.type]}" if method.type in where else "has no virtual tokens"
        advice = "take [P] out, or use `p-tuning`, which places them anywhere"
        return [Finding(INPUT, f"{method.type} {why}; {advice}")] if placed else []
    if method.length is None and not placed:
        advice = "give method.length (in front of the text), or place them in task.input with [P:k]"
        return [Finding(LENGTH, f"{method.type} has no virtual tokens; {advice}")]
    if method.length is not None and placed:
        advice = "take method.length out, or take [P] out of the template"
        return [Finding(LENGTH, f"task.input already places {placed} virtual tokens with [P]; {advice}")]
    return []


def _infix_placement(recipe: Recipe) -> list[Finding]:
    """An infix needs a token between itself and the first one that is predicted."""
    method, task = recipe.method, recipe.task
    if not isinstance(method, PrefixTuning) or method.placement != "infix":
        return []
    if reads_states(task):
        what = "an infix stands between input and target, and a head reads an input alone; use `placement: prefix`"
        return [Finding(("method", "placement"), what)]
    if not isinstance(task, Generate | Classify):
        return []
    if method.embedding_only:
        return [Finding(("method", "embedding_only"), "stands in front of the text only; use `placement: prefix`")]
    first = None if isinstance(task, Generate) else ""  # what a separator that is left out means
    if (task.separator if task.separator is not None else first) == "":
        what = "must not be empty: the first word is predicted from the token before it, which has to see the infix"
        return [Finding(("task", "separator"), what)]
    return []


def _classify_findings(recipe: Recipe, task: Classify) -> list[Finding]:
    found, masks = choice_findings(recipe, task), parse(task.input).masks
    if task.head is None:
        found += [Finding(("task", "labels"), fault) for fault in label_faults(task.labels)]
    if task.head is not None and masks:
        found.append(
            Finding(INPUT, "a head reads the whole text, not a [MASK]; take [MASK] out, or take task.head out")
        )
    if masks > 1:
        found.append(Finding(INPUT, f"{masks} times [MASK]; label words are scored at one"))
    if isinstance(recipe.method, Head) and task.head is None and not own_choices(task):
        found.append(Finding(("task", "head"), "is missing; the method `head` trains it: write head: {}"))
    if isinstance(recipe.method, PromptDesign) and task.head is not None:
        what = "prompt-design trains no head; take task.head out, and let the base score the label words"
        found.append(Finding(("task", "head"), what))
    if task.soft is not None and task.head is None:
        found.append(Finding(("task", "soft"), "needs a head, which learns the probabilities: write head: {}"))
    if "group_exact_match" in task.metrics and task.group is None:
        found.append(Finding(("task", "group"), "is missing; group_exact_match counts groups of rows"))
    return found


def _field_findings(recipe: Recipe, fields: Sequence[str]) -> list[Finding]:
    found = []
    patterns = [("method.patterns", text) for text in getattr(recipe.method, "patterns", [])]
    patterns += score_templates(recipe)
    for key, text in [*((f"task.{key}", text) for key, text in task_templates(recipe.task)), *patterns]:
        for name in parse(text).fields:
            if name not in fields:
                meant = did_you_mean(name, fields)
                known = f"its fields: {', '.join(fields) or 'none'}"
                found.append(
                    Finding(
                        tuple(key.split(".")),
                        f"the dataset {recipe.dataset} has no field `{name}`{meant or '; ' + known}",
                    )
                )
    return found


def _split_findings(recipe: Recipe, splits: Mapping[str, int]) -> list[Finding]:
    path: KeyPath = ("dataset",)
    if not any(splits.values()):
        return [Finding(path, f"{recipe.dataset} is empty")]
    if not splits.get("train"):
        there = ", ".join(f"{name} ({rows:,} rows)" for name, rows in splits.items())
        return [Finding(path, f"{recipe.dataset} has no rows to train on; it has {there}")]
    if recipe.train.eval_every is not None and not splits.get("validation"):
        advice = "take train.eval_every out, or add the dataset with --validation or --split"
        return [Finding(("train", "eval_every"), f"{recipe.dataset} has no validation rows; {advice}")]
    return []


def _method_findings(recipe: Recipe, facts: BaseFacts) -> list[Finding]:
    """What the method itself cannot do on this kind of base."""
    if isinstance(recipe.method, PTuningV2) and facts.kind == "seq2seq":
        advice = "use prefix-tuning, which has three prefixes there, or a masked or causal base"
        what = f"p-tuning-v2 is for one stack of layers; {recipe.base.model} is an encoder-decoder; {advice}"
        return [Finding(("method", "type"), what)]
    if in_layers(recipe.method) and facts.uneven_heads:
        what = f"keys and values of {recipe.base.model} ({facts.model_type}) differ in width, so no prefix fits in"
        return [Finding(("method", "type"), f"{what}; use prompt-tuning or p-tuning")]
    if isinstance(recipe.method, PrefixTuning) and recipe.method.placement == "infix":
        return _infix_findings(recipe, facts)
    if trained_weights(recipe) == "biases" and not facts.biases:
        return [Finding(("method", "weights"), f"{recipe.base.model} ({facts.model_type}) has no biases; write all")]
    if isinstance(getattr(recipe.method, "init", None), MaskInit) and not facts.mask_token:
        what = f"the tokenizer of {recipe.base.model} has no mask token to start from; write init: {{type: vocab}}"
        return [Finding(("method", "init"), what)]
    return []


def _infix_findings(recipe: Recipe, facts: BaseFacts) -> list[Finding]:
    path, advice = ("method", "placement"), "use `placement: prefix`"
    if facts.kind != "causal":
        what = f"an infix stands between input and target, which only a causal base reads as one text; {advice}"
        return [Finding(path, what)]
    if facts.model_type not in POSITIONS_ADDED:
        what = f"{recipe.base.model} ({facts.model_type}) puts positions into its keys, and an infix has another one in"
        return [Finding(path, f"{what} each row; {advice}, or GPT-2 or OPT")]
    return []


def _length_findings(recipe: Recipe, facts: BaseFacts) -> list[Finding]:
    n, most, method = virtual_tokens(recipe), facts.max_positions, recipe.method
    path = INPUT if getattr(method, "length", None) is None else LENGTH
    if most is not None and n + 1 >= most:
        # A prefix takes positions too: those of the text are shifted by n.
        return [Finding(path, f"{n} virtual tokens leave no room in {recipe.base.model}'s context of {most} positions")]
    if (
        isinstance(method, PromptTuning | PTuning)
        and isinstance(method.init, VocabInit | LabelsInit)
        and n > facts.vocab
    ):
        return [Finding(path, f"{n} virtual tokens cannot start from a vocabulary of {facts.vocab} tokens")]
    if not isinstance(recipe.task, Generate) or facts.kind != "causal" or most is None:
        return []
    if n + recipe.task.max_new_tokens >= most:
        room = f"{n} virtual tokens and {recipe.task.max_new_tokens} new ones leave no room for the input"
        advice = f"at most {most - n - 1} fit"
        return [Finding(("task", "max_new_tokens"), f"{room} in {recipe.base.model}'s {most} positions; {advice}")]
    return []


def _code_findings(recipe: Recipe, facts: BaseFacts) -> list[Finding]:
    if not facts.remote_code or recipe.base.trust_remote_code or facts.model_type in NATIVE:
        return []
    advice = "if you trust it, write trust_remote_code: true and start the worker with PTQ_ALLOW_REMOTE_CODE=1"
    return [Finding(("base", "trust_remote_code"), f"{recipe.base.model} brings its own Python code; {advice}")]


_WITHOUT_MASK = {
    "generate": "a generate task writes its target after the input",
    "tag": "a tagger reads the whole text",
    "span": "a span is found in the context",
    "text": "text is hidden at random",
}
