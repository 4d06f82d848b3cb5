"""Every score that is compared with an official one on the rows of `metric_rows`: what ptq says, and what others do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from orchestrator.tasks.answers import NOT_IT, or_none
from orchestrator.tasks.metrics import score
from tests import metric_rows as rows
from tests import official

_HF = "huggingface/evaluate: super_glue.py"
_T5 = "T5: metrics.py, postprocessors.py"


@dataclass(frozen=True)
class Compared:
    benchmark: str
    metric: str
    official: float
    ptq: float
    digits: int  #: that the official program prints, or more
    whose: str

    @property
    def agrees(self) -> bool:
        return abs(self.official - self.ptq) <= 0.6 * 10**-self.digits


def compared() -> list[Compared]:
    """Without those that need Java."""
    return [*_texts(), *_labels(), *_answers(), *_words()]


def each(references: Sequence[str]) -> list[list[str]]:
    return [[one] for one in references]


def _texts() -> list[Compared]:
    said, wanted = rows.TRIPLES_SAID, rows.TRIPLES_WANTED
    teams, files = official.webnlg_files(said, wanted)
    as_they_are = [[*row[:3], *[""] * (3 - len(row))] for row in wanted]
    found = score(["webnlg_bleu", "dart_bleu"], said, wanted)
    ter = score(["ter"], rows.TER_SAID, rows.TER_WANTED)["ter"]
    perl = "moses: multi-bleu.perl"
    made = [
        Compared("WebNLG", "webnlg_bleu", official.multi_bleu(teams, files), found["webnlg_bleu"], 9, f"{perl} -lc"),
        Compared("DART", "dart_bleu", official.multi_bleu(said, as_they_are), found["dart_bleu"], 9, perl),
        Compared("WebNLG, DART", "ter", rows.TER_EDITS, ter, 9, "edits counted by hand"),
    ]
    pairs = list(zip(rows.SUMMARIES_SAID, rows.SUMMARIES_WANTED, strict=True))
    for kind in ("1", "2", "l"):
        wanted_rouge = 100 * fmean(official.rouge(kind, text, one) for text, (one,) in pairs)
        name = f"rouge_{kind}"
        ours = score([name], rows.SUMMARIES_SAID, rows.SUMMARIES_WANTED)[name]
        made.append(Compared("XSum", name, wanted_rouge, ours, 9, "Lin 2004, with NLTK's stemmer"))
    return made


def _labels() -> list[Compared]:
    yes = ("false", "true")
    boolq = [[official.class_id(one, yes) for one in part] for part in (rows.BOOLQ_SAID, rows.BOOLQ_WANTED)]
    ours = score(["accuracy"], rows.BOOLQ_SAID, each(rows.BOOLQ_WANTED))["accuracy"]
    accuracy = official.simple_accuracy(*boolq)
    return [Compared("BoolQ, COPA, RTE, WiC", "accuracy", accuracy, ours, 12, _HF), *_cb(), *_multirc(), *_wsc()]


def _cb() -> list[Compared]:
    names = ["accuracy", "macro_f1", "cb"]
    labels = sorted(set(rows.CB_WANTED))
    made = []
    for said, whose in ((rows.CB_SAID, _HF), (rows.CB_WRITTEN, _T5)):
        ids, wanted = ([official.class_id(one, labels) for one in part] for part in (said, rows.CB_WANTED))
        accuracy, f1 = official.simple_accuracy(ids, wanted), official.mean_multiclass_f1(wanted, ids, 3)
        found = score(names, said, each(rows.CB_WANTED), labels=labels)
        figures = dict(zip(names, (accuracy, f1, (accuracy + f1) / 2), strict=True))
        benchmark = "CB" if whose is _HF else "CB, written"
        made += [Compared(benchmark, name, figures[name], found[name], 12, whose) for name in names]
    return made


def _multirc() -> list[Compared]:
    names, labels = ["positive_f1", "group_exact_match"], ("0", "1")
    references = [list(pair) for pair in zip(rows.MULTIRC_WANTED, rows.MULTIRC_QUESTIONS, strict=True)]
    wanted = [int(one) for one in rows.MULTIRC_WANTED]
    f1, exact = official.multirc([int(one) for one in rows.MULTIRC_SAID], wanted, rows.MULTIRC_QUESTIONS)
    chosen = score(names, rows.MULTIRC_SAID, references, labels=labels)
    written = score(names, rows.MULTIRC_WRITTEN, references, labels=labels)
    ids = [official.class_id(one, labels) for one in rows.MULTIRC_WRITTEN]
    by_t5, exact_t5 = (
        official.f1_score_with_invalid(wanted, list(ids)),
        official.multirc(
            [one if one >= 0 else 1 - w for one, w in zip(ids, wanted, strict=True)], wanted, rows.MULTIRC_QUESTIONS
        )[1],
    )
    return [
        Compared("MultiRC", "positive_f1", f1, chosen["positive_f1"], 12, _HF),
        Compared("MultiRC", "group_exact_match", exact, chosen["group_exact_match"], 12, _HF),
        Compared("MultiRC, written", "positive_f1", by_t5, written["positive_f1"], 12, _T5),
        Compared("MultiRC, written", "group_exact_match", exact_t5, written["group_exact_match"], 12, _T5),
    ]


def _wsc() -> list[Compared]:
    said = [written for written, _, _ in rows.WSC_ROWS]
    wanted = [[span] if holds else [span, NOT_IT] for _, span, holds in rows.WSC_ROWS]
    ids = [official.wsc_simple(written, span) for written, span, _ in rows.WSC_ROWS]
    accuracy = official.simple_accuracy(ids, [int(holds) for _, _, holds in rows.WSC_ROWS])
    return [Compared("WSC", "wsc", accuracy, score(["wsc"], said, wanted)["wsc"], 12, _T5)]


def _answers() -> list[Compared]:
    made = []
    em, f1 = official.squad(rows.SQUAD_SAID, rows.SQUAD_WANTED)
    found = score(["squad_em", "squad_f1"], rows.SQUAD_SAID, rows.SQUAD_WANTED)
    for name, figure in (("squad_em", em), ("squad_f1", f1)):
        made.append(Compared("SQuAD 1.1", name, figure, found[name], 12, "evaluate-v1.1.py"))
    em, f1 = official.squad2(rows.SQUAD2_SAID, rows.SQUAD2_WANTED)
    found = score(["squad_em", "squad_f1"], rows.SQUAD2_SAID, [or_none(texts) for texts in rows.SQUAD2_WANTED])
    for name, figure in (("squad_em", em), ("squad_f1", f1)):
        made.append(Compared("SQuAD 2.0", name, figure, found[name], 12, "evaluate-v2.0.py"))
    em, f1 = official.squad(rows.RECORD_SAID, rows.RECORD_WANTED)
    found = score(["record_em", "record_f1"], rows.RECORD_SAID, rows.RECORD_WANTED)
    for name, figure in (("record_em", em / 100), ("record_f1", f1 / 100)):
        made.append(Compared("ReCoRD", name, figure, found[name], 12, "ReCoRD: evaluate.py"))
    return made


def _words() -> list[Compared]:
    import torch

    from orchestrator.training.objectives.cloze import best_among

    entities = score(["entity_f1"], rows.TAGS_SAID, each(rows.TAGS_WANTED))["entity_f1"]
    conll = official.conlleval(rows.TAGS_SAID, rows.TAGS_WANTED)
    best = best_among(torch.tensor(rows.LAMA_SCORES), rows.LAMA_ALLOWED).tolist()
    hits = score(["p_at_1"], [str(one) for one in best], [[str(one)] for one in rows.LAMA_WANTED])["p_at_1"]
    lama = official.lama_hit1(rows.LAMA_SCORES, rows.LAMA_ALLOWED, rows.LAMA_WANTED)
    return [
        Compared("CoNLL-2003", "entity_f1", conll, entities, 12, "conlleval.pl"),
        Compared("LAMA", "p_at_1", lama, hits, 12, "THUDM/P-tuning: modeling.py"),
    ]
