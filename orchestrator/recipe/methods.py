"""The `method:` part of a recipe: one class a method, told apart by `type`. No torch here.

The tuning library takes these objects as its configurations (`tuning.methods.METHODS`).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from orchestrator.recipe.strict import Strict

Length = Annotated[int, Field(ge=1, le=10_000)]


class RandomInit(Strict):
    """Uniform in ±`scale` (Lester et al. 2021, §3.2: 0.5)."""

    type: Literal["random"] = "random"
    scale: float = Field(0.5, gt=0)


class VocabInit(Strict):
    """Embeddings of tokens drawn without replacement from the first `top` ids (Lester et al.: 5,000)."""

    type: Literal["vocab"] = "vocab"
    top: int = Field(5000, ge=1)


class TextInit(Strict):
    """Embeddings of the tokens of `text`, repeated or cut to the length."""

    type: Literal["text"] = "text"
    text: str = Field(min_length=1)


Init = Annotated[RandomInit | VocabInit | TextInit, Field(discriminator="type")]


class MlpReparameterization(Strict):
    """A two-layer perceptron that makes the trained positions; folded away when the prompt is saved."""

    type: Literal["mlp"] = "mlp"
    hidden: int | None = Field(
        None, ge=1, description="width of the hidden layer; default 512 for a prefix, the base's width for P-tuning"
    )


class LstmReparameterization(Strict):
    """Two-layer bidirectional LSTM and a two-layer perceptron (Liu et al. 2021, P-tuning)."""

    type: Literal["lstm"] = "lstm"
    hidden: int | None = Field(
        None, ge=2, description="width of both directions together; default the base's embedding width"
    )
    dropout: float = Field(0.0, ge=0, lt=1)


class NoReparameterization(Strict):
    """The positions are trained directly."""

    type: Literal["none"] = "none"


def _reparameterization(value: Any) -> Any:
    """`{hidden: 512}` means the perceptron: a prefix has no other network."""
    return value.get("type", "mlp") if isinstance(value, dict) else getattr(value, "type", None)


class PromptTuning(Strict):
    """Trained input embeddings in front of the text (Lester et al. 2021)."""

    type: Literal["prompt-tuning"]
    length: Length = Field(20, description="number of virtual tokens")
    init: Init = Field(VocabInit(), description="where the virtual tokens start")


class PrefixTuning(Strict):
    """Trained keys and values in every attention layer (Li & Liang 2021)."""

    type: Literal["prefix-tuning"]
    length: Length = Field(10, description="number of virtual tokens")
    reparameterization: Annotated[
        Annotated[MlpReparameterization, Tag("mlp")] | Annotated[NoReparameterization, Tag("none")],
        Discriminator(_reparameterization),
    ] = Field(
        NoReparameterization(),
        description="`{hidden: 512}` is the paper's perceptron; `{type: none}` trains keys and values directly",
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout on the keys and values while training")


class PTuning(Strict):
    """Trained input embeddings anywhere in the template, made by a small network (Liu et al. 2021)."""

    type: Literal["p-tuning"]
    length: Length | None = Field(
        None,
        description="number of virtual tokens in front of the text; leave out when the template places them with [P:k]",
    )
    reparameterization: Annotated[
        LstmReparameterization | MlpReparameterization | NoReparameterization, Field(discriminator="type")
    ] = Field(LstmReparameterization(), description="the network that makes the virtual tokens")
    init: Init = Field(VocabInit(), description="where the network's inputs start")


class Head(Strict):
    """No virtual tokens: only the task's classification head is trained. The row to compare with."""

    type: Literal["head"]


Method = Annotated[PromptTuning | PrefixTuning | PTuning | Head, Field(discriminator="type")]
