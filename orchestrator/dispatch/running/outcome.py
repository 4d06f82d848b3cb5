"""How an attempt ended: from the exit record, the training's own events, the artifact and the log. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.states import RETRIED, UNCOUNTED, JobResult, JobState, Reason

#: What the launchers say of a rank that a signal ended: torchrun's agent of the first one and of all of them (those
#: that it ends itself get TERM, 15), and accelerate's one-process launcher.
_KILLED = re.compile(r"failed \(exitcode: -(\d+)\)|died with <Signals\.SIG\w+: (\d+)>|exitcode\s*: -(?!15\b)(\d+)")
#: What a program that could not report for itself leaves in its log.
_TOLD_BY_LOG = {
    "CUDA out of memory": Reason.CUDA_OOM,
    "torch.OutOfMemoryError": Reason.CUDA_OOM,
    "CUDA error: out of memory": Reason.CUDA_OOM,
    "CUBLAS_STATUS_ALLOC_FAILED": Reason.CUDA_OOM,
    "No space left on device": Reason.DISK_FULL,
    "DefaultCPUAllocator: can't allocate memory": Reason.HOST_OOM,
    "DefaultCPUAllocator: not enough memory": Reason.HOST_OOM,
    "\nMemoryError": Reason.HOST_OOM,
}
_TAIL_LINES = 20
_SIGKILL = 9
#: A rank also says this when only its neighbour was killed and the connection broke.
_WEAK = frozenset({Reason.CRASHED, Reason.USER_ERROR})


@dataclass(frozen=True)
class Report:
    """What training told of one attempt."""

    artifact: str | None = None  #: the folder
    failed: Mapping[str, Any] | None = None  #: {reason, message}
    stopped: bool = False
    why: str = ""  #: it stopped: asked (with the whole run), or cancel, preempt (alone)


@dataclass(frozen=True)
class Ending:
    """`result` None: the job is queued again."""

    result: JobResult | None
    reason: Reason | None
    message: str | None
    counted: bool = True  #: False: this try was for free
    crashed_with: tuple[int, ...] = ()  #: the jobs that were in the run when it went down
    delay: float = 0.0  #: seconds before the next try

    @property
    def state(self) -> JobState:
        return JobState.QUEUED if self.result is None else JobState.FINISHED


@dataclass(frozen=True)
class Tries:
    counted: int
    most: int


CANCELLED = Ending(JobResult.CANCELLED, Reason.CANCELLED_BY_USER, "cancelled")

#: After the first try, the second, … and every later one.
BACKOFF: dict[Reason, tuple[float, ...]] = {
    Reason.LAUNCH_FAILED: (1.0, 10.0, 60.0, 300.0),
    Reason.HOST_OOM: (10.0, 60.0, 300.0),
    Reason.DISK_FULL: (30.0, 120.0, 600.0),
}
BACKOFF_OTHERS = (0.0, 5.0, 30.0, 120.0)
LONGEST_DELAY = 600.0

#: A run that ended so may have been ended by any of its jobs.
CRASHES = frozenset(
    {Reason.PROCESS_KILLED, Reason.HOST_OOM, Reason.CUDA_OOM, Reason.CRASHED, Reason.INCOMPLETE_ARTIFACT}
)


def report(events: Iterable[Mapping[str, Any]], attempt: int) -> Report:
    """The last word of each kind, of this attempt only."""
    last = {str(event["kind"]): event for event in events if event.get("attempt") == attempt}
    artifact = last.get("artifact", {}).get("folder")
    return Report(
        artifact=artifact if isinstance(artifact, str) else None,
        failed=last.get("failed"),
        stopped="stopped" in last,
        why=str(last.get("stopped", {}).get("why", "")),
    )


def verdict(told: Report, faults: Sequence[str], *, cancelled: bool, tries: Tries) -> Ending | None:
    """The ending of a job that has left its run, whatever becomes of the run; None while it has not.

    Only what the program says of this job alone counts here. An error that ended the program was said of all its jobs,
    and may be the echo of a killed neighbour: that is for `judge`, when the run is over.
    """
    if told.artifact is not None:
        if not faults:
            return Ending(JobResult.SUCCEEDED, None, None)
        return Ending(JobResult.FAILED, Reason.INCOMPLETE_ARTIFACT, f"the artifact is not complete: {faults[0]}")
    if told.failed is not None and told.failed.get("alone") is True:
        if cancelled:
            return CANCELLED
        return after(*_own_words(told.failed), tries)
    if told.stopped and told.why in {"cancel", "preempt"}:
        return CANCELLED if cancelled else Ending(None, Reason.PREEMPTED, "asked to make room")
    return None


def judge(
    exit_record: Mapping[str, Any], told: Report, faults: Sequence[str], log: str, *, cancelled: bool, tries: Tries
) -> Ending:
    """The ending of an attempt whose supervisor left a record. `faults` are those of the artifact's manifest."""
    if exit_record.get("exit_code") == 0 and told.artifact is not None and not faults:
        return Ending(JobResult.SUCCEEDED, None, None)
    if cancelled or exit_record.get("why") == "cancel":
        return CANCELLED
    reason, message = _reason(exit_record, told, faults, log)
    return after(reason, message, tries)


