"""Draws docs/pictures/status.svg: the real `ptq status` on a terminal while a worker is busy.

python docs/make_pictures.py
"""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.text import Text

from orchestrator.demo import BASE_FOLDER, BASE_NAME, DATASET_NAME
from orchestrator.demo.dataset import write_rows

REPOSITORY = Path(__file__).resolve().parent.parent
PICTURE = REPOSITORY / "docs" / "pictures" / "status.svg"
PTQ = [sys.executable, "-P", "-m", "orchestrator.cli.main"]
COLUMNS = 118


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        env = {**os.environ, "PTQ_HOME": folder, "PTQ_USER": "ada", "COLUMNS": str(COLUMNS), "TERM": "xterm-256color"}
        demo = REPOSITORY / "recipes" / "demo"
        files = write_rows(Path(folder))
        run(env, "dataset", "add", DATASET_NAME, *(f"--{split}={file}" for split, file in files.items()))
        run(env, "base", "add", BASE_NAME, str(BASE_FOLDER))
        run(env, "submit", str(demo / "prefix-tuning.yaml"), "--set", "train.steps=40")
        run(
            env,
            "submit",
            str(demo / "prompt-tuning.yaml"),
            "--set",
            "train.lr=1.0e30",
            "--set",
            "train.clip=null",
            "--set",
            "name=too-hot",
        )
        run(env, "submit", str(demo / "p-tuning.yaml"), "--set", "train.steps=2000")
        env["PTQ_USER"] = "bob"
        run(
            env,
            "submit",
            str(demo / "prompt-tuning.yaml"),
            "--set",
            "sweep={method.length: [5, 20]}",
            "--set",
            "train.steps=2000",
        )
        run(env, "submit", str(demo / "prefix-tuning.yaml"), "--set", "resources.gpus=2", "--set", "name=on-two")
        worker = subprocess.Popen(
            [*PTQ, "worker", "--cpu-slots", "2"], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            wait_for_the_moment(env)
            draw(on_a_terminal([*PTQ, "status"], env))
        finally:
            run(env, "cancel", "3", "4", "5", "6")
            time.sleep(5)
            worker.terminate()
            worker.wait()


def wait_for_the_moment(env: dict[str, str]) -> None:
    """Two jobs over, at least two of those that follow well under way."""
    while True:
        jobs = json.loads(run(env, "status", "--all", "--json"))["jobs"]
        over = sum(job["state"] == "finished" for job in jobs)
        under_way = sum(job["state"] == "running" and (job["progress"]["step"] or 0) > 60 for job in jobs)
        if over == 2 and under_way >= 2:
            return
        time.sleep(0.5)


def run(env: dict[str, str], *arguments: str) -> str:
    return subprocess.run([*PTQ, *arguments], env=env, check=True, capture_output=True, text=True).stdout


def on_a_terminal(command: list[str], env: dict[str, str]) -> str:
    """What the command prints where standard output is a terminal."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(command, env=env, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        shown = b""
        while process.poll() is None or shown.count(b"\n") == 0:
            try:
                shown += os.read(ours, 65536)
            except OSError:
                break
    os.close(ours)
    return shown.decode().replace("\r\n", "\n")


def draw(shown: str) -> None:
    console = Console(record=True, width=COLUMNS, file=io.StringIO())
    console.print(Text("$ ptq status", style="bold"))
    console.print(Text.from_ansi(shown))
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    console.save_svg(str(PICTURE), title="ptq")
    print(f"wrote {PICTURE.relative_to(REPOSITORY)}")


if __name__ == "__main__":
    main()
