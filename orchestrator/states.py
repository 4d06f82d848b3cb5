"""What a job can be, how it can end, and the one table of allowed moves.

State and result are two enums: a job that is not finished has no result. `registry.jobs.move` is the only
function that changes a job's state; it consults this table.
"""

from __future__ import annotations

from enum import StrEnum


class JobState(StrEnum):
    QUEUED = "queued"  #: waits for slots
    STARTING = "starting"  #: claimed by a worker; its supervisor is being started
    RUNNING = "running"  #: its run has reported for the first time
    STOPPING = "stopping"  #: asked to stop (cancel, time limit); processes may still live
    FINISHED = "finished"  #: will never run again under this attempt; `result` says how it ended


class JobResult(StrEnum):
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Reason(StrEnum):
    """Why an attempt ended (or a job waits for another attempt)."""

    CANCELLED_BY_USER = "cancelled_by_user"
    DEPENDENCY_FAILED = "dependency_failed"
    HOST_OOM = "host_oom"
    CUDA_OOM = "cuda_oom"
    TIMEOUT = "timeout"
    PREEMPTED = "preempted"
    NOT_JOINED = "not_joined"  #: the run that it was to join had ended; it waits for another one
    WORKER_LOST = "worker_lost"  #: the supervisor died without an exit record
    PROCESS_KILLED = "process_killed"  #: a training process was killed by a signal that we did not send
    NODE_REBOOTED = "node_rebooted"
    LAUNCH_FAILED = "launch_failed"  #: the run could not be started
    INCOMPLETE_ARTIFACT = "incomplete_artifact"  #: exit code 0, but the artifact's manifest does not hold
    BAD_RECIPE = "bad_recipe"
    BAD_DATA = "bad_data"
    NAN_LOSS = "nan_loss"
    BASE_CHANGED = "base_changed"  #: the weights differ from the fingerprint, or moved in training
    DISK_FULL = "disk_full"
    FOLDER_LOST = "folder_lost"  #: somebody has removed the job's folder; it starts anew
    USER_ERROR = "user_error"
    CRASHED = "crashed"  #: the training program raised an error; run.log holds the traceback


#: The attempt ended for a reason outside the job: it is queued again while attempts are left.
RETRIED: frozenset[Reason] = frozenset(
    {Reason.WORKER_LOST, Reason.PROCESS_KILLED, Reason.NODE_REBOOTED, Reason.LAUNCH_FAILED, Reason.HOST_OOM}
    | {Reason.DISK_FULL, Reason.FOLDER_LOST}
)

#: Requeued without counting against the attempts' limit.
UNCOUNTED: frozenset[Reason] = frozenset({Reason.PREEMPTED, Reason.NOT_JOINED})

MOVES: dict[JobState, frozenset[JobState]] = {
    JobState.QUEUED: frozenset({JobState.STARTING, JobState.FINISHED}),
    JobState.STARTING: frozenset({JobState.RUNNING, JobState.STOPPING, JobState.QUEUED, JobState.FINISHED}),
    JobState.RUNNING: frozenset({JobState.STOPPING, JobState.QUEUED, JobState.FINISHED}),
    JobState.STOPPING: frozenset({JobState.FINISHED}),  # whoever was asked to stop is not started again by itself
    JobState.FINISHED: frozenset({JobState.QUEUED}),  # `ptq retry`
}

#: States in which a run holds slots for the job.
LIVE: frozenset[JobState] = frozenset({JobState.STARTING, JobState.RUNNING, JobState.STOPPING})


def may_move(old: JobState, new: JobState) -> bool:
    return new in MOVES[old]
