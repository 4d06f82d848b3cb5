"""Text in recipes: templates that are parsed when the recipe is read, and words as the datasets hold them."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field, WithJsonSchema

from orchestrator.errors import BadRecipe
from orchestrator.tasks.template import parse

Word = Annotated[str | int | float | bool, WithJsonSchema({"type": ["string", "number", "boolean"]})]


def is_word(value: object) -> bool:
    return isinstance(value, str | int | float)


def as_text(value: object) -> str:
    """A label or word as datasets hold it: all their values are text, `true` and `false` as JSON writes them."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def as_words(value: object) -> object:
    words = value if isinstance(value, list) else [value]
    return [as_text(word) if is_word(word) else word for word in words]


def _input_template(text: str) -> str:
    try:
        parse(text)
    except BadRecipe as error:
        raise ValueError(error.message) from None
    return text


def _text_template(text: str) -> str:
    _input_template(text)
    template = parse(text)
    if template.virtual_tokens or template.masks or template.separators:
        raise ValueError("[P:k], [MASK] and [SEP] stand in `input` only")
    if not template.fields:
        raise ValueError("names no field of the data; write for example {target}")
    return text


InputTemplate = Annotated[str, Field(min_length=1), AfterValidator(_input_template)]
TextTemplate = Annotated[str, Field(min_length=1), AfterValidator(_text_template)]
