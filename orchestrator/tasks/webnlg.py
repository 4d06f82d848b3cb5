"""BLEU and TER as WebNLG and DART compute them, and so Li & Liang 2021 (Yale-LILY/dart, evaluation/).

WebNLG lower-cases, writes in ASCII and cuts at whatever is no letter, digit or underscore; DART takes the words between
white space as they are. Both compare with three references at most, by multi-bleu.perl, which does not smooth, and by
tercom 0.7.25. A row with fewer has empty lines in their place, which BLEU takes for references of no words.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.util import find_spec

from orchestrator.errors import BadInput

NEED_ASCII = frozenset({"webnlg_bleu", "webnlg_ter"})

_MOST = 3


def why_not() -> str | None:
    """What is missing here; None: nothing."""
    return None if find_spec("unidecode") else "the package Unidecode (pip install 'ptq[webnlg]')"


def webnlg_bleu(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """`multi-bleu.perl -lc` on WebNLG's words. 0-100."""
    return _bleu(_said(predictions), _wanted(references))


def webnlg_ter(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """tercom's rate on WebNLG's words: edits a word of the references, from 0; smaller is better."""
    return _ter(_said(predictions), _wanted(references))


def dart_bleu(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """`multi-bleu.perl` on the words as they are written. 0-100."""
    return _bleu(predictions, references)


def ter(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """tercom's rate on the words between white space, in lower case: from 0, smaller is better."""
    return _ter(predictions, references)


def _bleu(said: Sequence[str], wanted: Sequence[Sequence[str]]) -> float:
    import sacrebleu

    streams = [[row[i] if i < len(row) else "" for row in wanted] for i in range(_MOST)]
    return float(sacrebleu.corpus_bleu(list(said), streams, smooth_method="none", tokenize="none", force=True).score)


def _ter(said: Sequence[str], wanted: Sequence[Sequence[str]]) -> float:
    import sacrebleu

    streams = [[row[i] if i < len(row) else None for row in wanted] for i in range(_MOST)]
    return float(sacrebleu.corpus_ter(list(said), streams).score) / 100


def _said(texts: Sequence[str]) -> list[str]:
    ascii_of = _unidecode()
    return [_cut(ascii_of(ascii_of(text.strip()).lower())) for text in texts]


def _wanted(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    ascii_of = _unidecode()
    return [[ascii_of(_cut(text).lower()) for text in row[:_MOST]] for row in rows]


def _cut(text: str) -> str:
    return " ".join(" ".join(re.split(r"(\W)", text)).split())


def _unidecode():  # type: ignore[no-untyped-def]
    if missing := why_not():
        raise BadInput(f"{', '.join(sorted(NEED_ASCII))} need {missing}", where="task.metrics")
    from unidecode import unidecode

    return unidecode
