"""One job inside a run: its rows, method, head, optimizer, schedule and position. Nothing here knows its neighbours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn, optim

from orchestrator import failpoints
from orchestrator.errors import BadData
from orchestrator.events import Events, NoEvents
from orchestrator.jobspec import JobSpec
from orchestrator.paths import JobPaths
from orchestrator.recipe import methods as recipe_methods
from orchestrator.recipe.bases import read_base_facts
from orchestrator.recipe.judging import Judging
from orchestrator.recipe.methods import Method
from orchestrator.recipe.schema import JobRecipe
from orchestrator.recipe.scores import smaller_is_better
from orchestrator.recipe.starts import LabelsInit
from orchestrator.recipe.tasks import fixed_words
from orchestrator.recipe.trained import trained_weights, trains_nothing
from orchestrator.tasks.template import parse
from orchestrator.training.best import Best
from orchestrator.training.checkpoint import (
    RULES,
    Checkpoint,
    identity_of,
    newest_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
)
from orchestrator.training.cuts import Cuts, noted
from orchestrator.training.demonstrations import demonstrations, show
from orchestrator.training.distributed import Processes
from orchestrator.training.evaluate import Between
from orchestrator.training.failures import met_by_all
from orchestrator.training.label_search import KeptLabels, found_labels, with_labels
from orchestrator.training.mixture import MixedTasks
from orchestrator.training.objectives import Example, Objective, build_objective
from orchestrator.training.objectives.hidden_words import HiddenWords, hidden_words
from orchestrator.training.objectives.objective import Fields, Share
from orchestrator.training.objectives.repeated import origin_of
from orchestrator.training.optimizers import optimizer_of, rate_in_single
from orchestrator.training.order import Passes, mixed_seed, seeded, total_steps
from orchestrator.training.own_files import with_own_files
from orchestrator.training.pattern_weights import Patterns, kept_of_pattern
from orchestrator.training.rows import Rows
from orchestrator.training.schedule import multiplier
from orchestrator.training.search import Losses, TriggerSearch, forbidden_words
from orchestrator.training.texts import TextEncoder
from orchestrator.tuning.host import BaseHost
from orchestrator.tuning.methods import TunedMethod, build_method
from orchestrator.tuning.methods.autoprompt import AutoPrompt
from orchestrator.tuning.methods.lora import Lora
from orchestrator.tuning.own_weights import OwnWeights
from orchestrator.tuning.prompt import Prompt

#: What a step needs random numbers for.
FOR_PROMPT, FOR_HEAD, FOR_BASE = range(3)

#: Bytes of tokenised rows that a job keeps in each process: 8,700 rows of 100 tokens. What is beyond is tokenised when
#: it comes up again. Sixteen jobs that share a run keep a gigabyte at most.
_CACHE = 64 << 20


@dataclass
class TrainedJob:
    spec: JobSpec
    recipe: JobRecipe
    paths: JobPaths
    events: Events
    rows: Sequence[Fields]
    objective: Objective
    encoder: TextEncoder
    method: TunedMethod
    head: nn.Module | None
    weights: OwnWeights | None  #: of the base, where the job trains them
    optimizer: optim.Optimizer | None  #: None: nothing is trained
    steps: int
    mixed: MixedTasks | None = None  #: None: passes over all rows
    hidden: HiddenWords | None = None  #: a second loss beside the objective's
    patterns: Patterns = field(default_factory=Patterns)  #: PET's, where they do not count alike
    demonstrations: list[Fields] = field(default_factory=list)  #: rows that stand before every input
    step: int = 0  #: optimizer steps done
    resumed_from: int = 0
    rules: int = RULES  #: by which the steps up to there were taken
    evaluated: int = 0  #: the last step at which the validation rows were scored
    saved: int = -1  #: step of the newest checkpoint
    best: Best = field(default_factory=Best)
    _examples: dict[int, Example] = field(default_factory=dict)
    _cached: int = 0  #: bytes that these take
    cuts: Cuts = field(init=False)
    _passes: Passes = field(init=False)

    def __post_init__(self) -> None:
        self.cuts = Cuts(len(self.rows), partial(origin_of, self.rows))
        self._passes = Passes(self.recipe.seed, len(self.rows))

    @classmethod
    def open(
        cls, spec: JobSpec, host: BaseHost, events: Events, processes: Processes, between: Between = lambda: None
    ) -> TrainedJob:
        """Build the job as it starts, or as its newest checkpoint left it. On all ranks.

        `between` is called between the batches of what is measured before the first step.
        """
        identity = identity_of(spec)
        with met_by_all(processes):  # behind it the ranks wait for each other, and none may be missing
            recipe, paths = JobRecipe.model_validate(spec.recipe), JobPaths(Path(spec.folder))
            own = with_own_files(recipe, paths, copy=processes.first)
            train = Rows.open(Path(spec.dataset.path), "train")
            checkpoint = newest_checkpoint(paths, identity)
            context = read_base_facts(Path(spec.base.path)).max_positions
        with met_by_all(processes, forwards=True):
            encoder, method = build_prompt(own, host, context=context)
        labels = found_labels(own, host, encoder, method, train, KeptLabels(paths, identity), processes)
        recipe, own = with_labels(recipe, labels), with_labels(own, labels)
        known = {} if checkpoint is None else _inside("patterns", checkpoint.tensors)
        answers = partial(kept_of_pattern, paths, identity)
        patterns = Patterns.open(recipe, host, encoder, train, processes, known, answers, between)
        objective = build_objective(own, encoder, patterns.weights)
        head = _new_head(objective, recipe.seed, host, processes.device)
        labelled, hidden = hidden_words(recipe, encoder, train)
        rows = objective.usable(labelled)
        which = trained_weights(recipe)
        weights = None if which == "none" else OwnWeights(host, which)
        job = cls(
            spec=spec,
            recipe=recipe,
            paths=paths,
            events=events,
            rows=rows,
            objective=objective,
            encoder=encoder,
            method=method,
            head=head,
            weights=weights,
            optimizer=optimizer_of(recipe.train, method, head, weights),
            steps=0 if trains_nothing(recipe) else total_steps(recipe.train, len(rows)),
            mixed=None if recipe.train.mixture is None else MixedTasks(recipe.train.mixture, rows),
            hidden=hidden,
            patterns=patterns,
            demonstrations=demonstrations(recipe, rows),
        )
        show(encoder, recipe, objective, job.demonstrations)
        if isinstance(method, AutoPrompt):
            job.optimizer = job._search(method, host, processes)
        job._resume(checkpoint)
        return job

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
        return self.step >= self.steps or self.best.waited_enough(self.recipe.train.patience)

    def scored(self, values: Mapping[str, float]) -> None:
        """An evaluation on the validation rows: remember what is trained where it is the best so far."""
        self.evaluated = self.step
        if self.recipe.train.keep == "best":
            name = Judging(self.recipe).headline
            self.best.note(self.step, values[name], self._trained(), smaller=smaller_is_better(name))

    def take_best(self) -> None:
        """Go back to the best evaluation's tensors, where the recipe keeps them."""
        if self.best.tensors:
            self._restore(self.best.tensors)

    @property
    def changes_base(self) -> bool:
        """Whether the base is another one while the job is there."""
        return self.weights is not None or isinstance(self.method, Lora)

    @property
    def is_its_baseline(self) -> bool:
        """Whether the base without the job answers as the job does: nothing was trained, and nothing is shown."""
        return isinstance(self.recipe.method, recipe_methods.PromptDesign) and not self.demonstrations

    @contextmanager
    def untuned_base(self) -> Iterator[None]:
        """The base as it was before this job, inside."""
        unchanged = self.method.off() if isinstance(self.method, Lora) else nullcontext()
        with unchanged, nullcontext() if self.weights is None else self.weights.untrained():
            yield

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Everything that is trained."""
        groups = [] if self.optimizer is None else self.optimizer.param_groups
        return [p for group in groups for p in group["params"]]

    def batch(self) -> list[Example]:
        """The examples of the step to come, over all ranks together."""
        return self.batch_of(self.step)

    def batch_of(self, step: int) -> list[Example]:
        """A function of the step alone."""
        size = self.recipe.train.batch_size
        if self.mixed is not None:
            numbers = self.mixed.rows(step, seed=self.recipe.seed, batch_size=size)
        else:
            numbers = self._passes.batch(step, size)
        beside = [] if self.hidden is None else self.hidden.beside(step, size)
        return [*(self._example(number) for number in numbers), *beside]

    def loss_sum(self, share: Share, examples: Sequence[Example]) -> Tensor:
        """Sum of the losses over all units of the share."""
        if self.hidden is None:
            return self.objective.loss_sum(share, examples, self.head)
        return self.hidden.loss_sum(self.objective, share, examples, self.head)

    @contextmanager
    def randomness(self, use: int, device: torch.device, *within: int) -> Iterator[None]:
        """Random numbers of the step to come for one use: alone or fused, resumed or not, they are the same."""
        with seeded(mixed_seed(self.recipe.seed, 3, self.step, use, *within), device):
            yield

    def apply(self) -> Tensor:
        """One optimizer step with the gradients at hand; their norm before clipping, on the device."""
        assert self.optimizer is not None
        clip = self.recipe.train.clip
        norm = nn.utils.clip_grad_norm_(self.parameters, float("inf") if clip is None else clip)
        self.set_rates()
        self.optimizer.step()
        self.stepped()
        return norm

    def set_rates(self) -> None:
        """The learning rates of the step to come."""
        assert self.optimizer is not None
        factor = multiplier(self.step, self.recipe.train, self.steps, rows=len(self.rows))
        for group in self.optimizer.param_groups:
            group["lr"] = rate_in_single(group["initial_lr"] * factor)

    def stepped(self) -> None:
        """The optimizer has taken its step."""
        for parameter in self.parameters:
            parameter.grad = None
        self.step += 1
        failpoints.reach("training.stepped")

    def tell_cuts(self) -> None:
        """Once, when this program has read all rows or the training is over: how many have lost their ends."""
        if self.cuts.told or not (self.cuts.whole or self.finished):
            return
        self.cuts.told = True
        message = self.cuts.message()
        if message is not None:
            self.events.write("warning", message=message)

    def checkpoint(self) -> None:
        """Save the state; every event up to this step reaches the disk first, so that no metric is ever missing."""
        if isinstance(self.events, NoEvents):
            return  # the first rank saves for all
        self.events.flush(sync=True)
        if self.saved == self.step:
            return
        save_checkpoint(self.paths, Checkpoint(self.step, self.evaluated, identity_of(self.spec), self._tensors()))
        self.saved = self.step
        self.events.write("checkpoint", step=self.step)
        self.events.flush()

    def _tensors(self) -> dict[str, Tensor]:
        """All that a checkpoint holds."""
        optimizer = {} if self.optimizer is None else optimizer_tensors(self.optimizer)
        kept = _under("best", self.best.state()) | _under("patterns", self.patterns.state())
        return self._trained() | _under("optimizer", optimizer) | kept

    def _trained(self) -> dict[str, Tensor]:
        """All that is trained, as it stands."""
        found = _under("method", self.method.state_dict())
        if self.head is not None:
            found |= _under("head", self.head.state_dict())
        return found if self.weights is None else found | _under("base", self.weights.state_dict())

    def _restore(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `_trained`."""
        self.method.load_state_dict(_inside("method", tensors))
        if self.head is not None:
            self.head.load_state_dict(_inside("head", tensors))
        if self.weights is not None:
            self.weights.load_state_dict(_inside("base", tensors))

    def _resume(self, checkpoint: Checkpoint | None) -> None:
        if checkpoint is None:
            return
        self._restore(checkpoint.tensors)
        if self.optimizer is not None:
            restore_optimizer(self.optimizer, _inside("optimizer", checkpoint.tensors))
        self.best = Best.of(_inside("best", checkpoint.tensors))
        self.step = self.resumed_from = self.saved = checkpoint.step
        self.evaluated, self.rules = checkpoint.evaluated, checkpoint.rules

    def choose(self) -> None:
        """What the optimizer asks the base before its step; it may fail for this job alone."""
        if isinstance(self.optimizer, TriggerSearch):
            self.optimizer.choose()

    def _search(self, method: AutoPrompt, host: BaseHost, processes: Processes) -> TriggerSearch:
        config, train = self.recipe.method, self.recipe.train
        assert isinstance(config, recipe_methods.AutoPrompt)
        losses = Losses(host, self.objective, processes, rows=-(-train.batch_size // train.accumulation))

        def measure(step: int, prompts: Sequence[Prompt]) -> list[float]:
            """On the batch after the step's own."""
            return losses.of(prompts, self.batch_of(step))

        forbidden = forbidden_words(config, self.recipe.task, self.encoder, host.tokenizer, self.rows)
        return TriggerSearch(method, measure, candidates=config.candidates, forbidden=forbidden, seed=self.recipe.seed)

    def _example(self, number: int) -> Example:
        if number not in self._examples:
            try:
                with noted() as cut:
                    example = self.objective.example(self.rows[number])
            except BadData as error:
                data = self.spec.dataset
                row = origin_of(self.rows, number) + 1
                where = error.where or f"{data.name}@{data.version}, train row {row}"
                raise BadData(error.message, where=where, hint=error.hint) from error
            self.cuts.read(number, cut)
            size = _most_bytes(example)
            if self._cached + size > _CACHE:
                return example
            self._cached += size
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


def _most_bytes(example: Example) -> int:
    """As Python keeps lists of numbers: 8 for a place, 28 for a number that nobody else holds."""
    row = example.row
    words = [word for theirs in example.words for word in theirs]
    parts = (row.ids, row.labels, row.decoder_ids, example.targets, example.soft, example.places, *words)
    return 500 + 36 * sum(len(part) for part in parts if part is not None)


def _under(part: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{part}.{name}": tensor for name, tensor in tensors.items()}


def _inside(part: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `_under`, among other parts."""
    return {name.removeprefix(f"{part}."): tensor for name, tensor in tensors.items() if name.startswith(f"{part}.")}


def _with_labels(recipe: JobRecipe) -> Method:
    """The method, with the task's label words where its start asks for them."""
    init = getattr(recipe.method, "init", None)
    if not isinstance(init, LabelsInit) or init.words is not None:
        return recipe.method
    started = init.model_copy(update={"words": fixed_words(recipe.task)})
    return recipe.method.model_copy(update={"init": started})


def _new_head(objective: Objective, seed: int, host: BaseHost, device: torch.device) -> nn.Module | None:
    with seeded(mixed_seed(seed, 2), device):
        head = objective.head(host)
    return None if head is None else head.to(device)
