"""Is everything said that training needs, and may this job train the base's own weights?"""

from __future__ import annotations

from orchestrator.recipe.architectures import QUERIES_AND_VALUES
from orchestrator.recipe.bases import BaseFacts
from orchestrator.recipe.faults import Finding
from orchestrator.recipe.methods import AutoPrompt, LmAdapt, Lora, Pet
from orchestrator.recipe.schema import Recipe, Train
from orchestrator.recipe.tasks import PlainText
from orchestrator.recipe.trained import trained_weights, trains_nothing


def training_findings(recipe: Recipe) -> list[Finding]:
    """Whatever is trained needs a rate and an end."""
    train, found = recipe.train, _ignored(recipe)
    if trains_nothing(recipe):
        for key in ("steps", "epochs", "lr", "eval_every"):
            if getattr(train, key) is not None:
                found.append(Finding(("train", key), f"{recipe.method.type} trains nothing: take it out"))
        return found
    if recipe.base.dtype == "fp16" and trained_weights(recipe) == "none":
        # The least that fp16 holds is 6e-8: what is smaller on its way back to the prompt becomes 0. Scaling the loss
        # would help, by a factor of each job's own that is found while it trains; bf16 needs none of it.
        what = "small gradients vanish in fp16 on their way to the prompt; write bf16 or fp32"
        found.append(Finding(("base", "dtype"), what))
    if train.steps is None and train.epochs is None:
        found.append(Finding(("train", "steps"), "is missing; give steps or epochs"))
    if isinstance(recipe.method, AutoPrompt):
        if train.lr is not None or train.base_lr is not None:
            found.append(Finding(("train", "lr"), "autoprompt tries words, and has no learning rate: take it out"))
    elif train.lr is None and not isinstance(recipe.method, Pet):  # PET trains the base alone, at base_lr
        found.append(Finding(("train", "lr"), "is missing"))
    return found


def _ignored(recipe: Recipe) -> list[Finding]:
    """What is said and would change nothing. A default that is written out is no fault: jobs hold their recipe so."""
    train, found = recipe.train, []
    if train.base_weight_decay is not None and trained_weights(recipe) != "all":
        what = "is of the base's own matrices, which this job does not train: take it out"
        found.append(Finding(("train", "base_weight_decay"), what))
    if train.schedule != "exponential" and train.lr_decay != Train().lr_decay:
        what = f"belongs to `schedule: exponential`, and this one is {train.schedule}: take it out"
        found.append(Finding(("train", "lr_decay"), what))
    return found


def base_training_findings(recipe: Recipe) -> list[Finding]:
    """What a base has to be for its own weights to be trained."""
    weights, found = trained_weights(recipe), []
    if isinstance(recipe.task, PlainText) != isinstance(recipe.method, LmAdapt):
        what = "lm-adapt needs `type: text`" if isinstance(recipe.method, LmAdapt) else "`type: text` is for lm-adapt"
        found.append(Finding(("task", "type"), what))
    if isinstance(recipe.method, LmAdapt) and "{steps}" in (recipe.method.register_as or "") and not recipe.train.steps:
        found.append(
            Finding(("method", "register_as"), "names {steps}, which are not known of epochs: give train.steps")
        )
    if weights == "none":
        return found
    if recipe.base.dtype != "fp32":
        what = f"{recipe.base.dtype} is too coarse for the small updates of the base's own weights; write fp32"
        found.append(Finding(("base", "dtype"), what))
    if recipe.resources.zero is not None:
        what = "DeepSpeed holds a frozen base here, and this job trains it; take zero out"
        found.append(Finding(("resources", "zero"), what))
    return found


def lora_findings(recipe: Recipe, facts: BaseFacts) -> list[Finding]:
    """Are there layers to change?"""
    method, found = recipe.method, []
    if not isinstance(method, Lora):
        return []
    if recipe.resources.zero is not None:
        found.append(Finding(("resources", "zero"), "lora changes layers of an unsharded base; take zero out"))
    if recipe.train.base_lr is not None:
        found.append(Finding(("train", "base_lr"), "lora changes a base that stands still; take base_lr out"))
    wanted = QUERIES_AND_VALUES if method.targets is None else frozenset(method.targets)
    there = frozenset(facts.layer_names)
    missing = sorted(wanted - there)
    if there and (len(missing) == len(wanted) if method.targets is None else missing):
        known = ", ".join(sorted(there & QUERIES_AND_VALUES)) or ", ".join(sorted(there)[:12])
        what = f"{recipe.base.model} has no layer called {' or '.join(missing)}; write targets, for example of: {known}"
        found.append(Finding(("method", "targets"), what))
    return found
