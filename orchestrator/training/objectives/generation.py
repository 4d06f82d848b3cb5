"""Write the target: teacher-forced cross entropy, scored by generation.

Causal row: input, separator, target, end of sequence; the loss covers target and end (Li & Liang 2021, §4).
Encoder-decoder row: input in the encoder; target and end of sequence in the decoder.
"""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.errors import BadData
from orchestrator.recipe.judging import Judging
from orchestrator.recipe.tasks import Generate
from orchestrator.training.objectives.asking import Writing
from orchestrator.training.objectives.objective import (
    Example,
    Fields,
    all_rows,
    loss_at_labels,
    no_head,
)
from orchestrator.training.texts import TextEncoder
from orchestrator.tuning.forward import end_ids
from orchestrator.tuning.host import BaseHost
from orchestrator.tuning.rows import NO_LABEL, Row


class Generation:
    reads_hidden = False

    def __init__(self, task: Generate, encoder: TextEncoder, judging: Judging) -> None:
        self._task = task
        self._encoder = encoder
        self._judging = judging
        self._separator = encoder.separator(task.separator) if encoder.kind == "causal" else []
        self._end = encoder.eos
        self.metrics = task.metrics
        self.head = no_head
        self.loss_sum = loss_at_labels
        self.usable = all_rows

    def example(self, fields: Fields) -> Example:
        text = self._encoder.plain(self._task.target, fields)
        ids, most = self._input(fields, tuned=True), self._task.max_new_tokens
        if self._encoder.kind == "seq2seq":
            target = self._encoder.decoder_text(text, limit=most)
            return Example(Row(ids=ids, labels=target, prompt=0), units=len(target))
        target = self._encoder.ended(self._encoder.tokens(text), most)
        labels = [NO_LABEL] * len(ids) + target
        infix_at = self._infix_at(ids)
        # The last label is predicted from the position before it, so its own token is not needed as input.
        return Example(Row(ids=ids + target, labels=labels, prompt=0, infix_at=infix_at), units=len(target))

    def beginnings(self, rows: Sequence[Fields], *, tuned: bool) -> list[Row]:
        inputs = [self._input(fields, tuned=tuned) for fields in rows]
        return [Row(ids=ids, labels=None, prompt=0, infix_at=self._infix_at(ids)) for ids in inputs]

    def writing(self, host: BaseHost) -> Writing:
        # A base's generation settings may name other end marks than the one that targets are trained with.
        ends = tuple(sorted({*end_ids(host), self._end}))
        task = self._task
        return Writing(
            max_new_tokens=task.max_new_tokens,
            ends=ends,
            beams=task.beams,
            min_new_tokens=task.min_new_tokens,
            length_penalty=task.length_penalty,
            no_repeat_ngram=task.no_repeat_ngram,
        )

    def text(self, ids: list[int]) -> str:
        return self._encoder.text(ids).strip()

    def references(self, rows: Sequence[Fields]) -> tuple[list[int], list[list[str]]]:
        """Rows with equal inputs are one input with several references, as in the E2E and WebNLG evaluations, where
        they are scored together; a row whose target is a label stands for itself, with its group behind the label."""
        first: dict[tuple[str | int | None, ...], int] = {}
        references: dict[tuple[str | int | None, ...], list[str]] = {}
        for number, fields in enumerate(rows):
            label = self._label(fields)
            apart = self._judging.task_of(fields), self._judging.part_of(fields), -1 if label is None else number
            key = self._encoder.plain(self._task.input, fields), *apart
            first.setdefault(key, number)
            wanted = [self._encoder.plain(self._task.target, fields).strip()] if label is None else label
            references.setdefault(key, []).extend(wanted)
        return list(first.values()), [references[key] for key in first]

    def _label(self, fields: Fields) -> list[str] | None:
        """The row's label and, where there are groups, its group; None where any text may be the answer."""
        judged = self._judging.of_row(fields)
        if not judged.labels:
            return None
        label = self._encoder.plain(self._task.target, fields).strip()
        if label not in judged.labels:
            what = f"a row's target is {label!r}, which is not among the recipe's labels ({', '.join(judged.labels)})"
            raise BadData(what, hint="add it under labels, or mend the dataset")
        return [label] if judged.group is None else [label, judged.group.render_text(fields)]

    def shown(self, rows: Sequence[Fields]) -> list[list[int]]:
        limit = self._task.max_input_tokens
        between = self._separator if self._encoder.kind == "causal" else self._encoder.tokens(" ")
        found = []
        for fields in rows:
            target = self._encoder.tokens(self._encoder.plain(self._task.target, fields))
            found.append([*self._encoder.body(self._task.input, fields, limit=limit), *between, *target])
        return found

    def _input(self, fields: Fields, *, tuned: bool) -> list[int]:
        return self._encoder.input_ids(
            self._task.input,
            fields,
            limit=self._task.max_input_tokens,
            behind=self._separator,
            after=self._task.max_new_tokens if self._encoder.kind == "causal" else 0,
            tuned=tuned,
        )

    def _infix_at(self, ids: list[int]) -> int:
        """Between the input and the separator."""
        return self._encoder.infix_at(len(ids) - len(self._separator))
