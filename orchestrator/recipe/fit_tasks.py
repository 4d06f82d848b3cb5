"""Can a base of this kind do the task at all, whatever the method?"""

from __future__ import annotations

from pathlib import Path

from orchestrator.recipe.architectures import FILLED_BY_SENTINEL, FILLED_BY_TEXT
from orchestrator.recipe.bases import BaseFacts
from orchestrator.recipe.faults import Finding, KeyPath
from orchestrator.recipe.methods import Pet
from orchestrator.recipe.schema import Recipe
from orchestrator.recipe.tasks import Classify, Cloze, Generate, HeadOptions, PlainText, Span, Tag, own_choices
from orchestrator.tasks import captions, webnlg
from orchestrator.tasks.template import parse

INPUT: KeyPath = ("task", "input")


def task_findings(recipe: Recipe, facts: BaseFacts) -> list[Finding]:
    task, name = recipe.task, f"{recipe.base.model} ({facts.architecture}, {_KINDS[facts.kind]})"
    if parse(task.input).separators and facts.kind != "masked":
        what = f"[SEP] parts two texts for encoders such as BERT; {name} is none: write words in its place"
        return [Finding(INPUT, what)]
    if isinstance(task, Generate):
        return [*_writing_findings(name, facts), *_package_findings(task)]
    if isinstance(task, PlainText):
        return _word_findings(name, facts)
    if isinstance(task, Tag):
        return []
    if isinstance(task, Span):
        return _span_findings(task, name, facts)
    if isinstance(task, Classify) and task.head is not None:
        return _head_findings(task.head, name, facts)
    if isinstance(task, Cloze) and task.vocabulary is not None and not Path(task.vocabulary).is_file():
        return [Finding(("task", "vocabulary"), f"{task.vocabulary}: there is no such file")]
    if parse(task.input).masks:
        return [*_mask_findings(name, facts), *_one_mask_findings(recipe, name, facts)]
    if facts.kind == "masked":
        advice = "put [MASK] into task.input where a label word should stand, or give task.head"
        return [Finding(INPUT, f"{name} cannot continue a text; {advice}")]
    if isinstance(task, Cloze) and facts.kind == "seq2seq":
        what = _no_filling(name, facts) or f"{name} fills in what is missing; put [MASK] into task.input where that is"
        return [Finding(INPUT, what)]
    return _word_findings(name, facts)


def _writing_findings(name: str, facts: BaseFacts) -> list[Finding]:
    if facts.kind == "masked":
        advice = "use a causal or encoder-decoder base, or `type: classify`"
        return [Finding(("task", "type"), f"{name} cannot write text; {advice}")]
    return _word_findings(name, facts)


def _package_findings(task: Generate) -> list[Finding]:
    found = []
    for needing, why_not in ((captions.NEED_JAVA, captions.why_not), (webnlg.NEED_ASCII, webnlg.why_not)):
        named = sorted(needing & set(task.metrics))
        missing = why_not() if named else None
        if missing is not None:
            what = f"{' and '.join(named)}: {missing} is missing; add it, or take them out"
            found.append(Finding(("task", "metrics"), what))
    return found


def _span_findings(task: Span, name: str, facts: BaseFacts) -> list[Finding]:
    if facts.kind != "causal" or not task.unanswerable:
        return []
    what = "is said by the first token, which in a causal base has read nothing yet"
    return [Finding(("task", "unanswerable"), f"{what}; {name} is one: use an encoder, or take it out")]


def _head_findings(head: HeadOptions, name: str, facts: BaseFacts) -> list[Finding]:
    path = ("task", "head", "pooling")
    if facts.kind != "masked" and head.pooling not in {None, "last"}:
        which = "the last token's state is" if facts.kind == "causal" else "the decoder's last state is"
        what = f"{head.pooling} is for encoders; of {name} {which} the one that has read the text: write last"
        return [Finding(path, f"{what}, or take it out")]
    if facts.kind == "masked" and head.pooling == "last":
        return [Finding(path, f"last is for bases that read in one direction; {name} has cls, mean and pooler")]
    if head.pooling == "pooler" and not facts.pooler:
        what = f"the weights of {name} hold no pooler (the released P-tuning v2 then reads through a random one)"
        return [Finding(path, f"{what}; write cls or mean")]
    return []


def _mask_findings(name: str, facts: BaseFacts) -> list[Finding]:
    if facts.kind == "causal":
        advice = "take [MASK] out: the base then scores words as the text's continuation"
        return [Finding(INPUT, f"{name} has no [MASK]; {advice}")]
    if facts.kind == "seq2seq":
        what = _no_filling(name, facts)
        return _word_findings(name, facts) if what is None else [Finding(INPUT, what)]
    if not facts.mask_token:
        return [Finding(INPUT, f"the tokenizer of {name} has no mask token; use task.head instead of [MASK]")]
    return _word_findings(name, facts)


def _no_filling(name: str, facts: BaseFacts) -> str | None:
    """Why this encoder-decoder base does not fill in what is missing; None: it does."""
    if facts.model_type in FILLED_BY_TEXT:
        return None if facts.mask_token else f"the tokenizer of {name} has no mask token; take [MASK] out"
    if facts.model_type in FILLED_BY_SENTINEL:
        return None if facts.sentinel else f"the tokenizer of {name} has no <extra_id_0>; take [MASK] out"
    advice = "use BART, T5 or a masked base, or classify without [MASK]"
    return f"{name} was not pretrained to fill in single missing words; {advice}"


def _one_mask_findings(recipe: Recipe, name: str, facts: BaseFacts) -> list[Finding]:
    """What stands at the mask of an encoder-decoder base is read as one token."""
    task, method, found = recipe.task, recipe.method, []
    if facts.kind != "seq2seq":
        return []
    if own_choices(task):
        what = f"the rows' own answers may be several tokens, and {name} fills in one at [MASK]"
        found.append(Finding(INPUT, f"{what}; take [MASK] out: the base then scores them as what it would write"))
    if isinstance(method, Pet) and method.mlm:
        found.append(Finding(("method", "mlm"), f"hides words as masked bases do, and {name} is none; take it out"))
    return found


def _word_findings(name: str, facts: BaseFacts) -> list[Finding]:
    if facts.lm_head:
        return []
    instead = "use task.head instead of [MASK], or a" if facts.kind == "masked" else "use a"
    advice = f"{instead} checkpoint that was saved with its language-model head"
    return [
        Finding(
            ("base", "model"), f"the weights of {name} hold no language-model head: it cannot score words; {advice}"
        )
    ]


_KINDS = {"causal": "causal", "seq2seq": "encoder-decoder", "masked": "masked encoder"}
