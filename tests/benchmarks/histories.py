"""Ten thousand random histories of the queue: everything that people, machines and bad luck can do, in every order.

make proof-histories          (a quarter of an hour on two cores; HISTORIES=500 for a shorter look)
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from typing import ClassVar

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import invariant, run_state_machine_as_test

from tests.benchmarks.report import REPOSITORY, write_page

sys.path.insert(0, str(REPOSITORY / "tests"))

from machine import History, forget_template

from orchestrator.registry.jobs import Job

WANTED = int(os.environ.get("HISTORIES", "10000"))
BATCH = min(250, WANTED)  #: histories for one seed: a failure names it
STEPS = 25


class Counted(History):
    """Counts what happens, for the table."""

    seen: ClassVar[Counter[str]] = Counter()

    def teardown(self) -> None:
        super().teardown()
        self.seen["histories"] += 1

    def _heal(self) -> None:
        super()._heal()
        for job in self._jobs():
            self.seen["jobs"] += 1
            self.seen["attempts"] += job.attempt
            self.seen[f"ended: {job.result}" + (f", {job.reason}" if job.reason else "")] += 1

    @invariant()  # an override is none by itself
    def the_queue_keeps_its_word(self) -> None:
        super().the_queue_keeps_its_word()
        self.seen["times that the invariants were looked at"] += 1

    def one_final_state(self, job: Job, kept: list[int]) -> None:  # type: ignore[override]
        super().one_final_state(job, kept)
        self.seen["jobs looked at, over all moves"] += 1


def batch(number: int) -> Counter[str]:
    Counted.seen.clear()
    how = settings(
        max_examples=BATCH, stateful_step_count=STEPS, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck), print_blob=True,
    )  # fmt: skip
    run_state_machine_as_test(seed(number)(Counted), settings=how)
    forget_template()
    print(f"seed {number}: {Counted.seen['histories']} histories hold", flush=True)
    return Counter(Counted.seen)


def main() -> int:
    began, total = time.monotonic(), Counter[str]()
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for found in pool.map(batch, range(-(-WANTED // BATCH))):
            total += found
    text = f"""
Each history begins with up to four jobs on three GPUs and makes up to {STEPS} moves: submit, cancel (also killed
half-way), retry, preempt, somebody takes a GPU by hand, heartbeat, a look of the worker, a move of a supervisor or
of a program, and: the worker killed (anywhere, and at every failpoint of its own), a supervisor killed, a program
killed or deaf, a reboot, the clock set forward or back, leases expired, the database busy from the n-th write of a
look on, a job's folder removed, a write by a stale attempt. Worker, registry and files are the real ones;
processes, GPUs and the clock are simulated (`tests/machine.py`).

After every move: no GPU has two owners, by lease and by living process; none is freed while a process of its run
lives on it; no job is trained twice at once; no job is live without a live lease; attempts stay within the limit
and only grow; a finished job never changes but by `ptq retry`; it has succeeded exactly when it has exactly one
artifact; no stale write is taken. At the end of each history everything goes well for a while: every job has ended,
no process and no lease is left, every artifact is whole.

{total["histories"]} histories, {time.monotonic() - began:.0f} s, no violation. Seeds 0 to {-(-WANTED // BATCH) - 1}.
"""
    rows = [[name, count] for name, count in sorted(total.items())]
    write_page("histories", "Random histories of the queue", "make proof-histories", text, ["what", "how many"], rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
