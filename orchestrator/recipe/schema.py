"""The recipe: what a user submits, and the job: one recipe with one seed and no sweep left in it. No torch here."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, field_validator, model_validator

from orchestrator.recipe.methods import Method
from orchestrator.recipe.optimizers import AdamW, Optimizer
from orchestrator.recipe.strict import Strict
from orchestrator.recipe.tasks import Task
from orchestrator.recipe.text import TextTemplate, Word, as_words
from orchestrator.recipe.tracking import Trackers
from orchestrator.settings import parse_duration

Seed = Annotated[int, Field(ge=0, lt=2**31)]


def duration(value: object) -> object:
    """`90s`, `30m`, `4h`, `1d12h` or a number of seconds -> seconds."""
    return parse_duration(value) if isinstance(value, str) else value


_SIZES = {"K": 1, "M": 2, "G": 3, "T": 4}


def size(value: object) -> object:
    """`48GiB` (powers of 1024), `48GB` (of 1000) or a number of bytes -> bytes."""
    if isinstance(value, str):
        match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT])(i?)B", value)
        if match is None:
            raise ValueError("not a size; write for example 512MiB or 48GiB")
        return int(float(match[1]) * (1024 if match[3] else 1000) ** _SIZES[match[2]])
    return value


Bytes = Annotated[int, Field(ge=1 << 20), BeforeValidator(size, json_schema_input_type=int | str)]
Seconds = Annotated[float, Field(gt=0), BeforeValidator(duration, json_schema_input_type=float | str)]


class Base(Strict):
    """A frozen pretrained model at a fixed revision."""

    model: str = Field(min_length=1, description="a name from `ptq base list`, a local folder, or a hub id")
    revision: str | None = Field(None, description="branch, tag or commit of a hub id; the commit is fixed at submit")
    dtype: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32",
        description="of the frozen weights; prompts are always trained in fp32; fp16 is for what trains nothing "
        "(prompt-design, PET without base_lr)",
    )
    trust_remote_code: bool = Field(False, description="run the base's own Python code; the worker must allow it too")


_SEED_SCHEMA = {"type": "integer", "minimum": 0, "description": "one seed; the same as seeds with one entry"}


def _also_seed(schema: dict[str, Any]) -> None:
    schema["properties"]["seed"] = _SEED_SCHEMA


class TaskScores(Strict):
    """How the rows of one task of a mixture are scored, where it is otherwise than `task` says."""

    metrics: list[str] | None = Field(None, min_length=1, description="of those that the type of `task` has")
    labels: list[str] = Field(
        [], description="of `type: generate`: all labels of the task as they are written; see task.labels"
    )
    group: TextTemplate | None = Field(None, description="see task.group")

    @field_validator("labels", mode="before", json_schema_input_type=list[Word])
    @classmethod
    def _labels_as_text(cls, value: object) -> object:
        return as_words(value)


class Mixture(Strict):
    """Several tasks in one dataset, drawn at rates of their own (Raffel et al. 2020, §3.5.2).

    Scores are told for each task (`exact_match:boolq`); the plain name is their mean over the tasks that have the
    score. Where `tasks` names scores, `average` is the mean over all tasks of the mean of each one's own, from 0 to
    100, as GLUE and SuperGLUE are summed up.
    """

    by: TextTemplate = Field(
        description="template of a row's task, for example {task}: rows with the same text are one"
    )
    sampling: Literal["proportional", "equal"] = Field(
        "proportional", description="as often as a task has rows, or all tasks equally often"
    )
    cap: int | None = Field(
        None, ge=1, description="of proportional rates: a task with more rows counts as if it had so many (T5: 2**18)"
    )
    tasks: dict[str, TaskScores] = Field(
        {}, description="a task, as `by` calls it -> how its rows are scored; the others are scored as `task` says"
    )


class Train(Strict):
    """How the prompt is trained: an optimizer over the prompt (and its network and head) alone."""

    model_config = ConfigDict(json_schema_extra=_also_seed)

    steps: int | None = Field(None, ge=1, le=10**9, description="optimizer steps; or give epochs")
    epochs: float | None = Field(None, gt=0, le=10**6, description="passes over the training rows; or give steps")
    batch_size: int = Field(16, ge=1, le=10**6, description="rows a step, over all processes together")
    lr: float | None = Field(None, gt=0, description="learning rate of the prompt; only prompt-design has none")
    head_lr: float | None = Field(None, gt=0, description="learning rate of a classification head; default: lr")
    base_lr: float | None = Field(
        None,
        gt=0,
        description="train the base's own weights too, at this rate; default: the base is frozen, and fine-tuning "
        "trains it at lr",
    )
    optimizer: Optimizer = Field(AdamW(type="adamw"), description="a name, or a mapping with its settings")
    schedule: Literal["constant", "linear", "cosine", "exponential"] = Field(
        "linear", description="of the learning rate, after the warm-up"
    )
    lr_decay: float = Field(
        0.98,
        gt=0,
        le=1,
        description="of `schedule: exponential`: what is left of the learning rate after each pass over the training "
        "rows (THUDM/P-tuning, LAMA)",
    )
    warmup: int | float = Field(0, ge=0, description="steps, or below 1 a part of all steps")
    weight_decay: float = Field(
        0.0,
        ge=0,
        description="decoupled from the gradient; AdamW multiplies it by the learning rate, Adafactor not; of `adam` "
        "it is part of the gradient",
    )
    base_weight_decay: float | None = Field(
        None,
        ge=0,
        description="of the base's own matrices, where it is trained; default: weight_decay. Its biases and the scales "
        "of its norms never decay",
    )
    clip: float | None = Field(1.0, gt=0, description="largest norm of the job's gradient; null: no clipping")
    mixture: Mixture | None = Field(
        None, description="draw each row's task first, and then one of its rows; default: passes over all rows"
    )
    scores_by: TextTemplate | None = Field(
        None,
        description="template of what scores are told apart by, beside those of all rows: {category} gives `bleu:seen` "
        "and `bleu:unseen`",
    )
    accumulation: int = Field(
        1, ge=1, description="a step's rows are worked through in this many parts (less memory, same result)"
    )
    eval_every: int | None = Field(
        None, ge=1, description="steps between evaluations on the validation rows; default: only at the end"
    )
    eval_rows: int | None = Field(
        None,
        ge=1,
        description="evaluate on the first rows only while training (of a mixture on as many of each task); the last "
        "evaluation uses all",
    )
    keep: Literal["last", "best"] = Field(
        "last",
        description="`best`: what is kept is the prompt of the evaluation with the best score (the first of "
        "task.metrics, of a mixture with scores of its own `average`, on the validation rows); needs eval_every",
    )
    patience: int | None = Field(
        None, ge=1, description="with `keep: best`: stop after this many evaluations in a row that were not better"
    )
    eval_batch_size: int = Field(32, ge=1, description="rows of an evaluation at a time, in each process")
    baseline: bool = Field(True, description="at the end, score the untuned frozen base on the same rows too")
    checkpoint_every: int = Field(100, ge=1, description="steps between checkpoints")
    seeds: list[Seed] = Field([1], min_length=1, description="one job each")
    base_dropout: bool = Field(False, description="leave the frozen base's own dropout on while training")
    gradient_checkpointing: bool = Field(
        False,
        description="compute each layer again in the backward instead of keeping what it computed: less memory, about "
        "a third more time, the same gradients; a shared run does so while one of its jobs asks for it",
    )

    @model_validator(mode="before")
    @classmethod
    def _one_seed(cls, data: Any) -> Any:
        if isinstance(data, dict) and "seed" in data:
            if "seeds" in data:
                raise ValueError("give seed or seeds, not both")
            data = {**data, "seeds": [data["seed"]]}
            del data["seed"]
        return data

    @field_validator("seeds")
    @classmethod
    def _different_seeds(cls, value: list[int]) -> list[int]:
        if len(set(value)) != len(value):
            raise ValueError("a seed is named twice")
        return value

    @model_validator(mode="after")
    def _best_of_several(self) -> Train:
        if self.keep == "best" and self.eval_every is None:
            raise ValueError("`keep: best` needs eval_every")
        if self.patience is not None and self.keep != "best":
            raise ValueError("patience needs `keep: best`")
        return self

    @model_validator(mode="after")
    def _one_length(self) -> Train:
        if self.steps is not None and self.epochs is not None:
            raise ValueError("give either steps or epochs")
        return self


class Resources(Strict):
    """What a job takes, and how often it is tried."""

    gpus: int = Field(1, ge=1, le=1024, description="processes, one on each GPU (or CPU slot)")
    zero: Literal[0, 1, 2, 3] | None = Field(
        None,
        description="DeepSpeed ZeRO stage; 3 shards the base over the GPUs; left out: accelerate alone (DDP)",
    )
    fuse: Literal["always", "user", "never"] = Field(
        "always",
        description="whether the job may share a run with others on the same base: with anybody's, with its user's "
        "own that say `user` too, or with none",
    )
    time_limit: Seconds | None = Field(
        None, description="for example 30m, 4h, 1d; the job checkpoints and ends as `timeout`"
    )
    memory: Bytes | None = Field(
        None,
        description="host memory of the run, all its processes together, for example 48GiB; beyond it the run ends as "
        "`host_oom`; jobs share a run only where this is equal",
    )
    priority: Literal["low", "normal", "high"] = Field("normal", description="jobs of a higher priority start first")
    max_attempts: int = Field(3, ge=1, le=100, description="tries when a job is lost for reasons outside itself")


class Recipe(Strict):
    """A recipe file."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$", description="letters, digits, dots, dashes and underscores"
    )
    description: str = Field("", description="for people")
    base: Base = Field(description="the frozen model; a plain text is its `model`")
    dataset: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}(@[1-9][0-9]*)?$", description="NAME or NAME@VERSION"
    )
    task: Task = Field(description="what goes in, what should come out, how it is scored")
    method: Method = Field(description="what is trained")
    train: Train = Field(Train(), description="how it is trained; prompt-design needs none of it")
    resources: Resources = Field(Resources(), description="what it runs on")
    tracking: Trackers = Field(
        [], description="where the job's numbers are written too: tensorboard, mlflow, wandb, or a list of them"
    )
    sweep: dict[str, list[Any]] = Field({}, description="dotted key -> values; every combination becomes a job")

    @field_validator("base", mode="before", json_schema_input_type=Base | Annotated[str, Field(min_length=1)])
    @classmethod
    def _base_by_name(cls, value: object) -> object:
        return {"model": value} if isinstance(value, str) else value


class JobRecipe(Recipe):
    """One thing to train: `train.seeds` holds one seed and `sweep` is empty."""

    @model_validator(mode="after")
    def _single(self) -> JobRecipe:
        if len(self.train.seeds) != 1 or self.sweep:
            raise ValueError("a job has one seed and no sweep")
        return self

    @property
    def seed(self) -> int:
        return self.train.seeds[0]


def recipe_schema() -> dict[str, Any]:
    """The JSON Schema of a recipe file, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Recipe.model_json_schema()}
