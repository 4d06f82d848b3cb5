"""Scores of predictions, by the libraries that papers use. Higher is better, but for perplexity and TER.

sacrebleu, rouge-score and scikit-learn load when a score needs them: scikit-learn alone takes about a second.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

from orchestrator.tasks import answers, captions, webnlg
from orchestrator.tasks.lists import listed
from orchestrator.tasks.nist import nist as nist_of_words

Predictions = Sequence[str]
References = Sequence[Sequence[str]]


def score(
    names: Sequence[str], predictions: Predictions, references: References, *, labels: Sequence[str] = ()
) -> dict[str, float]:
    """The named scores of `predictions` [B] against one or more references for each [B, R_i].

    `labels`: all labels of the task, whichever these rows hold; positive_f1 asks for them.

    bleu, webnlg_bleu, dart_bleu, rouge_1, rouge_2, rouge_l, squad_em, squad_f1: 0-100. nist, cider, ter, webnlg_ter:
    from 0. perplexity: from 1. Others: 0-1.
    ValueError for an unknown name, no predictions, or a prediction without a reference.
    """
    unknown = [name for name in names if name not in METRICS]
    if unknown:
        raise ValueError(f"no such metric: {', '.join(unknown)}; there are {', '.join(METRICS)}")
    if not predictions or len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} predictions for {len(references)} lists of references")
    if not all(references):
        raise ValueError(f"prediction {[not r for r in references].index(True)} has no reference")
    own: dict[str, Metric] = {name: partial(metric, labels=labels) for name, metric in _OF_LABELS.items()}
    return {name: own.get(name, METRICS[name])(predictions, references) for name in names}


def percent(name: str, value: float) -> float | None:
    """The score on a scale from 0 to 100, where 100 is the best there is; None for one that has no such scale."""
    return None if name in _OPEN else value if name in _HUNDRED else 100 * value


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


def macro_f1(predictions: Predictions, references: References, labels: Sequence[str] = ()) -> float:
    """F1 of each label that occurs, averaged without weights (scikit-learn; the first reference counts). 0-1.

    `labels`: the task's. A text that is none of them is wrong, and no label of its own. (T5's mean_multiclass_f1 also
    counts 0 for a label that no row has; of whole splits both are equal.)
    """
    from sklearn.metrics import f1_score

    wanted, known = [row[0] for row in references], set(labels)
    there = sorted(label for label in {*wanted, *predictions} if label in known or not known)
    return float(f1_score(wanted, list(predictions), labels=there, average="macro", zero_division=0))


def nist(predictions: Predictions, references: References) -> float:
    """Corpus NIST with several references, on the same tokens as `bleu`."""
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    tokenizer = Tokenizer13a()

    def words(text: str) -> list[str]:
        return str(tokenizer(text)).lower().split()

    return nist_of_words([words(p) for p in predictions], [[words(r) for r in row] for row in references])


def squad_em(predictions: Predictions, references: References) -> float:
    """Answers that equal one of their references, articles and punctuation aside. 0-100, as SQuAD prints it."""
    best = [max(answers.exact(p, r) for r in row) for p, row in zip(predictions, references, strict=True)]
    return 100 * sum(best) / len(best)


def squad_f1(predictions: Predictions, references: References) -> float:
    """F1 of the words, the best over a row's references, the mean over rows. 0-100, as SQuAD prints it."""
    best = [max(answers.token_f1(p, r) for r in row) for p, row in zip(predictions, references, strict=True)]
    return 100 * sum(best) / len(best)


def record_em(predictions: Predictions, references: References) -> float:
    """Part of the answers that equal one of their references, articles and punctuation aside. 0-1, as ReCoRD's own."""
    best = [max(answers.exact(p, r) for r in row) for p, row in zip(predictions, references, strict=True)]
    return sum(best) / len(best)


def record_f1(predictions: Predictions, references: References) -> float:
    """F1 of the words, the best over a row's references, the mean over rows. 0-1, as ReCoRD's own script prints it."""
    best = [max(answers.token_f1(p, r) for r in row) for p, row in zip(predictions, references, strict=True)]
    return sum(best) / len(best)


