"""Which ending an attempt gets: what the processes, the training and the files say, taken together."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.dispatch.running.outcome import Report, Tries, after, in_company, judge, lost, report, verdict
from orchestrator.states import JobResult, Reason

LOG_OF_TORCHRUN = """
E1120 torch/distributed/elastic/multiprocessing/api.py:1010] failed (exitcode: -9) local_rank: 1 (pid: 4711) of binary: python
Root Cause (first observed failure):
  exitcode   : -9 (pid: 4711)
"""  # noqa: E501
LOG_OF_ACCELERATE = "subprocess.CalledProcessError: Command '[…]' died with <Signals.SIGKILL: 9>."
LOG_AFTER_ANOTHER_RANKS_FAULT = "failed (exitcode: 1) local_rank: 0\n  exitcode  : -15 (pid: 2)\n exitcode : 1 (pid: 1)"


def ending(
    told: Report = Report(),
    faults: tuple[str, ...] = (),
    log: str = "",
    cancelled: bool = False,
    tries: Tries = Tries(1, 3),
    **record: Any,
) -> tuple[JobResult | None, Reason | None]:
    full = {"exit_code": 1, "signal": None, "why": "none", "oom_kill": False, **record}
    found = judge(full, told, faults, log, cancelled=cancelled, tries=tries)
    return found.result, found.reason


WHOLE = Report(artifact="/a")


def test_success_needs_exit_code_artifact_and_manifest() -> None:
    assert ending(WHOLE, exit_code=0) == (JobResult.SUCCEEDED, None)
    assert ending(WHOLE, ("x: missing",), exit_code=0) == (JobResult.FAILED, Reason.INCOMPLETE_ARTIFACT)
    assert ending(exit_code=0) == (JobResult.FAILED, Reason.INCOMPLETE_ARTIFACT)
    assert ending(WHOLE, exit_code=1)[0] is JobResult.FAILED


def test_work_that_was_done_when_the_cancel_came_counts() -> None:
    assert ending(WHOLE, exit_code=0, cancelled=True) == (JobResult.SUCCEEDED, None)
    assert ending(exit_code=75, cancelled=True) == (JobResult.CANCELLED, Reason.CANCELLED_BY_USER)


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({"why": "cancel"}, (JobResult.CANCELLED, Reason.CANCELLED_BY_USER)),
        ({"why": "timeout", "exit_code": 75}, (JobResult.FAILED, Reason.TIMEOUT)),
        ({"why": "preempt", "exit_code": 75}, (None, Reason.PREEMPTED)),
        ({"why": "launch", "exit_code": None}, (None, Reason.LAUNCH_FAILED)),
        ({"signal": 9, "exit_code": None}, (None, Reason.PROCESS_KILLED)),
        ({"signal": 9, "exit_code": None, "oom_kill": True}, (None, Reason.HOST_OOM)),
        ({"log": LOG_OF_TORCHRUN}, (None, Reason.PROCESS_KILLED)),
        ({"log": LOG_OF_ACCELERATE}, (None, Reason.PROCESS_KILLED)),
        ({"log": LOG_AFTER_ANOTHER_RANKS_FAULT}, (JobResult.FAILED, Reason.CRASHED)),
        ({"told": Report(stopped=True)}, (None, Reason.PROCESS_KILLED)),
        ({"log": "torch.OutOfMemoryError: CUDA out of memory"}, (JobResult.FAILED, Reason.CUDA_OOM)),
        ({"log": "torch.AcceleratorError: CUDA error: out of memory"}, (JobResult.FAILED, Reason.CUDA_OOM)),
        ({"log": "RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when"}, (JobResult.FAILED, Reason.CUDA_OOM)),
        ({"told": Report(failed={"reason": "nan_loss", "message": ""})}, (JobResult.FAILED, Reason.NAN_LOSS)),
        ({"told": Report(failed={"reason": "crashed"}), "log": LOG_OF_TORCHRUN}, (None, Reason.PROCESS_KILLED)),
        ({"told": Report(failed={"reason": "what?"})}, (JobResult.FAILED, Reason.CRASHED)),
    ],
)
def test_reasons(facts: dict[str, Any], expected: tuple[JobResult | None, Reason]) -> None:
    assert ending(**facts) == expected


def test_tries_are_bounded_but_making_room_is_free() -> None:
    assert ending(signal=9, tries=Tries(2, 3)) == (None, Reason.PROCESS_KILLED)
    assert ending(signal=9, tries=Tries(3, 3)) == (JobResult.FAILED, Reason.PROCESS_KILLED)
    assert ending(why="preempt", tries=Tries(3, 3)) == (None, Reason.PREEMPTED)
    assert lost(Reason.NODE_REBOOTED, "", cancelled=False, tries=Tries(3, 3)).result is JobResult.FAILED
    assert lost(Reason.WORKER_LOST, "", cancelled=True, tries=Tries(1, 3)).result is JobResult.CANCELLED


def test_only_this_attempts_words_count() -> None:
    events = [
        {"kind": "failed", "attempt": 1, "reason": "nan_loss", "message": ""},
        {"kind": "artifact", "attempt": 2, "folder": "/jobs/1/artifact-2"},
    ]
    assert report(events, 2) == Report(artifact="/jobs/1/artifact-2")
    assert report(events, 1).failed is not None
    assert report(events, 3) == Report()


FAILED_ALONE = Report(failed={"reason": "crashed", "message": "", "alone": True})


@pytest.mark.parametrize(
    ("told", "faults", "cancelled", "expected"),
    [
        (WHOLE, (), True, (JobResult.SUCCEEDED, None)),
        (WHOLE, ("x: missing",), False, (JobResult.FAILED, Reason.INCOMPLETE_ARTIFACT)),
        (FAILED_ALONE, (), False, (JobResult.FAILED, Reason.CRASHED)),
        (FAILED_ALONE, (), True, (JobResult.CANCELLED, Reason.CANCELLED_BY_USER)),
        (Report(failed={"reason": "nan_loss", "alone": True}), (), False, (JobResult.FAILED, Reason.NAN_LOSS)),
        (Report(stopped=True, why="cancel"), (), True, (JobResult.CANCELLED, Reason.CANCELLED_BY_USER)),
        (Report(stopped=True, why="preempt"), (), False, (None, Reason.PREEMPTED)),
        # What ended the whole program is said of every job; only its exit record tells what it was.
        (Report(failed={"reason": "crashed", "alone": False}), (), False, None),
        (Report(failed={"reason": "crashed"}), (), False, None),
        (Report(stopped=True, why="asked"), (), False, None),
        (Report(), (), True, None),
    ],
)
def test_a_job_that_has_left_its_run_needs_no_exit_record(
    told: Report, faults: tuple[str, ...], cancelled: bool, expected: tuple[JobResult | None, Reason | None] | None
) -> None:
    found = verdict(told, faults, cancelled=cancelled, tries=Tries(1, 3))
    assert (None if found is None else (found.result, found.reason)) == expected


@pytest.mark.parametrize("reason", [Reason.CRASHED, Reason.CUDA_OOM, Reason.PROCESS_KILLED])
def test_a_crash_in_company_may_be_anybodys(reason: Reason) -> None:
    crashed = after(reason, "x", Tries(1, 3))
    assert in_company(crashed, [], Tries(1, 3)) == crashed
    shared = in_company(crashed, [4, 5], Tries(1, 3))
    assert (shared.result, shared.reason, shared.counted, shared.crashed_with) == (None, reason, True, (4, 5))
    assert "jobs 4, 5" in (shared.message or "")
    assert not in_company(crashed, [4], Tries(3, 3)).counted  # its last try is not spent on a neighbour's fault


@pytest.mark.parametrize("reason", [Reason.NAN_LOSS, Reason.BASE_CHANGED, Reason.TIMEOUT])
def test_what_is_no_crash_is_the_same_in_company(reason: Reason) -> None:
    ending = after(reason, "x", Tries(1, 3))
    assert in_company(ending, [4], Tries(1, 3)) == ending
