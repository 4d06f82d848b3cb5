"""Jobs and leases: the moves, the fence, and claims that race."""

from __future__ import annotations

import itertools
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from queue_helpers import add_jobs, get, open_registry

from orchestrator.errors import NotFound, StaleAttempt
from orchestrator.registry import history, jobs, metrics, runs, search, workers
from orchestrator.registry.jobs import Move
from orchestrator.registry.metrics import Point
from orchestrator.registry.queue import pause
from orchestrator.registry.runs import Claim, Claimant
from orchestrator.registry.storage.engine import Registry
from orchestrator.states import LIVE, MOVES, JobResult, JobState, Reason


@pytest.fixture
def registry(home: Path) -> Registry:
    return open_registry(home)


def worker(registry: Registry, slots: int = 4) -> Claimant:
    with registry.write() as conn:
        names = [f"cpu:{n}" for n in range(slots)]
        number = workers.register(conn, host="box", pid=1, pid_started=1, boot_id="b", slots=names, at=time.time())
    return Claimant(number, "box", "b")


def claim(registry: Registry, by: Claimant, job_id: int, *slots: str, attempt: int = 0) -> Claim | None:
    with registry.write() as conn:
        token = f"{job_id}-{attempt}-{slots}"
        return runs.claim(conn, job_id, attempt, slots, by, token=token, at=1.0)


def move(registry: Registry, job_id: int, attempt: int, state: JobState, **more: object) -> int:
    with registry.write() as conn:
        return jobs.move(conn, job_id, attempt, Move(state, **more), actor="test", at=2.0)  # type: ignore[arg-type]


def put_into(registry: Registry, job_id: int, state: JobState) -> None:
    """The state, by a plain UPDATE: the test looks at single moves."""
    result = "'failed'" if state is JobState.FINISHED else "NULL"
    with registry.write() as conn:
        conn.execute(sa.text(f"UPDATE jobs SET state = '{state}', result = {result} WHERE id = {job_id}"))


@pytest.mark.parametrize(("old", "new"), [(old, new) for old in JobState for new in JobState])
def test_the_table_of_moves_is_obeyed(registry: Registry, old: JobState, new: JobState) -> None:
    [job_id] = add_jobs(registry)
    put_into(registry, job_id, old)
    result = {"result": JobResult.FAILED} if new is JobState.FINISHED else {}
    if new in MOVES[old]:
        move(registry, job_id, 0, new, **result)
        assert get(registry, job_id).state is new
        with registry.read() as conn:
            assert [event.kind for event in history.list_events(conn, job_id)] == ["queued", new]
    else:
        with pytest.raises(ValueError, match="not an allowed move"):
            move(registry, job_id, 0, new, **result)
        assert get(registry, job_id).state is old


def test_a_result_belongs_to_the_finished(registry: Registry) -> None:
    [job_id] = add_jobs(registry)
    with pytest.raises(ValueError, match="result"):
        move(registry, job_id, 0, JobState.FINISHED)
    with pytest.raises(ValueError, match="result"):
        move(registry, job_id, 0, JobState.STARTING, result=JobResult.FAILED)


def test_an_earlier_attempt_changes_nothing(registry: Registry) -> None:
    by = worker(registry)
    [job_id] = add_jobs(registry)
    first = claim(registry, by, job_id, "cpu:0")
    assert first is not None
    move(registry, job_id, first.attempt, JobState.QUEUED, reason=Reason.WORKER_LOST)
    with registry.write() as conn:
        runs.end_run(conn, first.run_id, exit_record=None, at=3.0)
    second = claim(registry, by, job_id, "cpu:0", attempt=first.attempt)
    assert second is not None
    assert second.attempt == first.attempt + 1
    # The state would allow each of these: only the attempt's number refuses them.
    for state in (JobState.RUNNING, JobState.STOPPING, JobState.QUEUED):
        with pytest.raises(StaleAttempt):
            move(registry, job_id, first.attempt, state)
    with registry.write() as conn, pytest.raises(StaleAttempt):
        jobs.set_progress(conn, job_id, first.attempt, step=99, steps=99, events_offset=1)
    job = get(registry, job_id)
    assert (job.state, job.attempt, job.step) == (JobState.STARTING, second.attempt, 0)
    assert claim(registry, by, job_id, "cpu:1", attempt=first.attempt) is None


