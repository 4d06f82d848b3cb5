"""SuperGLUE's own files whose rows are not yet one question each: COPA, MultiRC, ReCoRD and WSC (Wang et al. 2019).

What is cut out of a text, and how, is as timoschick/pet's tasks.py and pvp.py do it.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from orchestrator.data.columns import Columns
from orchestrator.data.json_rows import read_json_lines
from orchestrator.data.rows import Advance, Fault, Record

_PLACE = "@placeholder"
_JOINED = {"cause": " because", "effect": ", so"}

Found = dict[str, Any]


def read_superglue(path: Path, task: str, advance: Advance) -> Iterator[Record | Fault]:
    """A row for each question, of MultiRC for each answer to it; WSC's spans of one pronoun are its candidates."""
    records = _records(path, advance)
    if task == "wsc":
        records = list(records)
    make = _wsc([item for item in records if isinstance(item, Record)]) if task == "wsc" else _ROWS[task]
    for item in records:
        if isinstance(item, Fault):
            yield item
            continue
        try:
            made = make(_value(item))
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            what = f"the key {error} is missing" if isinstance(error, KeyError) else str(error)
            yield Fault(str(path), item.line, f"not a row of SuperGLUE's {_NAMES[task]} ({what})", item.raw)
            continue
        for row in made:
            yield Record(item.line, tuple(row), list(row.values()), item.raw)


def _records(path: Path, advance: Advance) -> Iterable[Record | Fault]:
    for item in read_json_lines(path, advance):
        yield from item.rows() if isinstance(item, Columns) else [item]


def _value(record: Record) -> Found:
    return dict(zip(record.names, record.values, strict=True))


def _copa(value: Mapping[str, Any]) -> list[Found]:
    """`begun` is the premise as the beginning of a sentence that `end1` or `end2` finishes."""
    begun = _unended(value["premise"]) + _JOINED[value["question"]]
    ends = {f"end{i}": _small(_unended(value[f"choice{i}"])) for i in (1, 2)}
    kept = {key: value[key] for key in ("premise", "question", "choice1", "choice2")}
    return [{**kept, "begun": begun, **ends, "label": value.get("label", "")}]


def _multirc(value: Mapping[str, Any]) -> list[Found]:
    passage, found = value["passage"], []
    for question in passage["questions"]:
        group = f"{value['idx']}-{question['idx']}"
        for answer in question["answers"]:
            row = {"passage": passage["text"], "question": question["question"], "answer": answer["text"]}
            found.append({**row, "label": answer.get("label", ""), "group": group})
    return found


def _record(value: Mapping[str, Any]) -> list[Found]:
    """`before` and `after` are the query around its placeholder."""
    text, found = value["passage"]["text"], []
    spans = [text[entity["start"] : entity["end"] + 1].strip() for entity in value["passage"]["entities"]]
    candidates = list(dict.fromkeys(span for span in spans if span))
    for question in value["qas"]:
        before, place, after = question["query"].partition(_PLACE)
        if not place:
            raise ValueError(f"a query has no {_PLACE}")
        right = list(dict.fromkeys(answer["text"].strip() for answer in question.get("answers", [])))
        row = {"passage": text.replace("@highlight\n", "- "), "query": question["query"], "before": before}
        found.append({**row, "after": after, "candidates": candidates, "answers": right})
    return found


def _wsc(records: Sequence[Record]) -> Callable[[Mapping[str, Any]], list[Found]]:
    """The spans that rows of one file ask of one pronoun are what it may refer to."""
    spans: dict[tuple[str, int], list[str]] = {}
    for value in map(_value, records):
        with suppress(KeyError, TypeError, AttributeError):  # `row` meets it again, and says so by the line
            target = value["target"]
            spans.setdefault((value["text"], target["span2_index"]), []).append(target["span1_text"].strip())

    def row(value: Mapping[str, Any]) -> list[Found]:
        target = value["target"]
        span, pronoun = target["span1_text"].strip(), target["span2_text"]
        others = spans[value["text"], target["span2_index"]]
        each = {other.lower(): other for other in others} | {span.lower(): span}
        marked = _marked(value["text"].split(), target["span2_index"], pronoun)
        made = {"text": value["text"], "marked": marked, "pronoun": pronoun, "span": span}
        return [{**made, "candidates": list(each.values()), "label": value.get("label", "")}]

    return row


def _marked(words: list[str], index: int, pronoun: str) -> str:
    """The text with stars around the pronoun, which stands one word off in some rows, or before a comma."""
    for at in (index, index - 1, index + 1):
        if 0 <= at < len(words) and words[at].startswith(pronoun):
            words[at] = f"*{pronoun}*{words[at][len(pronoun) :]}"
            return " ".join(words)
    raise ValueError(f"word {index} of the text is not `{pronoun}`")


def _unended(text: str) -> str:
    return text.strip().rstrip(string.punctuation)


def _small(text: str) -> str:
    return text[:1].lower() + text[1:]


_ROWS: dict[str, Callable[[Mapping[str, Any]], list[Found]]] = {
    "copa": _copa,
    "multirc": _multirc,
    "record": _record,
}
_NAMES = {"copa": "COPA", "multirc": "MultiRC", "record": "ReCoRD", "wsc": "WSC"}
