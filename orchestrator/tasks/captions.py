"""METEOR 1.5, CIDEr and ROUGE-L, as the E2E challenge computes them: COCO's own Java and Python code (pycocoevalcap).

All need Java: METEOR for itself, the others for Stanford's Penn Treebank tokenizer, which NLTK's and 13a differ from in
one or two of a hundred E2E references. Nothing is fetched: the jars lie in the package.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from orchestrator.errors import BadInput

NEED_JAVA = frozenset({"meteor", "cider", "rouge_l_coco"})


def why_not() -> str | None:
    """What is missing here; None: nothing."""
    missing = []
    if find_spec("pycocoevalcap") is None:
        missing.append("the package pycocoevalcap (pip install 'ptq[captions]')")
    if shutil.which("java") is None:
        missing.append("a Java runtime (the command `java`)")
    return " and ".join(missing) or None


def meteor(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """0-1."""
    _refuse_without_java()
    from pycocoevalcap.meteor.meteor import Meteor

    scorer = Meteor()
    try:
        return float(scorer.compute_score(*_tokenized(predictions, references))[0])
    finally:
        scorer.meteor_p.kill()
        scorer.meteor_p.communicate()


def cider(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """0-10; about 2.5 is what the best E2E systems reach."""
    _refuse_without_java()
    from pycocoevalcap.cider.cider import Cider

    return float(Cider().compute_score(*_tokenized(predictions, references))[0])


def rouge_l_coco(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """0-1. Unlike rouge-score's: no stemmer, recall counts more (beta 1.2), the best precision and the best recall over
    a row's references, whichever these are."""
    _refuse_without_java()
    from pycocoevalcap.rouge.rouge import Rouge

    return float(Rouge().compute_score(*_tokenized(predictions, references))[0])


def _refuse_without_java() -> None:
    if missing := why_not():
        raise BadInput(f"{', '.join(sorted(NEED_JAVA))} need {missing}", where="task.metrics")


def _tokenized(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[Any, Any]:
    """(references, predictions) as COCO's scorers take them: number of the row -> tokenised texts."""
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    def captions(texts: Sequence[str]) -> list[Mapping[str, str]]:
        return [{"caption": " ".join(text.split())} for text in texts]

    tokenizer = PTBTokenizer()
    wanted = tokenizer.tokenize({i: captions(row) for i, row in enumerate(references)})
    said = tokenizer.tokenize({i: captions([text]) for i, text in enumerate(predictions)})
    return wanted, said