def test_attempts_count_at_the_claim_except_to_make_room(registry: Registry) -> None:
    by = worker(registry)
    [job_id] = add_jobs(registry)
    for number, reason in enumerate([Reason.PREEMPTED, Reason.WORKER_LOST, Reason.PREEMPTED], start=1):
        claimed = claim(registry, by, job_id, "cpu:0", attempt=number - 1)
        assert claimed is not None
        assert claimed.attempt == number
        move(registry, job_id, number, JobState.QUEUED, reason=reason)
        with registry.write() as conn:
            runs.end_run(conn, claimed.run_id, exit_record=None, at=3.0)
    assert (get(registry, job_id).attempt, get(registry, job_id).counted_attempts) == (3, 1)


def test_retry_gives_new_tries_but_never_an_old_number(registry: Registry) -> None:
    by = worker(registry)
    [job_id] = add_jobs(registry)
    claimed = claim(registry, by, job_id, "cpu:0")
    assert claimed is not None
    move(registry, job_id, 1, JobState.FINISHED, result=JobResult.FAILED, reason=Reason.TIMEOUT)
    move(registry, job_id, 1, JobState.QUEUED)
    job = get(registry, job_id)
    assert (job.attempt, job.counted_attempts, job.result, job.reason, job.finished_at) == (1, 0, None, None, None)


def test_a_slot_has_one_owner_even_for_a_writer_who_forgets_to_look(registry: Registry) -> None:
    by = worker(registry)
    ids = add_jobs(registry, 2)
    first = claim(registry, by, ids[0], "cpu:0", "cpu:1")
    assert first is not None
    assert claim(registry, by, ids[1], "cpu:1", "cpu:2") is None
    job = get(registry, ids[1])
    assert (job.state, job.attempt) == (JobState.QUEUED, 0)
    lease = "INSERT INTO leases (run_id, host, slot, expires_at) VALUES (1, 'box', 'cpu:1', 0)"
    with pytest.raises(sa.exc.IntegrityError), registry.write() as conn:
        conn.execute(sa.text(lease))
    with registry.write() as conn:
        runs.end_run(conn, first.run_id, exit_record=None, at=3.0)
        assert runs.live_leases(conn) == []
    assert claim(registry, by, ids[1], "cpu:1", "cpu:2") is not None


def test_claims_of_threads_that_race(home: Path, registry: Registry) -> None:
    by, ids = worker(registry), add_jobs(registry, 6)
    won: list[tuple[int, str]] = []
    start = threading.Barrier(4)

    def work() -> None:
        own = open_registry(home)
        start.wait()
        for job_id, slot in itertools.product(ids, ("cpu:0", "cpu:1", "cpu:2")):
            if claim(own, by, job_id, slot) is not None:
                won.append((job_id, slot))
        own.close()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 3
    assert len({job for job, _ in won}) == len({slot for _, slot in won}) == 3


