"""The scores of benchmarks' own scripts, written out line by line from their published sources, each named.

Nothing of ptq is used here: the tests and `make proof-metrics` compare its scores with these.
"""

from __future__ import annotations

import collections
import math
import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Any

References = Sequence[Sequence[str]]


def multi_bleu(said: Sequence[str], wanted: References, *, lowercase: bool = False) -> float:
    """scripts/generic/multi-bleu.perl (moses-smt/mosesdecoder); `wanted`: the lines of each row's reference files."""
    correct, total = [0] * 5, [0] * 5
    length_translation = length_reference = 0
    for line, references in zip(said, wanted, strict=True):
        words = (line.lower() if lowercase else line).split()
        closest_diff, closest_length = 9999, 9999
        ref_ngram: dict[tuple[str, ...], int] = {}
        for reference in references:
            theirs = (reference.lower() if lowercase else reference).split()
            diff = abs(len(words) - len(theirs))
            if diff < closest_diff:
                closest_diff, closest_length = diff, len(theirs)
            elif diff == closest_diff and len(theirs) < closest_length:
                closest_length = len(theirs)
            for n in range(1, 5):
                for gram, count in _grams(theirs, n).items():
                    ref_ngram[gram] = max(ref_ngram.get(gram, 0), count)
        length_translation += len(words)
        length_reference += closest_length
        for n in range(1, 5):
            for gram, count in _grams(words, n).items():
                total[n] += count
                correct[n] += min(count, ref_ngram.get(gram, 0))
    bleu = [correct[n] / total[n] if total[n] else 0.0 for n in range(1, 5)]
    penalty = 1.0
    if length_translation < length_reference:
        penalty = math.exp(1 - length_reference / length_translation)
    return 100 * penalty * math.exp(sum(math.log(one) if one else -9999999999 for one in bleu) / 4)


def _grams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def webnlg_files(said: Sequence[str], wanted: References) -> tuple[list[str], list[list[str]]]:
    """The lines that evaluation/webnlg-automatic-evaluation/evaluation.py (Yale-LILY/dart) writes for BLEU."""
    from unidecode import unidecode

    output = [unidecode(line.strip()) for line in said]
    teams = [" ".join(" ".join(re.split(r"(\W)", unidecode(item.lower()))).split()) for item in output]
    references = []
    for lexs in wanted:
        row = []
        for j in range(3):
            try:
                lex_detokenised = " ".join(re.split(r"(\W)", lexs[j]))
                lex_detokenised = " ".join(lex_detokenised.split())
                row.append(unidecode(lex_detokenised.lower()))
            except IndexError:
                row.append("")
        references.append(row)
    return teams, references


def rouge(kind: str, said: str, wanted: str) -> float:
    """F1 of Lin 2004 with Porter's stemmer for words of more than three letters, as google-research/rouge has it."""
    from nltk.stem.porter import PorterStemmer

    stemmer = PorterStemmer(mode="ORIGINAL_ALGORITHM")

    def words(text: str) -> list[str]:
        found = re.sub(r"[^a-z0-9]+", " ", text.lower()).split()
        return [stemmer.stem(word) if len(word) > 3 else word for word in found]

    ours, theirs = words(said), words(wanted)
    if kind == "l":
        same, sizes = _subsequence(ours, theirs), (len(ours), len(theirs))
    else:
        grams = _grams(ours, int(kind)), _grams(theirs, int(kind))
        same, sizes = sum((grams[0] & grams[1]).values()), (sum(grams[0].values()), sum(grams[1].values()))
    precision, recall = same / max(1, sizes[0]), same / max(1, sizes[1])
    return 2 * precision * recall / (precision + recall) if same else 0.0


def _subsequence(a: list[str], b: list[str]) -> int:
    """The longest common one, by trying every way."""
    if not a or not b:
        return 0
    without = _subsequence(a[1:], b)
    return max(without, 1 + _subsequence(a[1:], b[b.index(a[0]) + 1 :])) if a[0] in b else without


def normalize_answer(s: str) -> str:
    """evaluate-v1.1.py of SQuAD; the same in evaluate-v2.0.py and in ReCoRD's evaluate.py."""

    def remove_articles(text: str) -> str:
        return re.sub(r"\b(a|an|the)\b", " ", text)

    def white_space_fix(text: str) -> str:
        return " ".join(text.split())

    def remove_punc(text: str) -> str:
        exclude = set(string.punctuation)
        return "".join(ch for ch in text if ch not in exclude)

    return white_space_fix(remove_articles(remove_punc(s.lower())))


