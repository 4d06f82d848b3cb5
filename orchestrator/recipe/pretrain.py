"""The recipe of a small base: which architecture, pretrained on which documents. No torch here.

A prompt can only elicit what its base can do. `documents` therefore is a mixture: the same row answered in several
forms, drawn by weight, without saying which form is wanted; a prompt trained later selects one of them.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from orchestrator.recipe.schema import Seed
from orchestrator.recipe.strict import Strict

#: T5 has 100 sentinels: 15 % of so many tokens, in spans of 3, take no more.
LONGEST_CORRUPTED = 2000


class Architecture(Strict):
    type: Literal["gpt2", "llama", "bert", "t5"] = Field(
        "gpt2", description="bert: a masked base, with words for tokens; t5: an encoder and a decoder, as T5 1.1"
    )
    layers: int = Field(4, ge=1, le=100, description="t5: of the encoder, and as many of the decoder")
    hidden: int = Field(128, ge=8)
    heads: int = Field(4, ge=1)
    context: int = Field(256, ge=8, description="longest sequence in tokens")

    @model_validator(mode="after")
    def _heads_divide_hidden(self) -> Architecture:
        if self.hidden % self.heads:
            raise ValueError(f"hidden ({self.hidden}) must be a multiple of heads ({self.heads})")
        if self.type == "t5" and self.context > LONGEST_CORRUPTED:
            raise ValueError(f"a context of t5 is {LONGEST_CORRUPTED} at most: its 100 sentinels mark no more spans")
        return self


class Document(Strict):
    """One form of a row. Causal: input, beginning-of-sequence token, target, end-of-sequence token. Masked: an input,
    of which 15 % of the words are asked for. t5: an input for the encoder and a target for the decoder; or an input
    alone, of which 15 % of the tokens are taken out in spans of 3, and asked for (Raffel et al. 2020).
    """

    input: str = Field(min_length=1)
    target: str | None = Field(None, min_length=1, description="of causal bases, and of t5 where it is text to text")
    weight: float = Field(1.0, gt=0)


class PretrainSchedule(Strict):
    steps: int = Field(ge=1)
    batch_size: int = Field(64, ge=1)
    lr: float = Field(gt=0)
    warmup: int = Field(100, ge=0, description="steps of linear warm-up; cosine decay to a tenth follows")
    weight_decay: float = Field(0.01, ge=0)
    seed: Seed = 1


class PretrainRecipe(Strict):
    """Pretrain a small language model from scratch: causal, masked or encoder-decoder."""

    pretrain: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$", description="name of the base")
    description: str = ""
    dataset: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}(@[1-9][0-9]*)?$",
        description="NAME or NAME@VERSION; the train split is used",
    )
    architecture: Architecture = Architecture()
    vocab: int = Field(
        1000,
        ge=260,
        description="tokens of the BPE trained on the documents (bert: WordPiece; t5: Unigram, with 100 sentinels)",
    )
    documents: list[Document] = Field(min_length=1)
    train: PretrainSchedule

    @model_validator(mode="after")
    def _targets(self) -> PretrainRecipe:
        if self.architecture.type == "t5":
            return self
        masked = self.architecture.type == "bert"
        if any((document.target is None) != masked for document in self.documents):
            raise ValueError(
                "a masked base has no targets" if masked else "every document of a causal base has a target"
            )
        return self
