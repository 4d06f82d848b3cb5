"""Where the trained numbers of a method start: the `init:` of a recipe, one class a kind, told apart by `type`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from orchestrator.recipe.strict import Strict


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())


#: A path on this machine; written relative, it starts at the folder that the recipe is read in.
LocalPath = Annotated[str, Field(min_length=1), AfterValidator(_absolute)]

#: Of a file's bytes.
Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
DIGEST_HELP = "written down when the job is submitted: another file than this one is refused"


class RandomInit(Strict):
    """Uniform in ±`scale` (Lester et al. 2021, §3.2: 0.5)."""

    type: Literal["random"] = "random"
    scale: float = Field(0.5, gt=0)


class NormalInit(Strict):
    """Normal around 0 with deviation `std`, as torch starts an embedding; with a network, of its inputs."""

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


class MaskInit(Strict):
    """All as the base's mask token (Hambardzumyan et al. 2021; Shin et al. 2020)."""

    type: Literal["mask"] = "mask"


class LabelsInit(Strict):
    """Class labels: number i starts as the i-th word, the mean over its tokens; the rest as `vocab` (Lester et al.).

    Words beyond the length are left out, as in the released code.
    """

    type: Literal["labels"] = "labels"
    words: list[Annotated[str, Field(min_length=1)]] | None = Field(
        None, min_length=1, description="default: the words of all labels of the task, in their order"
    )
    top: int = Field(5000, ge=1, description="the rest is drawn from the first ids")


class FileInit(Strict):
    """The numbers of a .npy file of shape [length, width of the base's embeddings]."""

    type: Literal["file"] = "file"
    path: LocalPath = Field(
        description="for example an `encoder.prompt.prompt.prompt` of google-research/prompt-tuning"
    )
    digest: Digest | None = Field(None, description=f"of the file; {DIGEST_HELP}")


class PromptInit(Strict):
    """A trained prompt goes on from where it was (SPoT, Vu et al. 2022), or starts as a mixture of several."""

    type: Literal["prompt"] = "prompt"
    path: list[LocalPath] = Field(
        min_length=1, description="folder of an artifact (`ptq artifact show` names it), or a list of folders"
    )
    weights: list[float] | None = Field(
        None, description="what each prompt is multiplied by before all are added; default: their mean"
    )
    digests: list[Digest] | None = Field(None, description=f"of each folder's prompt.safetensors; {DIGEST_HELP}")

    @field_validator("path", mode="before", json_schema_input_type=str | list[str])
    @classmethod
    def _one_path(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _a_weight_each(self) -> PromptInit:
        if self.weights is not None and len(self.weights) != len(self.path):
            raise ValueError(f"{len(self.weights)} weights for {len(self.path)} folders")
        if self.digests is not None and len(self.digests) != len(self.path):
            raise ValueError(f"{len(self.digests)} digests for {len(self.path)} folders")
        return self

    @property
    def shares(self) -> list[float]:
        """The weight of each folder."""
        return self.weights or [1 / len(self.path)] * len(self.path)


class ArtifactInit(Strict):
    """As `prompt`, from artifacts of the registry: named when the job is submitted, and kept in its lineage."""

    type: Literal["artifact"]
    artifact: list[Annotated[str, Field(min_length=1)]] = Field(
        min_length=1, description="a12, an alias (sst2@best), a job's number or the start of a digest; or a list"
    )
    weights: list[float] | None = Field(None, description="as of `prompt`")

    @field_validator("artifact", mode="before", json_schema_input_type=str | int | list[str | int])
    @classmethod
    def _one_artifact(cls, value: Any) -> Any:
        found = value if isinstance(value, list) else [value]
        return [str(part) if type(part) is int else part for part in found]

    @model_validator(mode="after")
    def _a_weight_each(self) -> ArtifactInit:
        if self.weights is not None and len(self.weights) != len(self.artifact):
            raise ValueError(f"{len(self.weights)} weights for {len(self.artifact)} artifacts")
        return self


Init = Annotated[
    RandomInit | NormalInit | VocabInit | TextInit | LabelsInit | FileInit | PromptInit | ArtifactInit,
    Field(discriminator="type"),
]

#: Of keys and values: with words, what the frozen base computes for them.
StatesInit = Annotated[
    NormalInit | VocabInit | TextInit | WordsInit | PromptInit | ArtifactInit, Field(discriminator="type")
]
