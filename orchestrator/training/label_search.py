"""Label words found for a template (Shin et al. 2020, §2.3; ucinlp/autoprompt, label_search.py).

A logistic regression from what the base scores words with at [MASK] to the labels; the words whose rows of the output
matrix it gives the highest share to a label stand for that label.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from orchestrator.errors import BadRecipe
from orchestrator.paths import JobPaths, read_json, write_json
from orchestrator.recipe.methods import AutoPrompt
from orchestrator.recipe.schema import JobRecipe
from orchestrator.recipe.tasks import Classify
from orchestrator.training.distributed import Processes
from orchestrator.training.failures import met_by_all
from orchestrator.training.objectives.objective import Example, Fields
from orchestrator.training.objectives.verbalizer import VerbalizerClassification
from orchestrator.training.texts import TextEncoder
from orchestrator.tuning.forward import forward
from orchestrator.tuning.host import BaseHost
from orchestrator.tuning.methods import TunedMethod
from orchestrator.tuning.rows import RowBatch

MOST_ROWS = 2_000  # the regression has a number a label for each of the base's widths, no more
STEPS, LR = 500, 1e-2


Labels = dict[str, list[str]]


@dataclass(frozen=True)
class KeptLabels:
    """In the job's folder: found once. Another device may round otherwise, and a job goes on with its own words."""

    paths: JobPaths
    identity: str

    def read(self) -> Labels | None:
        try:
            kept = read_json(self.paths.found_labels)
            return dict(kept["labels"]) if kept["identity"] == self.identity else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, labels: Labels) -> None:
        write_json(self.paths.found_labels, {"identity": self.identity, "labels": labels})


def found_labels(
    recipe: JobRecipe,
    host: BaseHost,
    encoder: TextEncoder,
    method: TunedMethod,
    rows: Sequence[Fields],
    kept: KeptLabels,
    processes: Processes,
) -> Labels | None:
    """Label words that the data choose, where the recipe asks for them: the first rank's, on all ranks."""
    config, task = recipe.method, recipe.task
    if not isinstance(config, AutoPrompt) or config.label_words is None or not isinstance(task, Classify):
        return None
    known: Labels | None = processes.gather(kept.read() if processes.first else None)[0]
    if known is not None:
        return known
    with met_by_all(processes, forwards=True):
        mine = _searched(config.label_words, task, recipe, host, encoder, method, rows)
    found: Labels = processes.gather(mine)[0]
    with met_by_all(processes):
        if processes.first:
            kept.write(found)
    return found


def with_labels(recipe: JobRecipe, labels: Labels | None) -> JobRecipe:
    """The recipe with these words for its labels."""
    if labels is None:
        return recipe
    return recipe.model_copy(update={"task": recipe.task.model_copy(update={"labels": labels})})


def _searched(
    count: int,
    task: Classify,
    recipe: JobRecipe,
    host: BaseHost,
    encoder: TextEncoder,
    method: TunedMethod,
    rows: Sequence[Fields],
) -> Labels:
    first = VerbalizerClassification(task, encoder)
    examples = [first.example(rows[number]) for number in range(min(len(rows), MOST_ROWS))]
    states, labels = _read(host, method, examples, recipe.train.eval_batch_size)
    shares = _regression(states, labels, len(task.labels))
    return dict(zip(task.labels, _best_words(host, encoder, shares, count), strict=True))


@torch.no_grad()
def _read(host: BaseHost, method: TunedMethod, examples: Sequence[Example], size: int) -> tuple[Tensor, Tensor]:
    """([rows, H], [rows]): what the output matrix is multiplied with at [MASK], and the labels' numbers."""
    states, labels, prompt = [], [], method.prompt().detach()
    for start in range(0, len(examples), size):
        rows = [example.row for example in examples[start : start + size]]
        output = forward(host, RowBatch.collate(rows, pad_id=host.pad_id), [prompt])
        if output.scored is None:
            raise BadRecipe("this base has no output matrix to find label words with", where="method.label_words")
        states.append(output.scored.float().cpu())
        labels.append(output.labels.cpu())
    return torch.cat(states), torch.cat(labels)


def _regression(states: Tensor, labels: Tensor, count: int) -> Tensor:
    """[labels, H]: full-batch Adam on standardised states, from zero: the same at every try."""
    mean, spread = states.mean(0), states.std(0, correction=0) + 1e-6
    weights = torch.zeros(count, states.shape[1], requires_grad=True)
    bias = torch.zeros(count, requires_grad=True)
    optimizer = torch.optim.Adam([weights, bias], lr=LR)
    with torch.enable_grad():
        for _ in range(STEPS):
            optimizer.zero_grad()
            cross_entropy((states - mean) / spread @ weights.T + bias, labels).backward()
            optimizer.step()
    return weights.detach() / spread


def _best_words(host: BaseHost, encoder: TextEncoder, weights: Tensor, count: int) -> list[list[str]]:
    """For each label the words with the highest share of it; a word stands for one label only."""
    with host.gathered(host.model.get_output_embeddings().weight) as table:
        rows = table.detach()[: len(host.tokenizer)].float().cpu()
    shares = (rows @ weights.T).softmax(-1)
    special, taken = set(host.tokenizer.all_special_ids), set()
    found: list[list[str]] = []
    for label in range(len(weights)):
        words: list[str] = []
        for token in shares[:, label].argsort(descending=True, stable=True).tolist():
            word = encoder.text([token]).strip()
            plain = token not in special and token not in taken and int(shares[token].argmax()) == label
            if plain and word and encoder.one_token(word) == token:
                words.append(word)
                taken.add(token)
            if len(words) == count:
                break
        if not words:
            raise BadRecipe(
                f"no word of the vocabulary stands for label number {label + 1}", where="method.label_words"
            )
        found.append(words)
    return found
