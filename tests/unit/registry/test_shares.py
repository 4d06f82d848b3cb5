"""What people who share a box leave in the registry: use, reservations, ports, pauses, the front of a long line."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st
from queue_helpers import add_jobs, open_registry

from orchestrator.dispatch.running.launcher import PORTS, free_port
from orchestrator.registry import controls, history, jobs, reservations, runs, usage, workers
from orchestrator.registry.queue import pause, waiting_jobs
from orchestrator.registry.runs import Claimant
from orchestrator.registry.storage.engine import Registry
from orchestrator.settings import Policy, Team, load_policy
from orchestrator.states import JobResult, JobState, Reason

DAY = 86400.0
ME = Claimant(1, "box", "boot")


@pytest.fixture
def registry(home: Path) -> Iterator[Registry]:
    made = open_registry(home)
    with made.write() as conn:
        workers.register(conn, host="box", pid=1, pid_started=1, boot_id="boot", slots=["gpu:a"], at=0.0)
    yield made
    made.close()


def claim(registry: Registry, job: int, *slots: str, at: float, port: int | None = None) -> runs.Claim:
    with registry.write() as conn:
        attempt = jobs.get_job(conn, job).attempt
        made = runs.claim(conn, job, attempt, slots, ME, token=uuid.uuid4().hex, at=at, port=port)
    assert made is not None
    return made


def used(registry: Registry, now: float) -> dict[str, float]:
    with registry.read() as conn:
        return usage.used(conn, half_life=Policy.half_life, now=now)


def test_a_slot_is_charged_by_the_second_and_decays(registry: Registry) -> None:
    [job] = add_jobs(registry)
    made = claim(registry, job, "gpu:a", "gpu:b", at=1000.0)
    with registry.write() as conn:
        runs.renew(conn, "box", at=1005.0)
        runs.renew(conn, "box", at=1010.0)
        runs.end_run(conn, made.run_id, exit_record=None, at=1012.0)
        runs.renew(conn, "box", at=9000.0)  # nothing is held any more
    assert used(registry, 1012.0)["ada"] == pytest.approx(24.0, rel=1e-4)
    assert used(registry, 1012.0 + 7 * DAY)["ada"] == pytest.approx(12.0, rel=1e-4)


def test_who_shares_a_run_shares_its_price(registry: Registry) -> None:
    [first], [second] = add_jobs(registry), add_jobs(registry, user="bob")
    made = claim(registry, first, "gpu:a", at=1000.0)
    with registry.write() as conn:
        assert runs.join(conn, second, 0, made.run_id, ME, at=1000.0)
        runs.renew(conn, "box", at=1010.0)
    assert used(registry, 1010.0) == {"ada": pytest.approx(5.0), "bob": pytest.approx(5.0)}


@given(st.lists(st.tuples(st.floats(-1e5, 1e5), st.floats(0, 1e4)), min_size=1, max_size=6))
def test_a_clock_that_jumps_takes_nothing_away_twice(steps: list[tuple[float, float]]) -> None:
    """However the clock jumps, an account is never negative and never more than all that was charged."""
    from orchestrator.registry.storage import sqlite
    from orchestrator.registry.storage.tables import metadata

    engine = sqlite.in_memory()
    metadata.create_all(engine)
    now = 1e6
    with engine.connect() as conn:
        for jump, seconds in steps:
            now += jump
            usage.charge(conn, [("ada", seconds)], half_life=DAY, at=now)
            have = usage.used(conn, half_life=DAY, now=now).get("ada", 0.0)
            assert 0.0 <= have <= sum(charged for _, charged in steps) + 1e-6
    engine.dispose()


def test_a_reservations_slots_are_leased_like_any_other(registry: Registry) -> None:
    [job] = add_jobs(registry)
    with registry.write() as conn:
        number = reservations.add(conn, user="eve", uid=7, slots=1, seconds=60.0, note="", at=5.0)
        assert [one.id for one in reservations.in_line(reservations.unfinished(conn), priority=50)] == [-number]
        assert reservations.start(conn, number, ["gpu:a"], ME, at=10.0)
        assert not reservations.start(conn, number, ["gpu:b"], ME, at=10.0)
        assert runs.claim(conn, job, 0, ["gpu:a"], ME, token="t", at=11.0) is None
        assert runs.open_runs(conn, "box") == []  # nobody has to look after it
        assert reservations.slots_of(conn, reservations.get(conn, number)) == ["gpu:a"]
        runs.renew(conn, "box", at=20.0)
        assert reservations.end(conn, number, by="eve", at=30.0)
        assert not reservations.end(conn, number, by="eve", at=31.0)
        assert runs.claim(conn, job, 0, ["gpu:a"], ME, token="t", at=32.0) is not None
    assert used(registry, 30.0)["eve"] == pytest.approx(20.0, rel=1e-3)


def test_two_open_runs_of_a_box_never_have_one_port(registry: Registry) -> None:
    first, second = add_jobs(registry, 2)
    made = claim(registry, first, "gpu:a", at=1.0, port=23456)
    with registry.read() as conn:
        assert runs.ports(conn, "box") == {23456}
    with pytest.raises(sa.exc.IntegrityError):
        claim(registry, second, "gpu:b", at=2.0, port=23456)
    with registry.write() as conn:
        runs.end_run(conn, made.run_id, exit_record=None, at=3.0)
    claim(registry, second, "gpu:b", at=4.0, port=23456)
    assert free_port(set(PORTS) - {PORTS.stop - 1}) == PORTS.stop - 1
    with pytest.raises(Exception, match="no free port"):
        free_port(PORTS)


def test_a_job_that_had_its_turn_waits_as_a_new_one_and_one_that_crashed_does_not(registry: Registry) -> None:
    turn, crash = add_jobs(registry, 2)
    for job, reason in ((turn, Reason.PREEMPTED), (crash, Reason.WORKER_LOST)):
        made = claim(registry, job, f"gpu:{job}", at=100.0)
        with registry.write() as conn:
            jobs.move(conn, job, made.attempt, jobs.Move(JobState.QUEUED, reason=reason), actor="worker:1", at=500.0)
    with registry.read() as conn:
        since = {job.id: job.since for job in waiting_jobs(conn)}
    assert since[turn] == 500.0
    assert since[crash] > 1e9  # when it was submitted


def test_the_front_of_a_long_line_is_the_front_of_the_whole_line(registry: Registry) -> None:
    gain = 50.0 / DAY
    for priority in (0, 50, 100):
        for user in ("ada", "bob"):
            add_jobs(registry, 9, user=user, priority=priority)
    [last] = add_jobs(registry)
    [blocked] = add_jobs(registry, after=[last], priority=100)
    [paused] = add_jobs(registry, priority=100)
    with registry.write() as conn:
        assert pause(conn, [paused], user="eve", at=1.0) == [paused]
        assert pause(conn, [paused], user="eve", at=1.0) == []
        everything = waiting_jobs(conn)
        front = waiting_jobs(conn, gain=gain, deep=5)
        more = waiting_jobs(conn, gain=gain, deep=1000)
    assert more == everything
    for user in ("ada", "bob"):
        line = [job for job in everything if job.user == user and job.id not in {blocked, paused}]
        line.sort(key=lambda job: (job.since * gain - job.priority, job.id))
        assert {job.id for job in front if job.user == user} == {job.id for job in line[:5]}
    assert next(job for job in everything if job.id == paused).paused_by == "eve"


def test_a_job_that_had_a_turn_stays_in_front_of_its_long_group(registry: Registry) -> None:
    """Queued again only now, it would stand behind all the others, and not be looked at for a long time."""
    found = add_jobs(registry, 12)
    made = claim(registry, found[0], "gpu:0", at=2e9)
    with registry.write() as conn:
        to = jobs.Move(JobState.QUEUED, reason=Reason.PREEMPTED)
        jobs.move(conn, found[0], made.attempt, to, actor="worker:1", at=3e9)
        front = waiting_jobs(conn, gain=50.0 / DAY, deep=4)
    assert [job.id for job in front] == found[:4]


def test_jobs_that_nobody_need_wait_for_any_more_are_left_out(registry: Registry) -> None:
    """A job may come after the thousand jobs of a group; each look would read a thousand edges for it."""
    well, badly, open_one, whatever = add_jobs(registry, 4)
    for job, result in ((well, JobResult.SUCCEEDED), (badly, JobResult.FAILED), (whatever, JobResult.FAILED)):
        made = claim(registry, job, f"gpu:{job}", at=1.0)
        with registry.write() as conn:
            reason = None if result is JobResult.SUCCEEDED else Reason.CRASHED
            to = jobs.Move(JobState.FINISHED, result, reason)
            jobs.move(conn, job, made.attempt, to, actor="worker:1", at=2.0)
    [last] = add_jobs(registry, after=[well, badly, open_one], after_any=[whatever])
    with registry.read() as conn:
        [waits] = [job for job in waiting_jobs(conn) if job.id == last]
        assert jobs.get_job(conn, last).after == (well, badly, open_one, whatever)
    assert (waits.after, waits.after_any) == ((badly, open_one), frozenset())


def test_switches_of_the_queue(registry: Registry) -> None:
    with registry.write() as conn:
        assert controls.get(conn, controls.PAUSED) is None
        controls.put(conn, controls.PAUSED, "a", by="ada", at=1.0)
        controls.put(conn, controls.PAUSED, "b", by="bob", at=2.0)
        assert controls.get(conn, controls.PAUSED) == controls.Control(controls.PAUSED, "b", "bob", 2.0)
        assert controls.clear(conn, controls.PAUSED)
        assert not controls.clear(conn, controls.PAUSED)


def test_when_a_live_job_began(registry: Registry) -> None:
    [job] = add_jobs(registry)
    made = claim(registry, job, "gpu:a", at=100.0)
    with registry.write() as conn:
        found = jobs.get_job(conn, job)
        assert history.beginnings(conn, {job: found.attempt}) == {job: history.Beginning(100.0, None, 0)}
        running = jobs.Move(JobState.RUNNING, detail={"step": 40})
        jobs.move(conn, job, made.attempt, running, actor="run:1", at=107.0)
        assert history.beginnings(conn, {job: found.attempt}) == {job: history.Beginning(100.0, 107.0, 40)}
        failed = jobs.Move(JobState.FINISHED, JobResult.FAILED)
        jobs.move(conn, job, made.attempt, failed, actor="run:1", at=110.0)
        assert [one.id for _, one in jobs.finished_since(conn, 0, limit=9)] == [job]


def test_the_policy_file(tmp_path: Path) -> None:
    assert load_policy(tmp_path) == Policy()
    (tmp_path / "queue.toml").write_text(
        'half_life = "1d"\nageing = "12h"\nturn = "never"\n[quota]\nada = 4\n"*" = 2\n[weight]\nada = 1.5\n'
        '[team.nlp]\nmembers = ["ada", "bob"]\nquota = 6\n[notify]\ncommand = ["tell", "-x"]\nwebhook = "https://x/y"\n'
    )
    policy = load_policy(tmp_path)
    assert policy == Policy(
        half_life=DAY, ageing=DAY / 2, turn=None, quotas={"ada": 4, "*": 2}, weights={"ada": 1.5},
        teams={"nlp": Team(frozenset({"ada", "bob"}), 6)}, notify_command=("tell", "-x"), notify_webhook="https://x/y",
    )  # fmt: skip
    assert (policy.quota("ada"), policy.quota("eve"), policy.teams_of("bob")) == (4, 2, ["nlp"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("turns = 1", "turns: no such key"),
        ('turn = "soon"', "turn: not a duration"),
        ("turn = 5", "turn: write a duration"),
        ('ageing = "0s"', "ageing: write a duration"),
        ("quota = 3", r"quota: write a table"),
        ("[quota]\nada = -1", "quota.ada: write a number of GPUs"),
        ("[quota]\nada = true", "quota.ada: write a number of GPUs"),
        ("[weight]\nada = 0", "weight.ada: write a number above 0"),
        ("team.nlp = 3", r"team.nlp: write \[team.nlp\]"),
        ("[team.nlp]\nmember = []", "team.nlp.member: no such key"),
        ('[team.nlp]\nmembers = "ada"', "team.nlp.members: write a list"),
        ('[notify]\nwebhook = "ftp://x"', "notify.webhook: write an address"),
        ("turn = ", "not TOML"),
    ],
)
def test_faults_of_the_policy_file_are_named(text: str, said: str, tmp_path: Path) -> None:
    from orchestrator.errors import BadInput

    (tmp_path / "queue.toml").write_text(text)
    with pytest.raises(BadInput, match=said):
        load_policy(tmp_path)


def test_a_strangers_policy_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may name a command, which the worker's account runs."""
    from orchestrator.errors import BadInput

    (tmp_path / "queue.toml").write_text('turn = "1h"')
    os.chown(tmp_path / "queue.toml", os.getuid(), -1)
    assert load_policy(tmp_path).turn == 3600
    monkeypatch.setattr(os, "getuid", lambda: 4242)
    if (tmp_path / "queue.toml").stat().st_uid == 0:  # root's is followed by everybody
        os.chown(tmp_path / "queue.toml", 4711, -1)
    with pytest.raises(BadInput, match="may be written by others than 4242"):
        load_policy(tmp_path)


def test_a_look_costs_nothing_while_nobody_writes(registry: Registry, home: Path) -> None:
    before = registry.changes()
    assert registry.changes() == before
    with registry.read() as conn:
        waiting_jobs(conn)
    assert registry.changes() == before
    add_jobs(registry)  # by this process
    after = registry.changes()
    assert after != before
    other = open_registry(home)
    with other.write() as conn:
        controls.put(conn, "x", 1, by="bob", at=1.0)
    other.close()
    assert registry.changes() != after


def test_in_a_shared_home_the_policy_is_its_keepers(tmp_path: Path) -> None:
    """Whoever may queue jobs may put a file there; what it says would be run by the worker's account."""
    from orchestrator.errors import BadInput

    path = tmp_path / "queue.toml"
    path.write_text('turn = "2h"\n')
    path.chmod(0o664)
    assert load_policy(tmp_path).turn == 7200.0
    tmp_path.chmod(0o2775)
    with pytest.raises(BadInput, match="it is not followed"):
        load_policy(tmp_path)
    path.chmod(0o644)
    assert load_policy(tmp_path).turn == 7200.0
