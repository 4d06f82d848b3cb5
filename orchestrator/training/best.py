"""The best evaluation on the validation rows so far, with what was trained then (`train.keep: best`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Best:
    step: int = -1  #: -1: none yet
    value: float = 0.0
    waited: int = 0  #: evaluations since
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def note(self, step: int, value: float, tensors: Mapping[str, Tensor], *, smaller: bool) -> None:
        """The first of equal scores stays: a later one has only seen more of the training rows."""
        better = self.step < 0 or (value < self.value if smaller else value > self.value)
        if not better:
            self.waited += 1
            return
        self.step, self.value, self.waited = step, value, 0
        self.tensors = {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}

    def waited_enough(self, patience: int | None) -> bool:
        return patience is not None and self.waited >= patience

    def state(self) -> dict[str, Tensor]:
        """For a checkpoint; empty before the first evaluation."""
        if self.step < 0:
            return {}
        facts = torch.tensor([self.step, self.value, self.waited], dtype=torch.float64)
        return {"facts": facts, **{f"tensors.{name}": tensor for name, tensor in self.tensors.items()}}

    @classmethod
    def of(cls, state: Mapping[str, Tensor]) -> Best:
        """The inverse of :meth:`state`."""
        if not state:
            return cls()
        step, value, waited = state["facts"].tolist()
        kept = {n.removeprefix("tensors."): t for n, t in state.items() if n.startswith("tensors.")}
        return cls(int(step), value, int(waited), kept)
