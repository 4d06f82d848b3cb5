"""Scores against the official programs' figures, to the last digit that these print.

make proof-metrics      needs Java, for METEOR and the Penn Treebank tokenizer
"""

from __future__ import annotations

import sys

from orchestrator.tasks import captions, webnlg
from orchestrator.tasks.metrics import score
from tests.benchmarks.report import write_page
from tests.compared_scores import Compared, compared
from tests.metric_rows import SAID, WANTED

#: What Stanford's tokenizer makes of the rows, in lower case and without punctuation.
TOKENS: list[tuple[str, list[str]]] = [
    (
        "the eagle is a cheap coffee shop near burger king rated 3 out of 5",
        [
            "the eagle is a low-priced coffee shop near burger king it is rated 3 out of 5",
            "near burger king there is a cheap coffee shop called the eagle",
        ],
    ),
    (
        "clowns is a riverside pub",
        ["clowns is a pub by the riverside", "there is a riverside pub clowns with a low rating", "clowns is a pub"],
    ),
    (
        "alimentum serves chinese food for under # 20 in the city-centre it is not family friendly",
        ["alimentum is a chinese restaurant in the city centre it is not family friendly and costs less than # 20"],
    ),
]


def written_rouge() -> float:
    """Lin 2004, equations 2-4, with beta 1.2; of several references the best precision and the best recall."""
    each = []
    for said, wanted in TOKENS:
        common = [(_common(said.split(), one.split()), len(one.split())) for one in wanted]
        precision = max(n for n, _ in common) / len(said.split())
        recall = max(n / size for n, size in common)
        each.append((1 + 1.2**2) * precision * recall / (recall + 1.2**2 * precision))
    return sum(each) / len(each)


def _common(a: list[str], b: list[str]) -> int:
    """The longest common subsequence, by trying every way."""
    if not a or not b:
        return 0
    without = _common(a[1:], b)
    return max(without, 1 + _common(a[1:], b[b.index(a[0]) + 1 :])) if a[0] in b else without


def nltk_bleu() -> float:
    """NLTK's corpus BLEU on mteval-v13a's tokens in lower case."""
    from nltk.translate.bleu_score import corpus_bleu
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    def words(text: str) -> list[str]:
        return str(Tokenizer13a()(text)).lower().split()

    return 100 * float(corpus_bleu([[words(r) for r in row] for row in WANTED], [words(text) for text in SAID]))


def official() -> dict[str, tuple[float, int, str]]:
    """metric -> (the figure for `metric_rows`, digits that are compared, whose it is)"""
    return {
        "bleu": (nltk_bleu(), 9, "NLTK, on mteval-v13a's tokens; 0-100"),
        "nist": (4.444105819529568, 12, "e2e-metrics: pymteval.py"),
        "meteor": (0.4177899106381478, 12, "e2e-metrics: METEOR 1.5"),
        "rouge_l_coco": (written_rouge(), 12, "written out from Stanford's tokens"),
        "cider": (3.6876533642760605, 9, "e2e-metrics: COCO's CIDEr"),
    }


TEXT = """
What `ptq` says, and what the benchmarks' own programs say, on rows that make the usual mistakes visible
(`tests/metric_rows.py`): upper case and accents, one to four references, answers of which no word is left, texts that
are no label, entities with a wrong end. Where a program could not be called as a function, its published source is
written out line by line in `tests/official.py`. `make test` compares the same, but for what needs Java.

- BLEU is not one number. E2E: mteval's words in lower case, smoothed. WebNLG: lower case, ASCII, cut at every character
  that is no letter, digit or underscore (`multi-bleu.perl -lc`). DART: the words as they are written, in their case.
  The last two compare with the first three references, take a missing one for an empty line, and do not smooth.
- ROUGE is the mean over rows. Scripts that print the middle of a bootstrap (Li & Liang's for XSum) have other last
  digits at every run.
- SQuAD's F1 of `A` and `the` is 0 by evaluate-v1.1.py and 1 by evaluate-v2.0.py; `unanswerable: true` says which.
- *written*: labels that a base writes as text. What is no label is wrong, and for F1 the wrong one, as in T5.
- Macro-averaged F1 is over the labels that occur in the rows or the answers; T5 counts one that occurs in neither as 0.
"""


def main() -> int:
    if missing := captions.why_not() or webnlg.why_not():
        sys.exit(f"the proof needs {missing}")
    wanted = official()
    found = score(list(wanted), SAID, WANTED)
    figures = [
        Compared("E2E", name, *figure, found[name], digits, whose) for name, (*figure, digits, whose) in wanted.items()
    ]
    figures += compared()
    wrong = [
        f"{one.benchmark}: {one.metric} is {one.ptq!r} instead of {one.official!r}" for one in figures if not one.agrees
    ]
    if wrong:
        sys.exit("; ".join(wrong))
    rows = [
        [one.benchmark, one.metric, f"{one.official:.{one.digits}f}", f"{one.ptq:.{one.digits}f}", one.whose]
        for one in figures
    ]
    columns = ["benchmark", "score", "official", "ptq", "whose"]
    write_page("metrics", "Official scores", "make proof-metrics", TEXT, columns, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