CLAIMER = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from queue_helpers import open_registry
from orchestrator.registry import runs
from orchestrator.registry.runs import Claimant
registry = open_registry(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
for job in range(1, 9):
    with registry.write() as conn:
        token = sys.argv[3] + str(job)
        if runs.claim(conn, job, 0, [f"cpu:{job % 4}"], Claimant(1, "box", "b"), token=token, at=time.time()):
            print(job, f"cpu:{job % 4}", flush=True)
"""


def test_claims_of_processes_that_race(home: Path, registry: Registry) -> None:
    worker(registry)
    add_jobs(registry, 8)
    helpers = str(Path(__file__).parents[2])
    command = [sys.executable, "-c", CLAIMER, str(home), helpers]
    claimers = [
        subprocess.Popen([*command, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for name in "abc"
    ]
    for process in claimers:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    won: list[str] = []
    for process in claimers:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in claimers:
        won += process.communicate()[0].split("\n")[:-1]
        assert process.returncode == 0
    assert len(won) == 4
    assert {line.split()[1] for line in won} == {"cpu:0", "cpu:1", "cpu:2", "cpu:3"}
    with registry.read() as conn:
        live = jobs.list_jobs(conn, states=LIVE)
        assert {(job.attempt, job.counted_attempts) for job in live} == {(1, 1)}
        assert len(runs.live_leases(conn, "box")) == 4


actions = st.lists(
    st.tuples(
        st.sampled_from(["claim", "run", "stop", "finish", "lose", "retry"]), st.integers(0, 2), st.integers(0, 2)
    ),
    max_size=30,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(actions)
def test_whatever_happens_the_books_balance(tmp_path_factory: pytest.TempPathFactory, script: list) -> None:
    """One live owner a slot, no live job without a run that holds its slots, attempts that only grow."""
    registry = open_registry(tmp_path_factory.mktemp("home"))
    by, ids = worker(registry), add_jobs(registry, 3)
    highest = dict.fromkeys(ids, 0)
    for action, which, slot in script:
        job = get(registry, ids[which])
        _act(registry, by, job, action, f"cpu:{slot}")
        with registry.read() as conn:
            held = runs.live_leases(conn)
            now = jobs.list_jobs(conn)
        assert len({lease.slot for lease in held}) == len(held)
        assert {lease.job_id for lease in held} == {one.id for one in now if one.state in LIVE}
        for one in now:
            assert one.attempt >= highest[one.id]
            assert 0 <= one.counted_attempts <= one.attempt
            highest[one.id] = one.attempt
    registry.close()


def _act(registry: Registry, by: Claimant, job: jobs.Job, action: str, slot: str) -> None:
    try:
        with registry.write() as conn:
            if action == "claim":
                token = f"{job.id}.{job.attempt}"
                runs.claim(conn, job.id, job.attempt, [slot], by, token=token, at=1.0)
                return
            state = {"run": JobState.RUNNING, "stop": JobState.STOPPING, "finish": JobState.FINISHED}
            new = state.get(action, JobState.QUEUED)
            if (action == "retry") != (job.state is JobState.FINISHED) and new is JobState.QUEUED:
                return
            reason = Reason.PREEMPTED if action == "lose" else None
            result = JobResult.FAILED if new is JobState.FINISHED else None
            jobs.move(conn, job.id, job.attempt, Move(new, result, reason), actor="t", at=2.0)
            if new in {JobState.FINISHED, JobState.QUEUED} and job.run_id is not None:
                runs.end_run(conn, job.run_id, exit_record=None, at=2.0)
    except ValueError:
        return


def test_a_metric_that_is_reported_twice_keeps_the_last_value(registry: Registry) -> None:
    [job_id] = add_jobs(registry)
    with registry.write() as conn:
        metrics.put(conn, job_id, [Point("train", "loss", 1, 3.0), Point("train", "loss", 2, 2.0)])
        metrics.put(conn, job_id, [Point("train", "loss", 2, float("nan")), Point("train", "loss", 3, 1.0)])
        metrics.put(conn, job_id, [Point("base:test", "bleu", 0, 1.5)])
    with registry.read() as conn:
        assert metrics.series(conn, job_id, "train", "loss") == [(1, 3.0), (2, None), (3, 1.0)]
        assert metrics.latest(conn, [job_id]) == {job_id: {"train": {"loss": 1.0}, "base:test": {"bleu": 1.5}}}


def test_names_that_people_type(registry: Registry) -> None:
    add_jobs(registry, 2)
    with registry.write() as conn:
        group = jobs.add_group(conn, "sweep", user="ada", at=1.0)
        conn.execute(sa.text(f"UPDATE jobs SET group_id = {group}"))
    with registry.read() as conn:
        assert jobs.resolve(conn, ["2", "g1", "1"]) == [2, 1]
        for wrong in ("3", "g2", "x", "0", "-1", "1; drop", "", "9" * 30):
            with pytest.raises(NotFound):
                jobs.resolve(conn, [wrong])


def test_more_ids_than_a_statement_binds(registry: Registry) -> None:
    """SQLite takes 32,766 values; a queue may have had more jobs."""
    ids = add_jobs(registry, 80)
    with registry.write() as conn:
        conn.connection.dbapi_connection.setlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER, 40)  # type: ignore[union-attr]
        assert [job.id for job in jobs.list_jobs(conn, ids=ids)] == ids
        assert len(jobs.list_jobs(conn)) == 80
        assert set(jobs.endings(conn, ids)) == set(jobs.submitted(conn, ids)) == set(ids)
        assert search.find(conn, ids=ids).total == len(search.values(conn, ids, ["name"])) == 80
        assert metrics.latest(conn, ids) == history.crashes_in_company(conn, ids) == {}
        assert pause(conn, ids, user="ada", at=1.0) == ids
