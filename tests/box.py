"""A PTQ_HOME with a tiny base and a dataset in it, and the real `ptq` run there in processes of its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from training_fixtures import KINDS, make_base

PTQ = [sys.executable, "-P", "-m", "orchestrator.cli.main"]
PATIENCE = 120.0  # seconds: two loaded cores start torch in about ten


def armed_box(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Box]:
    """For a fixture: a box whose programs stop at the failpoints that are named in `failpoints/`."""
    for name in ("home", "failpoints"):
        (root / name).mkdir()
    monkeypatch.setenv("PTQ_FAILPOINTS", str(root / "failpoints"))
    made = Box.made(root / "home")
    yield made
    made.close()


@dataclass
class Box:
    home: Path
    cwd: Path | None = None  #: where `run` runs; default: where pytest does
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    @classmethod
    def made(cls, home: Path, *, base: str = "gpt2", rows: int = 40) -> Box:
        """With a base `tiny` and a dataset `tiny` (fields text, target, label)."""
        box = cls(home)
        folder = make_base(home.parent / f"base-{base}", base)
        for split, count in {"train": rows, "validation": 8}.items():
            lines = [json.dumps(row(i)) for i in range(count)]
            (home.parent / f"{split}.jsonl").write_text("\n".join(lines))
        box.ok("base", "add", "tiny", str(folder))
        files = [f"--{split}={home.parent / split}.jsonl" for split in ("train", "validation")]
        box.ok("dataset", "add", "tiny", *files)
        assert KINDS[base] == box.json("base", "show", "tiny", "--json")["kind"]
        return box

    def run(self, *arguments: str, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "PTQ_HOME": str(self.home), "OMP_NUM_THREADS": "1", **environment}
        command = [*PTQ, *arguments]
        return subprocess.run(command, env=env, cwd=self.cwd, input=stdin, capture_output=True, text=True, timeout=300)

    def ok(self, *arguments: str, **options: str) -> str:
        done = self.run(*arguments, **options)
        assert done.returncode == 0, f"ptq {arguments}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def json(self, *arguments: str) -> Any:
        return json.loads(self.ok(*arguments))

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        env = {**os.environ, "PTQ_HOME": str(self.home)}
        process = subprocess.Popen(
            [*PTQ, *arguments],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.started.append(process)
        return process

    def work(self, slots: int = 1) -> None:
        self.ok("worker", "--cpu-slots", str(slots), "--until-idle")

    def recipe(self, name: str, **parts: Any) -> str:
        """Write a recipe; its path."""
        made = {"name": name, "base": "tiny", "dataset": "tiny", **parts}
        path = self.home.parent / f"{name}.yaml"
        path.write_text(yaml.safe_dump(made, allow_unicode=True))
        return str(path)

    def job(self, job: int) -> dict[str, Any]:
        return next(j for j in self.json("status", str(job), "--json")["jobs"] if j["id"] == job)

    def artifact(self, job: int) -> Path:
        found = [a for a in self.json("artifact", "list", "--json") if a["job_id"] == job]
        assert len(found) == 1, found
        return Path(found[0]["path"])

    def close(self) -> None:
        """End what is left of our own processes."""
        for process in self.started:
            if process.poll() is None:
                process.kill()
            process.communicate()
        for process in self.processes():
            process.kill()

    def processes(self) -> list[psutil.Process]:
        """Every process that works in this home, by its environment."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("PTQ_HOME") == str(self.home) and process.pid != os.getpid():
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def processes_of(self, module: str) -> list[psutil.Process]:
        """Those that run a module of ours themselves (not the launcher, which only names it)."""
        return [p for p in self.processes() if runs_module(p, module)]

    def halted(self, *moments: str) -> int:
        """Let a training process halt at these moments of failpoints.py, one after the other; its pid at the last.

        Needs PTQ_FAILPOINTS. What has halted before goes on first.
        """
        for moment in moments:
            (Path(os.environ["PTQ_FAILPOINTS"]) / moment).write_text("SIGSTOP")
            self.go_on()
            until(lambda: bool(self._halted()), f"a process that halts when it has {moment}")
        return self._halted()[0].pid

    def go_on(self) -> None:
        for process in self._halted():
            os.kill(process.pid, signal.SIGCONT)

    def _halted(self) -> list[psutil.Process]:
        found = []
        for process in self.processes_of("orchestrator.training.run"):
            with contextlib.suppress(psutil.Error):
                if process.status() == psutil.STATUS_STOPPED:
                    found.append(process)
        return found

    def kill(self, module: str, *, most: int | None = None) -> None:
        """kill -9 of all who run the module, or of the first `most`."""
        found = self.processes_of(module)
        assert found, f"nobody runs {module}"
        for process in found[:most]:
            os.kill(process.pid, signal.SIGKILL)


def runs_module(process: psutil.Process, module: str) -> bool:
    """Whether it is `python … -m MODULE …` itself; a launcher names the module in its arguments only."""
    try:
        command = process.cmdline()
    except psutil.Error:
        return False
    return "-m" in command and command[command.index("-m") + 1 :][:1] == [module]


def row(number: int) -> dict[str, str]:
    colours, things = ("red", "green", "blue", "black", "white"), ("cat", "house", "river", "stone", "bird", "tree")
    words = [f"{colours[(number + j) % 5]} {things[(number * 3 + j) % 6]}" for j in range(1 + number % 4)]
    return {"text": " and ".join(words), "target": things[number % 6], "label": "warm" if number % 5 == 0 else "cold"}


def until(condition: Callable[[], bool], what: str, seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.1)
