"""Which rows make the table of tasks, and which the ablations."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

from tests.benchmarks import learning_e2e as e2e
from tests.benchmarks import learning_heads as heads
from tests.benchmarks import learning_lama as lama
from tests.benchmarks import learning_masks as masks
from tests.benchmarks import learning_text as text
from tests.benchmarks.learning_ensembles import ensemble_rows
from tests.benchmarks.learning_plan import Plan


def task_rows() -> list[Plan]:
    """In the order of the page; rows of a task together."""
    few = [*heads.fewglue_rows(), *masks.choice_rows(), *heads.multirc_rows()]
    written = [*e2e.e2e_rows(), *text.text_rows()]
    return [*written, *heads.sst2_rows(), *few, *masks.words_rows(), *lama.lama_rows(), *masks.chinese_rows()]


def study_rows() -> list[Plan]:
    """The papers' ablations."""
    of_prefixes = [*e2e.prefix_lengths(), *e2e.prefix_starts(), *e2e.networks(), *e2e.places()]
    of_prompts = [*lama.prompt_lengths(), *lama.prompt_starts(), *masks.label_starts(), *lama.prompt_networks()]
    few = chain.from_iterable(e2e.low_data().values())
    of_bases = [*e2e.adapted_bases(), *text.text_adaptations(), *chain.from_iterable(e2e.sizes().values())]
    return [*of_prefixes, *few, *of_prompts, *lama.joint_training(), *lama.mixture_rows(), *ensemble_rows(), *of_bases]


def all_rows() -> list[Plan]:
    return [*task_rows(), *study_rows()]


def adaptations() -> dict[str, Plan]:
    """Name of an adapted base -> the job that makes it."""
    return e2e.adaptations() | text.adaptations()


def needed(plans: Iterable[Plan]) -> list[Plan]:
    """These rows, and those whose prompts they start from or ask together, each once."""
    found = {plan.name: plan for one in plans for plan in (*needed(one.starts), *needed(_members(one)), one)}
    return list(found.values())


def _members(plan: Plan) -> list[Plan]:
    return [plan.members()] if plan.ensemble else []
