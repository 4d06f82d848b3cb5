"""One job inside a run: its rows, method, head, optimizer, schedule and position. Nothing here knows its neighbours."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn, optim

from orchestrator import failpoints
from orchestrator.errors import BadData
from orchestrator.events import EventWriter, NoEvents
from orchestrator.jobspec import JobSpec
from orchestrator.paths import JobPaths
from orchestrator.recipe.bases import read_base_facts
from orchestrator.recipe.methods import Method
from orchestrator.recipe.schema import JobRecipe
from orchestrator.recipe.starts import LabelsInit
from orchestrator.recipe.tasks import Classify, Task
from orchestrator.tasks.template import parse
from orchestrator.training.checkpoint import (
    Checkpoint,
    newest_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
)
from orchestrator.training.objectives import Example, Objective, build_objective
from orchestrator.training.optimizers import build_optimizer
from orchestrator.training.order import batch_rows, mixed_seed, total_steps
from orchestrator.training.rows import Rows
from orchestrator.training.schedule import multiplier
from orchestrator.training.texts import TextEncoder
from orchestrator.tuning.host import BaseHost
from orchestrator.tuning.methods import TunedMethod, build_method
from orchestrator.tuning.prompt import Prompt

#: What a step needs random numbers for.
FOR_PROMPT, FOR_HEAD, FOR_BASE = range(3)

_CACHED_EXAMPLES = 40_000  # tokenised rows kept: 200 MB of Python lists at 100 tokens a row (measured), in each process


@dataclass
class TrainedJob:
    spec: JobSpec
    recipe: JobRecipe
    paths: JobPaths
    events: EventWriter | NoEvents
    rows: Rows
    objective: Objective
    encoder: TextEncoder
    method: TunedMethod
    head: nn.Module | None
    optimizer: optim.Optimizer
    steps: int
    step: int = 0  #: optimizer steps done
    resumed_from: int = 0
    evaluated: int = 0  #: the last step at which the validation rows were scored
    saved: int = -1  #: step of the newest checkpoint
    _examples: dict[int, Example] = field(default_factory=dict)

    @classmethod
    def open(cls, spec: JobSpec, host: BaseHost, events: EventWriter | NoEvents, *, device: torch.device) -> TrainedJob:
        """Build the job as it starts, or as its newest checkpoint left it."""
        recipe = JobRecipe.model_validate(spec.recipe)
        encoder, method = build_prompt(recipe, host, context=read_base_facts(Path(spec.base.path)).max_positions)
        objective = build_objective(recipe, encoder)
        head = _new_head(objective, recipe.seed, host, device)
        rows = Rows.open(Path(spec.dataset.path), "train")
        job = cls(
            spec=spec,
            recipe=recipe,
            paths=JobPaths(Path(spec.folder)),
            events=events,
            rows=rows,
            objective=objective,
            encoder=encoder,
            method=method,
            head=head,
            optimizer=_optimizer(recipe, method, head),
            steps=total_steps(recipe.train, len(rows)),
        )
        job._resume(newest_checkpoint(job.paths, job.identity))
        return job

    @property
    def identity(self) -> str:
        """What must be equal for a checkpoint to be this job's: recipe, base and data."""
        facts = [self.spec.recipe, self.spec.base.fingerprint, self.spec.dataset.digest]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    @property
    def dataset_folder(self) -> Path:
        return Path(self.spec.dataset.path)

    @torch.no_grad()
    def folded(self) -> Prompt:
        """The prompt as it is used and saved: no reparameterisation, no dropout."""
        self.method.eval()
        try:
            return self.method.prompt().detach()
        finally:
            self.method.train()

    def new_head(self, host: BaseHost, device: torch.device) -> nn.Module | None:
        """The head as this job's seed starts it."""
        return _new_head(self.objective, self.recipe.seed, host, device)

    @property
    def finished(self) -> bool:
        return self.step >= self.steps

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Everything that is trained."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def batch(self) -> list[Example]:
        """The examples of the step to come, over all ranks together."""
        train = self.recipe.train
        numbers = batch_rows(self.step, seed=self.recipe.seed, rows=len(self.rows), batch_size=train.batch_size)
        return [self._example(number) for number in numbers]

    @contextmanager
    def randomness(self, use: int, device: torch.device, *within: int) -> Iterator[None]:
        """Random numbers of the step to come for one use: alone or fused, resumed or not, they are the same."""
        with seeded(mixed_seed(self.recipe.seed, 3, self.step, use, *within), device):
            yield

    def apply(self) -> float:
        """One optimizer step with the gradients at hand; returns their norm before clipping."""
        clip = self.recipe.train.clip
        norm = nn.utils.clip_grad_norm_(self.parameters, float("inf") if clip is None else clip)
        factor = multiplier(self.step, self.recipe.train, self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        failpoints.reach("training.stepped")
        return float(norm)

    def checkpoint(self) -> None:
        """Save the state; every event up to this step reaches the disk first, so that no metric is ever missing."""
        if isinstance(self.events, NoEvents):
            return  # the first rank saves for all
        self.events.flush(sync=True)
        if self.saved == self.step:
            return
        save_checkpoint(self.paths, Checkpoint(self.step, self.evaluated, self.identity, self._tensors()))
        self.saved = self.step
        self.events.write("checkpoint", step=self.step)
        self.events.flush()

    def _tensors(self) -> dict[str, Tensor]:
        parts = {"method": self.method.state_dict(), "optimizer": optimizer_tensors(self.optimizer)}
        if self.head is not None:
            parts["head"] = self.head.state_dict()
        return {f"{part}.{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}

    def _resume(self, checkpoint: Checkpoint | None) -> None:
        if checkpoint is None:
            return
        parts: dict[str, dict[str, Tensor]] = {"method": {}, "optimizer": {}, "head": {}}
        for key, tensor in checkpoint.tensors.items():
            part, _, name = key.partition(".")
            parts[part][name] = tensor
        self.method.load_state_dict(parts["method"])
        if self.head is not None:
            self.head.load_state_dict(parts["head"])
        restore_optimizer(self.optimizer, parts["optimizer"])
        self.step = self.resumed_from = self.saved = checkpoint.step
        self.evaluated = checkpoint.evaluated

    def _example(self, number: int) -> Example:
        if number not in self._examples:
            try:
                example = self.objective.example(self.rows[number])
            except BadData as error:
                data = self.spec.dataset
                where = error.where or f"{data.name}@{data.version}, train row {number + 1}"
                raise BadData(error.message, where=where, hint=error.hint) from error
            if len(self._examples) >= _CACHED_EXAMPLES:
                return example
            self._examples[number] = example
        return self._examples[number]


def build_prompt(recipe: JobRecipe, host: BaseHost, *, context: int | None) -> tuple[TextEncoder, TunedMethod]:
    """The job's method with its virtual tokens as they start, and the encoder that places them.

    `context`: positions that the base has, None where they are relative.
    """
    generator = torch.Generator().manual_seed(mixed_seed(recipe.seed, 0))
    placed = parse(recipe.task.input).virtual_tokens
    method = build_method(_with_labels(recipe), host, length=placed or None, generator=generator)
    encoder = TextEncoder(host, slots=method.slots, length=method.length, context=context)
    return encoder, method


def _with_labels(recipe: JobRecipe) -> Method:
    """The method, with the task's label words where its start asks for them."""
    init = getattr(recipe.method, "init", None)
    if not isinstance(init, LabelsInit) or init.words is not None:
        return recipe.method
    started = init.model_copy(update={"words": label_words(recipe.task)})
    return recipe.method.model_copy(update={"init": started})


def label_words(task: Task) -> list[str]:
    """The words of all labels in their order; none where the task has no labels."""
    return [word for words in task.labels.values() for word in words] if isinstance(task, Classify) else []


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """torch's random numbers from `seed` inside, as they were outside.

    Through the generators themselves: `torch.manual_seed` also notes a stack trace for a GPU not yet in use, which
    took a quarter of a small job's step.
    """
    generators = [torch.default_generator]
    if device.type == "cuda":
        generators.append(torch.cuda.default_generators[device.index or 0])
    before = [generator.get_state() for generator in generators]
    for generator in generators:
        generator.manual_seed(seed)
    try:
        yield
    finally:
        for generator, state in zip(generators, before, strict=True):
            generator.set_state(state)


def _new_head(objective: Objective, seed: int, host: BaseHost, device: torch.device) -> nn.Module | None:
    with seeded(mixed_seed(seed, 2), device):
        head = objective.head(host)
    return None if head is None else head.to(device)


def _optimizer(recipe: JobRecipe, method: TunedMethod, head: nn.Module | None) -> optim.Optimizer:
    train = recipe.train
    groups = [{"params": [p for p in method.parameters() if p.requires_grad], "lr": train.lr}]
    if head is not None:
        groups.append({"params": list(head.parameters()), "lr": train.head_lr or train.lr})
    groups = [{**group, "initial_lr": group["lr"]} for group in groups if group["params"]]
    return build_optimizer(train.optimizer, groups, train.weight_decay)
