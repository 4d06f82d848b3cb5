"""Scores of predictions, by the libraries that papers use. Higher is better for all of them.

sacrebleu, rouge-score and scikit-learn load when a score needs them: scikit-learn alone takes about a second.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

Predictions = Sequence[str]
References = Sequence[Sequence[str]]


def score(names: Sequence[str], predictions: Predictions, references: References) -> dict[str, float]:
    """The named scores of `predictions` [B] against one or more references for each [B, R_i].

    bleu: corpus BLEU 0-100. rouge_1, rouge_2, rouge_l: 0-100. exact_match, accuracy, macro_f1: 0-1.
    ValueError for an unknown name, no predictions, or a prediction without a reference.
    """
    unknown = [name for name in names if name not in METRICS]
    if unknown:
        raise ValueError(f"no such metric: {', '.join(unknown)}; there are {', '.join(METRICS)}")
    if not predictions or len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} predictions for {len(references)} lists of references")
    if not all(references):
        raise ValueError(f"prediction {[not r for r in references].index(True)} has no reference")
    return {name: METRICS[name](predictions, references) for name in names}


def bleu(predictions: Predictions, references: References) -> float:
    """Corpus BLEU with several references, 0-100: sacrebleu, tokenizer 13a, lower-cased.

    With these settings it equals the official E2E script (tuetschek/e2e-metrics, pymteval). Rows with fewer
    references than others are padded with None, which sacrebleu leaves out. Not meant for unsegmented text (Chinese).
    """
    import sacrebleu

    most = max(len(row) for row in references)
    streams = [[row[i] if i < len(row) else None for row in references] for i in range(most)]
    # force: no advice on standard error about text that is tokenised already, as E2E's is.
    return float(sacrebleu.corpus_bleu(list(predictions), streams, tokenize="13a", lowercase=True, force=True).score)


def rouge_1(predictions: Predictions, references: References) -> float:
    """See `_rouge`, of single words."""
    return _rouge("rouge1", predictions, references)


def rouge_2(predictions: Predictions, references: References) -> float:
    """See `_rouge`, of pairs of words."""
    return _rouge("rouge2", predictions, references)


def rouge_l(predictions: Predictions, references: References) -> float:
    """See `_rouge`, of the longest common subsequence."""
    return _rouge("rougeL", predictions, references)


def exact_match(predictions: Predictions, references: References) -> float:
    """Part of the predictions that equal one of their references, white space at both ends aside. 0-1."""
    hits = [p.strip() in {r.strip() for r in row} for p, row in zip(predictions, references, strict=True)]
    return sum(hits) / len(hits)


def accuracy(predictions: Predictions, references: References) -> float:
    """Part of the labels that are right (the first reference counts). 0-1."""
    hits = [p == row[0] for p, row in zip(predictions, references, strict=True)]
    return sum(hits) / len(hits)


def macro_f1(predictions: Predictions, references: References) -> float:
    """F1 of each label that occurs, averaged without weights (scikit-learn; the first reference counts). 0-1."""
    from sklearn.metrics import f1_score

    return float(f1_score([row[0] for row in references], list(predictions), average="macro", zero_division=0))


METRICS: dict[str, Callable[[Predictions, References], float]] = {
    "bleu": bleu,
    "rouge_1": rouge_1,
    "rouge_2": rouge_2,
    "rouge_l": rouge_l,
    "exact_match": exact_match,
    "accuracy": accuracy,
    "macro_f1": macro_f1,
}


def _rouge(kind: str, predictions: Predictions, references: References) -> float:
    """F1 x 100 of rouge-score with its stemmer: the best over a row's references, the mean over rows.

    rouge-score lower-cases, and keeps only a-z and 0-9: text without them (Chinese) scores 0.
    """
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer([kind], use_stemmer=True)
    best = [
        max(scorer.score(reference, prediction)[kind].fmeasure for reference in row)
        for prediction, row in zip(predictions, references, strict=True)
    ]
    return 100 * sum(best) / len(best)
