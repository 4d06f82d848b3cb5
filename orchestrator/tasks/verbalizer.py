"""Label words: the words that stand for a label where a base scores words (Schick & Schütze 2021, PET).

Whether a word is one token of the base is for its tokenizer to say: `training.objectives.verbalizer`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence


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
