"""The `method:` part of a recipe: one class a method, told apart by `type`. No torch here.

The tuning library takes these objects as its configurations (`tuning.methods.METHODS`).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from orchestrator.recipe.starts import Init, MaskInit, NormalInit, StatesInit, TextInit, VocabInit
from orchestrator.recipe.strict import Strict
from orchestrator.recipe.text import InputTemplate

Length = Annotated[int, Field(ge=1, le=10_000)]


class MlpReparameterization(Strict):
    """A perceptron with one hidden layer that makes the virtual tokens; folded away when the prompt is saved."""

    type: Literal["mlp"] = "mlp"
    hidden: int | None = Field(None, ge=1, description="width of the hidden layer; default the base's embedding width")


class PrefixMlp(Strict):
    """A perceptron with Tanh that makes the keys and values of all layers; folded away when the prompt is saved."""

    type: Literal["mlp"] = "mlp"
    hidden: int = Field(512, ge=1, description="width of a hidden layer; Li & Liang: 512 for tables, 800 for summaries")
    layers: Literal[1, 2] = Field(1, description="hidden layers")


class LstmReparameterization(Strict):
    """Two-layer bidirectional LSTM and a two-layer perceptron (Liu et al. 2021, P-tuning)."""

    type: Literal["lstm"] = "lstm"
    hidden: int | None = Field(
        None, ge=2, description="width of both directions together; default the base's embedding width"
    )
    dropout: float = Field(0.0, ge=0, lt=1)


class ResidualReparameterization(Strict):
    """A perceptron beside a skip connection: p + MLP(p) (Razdaibiedina et al. 2023, Residual Prompt Tuning)."""

    type: Literal["residual"] = "residual"
    hidden: int = Field(800, ge=1, description="width of the hidden layer")
    layer_norm: bool = Field(True, description="normalise the perceptron's output")
    shared: bool = Field(True, description="one perceptron for all virtual tokens; else one each")


class NoReparameterization(Strict):
    """The positions are trained directly."""

    type: Literal["none"] = "none"


def _reparameterization(value: Any) -> Any:
    """`{hidden: 512}` means the perceptron: keys and values have no other network."""
    return value.get("type", "mlp") if isinstance(value, dict) else getattr(value, "type", None)


PrefixNetwork = Annotated[
    Annotated[PrefixMlp, Tag("mlp")] | Annotated[NoReparameterization, Tag("none")], Discriminator(_reparameterization)
]


class PromptTuning(Strict):
    """Trained input embeddings in front of the text (Lester et al. 2021)."""

    type: Literal["prompt-tuning"]
    length: Length = Field(20, description="number of virtual tokens")
    init: Init = Field(VocabInit(), description="where the virtual tokens start; with a network, its inputs")
    placement: Literal["before-bos", "after-bos"] = Field(
        "before-bos", description="in front of the tokenizer's opening special tokens, or behind them"
    )
    reparameterization: Annotated[ResidualReparameterization | NoReparameterization, Field(discriminator="type")] = (
        Field(NoReparameterization(), description="a network that makes the virtual tokens while training")
    )


class PrefixTuning(Strict):
    """Trained keys and values in every attention layer (Li & Liang 2021)."""

    type: Literal["prefix-tuning"]
    length: Length = Field(10, description="number of virtual tokens")
    reparameterization: PrefixNetwork = Field(
        NoReparameterization(),
        description="`{hidden: 512}` is the paper's perceptron; `{type: none}` trains keys and values directly",
    )
    init: StatesInit | None = Field(
        None,
        description="where the keys and values start; default: those of frequent words, or with a perceptron its own "
        "random numbers (with an init it is first fitted to it)",
    )
    placement: Literal["prefix", "infix"] = Field(
        "prefix",
        description="`infix`: between the input and the separator, seen by what follows only; on causal bases "
        "that add positions to their input",
    )
    embedding_only: bool = Field(
        False, description="the paper's ablation: input embeddings in front of the text, and nothing in the layers"
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout on the prefix while training, drawn for each row")


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


class PTuningV2(Strict):
    """Deep prompts: trained keys and values in every layer, at learning rates of 5e-3 and more (Liu et al. 2022).

    On masked bases, usually with `task.head`, and on causal ones. As prefix tuning, but trained directly from random
    numbers, with dropout, and without the encoder-decoder's three prefixes.
    """

    type: Literal["p-tuning-v2"]
    length: Length = Field(
        20, description="number of virtual tokens; the paper: under 20 for simple classes, about 100 to tag"
    )
    reparameterization: PrefixNetwork = Field(
        NoReparameterization(), description="`{hidden: 512}` is the released code's projection; it does not always help"
    )
    init: StatesInit = Field(
        NormalInit(), description="where the keys and values start; with a projection, what it is first fitted to"
    )
    dropout: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="dropout on the keys and values while training, drawn for each row; the released code takes the "
        "base's hidden_dropout_prob, which is 0.1 for BERT and RoBERTa",
    )


class Head(Strict):
    """No virtual tokens: only the task's classification head is trained. The row to compare with."""

    type: Literal["head"]


