"""The `train.optimizer` of a recipe, one class a kind, told apart by `type`; a bare name stands for its defaults."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from orchestrator.recipe.strict import Strict


class AdamW(Strict):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019), as torch has it."""

    type: Literal["adamw"]
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.999, ge=0, lt=1)
    eps: float = Field(1e-8, gt=0)


class Adam(Strict):
    """Adam whose weight decay is part of the gradient (Kingma & Ba 2015 with L2), as torch has it."""

    type: Literal["adam"]
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.999, ge=0, lt=1)
    eps: float = Field(1e-8, gt=0)


class Adafactor(Strict):
    """Adafactor without scaling by the parameter and without momentum (Lester et al. 2021).

    The settings of google-research/prompt-tuning: with `lr: 0.3`, `schedule: constant`, `weight_decay: 1e-5` and
    `clip: null`. Its weight decay takes that part of a parameter at every step, whatever the learning rate (as t5x).
    """

    type: Literal["adafactor"]
    decay: float = Field(0.8, gt=0, le=1, description="the second moment forgets by 1 - step^-decay")
    factored: bool = Field(
        True,
        description="the second moments of the base's own matrices, where a job trains them, are held as a row and a "
        "column (Shazeer & Stern 2018), as T5 was trained; those of prompts and heads never are, nor those of matrices "
        "with a side under 128",
    )
    clipping_threshold: float = Field(1.0, gt=0, description="largest root mean square of a parameter's update")
    eps: float = Field(1e-30, ge=0, description="added to the squared gradient")


def _named(value: Any) -> Any:
    return {"type": value} if isinstance(value, str) else value


Optimizer = Annotated[
    Annotated[AdamW | Adam | Adafactor, Field(discriminator="type")],
    BeforeValidator(_named, json_schema_input_type=AdamW | Adam | Adafactor | Literal["adamw", "adam", "adafactor"]),
]
