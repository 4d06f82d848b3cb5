"""The `task:` part of a recipe: what goes in, what should come out, how it is scored."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from orchestrator.recipe.strict import Strict
from orchestrator.recipe.text import InputTemplate, TextTemplate, Word, as_text, as_words, is_word

INPUT_HELP = "template: {field} of a row, [P:3] virtual tokens, [MASK]; plain text stays as it is"


class Generate(Strict):
    """The base writes the target (causal and encoder-decoder bases)."""

    type: Literal["generate"]
    input: InputTemplate = Field(description=INPUT_HELP)
    target: TextTemplate = Field(description="template of the text to be written")
    separator: str | None = Field(
        None,
        description="text between input and target on a causal base; default: its beginning-of-sequence token "
        "(Li & Liang 2021), else its end-of-sequence token",
    )
    metrics: list[Literal["bleu", "rouge_1", "rouge_2", "rouge_l", "exact_match"]] = Field(
        ["exact_match"],
        min_length=1,
        description="scores of the written texts; rows with equal inputs share references",
    )
    max_input_tokens: int = Field(512, ge=1, description="longer inputs lose their end")
    max_new_tokens: int = Field(
        64, ge=1, description="longest text that evaluation and prediction write; longer targets lose their end"
    )
    beams: int = Field(1, ge=1, le=64, description="1 is greedy search")


class HeadOptions(Strict):
    """A linear classifier on the encoder's output, trained with the prompt."""

    pooling: Literal["mean", "cls"] = Field(
        "cls", description="what the classifier reads: the mean over the text's tokens, or the first token"
    )
    dropout: float = Field(0.0, ge=0, lt=1)


class Classify(Strict):
    """One of a closed list of labels.

    With `head`: a linear classifier on an encoder. Else with [MASK] in `input`: the label words' scores at the mask
    (a verbalizer, masked bases). Else: the label whose words are the likeliest continuation (causal and
    encoder-decoder bases).
    """

    type: Literal["classify"]
    input: InputTemplate = Field(description=INPUT_HELP)
    label: TextTemplate = Field("{label}", description="template of the row's label")
    labels: dict[str, list[str]] = Field(
        min_length=2,
        description="label as it stands in the data -> the words that stand for it; with a head, a list of labels does",
    )
    head: HeadOptions | None = Field(None, description="classify with a trained head instead of words")
    separator: str | None = Field(
        None, description="text between input and label words on a causal base; default: none"
    )
    metrics: list[Literal["accuracy", "macro_f1"]] = Field(["accuracy"], min_length=1)
    max_input_tokens: int = Field(512, ge=1, description="longer inputs lose their end")

    @field_validator("labels", mode="before", json_schema_input_type=dict[str, list[Word] | Word] | list[Word])
    @classmethod
    def _labels_as_mapping(cls, value: object) -> object:
        if isinstance(value, list):
            if len({as_text(label) for label in value if is_word(label)}) != len(value):
                raise ValueError("a label stands twice, or is not a word")
            return {as_text(label): [as_text(label)] for label in value}
        if isinstance(value, dict):
            return {str(label): as_words(words) for label, words in value.items()}
        return value


Task = Annotated[Generate | Classify, Field(discriminator="type")]
