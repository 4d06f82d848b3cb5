"""Label words: which words stand for which label, and which label a model's scores choose."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Verbalizer:
    labels: tuple[str, ...]  #: as they stand in the data
    words: tuple[tuple[str, ...], ...]  #: for each label, the words that stand for it

    @classmethod
    def of(cls, labels: Mapping[str, Sequence[str]]) -> Verbalizer:
        return cls(tuple(labels), tuple(tuple(words) for words in labels.values()))

    @property
    def flat_words(self) -> list[str]:
        """All words, label after label."""
        return [word for words in self.words for word in words]

    @property
    def owners(self) -> list[int]:
        """For each of `flat_words`, the index of its label."""
        return [index for index, words in enumerate(self.words) for _ in words]

    def index(self, label: str) -> int:
        """The label's index; KeyError when it is not one of them."""
        try:
            return self.labels.index(label)
        except ValueError:
            raise KeyError(label) from None

    def label_scores(self, word_scores: Sequence[float]) -> list[float]:
        """Scores of `flat_words` -> a score for each label: the mean over its words (Schick & Schütze 2021, PET)."""
        if len(word_scores) != len(self.owners):
            raise ValueError(f"{len(word_scores)} scores for {len(self.owners)} words")
        totals = [0.0] * len(self.labels)
        for owner, score in zip(self.owners, word_scores, strict=True):
            totals[owner] += score
        return [total / len(words) for total, words in zip(totals, self.words, strict=True)]

    def choose(self, word_scores: Sequence[float]) -> str:
        """The label with the highest score; the first of equals."""
        scores = self.label_scores(word_scores)
        return self.labels[scores.index(max(scores))]


def label_faults(labels: Mapping[str, Sequence[str]]) -> list[str]:
    """What is wrong with label words whatever the base: no words, empty words, one word for two labels."""
    faults = []
    owner: dict[str, str] = {}
    for label, words in labels.items():
        if not words:
            faults.append(f"label `{label}` has no words")
        for word in words:
            if not word.strip():
                faults.append(f"label `{label}` has an empty word")
            elif word in owner:
                whose = "twice under" if owner[word] == label else f"under `{owner[word]}` and"
                faults.append(f"the word `{word}` stands {whose} `{label}`")
            else:
                owner[word] = label
    return faults


def token_faults(
    labels: Mapping[str, Sequence[str]], encode: Callable[[str], Sequence[int]], unknown: int | None = None
) -> list[str]:
    """Which words are not one token of the base: a [MASK] holds one token, so such a word could never be chosen.

    `encode` gives a word's token ids without special tokens; `unknown` is the id for what the vocabulary lacks.
    """
    faults = []
    for label, words in labels.items():
        for word in words:
            ids = list(encode(word))
            if unknown is not None and unknown in ids:
                faults.append(f"the word `{word}` of label `{label}` is not in the base's vocabulary")
            elif len(ids) != 1:
                faults.append(
                    f"the word `{word}` of label `{label}` is {len(ids)} tokens of the base; a [MASK] holds one"
                )
    return faults
