"""Doctor, backup and restore."""

from __future__ import annotations

import errno
import json
import sqlite3
import tarfile
import threading
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from queue_helpers import add_jobs
from registry_helpers import add_dataset, finished_job, registry_at

from orchestrator.errors import BadInput
from orchestrator.registry import aliases, history, jobs, metrics, reservations, runs, usage, workers
from orchestrator.registry.artifacts import get_artifact, list_artifacts
from orchestrator.registry.care.backup import restore, write_backup
from orchestrator.registry.care.doctor import examine
from orchestrator.registry.datasets import get_version, list_versions, verify
from orchestrator.registry.metrics import Point
from orchestrator.registry.runs import Claimant
from orchestrator.registry.storage.engine import Registry
from orchestrator.registry.storage.tables import artifacts, latest_metrics
from orchestrator.registry.storage.tables import jobs as job_table
from orchestrator.settings import Settings, load_settings
from orchestrator.states import JobResult, JobState, Reason

ROWS = [{"source": f"s{i}", "target": f"t{i}"} for i in range(5)]
NOW = 1e9


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    registry = registry_at(tmp_path / "home")
    finished_job(registry, tmp_path / "jobs", add_dataset(registry, tmp_path, "e2e", ROWS))
    aliases.set_alias(registry, "e2e@best", "a1", user="ann", now=1.0)
    with registry.write() as conn:
        metrics.put(conn, 1, [Point("train", "loss", step, 1.0 / step) for step in range(1, 50)])
    return registry


def told(registry: Registry, **options: Any) -> list[str]:
    return [one.what for one in examine(registry, now=NOW, **options) if one.fault]


def test_a_whole_registry_is_whole(registry: Registry) -> None:
    assert examine(registry, now=NOW) == []


def test_every_kind_of_damage_is_named(registry: Registry, tmp_path: Path) -> None:
    version, artifact = get_version(registry, "e2e"), get_artifact(registry, "a1")
    (artifact.path / "prompt.safetensors").write_bytes(b"x")
    (version.path / "train.arrow").unlink()
    with registry.write() as conn:
        conn.execute(sa.update(latest_metrics).values(value=7.0))
    with sqlite3.connect(registry.where) as raw:  # no foreign keys here
        raw.execute("INSERT INTO dependencies (job_id, after_id, any_end) VALUES (77, 78, 0)")
        raw.execute("UPDATE jobs SET id = id")
    raw.close()
    (waiting,) = add_jobs(registry)
    with registry.write() as conn:
        recipe = jobs.get_job(conn, waiting).recipe
        init = {"type": "prompt", "path": [str(registry.paths.artifact("sha256:" + "0" * 64))]}
        recipe["method"]["init"] = init
        conn.execute(sa.update(job_table).where(job_table.c.id == waiting).values(recipe=recipe))
    found = told(registry)
    for words in (
        "of dependencies names a row of jobs",
        "dataset e2e@1: train.arrow: missing",
        "artifact a1: prompt.safetensors: differs from its hash",
        f"job {waiting} starts from an artifact that is gone",
        "the newest values of 1 metrics are not those",
    ):
        assert any(words in one for one in found), (words, found)
    assert not any("differs" in one for one in told(registry, hashes=False))
    examine(registry, now=NOW, fix=True)
    assert not any("newest values" in one for one in told(registry))
    with registry.read() as conn:
        assert metrics.latest(conn, [1])[1]["train"]["loss"] == pytest.approx(1 / 49)


def test_what_a_killed_command_moved_aside_is_put_back(registry: Registry) -> None:
    path = get_version(registry, "e2e").path
    old = path.with_name(f".{path.name}.0123abcd.old")
    path.rename(old)
    assert any("missing" in one for one in told(registry))
    assert told(registry, fix=True) == ["was moved aside by a command that was killed"]
    assert verify(get_version(registry, "e2e")) == []
    assert examine(registry, now=NOW) == []


def settings_at(home: Path) -> Settings:
    return load_settings({"PTQ_HOME": str(home), "PTQ_USER": "ada"})