def f1_score(prediction: str, ground_truth: str) -> float:
    """evaluate-v1.1.py of SQuAD, and ReCoRD's evaluate.py."""
    prediction_tokens = normalize_answer(prediction).split()
    ground_truth_tokens = normalize_answer(ground_truth).split()
    common = Counter(prediction_tokens) & Counter(ground_truth_tokens)
    num_same = sum(common.values())
    if num_same == 0:
        return 0
    precision = 1.0 * num_same / len(prediction_tokens)
    recall = 1.0 * num_same / len(ground_truth_tokens)
    return (2 * precision * recall) / (precision + recall)


def squad(predictions: Sequence[str], answers: References) -> tuple[float, float]:
    """(exact match, F1) of evaluate-v1.1.py; ReCoRD's evaluate.py divides by 100."""
    f1 = exact_match = total = 0.0
    for prediction, ground_truths in zip(predictions, answers, strict=True):
        total += 1
        exact_match += max(normalize_answer(prediction) == normalize_answer(one) for one in ground_truths)
        f1 += max(f1_score(prediction, one) for one in ground_truths)
    return 100.0 * exact_match / total, 100.0 * f1 / total


def squad2(predictions: Sequence[str], answers: References) -> tuple[float, float]:
    """(exact match, F1) of evaluate-v2.0.py."""

    def get_tokens(s: str) -> list[str]:
        return normalize_answer(s).split() if s else []

    def compute_f1(a_gold: str, a_pred: str) -> float:
        gold_toks, pred_toks = get_tokens(a_gold), get_tokens(a_pred)
        common = collections.Counter(gold_toks) & collections.Counter(pred_toks)
        num_same = sum(common.values())
        if len(gold_toks) == 0 or len(pred_toks) == 0:
            return int(gold_toks == pred_toks)
        if num_same == 0:
            return 0
        precision = 1.0 * num_same / len(pred_toks)
        recall = 1.0 * num_same / len(gold_toks)
        return (2 * precision * recall) / (precision + recall)

    exact_scores, f1_scores = [], []
    for a_pred, texts in zip(predictions, answers, strict=True):
        gold_answers = [text for text in texts if normalize_answer(text)]
        if not gold_answers:
            gold_answers = [""]
        exact_scores.append(max(int(normalize_answer(a) == normalize_answer(a_pred)) for a in gold_answers))
        f1_scores.append(max(compute_f1(a, a_pred) for a in gold_answers))
    return 100.0 * sum(exact_scores) / len(exact_scores), 100.0 * sum(f1_scores) / len(f1_scores)


def simple_accuracy(preds: Sequence[object], labels: Sequence[object]) -> float:
    """metrics/super_glue/super_glue.py (huggingface/evaluate), of BoolQ, COPA, RTE, WiC, WSC, and half of CB's."""
    import numpy as np

    return float((np.array(preds) == np.array(labels)).mean())


def multirc(preds: Sequence[int], labels: Sequence[int], questions: Sequence[str]) -> tuple[float, float]:
    """(F1a, exact match): `evaluate_multirc` of metrics/super_glue/super_glue.py (huggingface/evaluate)."""
    from sklearn.metrics import f1_score

    question_map: dict[str, list[tuple[int, int]]] = {}
    for question_id, pred, label in zip(questions, preds, labels, strict=True):
        if question_id in question_map:
            question_map[question_id].append((pred, label))
        else:
            question_map[question_id] = [(pred, label)]
    ems = [int(sum(p == l for p, l in pairs) == len(pairs)) for pairs in question_map.values()]  # noqa: E741
    return float(f1_score(y_true=list(labels), y_pred=list(preds))), sum(ems) / len(ems)


def f1_score_with_invalid(targets: Any, predictions: Any) -> float:
    """t5/evaluation/metrics.py (google-research/text-to-text-transfer-transformer), without its factor of 100."""
    import numpy as np
    import sklearn.metrics

    targets, predictions = np.asarray(targets), np.asarray(predictions)
    invalid_idx_mask = np.logical_and(predictions != 0, predictions != 1)
    predictions[invalid_idx_mask] = 1 - targets[invalid_idx_mask]
    return float(sklearn.metrics.f1_score(targets, predictions))


