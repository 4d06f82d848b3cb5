"""AutoPrompt (Shin et al. 2020; ucinlp/autoprompt): words of the vocabulary at trigger slots, found by their gradients.

The words stand as their own embeddings, so a row with them is the row with the words written out.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn

from orchestrator.errors import MethodDoesNotFit
from orchestrator.recipe import methods as recipe
from orchestrator.tuning.host import BaseHost
from orchestrator.tuning.methods import starting
from orchestrator.tuning.prompt import Prompt
from orchestrator.tuning.transfer import numbers

_AT_A_TIME = 8192  #: words whose embeddings are looked up in one call, as in `neighbours`


class AutoPrompt(nn.Module):
    slots: Literal["template"] = "template"
    tokens: Tensor  #: [n] ids

    def __init__(
        self, config: recipe.AutoPrompt, host: BaseHost, *, length: int | None, generator: torch.Generator
    ) -> None:
        super().__init__()
        if length is None:
            raise MethodDoesNotFit("the template has no trigger slot [T:k]", where="task.input")
        self._host = host
        self.length = length
        self.register_buffer("tokens", starting.tokens(config.init, host, length, generator))
        self.embeddings = nn.Parameter(starting.embedded(host, self.tokens))

    def prompt(self) -> Prompt:
        return Prompt(self.embeddings)

    def prompt_with(self, slot: int, token: int) -> Prompt:
        """The prompt with another word at one slot."""
        embeddings = self.embeddings.detach().clone()
        with torch.no_grad():
            embeddings[slot] = self._host.embed(numbers([[token]], self._host.device))[0, 0].to(embeddings)
        return Prompt(embeddings)

    @torch.no_grad()
    def take(self, slot: int, token: int) -> None:
        self.embeddings.copy_(self.prompt_with(slot, token).tensors()["embeddings"])
        self.tokens[slot] = token

    @torch.no_grad()
    def promising(self, slot: int, gradient: Tensor, count: int, forbidden: Iterable[int]) -> list[int]:
        """The words whose embeddings lower the loss most to first order (Ebrahimi et al. 2018, HotFlip): [H] -> ids."""
        size, device = min(self._host.vocab_size, len(self._host.tokenizer)), self._host.device
        pieces = [
            torch.arange(start, min(start + _AT_A_TIME, size), device=device) for start in range(0, size, _AT_A_TIME)
        ]
        gains = torch.cat([-self._host.embed(ids[None])[0].float() @ gradient.float() for ids in pieces])
        gains[numbers([token for token in forbidden if token < size], device, torch.long)] = float("-inf")
        gains[self.tokens[slot : slot + 1]] = float("-inf")
        best = gains.topk(min(count, size))
        return [i for i, gain in zip(best.indices.tolist(), best.values.tolist(), strict=True) if gain > float("-inf")]