class Warp(Strict):
    """Trained input embeddings at the template's [P] and trained label vectors (Hambardzumyan et al. 2021).

    Needs `type: classify` and [MASK] (masked bases, BART and T5): a label's score is its vector times what the base's
    output matrix would multiply at [MASK], and a bias. Both train at `head_lr`.
    """

    type: Literal["warp"]
    length: Annotated[int, Field(ge=0, le=10_000)] | None = Field(
        None,
        description="number of virtual tokens in front of the text; leave out when the template places them; 0: the "
        "label vectors alone are trained, the paper's WARP_0",
    )
    init: Init | MaskInit = Field(
        MaskInit(), discriminator="type", description="where the virtual tokens start; default: as [MASK], the paper's"
    )
    vectors: Literal["words", "random"] = Field(
        "words",
        description="where the label vectors start: as the label words' rows of the output matrix, the paper's "
        "WARP_init, or at random, its WARP, whatever the words are",
    )
    bias: bool = Field(True, description="a trained bias for each label, as in the released code")


class AutoPrompt(Strict):
    """Words found by gradients at the template's [T:k]; nothing is trained (Shin et al. 2020).

    A step takes the gradient at one slot, tries the `candidates` words that it promises most of on another batch, and
    keeps the best if it is better than what stands there: if it makes the right label's words likelier, together, among
    the whole vocabulary. The artifact names the words: they work in any tool.
    """

    type: Literal["autoprompt"]
    candidates: int = Field(10, ge=1, le=10_000, description="words tried a step")
    init: VocabInit | TextInit | MaskInit = Field(
        MaskInit(), discriminator="type", description="the words at the start; default: [MASK], the paper's"
    )
    label_words: int | None = Field(
        None,
        ge=1,
        le=100,
        description="find so many words for each label too, by a regression on [MASK]; those of task.labels then only "
        "stand until they are found",
    )
    avoid: list[str] = Field(
        [],
        description="words that are not to be found, besides label words, a cloze's answers in the training rows, and "
        "special tokens",
    )
    proper_names: bool = Field(
        True,
        description="false: nor words with a capital letter, as the released code's --filter, which it has for LAMA",
    )


class Pet(Strict):
    """Hand-written patterns and label words (Schick & Schütze 2021).

    Nothing is trained: the patterns are scored as an ensemble; or with `train.base_lr` the base is. The released code
    trains a base for each pattern: sweep over `task.input` instead, and ask the artifacts together (`ptq predict`).
    """

    type: Literal["pet"]
    patterns: list[InputTemplate] = Field(
        [], description="templates besides task.input; a label's score is the mean over all, and rows train under each"
    )
    weights: Literal["uniform", "accuracy"] = Field(
        "uniform",
        description="how much each pattern says: all alike, or as much as it is right on the labelled training rows "
        "before anything is trained (the released code's wmean; it asks for every such row once a pattern)",
    )
    mlm: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="this part of the loss is of 15 % hidden words, the rest of the labels (the paper's alpha is "
        "1e-4); learned from the training rows whose label is empty, or from all where none is; needs train.base_lr",
    )


class PromptDesign(Strict):
    """Nothing is trained: the frozen base reads the input as it is written, behind worked examples (Brown et al. 2020).

    The row that every tuned prompt is compared with: the same task, the same base, the same scores.
    """

    type: Literal["prompt-design"]
    shots: int = Field(
        0,
        ge=0,
        le=1000,
        description="training rows that stand with their answers before every input; the seed draws them, of each "
        "label equally many",
    )
    separator: str = Field("\n\n", description="text behind each of them")


class FineTuning(Strict):
    """No virtual tokens: the base's own weights are trained, by a job that has the base for itself."""

    type: Literal["fine-tuning"]
    weights: Literal["all", "biases"] = Field(
        "all", description="all of the base's weights, or its biases alone (BitFit, Ben Zaken et al. 2022)"
    )


class Lora(Strict):
    """No virtual tokens: a low-rank change of some of the base's linear layers is trained (Hu et al. 2022).

    A row to compare with; the job has the base for itself. The change is fp32 beside an fp32 or bf16 base, as in PEFT,
    whose own two files the artifact holds.
    """

    type: Literal["lora"]
    rank: int = Field(8, ge=1, le=4096)
    alpha: float = Field(16.0, gt=0, description="what is added is multiplied by alpha / rank")
    targets: list[Annotated[str, Field(min_length=1)]] | None = Field(
        None,
        min_length=1,
        description="last parts of the names of linear layers, for example [q_proj, v_proj]; default: those that make "
        "queries and values",
    )


class LmAdapt(Strict):
    """The base itself goes on with language modelling on plain text, and becomes another base (Lester et al. 2021).

    Needs `type: text`. The artifact holds a whole base, which is registered with its parent and its steps: by the job
    itself, or later by `ptq base add NAME a3`.
    """

    type: Literal["lm-adapt"]
    register_as: str | None = Field(
        None,
        pattern=r"^([A-Za-z0-9]|\{steps\}|\{seed\})([A-Za-z0-9._-]|\{steps\}|\{seed\}){0,99}$",
        description="name of the adapted base, which is registered together with the job's success; {steps} and {seed} "
        "stand for those of the job, so that each job of a sweep has a base of its own",
    )

    def base_name(self, *, steps: int | None, seed: int) -> str | None:
        """The name with the job's numbers in it."""
        if self.register_as is None:
            return None
        name = self.register_as.replace("{seed}", str(seed))
        return name if steps is None else name.replace("{steps}", str(steps))


Method = Annotated[
    PromptTuning
    | PrefixTuning
    | PTuning
    | PTuningV2
    | Warp
    | AutoPrompt
    | Pet
    | Head
    | PromptDesign
    | FineTuning
    | Lora
    | LmAdapt,
    Field(discriminator="type"),
]
