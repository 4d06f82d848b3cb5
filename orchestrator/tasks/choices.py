"""Answers that are a row's own: label words with fields of the row in them (COPA's two choices), or a list of
candidates that it brings (ReCoRD's entities)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from orchestrator.errors import BadData, BadRecipe
from orchestrator.tasks.lists import answers
from orchestrator.tasks.template import Template, parse
from orchestrator.tasks.verbalizer import label_faults

Row = Mapping[str, str]

_SHOWN = 5
_YES, _NO = {"true", "yes", "1"}, {"false", "no", "0"}


def names_fields(word: str) -> bool:
    """Whether a label word is a template of the row's fields; anything else stands for itself, lone braces too."""
    try:
        return bool(parse(word).fields)
    except BadRecipe:
        return False


class Choices:
    """What there is to choose from in a row, and what is right."""

    def __init__(
        self, labels: Mapping[str, Sequence[str]], candidates: str | None, label: str, holds: str | None = None
    ) -> None:
        """As the recipe's task says; see `recipe.tasks.Classify`."""
        self._words = {name: [_written(word) for word in words] for name, words in labels.items()}
        self._candidates = None if candidates is None else parse(candidates)
        self._label = parse(label)
        self._holds = None if holds is None else parse(holds)

    @property
    def read(self) -> tuple[str, ...]:
        """The fields that a row must have to be answered; the right answer's are not among them."""
        words = [word for words in self._words.values() for word in words if isinstance(word, Template)]
        templates = words if self._candidates is None else [self._candidates]
        return tuple(dict.fromkeys(name for template in templates for name in template.fields))

    @property
    def judged(self) -> tuple[str, ...]:
        """The fields that `right` and `holds` read besides."""
        templates = [self._label] if self._holds is None else [self._label, self._holds]
        return tuple(dict.fromkeys(name for template in templates for name in template.fields))

    def offered(self, row: Row) -> dict[str, list[str]]:
        """Name -> its words; a candidate is its own word. Raises BadData for what nobody can choose from."""
        if self._candidates is None:
            found = {name: [_filled(word, row) for word in words] for name, words in self._words.items()}
            faults = label_faults(found)
            if faults:
                raise BadData(faults[0], hint="the words come from the row: mend the dataset")
            return found
        texts = _texts(self._candidates.render_text(row))
        if not texts:
            raise BadData("a row has no candidates", hint="a JSON list of texts, or a line each")
        for text in texts:
            if not text:
                raise BadData("a row has an empty candidate", hint="mend the dataset")
            if texts.count(text) > 1:
                raise BadData(f"a row has the candidate `{text}` twice", hint="mend the dataset")
        return {text: [text] for text in texts}

    def right(self, row: Row, names: Sequence[str]) -> list[str]:
        """Those of `names` that are right, at least one. Raises BadData."""
        text = self._label.render_text(row).strip()
        found = [text]
        if self._candidates is not None:
            found = list(dict.fromkeys(answer.strip() for answer, _ in answers(text)))
        if not found:
            raise BadData("a row has no right answer", hint="mend the dataset")
        for answer in found:
            if answer not in names:
                there = ", ".join(names[:_SHOWN]) + (" …" if len(names) > _SHOWN else "")
                what = f"a row's answer `{answer}` is not among what it can be chosen from ({there})"
                raise BadData(what, hint="mend the dataset or the recipe")
        return found

    def unlabelled(self, row: Row) -> bool:
        """Whether nothing says what is right in the row."""
        told = [self._label] if self._holds is None else [self._label, self._holds]
        return not all(template.render_text(row).strip() for template in told)

    def holds(self, row: Row) -> bool:
        """Whether what the row calls its answer is one (WSC has rows where it is not)."""
        if self._holds is None:
            return True
        text = self._holds.render_text(row).strip()
        if text.lower() not in _YES | _NO:
            raise BadData(f"`{text}` does not say whether the answer holds", hint="true or false, yes or no, 1 or 0")
        return text.lower() in _YES


def _written(word: str) -> Template | str:
    return parse(word) if names_fields(word) else word


def _filled(word: Template | str, row: Row) -> str:
    return word if isinstance(word, str) else word.render_text(row)


def _texts(text: str) -> list[str]:
    """`["New York", "Rome"]`, or the same a line each."""
    if not text.lstrip().startswith("["):
        return [line.strip() for line in text.splitlines() if line.strip()]
    try:
        found = json.loads(text)
        if not isinstance(found, list) or not all(isinstance(item, str | int | float) for item in found):
            raise ValueError
    except ValueError:
        what = f"a row's candidates begin as a JSON list, and are no list of texts: `{text[:40]}`"
        raise BadData(what, hint="mend the dataset") from None
    return [str(item).strip() for item in found]
