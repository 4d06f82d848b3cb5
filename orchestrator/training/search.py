"""AutoPrompt's search as an optimizer: a step tries other words at one slot, and may keep one."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Sequence

import torch
from torch import optim

from orchestrator.training.order import mixed_seed
from orchestrator.tuning.methods.autoprompt import AutoPrompt
from orchestrator.tuning.prompt import Prompt


class TriggerSearch(optim.Optimizer):
    """`measure` gives the loss of each prompt on rows that the gradient has not seen."""

    def __init__(
        self,
        method: AutoPrompt,
        measure: Callable[[int, Sequence[Prompt]], Sequence[float]],
        *,
        candidates: int,
        forbidden: Collection[int],
        seed: int,
    ) -> None:
        super().__init__([{"params": [method.embeddings], "lr": 0.0, "initial_lr": 0.0}], {})
        self._method, self._measure = method, measure
        self._candidates, self._forbidden, self._seed = candidates, forbidden, seed

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One slot, drawn by seed and step."""
        words = self._method.embeddings
        state = self.state[words]
        done = int(state.setdefault("step", torch.zeros(())))
        state["step"] = torch.tensor(float(done + 1))
        if words.grad is None:
            return
        slot = random.Random(mixed_seed(self._seed, 4, done)).randrange(self._method.length)
        tried = self._method.promising(slot, words.grad[slot], self._candidates, self._forbidden)
        prompts = [self._method.prompt().detach(), *(self._method.prompt_with(slot, token) for token in tried)]
        losses = list(self._measure(done + 1, prompts))
        best = min(range(len(losses)), key=lambda number: losses[number])
        if best:
            self._method.take(slot, tried[best - 1])
