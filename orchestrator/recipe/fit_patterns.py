"""Methods that live by the template and by label words: PET, AutoPrompt, WARP."""

from __future__ import annotations

from orchestrator.recipe.faults import Finding
from orchestrator.recipe.methods import AutoPrompt, Pet, Warp
from orchestrator.recipe.schema import Recipe
from orchestrator.recipe.tasks import Classify, PlainText, reads_states
from orchestrator.tasks.template import parse


def pattern_findings(recipe: Recipe) -> list[Finding]:
    """What is wrong whatever the base and the data."""
    method, task = recipe.method, recipe.task
    if not isinstance(method, AutoPrompt | Pet | Warp):
        return []
    if isinstance(task, PlainText) or reads_states(task):
        advice = "take task.head out" if isinstance(task, Classify) else "use another method"
        return [Finding(("method", "type"), f"{method.type} works through words, not through a trained head; {advice}")]
    if isinstance(method, AutoPrompt):
        if method.label_words is not None and not (isinstance(task, Classify) and parse(task.input).masks):
            return [Finding(("method", "label_words"), "are found at the [MASK] of a `classify` task only")]
        return []
    if not isinstance(task, Classify):
        return [Finding(("task", "type"), f"{method.type} needs `type: classify`")]
    masks = parse(task.input).masks
    if isinstance(method, Warp):
        what = "warp scores labels at [MASK]; put one into the template"
        return [] if masks else [Finding(("task", "input"), what)]
    return [*_mlm_findings(recipe, method, masks), *_wrong_patterns(method, masks)]


def _mlm_findings(recipe: Recipe, method: Pet, masks: int) -> list[Finding]:
    if not method.mlm:
        return []
    if not masks:
        return [Finding(("method", "mlm"), "hides words at [MASK], which task.input does not have; take it out")]
    what = "is a loss of the base's own weights, which this job does not train: give train.base_lr, or take mlm out"
    return [] if recipe.train.base_lr is not None else [Finding(("method", "mlm"), what)]


def _wrong_patterns(method: Pet, masks: int) -> list[Finding]:
    return [
        Finding(("method", "patterns", number), "has [MASK] where task.input has none, or the other way round")
        for number, pattern in enumerate(method.patterns)
        if parse(pattern).masks != masks
    ] + [
        Finding(("method", "patterns", number), "holds [P] or [T]; hand-written patterns are plain words")
        for number, pattern in enumerate(method.patterns)
        if parse(pattern).virtual_tokens
    ]