def mean_multiclass_f1(targets: Sequence[int], predictions: Sequence[int], num_classes: int) -> float:
    """t5/evaluation/metrics.py (google-research/text-to-text-transfer-transformer), without its factor of 100."""
    from sklearn.metrics import fbeta_score

    return float(fbeta_score(targets, predictions, beta=1, labels=range(num_classes), average="macro"))


def class_id(string_label: str, label_classes: Sequence[str]) -> int:
    """`string_label_to_class_id` of t5/data/postprocessors.py: -1 for a text that is no label."""
    return label_classes.index(string_label) if string_label in label_classes else -1


def wsc_simple(prediction: str, referent: str) -> int:
    """t5/data/postprocessors.py (google-research/text-to-text-transfer-transformer), compared with the row's label."""
    determiners = set(
        "a an few her his each every many much my our some that the their these this those which whose your".split()
    )

    def clean(s: str) -> str:
        s = s.strip().lower()
        return " ".join([w for w in s.split(" ") if w not in determiners])

    prediction = clean(prediction)
    if not prediction:
        return -1
    referent = clean(referent)
    if ("'" in prediction) != ("'" in referent):
        predicted_referent = False
    else:
        prediction_words = set(prediction.split(" "))
        referent_words = set(referent.split(" "))
        predicted_referent = prediction_words.issubset(referent_words) or referent_words.issubset(prediction_words)
    return int(predicted_referent)


def conlleval(said: Sequence[str], wanted: Sequence[str]) -> float:
    """FB1 of conlleval.pl (CoNLL-2000), after its translation mayhewsw/conlleval.py; sentences end with a boundary."""
    correct_chunk = found_correct = found_guessed = 0
    in_correct = False
    last: dict[str, tuple[str, str]] = {"correct": ("O", ""), "guessed": ("O", "")}
    pairs = [
        pair
        for s, w in zip(said, wanted, strict=True)
        for pair in [*zip(w.split(), s.split(), strict=True), ("O", "O")]
    ]
    for tags in pairs:
        now = {name: _parse(tag) for name, tag in zip(("correct", "guessed"), tags, strict=True)}
        ends = {name: _end_of_chunk(*last[name], *now[name]) for name in now}
        starts = {name: _start_of_chunk(*last[name], *now[name]) for name in now}
        if in_correct:
            if ends["correct"] and ends["guessed"] and last["guessed"][1] == last["correct"][1]:
                in_correct = False
                correct_chunk += 1
            elif ends["correct"] != ends["guessed"] or now["guessed"][1] != now["correct"][1]:
                in_correct = False
        if starts["correct"] and starts["guessed"] and now["guessed"][1] == now["correct"][1]:
            in_correct = True
        found_correct += starts["correct"]
        found_guessed += starts["guessed"]
        last = now
    precision, recall = correct_chunk / found_guessed, correct_chunk / found_correct
    return 2 * precision * recall / (precision + recall)


def _parse(tag: str) -> tuple[str, str]:
    match = re.match(r"^([^-]*)-(.*)$", tag)
    return (match.group(1), match.group(2)) if match else (tag, "")


def _end_of_chunk(prev_tag: str, prev_type: str, tag: str, type_: str) -> bool:
    if prev_tag in "BI" and tag in "BO":
        return True
    return prev_tag != "O" and prev_type != type_


def _start_of_chunk(prev_tag: str, prev_type: str, tag: str, type_: str) -> bool:
    if tag == "B" or (prev_tag == "O" and tag == "I"):
        return True
    return tag != "O" and prev_type != type_


def lama_hit1(scores: Sequence[Sequence[float]], allowed_vocab_ids: Sequence[int], label_ids: Sequence[int]) -> float:
    """LAMA/p_tuning/modeling.py (THUDM/P-tuning): the first of the sorted tokens that is allowed."""
    hit1 = 0
    for logits, label in zip(scores, label_ids, strict=True):
        pred_seq = sorted(range(len(logits)), key=lambda token: -logits[token])
        for pred in pred_seq:
            if pred in allowed_vocab_ids:
                break
        if pred == label:
            hit1 += 1
    return hit1 / len(label_ids)
