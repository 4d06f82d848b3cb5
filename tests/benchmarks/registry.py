"""The registry on a large scale: digests, a million rows, flipped bits, kills, a hundred thousand jobs.

make proof-registry
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from orchestrator.data.rows import ReadOptions
from orchestrator.data.staging import stage
from orchestrator.paths import HomePaths
from tests.benchmarks.report import REPOSITORY, write_page

sys.path.insert(0, str(REPOSITORY / "tests"))
sys.path.insert(0, str(REPOSITORY / "tests" / "unit" / "registry"))

from queue_helpers import open_registry
from registry_helpers import add_dataset, finished_job
from registry_proofs import PTQ, environment, fill, flips, kill_rounds, open_at, write_rows

ROWS, FLIPS, KILLS, JOBS, POINTS = 1_000_000, 200, 20, 100_000, 100
CHANGED, CHANGES = 100_000, 100
#: Runs a program and says at its end what it took: its own peak, which nobody's before it is counted into.
MEASURED = """
import atexit, json, pathlib, re, resource, sys

def told(path=sys.argv.pop(1)):
    used = resource.getrusage(resource.RUSAGE_SELF)
    peak = re.search(r"VmHWM:\\s*(\\d+) kB", pathlib.Path("/proc/self/status").read_text())[1]
    pathlib.Path(path).write_text(json.dumps([used.ru_utime + used.ru_stime, int(peak) / 1024]))