def test_a_backup_made_while_others_write_is_restored_whole(registry: Registry, tmp_path: Path) -> None:
    stop = threading.Event()
    other = Registry.open(registry.settings)

    def write() -> None:
        step = 100
        while not stop.is_set():
            with other.write() as conn:  # two series that are only ever written together
                metrics.put(conn, 1, [Point("train", name, step, float(step)) for name in ("a", "b")])
            step += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        made = [write_backup(registry, tmp_path / f"b{n}.tar", now=5.0) for n in range(3)]
    finally:
        stop.set()
        writer.join()
        other.close()
    for number, one in enumerate(made):
        assert (one.folders, one.missing) == (2, [])
        settings = settings_at(tmp_path / f"restored-{number}")
        assert restore(settings, one.path, now=6.0) == 0
        back = Registry.open(settings)
        assert examine(back, now=NOW) == []
        with back.read() as conn:
            first, second = (metrics.series(conn, 1, "train", name) for name in ("a", "b"))
        assert first == second
        assert [v.digest for v in list_versions(back)] == [v.digest for v in list_versions(registry)]
        assert [(a.ref, a.digest) for a in list_artifacts(back)] == [
            (a.ref, a.digest) for a in list_artifacts(registry)
        ]
        assert get_artifact(back, "e2e@best").ref == "a1"
        back.close()
    assert sorted(path.name for path in tmp_path.glob("*b*.tar*")) == ["b0.tar", "b1.tar", "b2.tar"]


def test_jobs_that_were_under_way_are_queued_again(registry: Registry, tmp_path: Path) -> None:
    (job,) = add_jobs(registry)
    with registry.write() as conn:
        jobs.move(conn, job, 0, jobs.Move(JobState.STARTING), actor="worker:1", at=1.0)
        jobs.move(conn, job, 1, jobs.Move(JobState.RUNNING), actor="worker:1", at=2.0)
        jobs.set_progress(conn, job, 1, step=7, steps=40, events_offset=900)
    write_backup(registry, tmp_path / "b.tar", now=5.0)
    settings = settings_at(tmp_path / "new")
    assert restore(settings, tmp_path / "b.tar", now=6.0) == 1
    back = Registry.open(settings)
    with back.read() as conn:
        found = jobs.get_job(conn, job)
        assert (found.state, found.attempt, found.counted_attempts) == (JobState.QUEUED, 1, 0)
        assert (found.step, found.events_offset) == (0, 0)
        assert history.list_events(conn, job)[-1].detail["message"] == "restored from a backup"
    with registry.read() as conn:
        assert jobs.get_job(conn, job).state is JobState.RUNNING
    back.close()


def test_a_cancelled_job_is_not_trained_again(registry: Registry, tmp_path: Path) -> None:
    (job,) = add_jobs(registry)
    with registry.write() as conn:
        jobs.move(conn, job, 0, jobs.Move(JobState.STARTING), actor="worker:1", at=1.0)
        jobs.move(conn, job, 1, jobs.Move(JobState.STOPPING), actor="user:ann", at=2.0)
    write_backup(registry, tmp_path / "b.tar", now=5.0)
    settings = settings_at(tmp_path / "new")
    assert restore(settings, tmp_path / "b.tar", now=6.0) == 0
    back = Registry.open(settings)
    with back.read() as conn:
        found = jobs.get_job(conn, job)
    assert (found.state, found.result) == (JobState.FINISHED, JobResult.CANCELLED)
    back.close()


def test_what_ran_and_was_reserved_is_free_again_and_nobody_is_charged(registry: Registry, tmp_path: Path) -> None:
    job, _ = add_jobs(registry, 2)
    with registry.write() as conn:
        number = workers.register(
            conn, host="box", pid=1, pid_started=1.0, boot_id="b", slots=["cpu:0", "cpu:1"], at=1.0
        )
        me = Claimant(number, "box", "b")
        assert runs.claim(conn, job, 0, ["cpu:0"], me, token="t", at=2.0)
        numbers = [reservations.add(conn, user="bob", uid=1, slots=1, seconds=1e6, note="", at=2.0) for _ in range(2)]
        assert reservations.start(conn, numbers[0], ["cpu:1"], me, at=3.0)
        usage.charge(conn, [("ada", 5.0)], half_life=10.0, at=3.0)
    write_backup(registry, tmp_path / "b.tar", now=5.0)
    settings = settings_at(tmp_path / "new")
    assert restore(settings, tmp_path / "b.tar", now=9000.0) == 1
    back = Registry.open(settings)
    with back.read() as conn:
        assert runs.live_leases(conn) == []
        assert [one.id for one in reservations.unfinished(conn)] == numbers[1:]  # it waits still
        assert usage.used(conn, half_life=10.0, now=3.0) == {"ada": 5.0}
    back.close()


