"""AutoPrompt's search as an optimizer: a step tries other words at one slot, and may keep one.

`choose` asks the base, which may fail for this job alone; `step` then only takes the word.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, optim

from orchestrator.recipe import methods as recipe
from orchestrator.recipe.tasks import Cloze, Task, fixed_words
from orchestrator.training.distributed import Processes
from orchestrator.training.failures import met_by_all, out_of_memory
from orchestrator.training.objectives import Example, Objective
from orchestrator.training.objectives.objective import Fields, Share
from orchestrator.training.order import mixed_seed
from orchestrator.training.texts import TextEncoder
from orchestrator.tuning.forward import forward
from orchestrator.tuning.host import BaseHost
from orchestrator.tuning.methods.autoprompt import AutoPrompt
from orchestrator.tuning.prompt import Prompt
from orchestrator.tuning.rows import RowBatch


@dataclass
class Losses:
    """The loss of each of several prompts on the same rows, the same on all ranks, which share the rows."""

    host: BaseHost
    objective: Objective
    processes: Processes
    rows: int  #: most of them in a forward; half as many once memory has run out

    @torch.no_grad()
    def of(self, prompts: Sequence[Prompt], examples: Sequence[Example]) -> list[float]:
        processes = self.processes
        with met_by_all(processes, forwards=True):
            mine = list(range(len(examples))) if processes.sharded else processes.share(range(len(examples)))
            losses = [self._sum(prompt, mine, examples) for prompt in prompts]
        total = torch.stack(losses)
        if processes.sharded:  # every rank has run every forward
            processes.same_everywhere([total])
        else:
            processes.sum_(total)
        return [float(loss) for loss in total.tolist()]  # the only time that this waits for a GPU

    def _sum(self, prompt: Prompt, mine: Sequence[int], examples: Sequence[Example]) -> Tensor:
        total, start = torch.zeros((), dtype=torch.float64, device=self.processes.device), 0
        while start < len(mine):
            chunk = mine[start : start + self.rows]
            loss = self._tried(prompt, chunk, examples)
            if loss is None:
                self.rows = -(-len(chunk) // 2)
                continue
            total = total + loss
            start += len(chunk)
        return total

    def _tried(self, prompt: Prompt, chunk: Sequence[int], examples: Sequence[Example]) -> Tensor | None:
        """None: memory ran out with more than one row."""
        rows = [examples[i] for i in chunk]
        try:
            output = forward(self.host, RowBatch.collate([r.row for r in rows], pad_id=self.host.pad_id), [prompt])
            return self.objective.loss_sum(Share.of(output, 0, chunk, len(examples)), rows, None).double()
        except Exception as error:
            if self.processes.sharded or len(chunk) == 1 or not out_of_memory(error):
                raise
        if self.processes.device.type == "cuda":
            torch.cuda.empty_cache()
        return None


def forbidden_words(
    config: recipe.AutoPrompt, task: Task, encoder: TextEncoder, tokenizer: Any, rows: Sequence[Fields]
) -> set[int]:
    """Tokens that no slot may hold (ucinlp/autoprompt, create_trigger.py, `filter`): they would tell the answer, or are
    no words."""
    words = [*config.avoid, *fixed_words(task)]
    if isinstance(task, Cloze):
        words += {encoder.plain(task.target, fields).strip() for fields in rows}
    spelled = {token for word in words for text in (word, f" {word}") for token in encoder.tokens(text)}
    names = set() if config.proper_names else capitalized(tokenizer)
    return spelled | names | set(tokenizer.all_special_ids)


def capitalized(tokenizer: Any) -> set[int]:
    """Tokens with which a word that has a capital letter may begin; single letters are none."""
    known = tokenizer.get_vocab()
    first = int(any(piece.startswith("Ġ") for piece in known))  # byte-level: what begins a word begins with a space
    found = set()
    for piece, token in known.items():
        text = tokenizer.decode([token], clean_up_tokenization_spaces=False) if len(piece) > 1 else ""
        if text[first : first + 1].isupper() and text[:first].isspace() == bool(first):
            found.add(token)
    return found


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

        self._chosen: tuple[int, int] | None = None

    @torch.no_grad()
    def choose(self) -> None:
        """With the gradient at hand: one slot, drawn by seed and step, and the best word for it."""
        words = self._method.embeddings
        self._chosen = None
        if words.grad is None:
            return
        done = int(self.state[words].get("step", 0))
        slot = random.Random(mixed_seed(self._seed, 4, done)).randrange(self._method.length)
        tried = self._method.promising(slot, words.grad[slot], self._candidates, self._forbidden)
        prompts = [self._method.prompt().detach(), *(self._method.prompt_with(slot, token) for token in tried)]
        losses = list(self._measure(done + 1, prompts))
        best = min(range(len(losses)), key=lambda number: losses[number])
        if best:
            self._chosen = slot, tried[best - 1]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Take what was chosen."""
        state = self.state[self._method.embeddings]
        state["step"] = torch.tensor(float(state.get("step", 0)) + 1)
        if self._chosen is not None:
            self._method.take(*self._chosen)
            self._chosen = None
