"""Where the trained numbers of a method start: the `init:` of a recipe, one class a kind, told apart by `type`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from orchestrator.recipe.strict import Strict


class RandomInit(Strict):
    """Uniform in ±`scale` (Lester et al. 2021, §3.2: 0.5)."""

    type: Literal["random"] = "random"
    scale: float = Field(0.5, gt=0)


class NormalInit(Strict):
    """Normal around 0 with deviation `std`; with a network, of its inputs."""

    type: Literal["normal"] = "normal"
    std: float = Field(1.0, gt=0)


class VocabInit(Strict):
    """Tokens drawn without replacement from the first `top` ids (Lester et al.: 5,000)."""

    type: Literal["vocab"] = "vocab"
    top: int = Field(5000, ge=1)


class TextInit(Strict):
    """The tokens of `text`, repeated or cut to the length."""

    type: Literal["text"] = "text"
    text: str = Field(min_length=1)


class WordsInit(Strict):
    """The tokens of these words one after another, repeated or cut to the length (Li & Liang 2021, §7.4)."""

    type: Literal["words"] = "words"
    words: list[Annotated[str, Field(min_length=1)]] = Field(min_length=1)


Init = Annotated[RandomInit | VocabInit | TextInit, Field(discriminator="type")]

#: Of keys and values: what the frozen base computes for those tokens.
StatesInit = Annotated[NormalInit | VocabInit | TextInit | WordsInit, Field(discriminator="type")]