atexit.register(told)
"""
PTQ_MAIN = 'import runpy\nrunpy.run_module("orchestrator.cli.main", run_name="__main__", alter_sys=True)\n'
LOAD = """
import datasets
datasets.disable_progress_bars()
datasets.load_dataset("json", data_files={"train": sys.argv[1]}, cache_dir=sys.argv[2])
"""
SAVE = """
import sys, datasets
datasets.disable_progress_bars()
datasets.Dataset.from_parquet(sys.argv[1], cache_dir=sys.argv[3]).save_to_disk(sys.argv[2])
"""
Row = list[str]


def main() -> int:
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = [
            *_digests(folder / "digests"),
            *_million(folder),
            _flips(folder / "flips"),
            _kills(folder / "kills"),
            *_queries(folder / "queries"),
        ]
    text = (
        "Each line is measured in this run. Peak memory is of the whole process, Python and its libraries with it; "
        "start-up is what `ptq jobs --fields` takes, which opens no registry; commands are timed by the clock, "
        "as whoever types them feels it, the best of five."
    )
    write_page("registry", "The registry, large", "make proof-registry", text, ["what", "measured", "goal", ""], rows)
    print(f"{time.monotonic() - started:.0f} s")
    return 0 if all(row[-1] == "holds" for row in rows) else 1


def _digests(folder: Path) -> list[Row]:
    """100,000 rows from four formats; then one character of one value changed, wherever it may stand."""
    folder.mkdir()
    generator = random.Random(3)
    rows = [
        {"text": f"row {i}: the river at number {i * 7919 % 1000003}", "label": f"l{i % 3}"} for i in range(CHANGED)
    ]
    table = pa.Table.from_pylist(rows)
    _write_json(folder / "a.jsonl", rows)
    pq.write_table(table, folder / "a.parquet")
    pa.csv.write_csv(table, folder / "a.csv")
    saving = [sys.executable, "-c", SAVE, *(str(folder / name) for name in ("a.parquet", "saved", "cache"))]
    subprocess.run(saving, check=True, capture_output=True, env=environment(folder))
    found = {_added(folder, folder / name) for name in ("a.jsonl", "a.csv", "a.parquet", "saved")}
    (first,) = found if len(found) == 1 else ("",)
    seen = {first}
    places = [0, CHANGED - 1, *(generator.randrange(CHANGED) for _ in range(CHANGES - 2))]
    for turn, row in enumerate(places):
        field = ("text", "label")[turn % 2]
        kept = rows[row][field]
        at = generator.randrange(len(kept))
        rows[row][field] = f"{kept[:at]}{'é' if turn % 3 else 'Z'}{kept[at + 1 :]}"
        _write_json(folder / "b.jsonl", rows)
        with stage(HomePaths(folder / "staged"), {"train": [folder / "b.jsonl"]}, ReadOptions()) as staged:
            seen.add(staged.digest)
        rows[row][field] = kept
    return [
        [f"digests of {CHANGED:,} rows from JSON lines, CSV, Parquet and a `datasets` object", str(len(found)), "1",
         _holds(len(found) == 1)],
        [f"another digest after one character of one value was changed, anywhere in {CHANGED:,} rows",
         f"{len(seen) - 1} of {CHANGES}", "all", _holds(len(seen) == CHANGES + 1)],
    ]  # fmt: skip


def _write_json(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _added(folder: Path, source: Path) -> str:
    command = [*PTQ, "dataset", "add", f"from-{source.suffix[1:] or source.name}", str(source), "--json"]
    done = subprocess.run(command, env=environment(folder / "home"), capture_output=True, text=True, check=True)
    return str(json.loads(done.stdout)["digest"])


def _million(folder: Path) -> list[Row]:
    small, large = (write_rows(folder / f"{rows}.jsonl", rows) for rows in (ROWS // 10, ROWS))
    *_, few = _measured(PTQ_MAIN, ["dataset", "add", "small", str(small)], folder / "home")
    seconds, busy, peak = _measured(PTQ_MAIN, ["dataset", "add", "large", str(large)], folder / "home")
    theirs, their_busy, their_peak = _measured(LOAD, [str(large), str(folder / "cache")], folder)
    memory = f"{peak:.0f} MB; {few:.0f} MB for a tenth of the rows"
    speed = (
        f"{ROWS / seconds:,.0f} rows/s; `datasets` {ROWS / theirs:,.0f} ({their_peak:.0f} MB): "
        f"{seconds / theirs:.1f}x its time, {busy / their_busy:.1f}x its processor seconds"
    )
    return [
        [f"peak memory, {ROWS:,} rows added", memory, "no growth with the rows", _holds(peak < few + 100)],
        [
            "speed beside `datasets` loading the same file, programs and their libraries started",
            speed,
            "stated",
            "holds",
        ],
    ]


def _flips(folder: Path) -> Row:
    registry = open_registry(folder)
    version = add_dataset(registry, folder / "made", "e2e", [{"a": f"s{i}", "b": f"t{i}"} for i in range(2000)])
    finished_job(registry, folder / "jobs", version)
    found = [named for _, named in flips(registry, FLIPS, random.Random(1))]
    return ["random bits flipped, each found by verify", f"{sum(found)} of {len(found)}", "all", _holds(all(found))]


def _kills(folder: Path) -> Row:
    folder.mkdir()
    counts = kill_rounds(folder, KILLS, random.Random(2), rows=20_000)
    told = ", ".join(f"{name} {kills}" for name, (kills, _) in counts.items())
    faults = sum(faults for _, faults in counts.values())
    return [
        f"kill -9 at random moments, of commands that were still at work: {told}",
        f"{faults} times something lost or half-written",
        "0",
        _holds(not faults and all(kills == KILLS for kills, _ in counts.values())),
    ]


def _queries(folder: Path) -> list[Row]:
    registry = open_registry(folder)
    size = fill(registry, JOBS, POINTS)
    open_at(folder).close()
    start_up = _best(folder, "jobs", "--fields")
    questions = {
        "`ptq jobs --where 'method=prefix-tuning and metrics.bleu>60' --sort -metrics.bleu`": [
            "jobs", "--where", "method=prefix-tuning and metrics.bleu>60", "--sort", "-metrics.bleu",
        ],
        "`ptq jobs --where 'recipe.train.lr=0.1 and seed=3'`": ["jobs", "--where", "recipe.train.lr=0.1 and seed=3"],
        "`ptq show 77777`": ["show", "77777"],
    }  # fmt: skip
    rows = []
    for name, arguments in questions.items():
        taken = [best - first for best, first in zip(_best(folder, *arguments), start_up, strict=True)]
        told = f"{taken[0]:.2f} s beyond start-up ({taken[1]:.2f} s of the processor)"
        rows.append([f"{name}, {JOBS:,} jobs, {JOBS * POINTS:,} points", told, "0.5 s", _holds(taken[0] < 0.5)])
    return [*rows, ["bytes on disk for a metric point", str(size), "stated", "holds"]]


def _measured(code: str, arguments: list[str], home: Path) -> tuple[float, float, float]:
    """(seconds, processor seconds, peak MB) of a Python program that succeeds."""
    with tempfile.TemporaryDirectory() as name:
        told = Path(name) / "told.json"
        command = [sys.executable, "-P", "-c", MEASURED + code, str(told), *arguments]
        start = time.monotonic()
        subprocess.run(command, env=environment(home), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=True)
        seconds = time.monotonic() - start
        busy, peak = json.loads(told.read_text())
    return seconds, float(busy), float(peak)


def _best(home: Path, *arguments: str) -> tuple[float, float]:
    """(seconds, processor seconds) of the quickest of five: the first reads the file from the disk."""
    found = [_measured(PTQ_MAIN, list(arguments), home)[:2] for _ in range(5)]
    return min(seconds for seconds, _ in found), min(busy for _, busy in found)


def _holds(yes: bool) -> str:
    return "holds" if yes else "does not hold"


if __name__ == "__main__":
    sys.exit(main())
