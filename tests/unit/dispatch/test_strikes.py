"""Whose fault it is, how often it is forgiven, and how long the next try waits."""

from __future__ import annotations

import errno

import pytest

from orchestrator.dispatch.running import strikes
from orchestrator.dispatch.running.outcome import BACKOFF, Ending, Tries, after, delay, judge, seconds_to_wait
from orchestrator.dispatch.running.outcome import Report as Told
from orchestrator.dispatch.running.strikes import Strikes, is_the_machines
from orchestrator.errors import BadData, RegistryUnusable
from orchestrator.states import JobResult, Reason


def test_a_full_disk_and_a_busy_database_are_nobodys_fault() -> None:
    assert is_the_machines(OSError(errno.ENOSPC, "no room"))
    assert is_the_machines(OSError(errno.EROFS, "read-only"))
    assert is_the_machines(RegistryUnusable("busy"))
    assert not is_the_machines(FileNotFoundError(errno.ENOENT, "gone"))
    assert not is_the_machines(BadData("not whole"))


def test_faults_are_forgiven_a_few_times_and_each_job_has_its_own() -> None:
    now = [0.0]
    counted = Strikes(clock=lambda: now[0])

    def fail(what: str, seconds: float) -> bool:
        now[0] += seconds
        return counted.out(what)

    assert [fail("a", 1.0) for _ in range(strikes.MOST)] == [False] * (strikes.MOST - 1) + [True]
    assert [fail("b", 0.01) for _ in range(50)] == [False] * 50  # one burst is one fault
    counted.forgive("a")
    assert not fail("a", 1.0)


def test_the_next_try_waits_longer_each_time() -> None:
    for reason, table in BACKOFF.items():
        assert list(table) == sorted(table), reason
        assert [delay(reason, Tries(n, 9)) for n in (1, 2, 99)] == [table[0], table[1], table[-1]]
    assert after(Reason.PROCESS_KILLED, "", Tries(1, 3)).delay == 0.0  # a dead process does not come back
    assert after(Reason.PROCESS_KILLED, "", Tries(2, 3)).delay == 5.0
    assert after(Reason.PROCESS_KILLED, "", Tries(3, 3)) == Ending(
        JobResult.FAILED, Reason.PROCESS_KILLED, "try 3 of 3: "
    )
    assert after(Reason.PREEMPTED, "", Tries(2, 3)).delay == 0.0


def test_a_clock_that_is_set_back_does_not_make_a_job_wait_for_ever() -> None:
    assert seconds_to_wait(None, 100.0) == 0.0
    assert seconds_to_wait(130.0, 100.0) == 30.0
    assert seconds_to_wait(130.0, 131.0) == 0.0
    assert seconds_to_wait(1e9, 100.0) == 0.0


@pytest.mark.parametrize(
    ("record", "log", "reason"),
    [
        ({"exit_code": 1}, "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", Reason.CUDA_OOM),
        ({"exit_code": 1}, "RuntimeError: [enforce fail] DefaultCPUAllocator: can't allocate memory", Reason.HOST_OOM),
        ({"exit_code": 1}, "Traceback …\nMemoryError\n", Reason.HOST_OOM),
        ({"signal": 9, "oom_kill": True}, "CUDA out of memory was never said", Reason.HOST_OOM),
        ({"signal": 9, "why": "memory", "message": "the run held 2 GiB"}, "", Reason.HOST_OOM),
        ({"exit_code": 1}, "OSError: [Errno 28] No space left on device", Reason.DISK_FULL),
    ],
)
def test_whose_memory_it_was(record: dict[str, object], log: str, reason: Reason) -> None:
    full = {"exit_code": None, "signal": None, "why": "none", "oom_kill": False, **record}
    assert judge(full, Told(), [], log, cancelled=False, tries=Tries(1, 1)).reason is reason