@pytest.mark.parametrize("failed", [False, True])  # what failed may be started by `ptq retry`
def test_what_may_start_starts_from_the_artifacts_of_its_new_home(
    registry: Registry, tmp_path: Path, failed: bool
) -> None:
    first = get_artifact(registry, "a1")
    linked = Path("/mnt/data", *first.path.parts[-4:])  # as a home is called behind a symbolic link
    (job,) = add_jobs(registry)
    with registry.write() as conn:
        recipe = jobs.get_job(conn, job).recipe
        recipe["method"]["init"] = {"type": "prompt", "path": [str(first.path)]}
        base = {**jobs.get_job(conn, job).base, "path": str(linked / "base")}
        conn.execute(sa.update(job_table).where(job_table.c.id == job).values(recipe=recipe, base=base))
        if failed:
            jobs.move(conn, job, 0, jobs.Move(JobState.STARTING), actor="worker:1", at=1.0)
            jobs.set_progress(conn, job, 1, step=0, steps=40, events_offset=300)
            crashed = jobs.Move(JobState.FINISHED, JobResult.FAILED, Reason.CRASHED)
            jobs.move(conn, job, 1, crashed, actor="worker:1", at=2.0)
    write_backup(registry, tmp_path / "b.tar", now=5.0)
    settings = settings_at(tmp_path / "new")
    restore(settings, tmp_path / "b.tar", now=6.0)
    (tmp_path / "home").rename(tmp_path / "gone")
    back = Registry.open(settings)
    with back.read() as conn:
        moved = jobs.get_job(conn, job)
    there = str(get_artifact(back, "a1").path)
    assert there.startswith(str(tmp_path / "new"))
    assert (moved.recipe["method"]["init"]["path"], moved.base["path"]) == ([there], f"{there}/base")
    assert moved.events_offset == 0
    assert [one.what for one in examine(back, now=NOW) if one.fault] == []
    back.close()