def wsc(predictions: Predictions, references: References) -> float:
    """Part of the rows whose referent is told right, by T5's rule: the first reference, or with `NOT_IT` behind it
    any other. 0-1."""
    hits = [
        answers.names_something(p) and answers.same_referent(p, row[0]) != (answers.NOT_IT in row[1:])
        for p, row in zip(predictions, references, strict=True)
    ]
    return sum(hits) / len(hits)


def cb(predictions: Predictions, references: References, labels: Sequence[str] = ()) -> float:
    """CommitmentBank's score (SuperGLUE): the mean of accuracy and macro-averaged F1. 0-1."""
    return (accuracy(predictions, references) + macro_f1(predictions, references, labels)) / 2


def group_exact_match(predictions: Predictions, references: References) -> float:
    """Part of the groups (a row's second reference names its group) whose rows are all right: MultiRC's EM. 0-1."""
    right: dict[str, bool] = {}
    for prediction, row in zip(predictions, references, strict=True):
        right[row[1]] = right.get(row[1], True) and prediction == row[0]
    return sum(right.values()) / len(right)


def positive_f1(predictions: Predictions, references: References, labels: Sequence[str] = ()) -> float:
    """F1 of the label that is last in the alphabet (`1` of 0 and 1, `true` of false and true): MultiRC's F1a. 0-1.

    Of all labels of the task: rows that happen to hold only `0` have no positive one. ValueError without them. A text
    that is no label counts as the wrong one, whichever that is (T5's f1_score_with_invalid).
    """
    from sklearn.metrics import f1_score

    if not labels:
        raise ValueError("positive_f1 asks for all labels of the task")
    wanted, positive, known = [row[0] == max(labels) for row in references], max(labels), set(labels)
    said = [p == positive if p in known else not w for p, w in zip(predictions, wanted, strict=True)]
    return float(f1_score(wanted, said, zero_division=0))


def entity_f1(predictions: Predictions, references: References) -> float:
    """F1 over whole entities (seqeval, the official conlleval's). A row is its tags with spaces between. 0-1."""
    from seqeval.metrics import f1_score

    return float(f1_score([listed(row[0]) for row in references], [p.split() for p in predictions], zero_division=0))


def tag_accuracy(predictions: Predictions, references: References) -> float:
    """Part of the tags that are right. 0-1."""
    pairs = [
        pair
        for prediction, row in zip(predictions, references, strict=True)
        for pair in zip(prediction.split(), listed(row[0]), strict=True)
    ]
    return sum(said == wanted for said, wanted in pairs) / len(pairs)


def perplexity(predictions: Predictions, references: References) -> float:
    """exp of the mean loss a token; a prediction is `<sum of losses> <tokens>`. From 1, smaller is better."""
    rows = [prediction.split() for prediction in predictions]
    return math.exp(min(700.0, sum(float(loss) for loss, _ in rows) / max(1, sum(int(count) for _, count in rows))))


Metric = Callable[[Predictions, References], float]

METRICS: dict[str, Metric] = {
    "bleu": bleu,
    "nist": nist,
    "webnlg_bleu": webnlg.webnlg_bleu,
    "webnlg_ter": webnlg.webnlg_ter,
    "dart_bleu": webnlg.dart_bleu,
    "ter": webnlg.ter,
    "meteor": captions.meteor,
    "cider": captions.cider,
    "rouge_l_coco": captions.rouge_l_coco,
    "rouge_1": rouge_1,
    "rouge_2": rouge_2,
    "rouge_l": rouge_l,
    "exact_match": exact_match,
    "accuracy": accuracy,
    "macro_f1": macro_f1,
    "positive_f1": positive_f1,
    "cb": cb,
    "group_exact_match": group_exact_match,
    "squad_em": squad_em,
    "squad_f1": squad_f1,
    "record_em": record_em,
    "record_f1": record_f1,
    "wsc": wsc,
    "p_at_1": accuracy,
    "entity_f1": entity_f1,
    "tag_accuracy": tag_accuracy,
    "perplexity": perplexity,
}

_HUNDRED = frozenset({"bleu", "webnlg_bleu", "dart_bleu", "rouge_1", "rouge_2", "rouge_l", "squad_em", "squad_f1"})
_OPEN = frozenset({"nist", "cider", "ter", "webnlg_ter", "perplexity"})

#: Those that are other numbers where an answer may be no label.
_OF_LABELS: dict[str, Callable[..., float]] = {"macro_f1": macro_f1, "positive_f1": positive_f1, "cb": cb}


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
