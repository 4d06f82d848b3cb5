"""What the registry's tests and its proof share: flipped bits, kills at random moments, a large registry."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import sqlalchemy
from alembic import command

from orchestrator.registry import artifacts, datasets
from orchestrator.registry.care.backup import restore
from orchestrator.registry.care.doctor import examine
from orchestrator.registry.storage.engine import Registry
from orchestrator.registry.storage.migrate import configuration
from orchestrator.settings import load_settings

PTQ = [sys.executable, "-P", "-m", "orchestrator.cli.main"]


def environment(home: Path) -> dict[str, str]:
    return {**os.environ, "PTQ_HOME": str(home), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def open_at(home: Path) -> Registry:
    return Registry.open(load_settings({"PTQ_HOME": str(home), "PTQ_USER": "ada"}), create=True)


def flips(registry: Registry, count: int, generator: random.Random) -> Iterator[tuple[Path, bool]]:
    """Flip one random bit of one random stored file, verify, flip it back: (file, whether a verify named it)."""
    folders = [(one.path, datasets.verify, one) for one in datasets.list_versions(registry)]
    prompts = [(one.path, artifacts.verify, one) for one in artifacts.list_artifacts(registry)]
    for _ in range(count):
        path, verify, one = generator.choice([*folders, *prompts])  # type: ignore[list-item]
        file = generator.choice(sorted(p for p in path.rglob("*") if p.is_file()))
        at, bit = generator.randrange(file.stat().st_size), 1 << generator.randrange(8)
        _flip(file, at, bit)
        faults = verify(one)  # type: ignore[operator]
        _flip(file, at, bit)
        # A flipped manifest may still name another file: the one whose hash it now gets wrong.
        yield file, any(file.name in fault for fault in faults) or (file.name == "manifest.json" and bool(faults))


def _flip(file: Path, at: int, bit: int) -> None:
    with file.open("r+b") as opened:
        opened.seek(at)
        (byte,) = opened.read(1)
        opened.seek(at)
        opened.write(bytes([byte ^ bit]))


class Killed(NamedTuple):
    struck: bool  #: it was still at work
    whole: bool = True  #: what it left, where more than `examine` looks at it


def killed(home: Path, arguments: list[str], after: float) -> bool:
    """Start `ptq` and kill -9 it after so many seconds; whether it was still at work."""
    process = subprocess.Popen(
        [*PTQ, *arguments], env=environment(home), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        process.wait(after)
    except subprocess.TimeoutExpired:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        return True
    return False


def seconds_of(home: Path, arguments: list[str]) -> float:
    start = time.monotonic()
    done = subprocess.run([*PTQ, *arguments], env=environment(home), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return time.monotonic() - start


def write_rows(path: Path, rows: int, *, salt: int = 0) -> Path:
    """JSON lines of about a hundred bytes."""
    with path.open("w", encoding="utf-8") as file:
        for i in range(rows):
            row = {
                "text": f"row {i} of {salt}: the house by the river is number {i * 7919 % 1000003}",
                "label": str(i % 3),
            }
            file.write(json.dumps(row) + "\n")
    return path


def kill_rounds(folder: Path, each: int, generator: random.Random, *, rows: int) -> dict[str, tuple[int, int]]:
    """Kill add, import, gc, backup and migration in turn, each so many times: {command: (kills, faults)}.

    A fault: something half-written is visible, or something named is lost. A command that ended before its kill is
    looked at too, but counts as none, and its next kill comes earlier. After four tries for each kill that is wanted
    there are fewer.
    """
    home = folder / "home"
    source = write_rows(folder / "rows.jsonl", rows)
    setup = seconds_of(home, ["dataset", "add", "kept", str(write_rows(folder / "kept.jsonl", rows))])
    turns: dict[str, Callable[[int, float], Killed]] = {
        "dataset add": lambda n, t: _kill_add(home, source, n, t),
        "artifact import": lambda n, t: _kill_import(home, folder, n, t),
        "gc": lambda n, t: _kill_gc(home, n, t),
        "backup": lambda n, t: _kill_backup(home, folder, n, t),
        "migration": lambda n, t: _kill_migration(folder / f"old-{n}", t, rows),
    }
    _bundle(home, folder)
    counts, latest = {name: [0, 0] for name in turns}, dict.fromkeys(turns, setup)
    for number in range(4 * each * len(turns)):
        name = list(turns)[number % len(turns)]
        if counts[name][0] == each:
            continue
        struck, whole = turns[name](number, generator.uniform(0.2, 1.0) * latest[name])
        counts[name][0] += struck
        latest[name] *= 1.0 if struck else 0.8
        registry = open_at(home)
        wrong = [one.what for one in examine(registry, now=time.time()) if one.fault]
        registry.close()
        counts[name][1] += int(bool(wrong) or not whole)
    return {name: (kills, faults) for name, (kills, faults) in counts.items()}


def _kill_add(home: Path, source: Path, number: int, after: float) -> Killed:
    return Killed(killed(home, ["dataset", "add", f"d{number}", str(source)], after))


def _bundle(home: Path, folder: Path) -> None:
    """A bundle of a prompt with rows, from a second home."""
    sys.path.insert(0, str(Path(__file__).parent / "unit" / "registry"))
    from registry_helpers import add_dataset, finished_job

    from orchestrator.registry.bundles import write_bundle

    other = open_at(folder / "other")
    version = add_dataset(other, folder / "made", "moved", [{"source": str(i), "target": str(i)} for i in range(3000)])
    for number in range(3):
        made = finished_job(other, folder / "made" / "jobs", version, number=float(number))
        write_bundle(other, made, folder / f"b{number}.ptq", with_data=True)
    other.close()


def _kill_import(home: Path, folder: Path, number: int, after: float) -> Killed:
    return Killed(killed(home, ["artifact", "import", str(folder / f"b{number // 5 % 3}.ptq")], after))


def _kill_gc(home: Path, number: int, after: float) -> Killed:
    old = time.time() - 7200
    for name in (f"{number:064x}", f"{number + 1:064x}"):
        path = home / "store" / "datasets" / name
        path.mkdir(parents=True, exist_ok=True)
        for part in range(200):
            (path / f"{part}").write_text("x")
        os.utime(path, (old, old))
    return Killed(killed(home, ["gc", "--yes"], after))


def _kill_backup(home: Path, folder: Path, number: int, after: float) -> Killed:
    """What is there under its name is whole."""
    file = folder / f"backup-{number}.tar"
    struck = killed(home, ["backup", str(file)], after)
    if not file.exists():
        return Killed(struck, whole=struck)
    back = folder / f"back-{number}"
    restore(load_settings({"PTQ_HOME": str(back)}), file, now=time.time())
    registry = Registry.open(load_settings({"PTQ_HOME": str(back)}))
    wrong = [one for one in examine(registry, now=time.time()) if one.fault]
    registry.close()
    shutil.rmtree(back)
    file.unlink()
    return Killed(struck, whole=not wrong)


def _kill_migration(home: Path, after: float, points: int) -> Killed:
    """The old registry or the new one, with every point."""
    home.mkdir()
    path = first_registry(home)
    with sqlite3.connect(path) as raw:
        raw.executemany("INSERT INTO metrics VALUES (1, 'train', 'loss', ?, 0.5)", ((n,) for n in range(points)))
    raw.close()
    struck = killed(home, ["init", "--migrate"], after)
    with sqlite3.connect(path) as raw:
        (schema,) = raw.execute("SELECT version_num FROM alembic_version").fetchone()
        (count,) = raw.execute("SELECT count(*) FROM metrics").fetchone()
        faults = raw.execute("PRAGMA integrity_check").fetchall() != [("ok",)]
        tables = {name for (name,) in raw.execute("SELECT name FROM sqlite_master")}
    raw.close()
    return Killed(struck, whole=count == points and not faults and (schema == "0001") == ("aliases" not in tables))


def first_registry(home: Path, more: str = "") -> Path:
    """A registry of the first ptq with a job in it, and what else the SQL adds."""
    path = home / "registry.db"
    engine = sqlalchemy.create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        command.upgrade(configuration(connection), "0001")
    engine.dispose()
    with sqlite3.connect(path) as raw:
        raw.executescript(OLD_JOB + more)
    raw.close()
    return path


OLD_JOB = """
INSERT INTO datasets VALUES (1, 'd', 0);
INSERT INTO dataset_versions (id, dataset_id, version, digest, fields, splits, bad_rows, source, created_at, created_by)
VALUES (1, 1, 1, 'sha256:1', '["a"]', '{"train": 2}', 0, '{}', 0, 'ann');
INSERT INTO jobs (id, name, user, state, result, attempt, counted_attempts, max_attempts, priority, slots, recipe,
source, command, seed, method, base, dataset_version_id, step, events_offset, submitted_at)
VALUES (1, 'j', 'ann', 'finished', 'failed', 1, 1, 1, 0, 1, '{}', '', '[]', 1, 'head', '{}', 1, 2, 0, 0);
"""


def fill(registry: Registry, jobs: int, points: int) -> int:
    """`jobs` finished jobs with `points` metric points each, written as a worker writes them; bytes a point."""
    from queue_helpers import add_jobs

    (first,) = add_jobs(registry)
    registry.close()
    with sqlite3.connect(registry.where) as raw:
        names = [
            row[1] for row in raw.execute("PRAGMA table_info(jobs)") if row[1] not in {"id", "method", "seed", "name"}
        ]
        columns = ", ".join(names)
        methods = "CASE value % 3 WHEN 0 THEN 'prefix-tuning' WHEN 1 THEN 'prompt-tuning' ELSE 'p-tuning' END"
        series = (
            f"WITH RECURSIVE s(value) AS (SELECT {first + 1} UNION ALL SELECT value + 1 FROM s WHERE value < {jobs})"
        )
        raw.execute(
            f"{series} INSERT INTO jobs (id, method, seed, name, {columns}) "
            f"SELECT value, {methods}, value % 5, 'job-' || value, {', '.join('jobs.' + name for name in names)} "
            f"FROM s, jobs WHERE jobs.id = {first}"
        )
        raw.execute("UPDATE jobs SET state = 'finished', result = 'failed', finished_at = submitted_at + id")
        raw.commit()
        raw.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        before = Path(registry.where).stat().st_size
        for start in range(1, jobs + 1, 2000):
            rows = (
                (job, split, name, step, ((job * 7919 + step) % 10007) / 100)
                for job in range(start, min(jobs + 1, start + 2000))
                for split, name, count in (
                    ("test", "bleu", 1),
                    ("train", "loss", points - 11),
                    ("validation", "bleu", 10),
                )
                for step in range(1, count + 1)
            )
            raw.executemany("INSERT INTO metrics VALUES (?, ?, ?, ?, ?)", rows)
        raw.commit()
        raw.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        size = (Path(registry.where).stat().st_size - before) / (jobs * points)
        raw.execute(
            "INSERT INTO latest_metrics SELECT job_id, split, name, max(step), value FROM metrics "
            "GROUP BY job_id, split, name"
        )
    raw.close()
    return round(size)