def test_a_file_system_without_links(registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(source: Path, target: Path) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("os.link", link)
    made = write_backup(registry, tmp_path / "b.tar", now=5.0)
    assert made.missing == []
    with pytest.raises(BadInput, match="already exists"):
        write_backup(registry, tmp_path / "b.tar", now=5.0)
    assert restore(settings_at(tmp_path / "new"), made.path, now=6.0) == 0
    back = Registry.open(settings_at(tmp_path / "new"))
    assert examine(back, now=NOW) == []
    back.close()


@pytest.mark.parametrize("left", ["jobs/58/events.jsonl", "runs/3/exit.json", "registry.db-wal"])
def test_nothing_is_restored_beside_the_remains_of_another_registry(
    registry: Registry, tmp_path: Path, left: str
) -> None:
    """Their numbers would be given again, and what lies there would be taken for the new jobs' own."""
    write_backup(registry, tmp_path / "b.tar", now=5.0)
    settings = settings_at(tmp_path / "used")
    (settings.home / left).parent.mkdir(parents=True)
    (settings.home / left).write_text("")
    with pytest.raises(BadInput, match="left of another registry"):
        restore(settings, tmp_path / "b.tar", now=6.0)
    assert not (settings.home / "registry.db").exists()


def test_a_damaged_folder_is_named_and_does_not_spoil_the_backup(registry: Registry, tmp_path: Path) -> None:
    damaged = get_artifact(registry, "a1").path
    file = next(path for path in sorted(damaged.iterdir()) if path.suffix == ".safetensors")
    file.chmod(0o644)
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    made = write_backup(registry, tmp_path / "b.tar", now=5.0)
    assert made.missing == [str(damaged)]
    assert restore(settings_at(tmp_path / "new"), tmp_path / "b.tar", now=6.0) == 0


def test_nothing_is_restored_over_a_registry(registry: Registry, tmp_path: Path) -> None:
    write_backup(registry, tmp_path / "b.tar", now=5.0)
    with pytest.raises(BadInput, match="registry here already"):
        restore(registry.settings, tmp_path / "b.tar", now=6.0)
    with pytest.raises(BadInput, match="already exists"):
        write_backup(registry, tmp_path / "b.tar", now=5.0)


def rewritten(source: Path, target: Path, change: Callable[[str, bytes], bytes | None], *more: tarfile.TarInfo) -> None:
    with tarfile.open(source) as old, tarfile.open(target, "w") as new:
        for entry in old:
            file = old.extractfile(entry)
            assert file is not None
            data = change(entry.name, file.read())
            if data is not None:
                entry.size = len(data)
                new.addfile(entry, BytesIO(data))
        for entry in more:
            new.addfile(entry)


def _entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, link
    return entry


def _flipped(name: str, data: bytes, where: str) -> bytes:
    return data if where not in name else data[:-5] + bytes([data[-5] ^ 1]) + data[-4:]


def _index(name: str, data: bytes, **values: Any) -> bytes:
    return json.dumps(json.loads(data) | values).encode() if name == "backup.json" else data


BAD: dict[str, Callable[[Path, Path], object]] = {
    "outside": lambda a, b: rewritten(a, b, lambda n, d: d, _entry("../x")),
    "absolute": lambda a, b: rewritten(a, b, lambda n, d: d, _entry("/tmp/x")),
    "symlink": lambda a, b: rewritten(a, b, lambda n, d: d, _entry("registry.db2", tarfile.SYMTYPE, "/etc/passwd")),
    "hard link": lambda a, b: rewritten(
        a, b, lambda n, d: d, _entry(f"store/datasets/{'a' * 64}/x", tarfile.LNKTYPE, "backup.json")
    ),
    "twice": lambda a, b: rewritten(a, b, lambda n, d: d, _entry("backup.json")),
    "bit in the rows": lambda a, b: rewritten(a, b, lambda n, d: _flipped(n, d, "train.arrow")),
    "bit in the database": lambda a, b: rewritten(a, b, lambda n, d: _flipped(n, d, "registry.db")),
    "bit in a prompt": lambda a, b: rewritten(a, b, lambda n, d: _flipped(n, d, "safetensors")),
    "a file less": lambda a, b: rewritten(a, b, lambda n, d: None if "train.arrow" in n else d),
    "a folder less": lambda a, b: rewritten(a, b, lambda n, d: None if "/datasets/" in n else d),
    "no database": lambda a, b: rewritten(a, b, lambda n, d: None if n == "registry.db" else d),
    "the future": lambda a, b: rewritten(a, b, lambda n, d: _index(n, d, schema="9999")),
    "another format": lambda a, b: rewritten(a, b, lambda n, d: _index(n, d, format=7)),
    "truncated": lambda a, b: b.write_bytes(a.read_bytes()[: a.stat().st_size // 2]),
    "cut at a file": lambda a, b: b.write_bytes(a.read_bytes()[: a.read_bytes().rindex(b"store/")] + bytes(1024)),
    "text": lambda a, b: b.write_text("hello"),
    "empty": lambda a, b: b.write_bytes(b""),
}


def test_damaged_and_hostile_backups_leave_nothing(registry: Registry, tmp_path: Path) -> None:
    whole = tmp_path / "b.tar"
    write_backup(registry, whole, now=5.0)
    for case, spoil in BAD.items():
        spoil(whole, tmp_path / "bad.tar")
        with pytest.raises(BadInput):
            restore(settings_at(tmp_path / "new"), tmp_path / "bad.tar", now=6.0)
        assert not (tmp_path / "new").exists(), case
        assert not (tmp_path / "x").exists()


def test_a_missing_folder_is_said_by_the_backup_and_by_the_doctor_later(registry: Registry, tmp_path: Path) -> None:
    path = get_version(registry, "e2e").path
    path.rename(tmp_path / "away")
    made = write_backup(registry, tmp_path / "b.tar", now=5.0)
    assert made.missing == [str(path)]
    settings = settings_at(tmp_path / "new")
    restore(settings, made.path, now=6.0)
    assert any("dataset e2e@1" in one for one in told(Registry.open(settings)))
    with registry.read() as conn:
        assert conn.execute(sa.select(sa.func.count()).select_from(artifacts)).scalar() == 1