def lost(reason: Reason, message: str, *, cancelled: bool, tries: Tries) -> Ending:
    """The ending of an attempt that left no record."""
    if cancelled:
        return CANCELLED
    return after(reason, message, tries)


def after(reason: Reason, message: str, tries: Tries) -> Ending:
    """Another try where the reason lies outside the job and tries are left, else failure."""
    if reason in UNCOUNTED:
        return Ending(None, reason, message)
    if reason not in RETRIED:
        return Ending(JobResult.FAILED, reason, message)
    again = tries.counted < tries.most
    note = f"try {tries.counted} of {tries.most}: {message}"
    return Ending(None if again else JobResult.FAILED, reason, note, delay=delay(reason, tries) if again else 0.0)


def delay(reason: Reason, tries: Tries) -> float:
    """Seconds before the next try: what broke a run is often still there a moment later, a dead process is not."""
    table = BACKOFF.get(reason, BACKOFF_OTHERS)
    return table[min(max(tries.counted, 1), len(table)) - 1]


def seconds_to_wait(not_before: float | None, now: float) -> float:
    """How long a job that was tried in vain still waits. No longer than any delay lasts: a clock may be set back."""
    left = 0.0 if not_before is None else not_before - now
    return left if 0 < left <= LONGEST_DELAY else 0.0


def in_company(ending: Ending, others: Sequence[int], tries: Tries) -> Ending:
    """The same ending for one of several jobs that were in the run: a crash may have been any other's doing.

    So it is tried again, where alone it would fail, and its last try is not spent on it (`fusing.suspect` then has it
    run alone).
    """
    if not others or ending.reason not in CRASHES or ending.result is JobResult.SUCCEEDED:
        return ending
    said = f"the run went down with jobs {', '.join(map(str, others))} in it too: {ending.message}"
    return Ending(None, ending.reason, said, counted=tries.counted < tries.most, crashed_with=tuple(others))


def not_joined(*, cancelled: bool) -> Ending:
    """The ending of an attempt that never reached the run which it was to join."""
    return CANCELLED if cancelled else Ending(None, Reason.NOT_JOINED, "the run ended before the job could join it")


def _reason(record: Mapping[str, Any], told: Report, faults: Sequence[str], log: str) -> tuple[Reason, str]:
    asked = {"timeout": (Reason.TIMEOUT, "the time limit is over")}
    asked |= dict.fromkeys(("preempt", "idle"), (Reason.PREEMPTED, "asked to make room"))
    if record.get("why") in asked:
        return asked[record["why"]]
    if record.get("why") == "memory":
        return Reason.HOST_OOM, str(record.get("message"))
    own = None if told.failed is None else _own_words(told.failed)
    if own is not None and own[0] not in _WEAK:
        return own
    if record.get("why") == "launch":
        return Reason.LAUNCH_FAILED, f"the run could not be started: {record.get('message')}"
    number = _killed_by(record, log)
    if number == _SIGKILL and record.get("oom_kill"):
        return Reason.HOST_OOM, "the kernel killed a training process for want of memory"
    if number is not None or told.stopped:
        what = f"signal {number}" if number is not None else "a signal"
        return Reason.PROCESS_KILLED, f"a training process was ended by {what} that ptq did not send"
    if record.get("exit_code") == 0:
        fault = faults[0] if faults else "training reported none"
        return Reason.INCOMPLETE_ARTIFACT, f"exit code 0, but no complete artifact: {fault}"
    reason = next((reason for words, reason in _TOLD_BY_LOG.items() if words in log), None)
    if own is not None:
        return reason or own[0], own[1]
    return reason or Reason.CRASHED, f"the program ended with exit code {record.get('exit_code')}\n{tail(log)}".rstrip()


def _own_words(failed: Mapping[str, Any]) -> tuple[Reason, str]:
    try:
        reason = Reason(failed["reason"])
    except (KeyError, ValueError):
        reason = Reason.CRASHED
    return reason, str(failed.get("message", ""))


def _killed_by(record: Mapping[str, Any], log: str) -> int | None:
    if record.get("signal") is not None:
        return int(record["signal"])
    found = _KILLED.search(log)
    return None if found is None else int(found[1] or found[2] or found[3])


def tail(log: str, lines: int = _TAIL_LINES) -> str:
    return "\n".join([line for line in log.splitlines() if line.strip()][-lines:])
