"""Speaks the training program's contract without training anything: `python fake_training.py RUN_FOLDER`.

Its number after step s is the sum of 1/i for i up to s, so that a wrong resume shows. What it should do besides is
read from the recipe's description: nan, crash, poison (KILL itself), deaf (ignore TERM and leave daemons behind),
empty (exit 0 without an artifact), no-manifest.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from orchestrator.events import EventWriter
from orchestrator.jobspec import JobSpec, RunSpec
from orchestrator.manifest import write_manifest
from orchestrator.paths import JobPaths, RunPaths, folder_written_atomically, read_json, write_json

STEP_SECONDS = 0.02
CHECKPOINT_EVERY = 5

stop = False


def main() -> int:
    run = RunSpec.read(RunPaths(Path(sys.argv[1])).spec)
    paths = JobPaths(Path(run.jobs[0]))
    spec = JobSpec.read(paths.spec)
    print(f"fake training: job {spec.job}, attempt {spec.attempt}, pid {os.getpid()}", flush=True)
    with EventWriter(paths.events, spec.attempt) as events:
        return train(spec, paths, events, spec.recipe["description"])


def train(spec: JobSpec, paths: JobPaths, events: EventWriter, behaviour: str) -> int:
    global stop
    if behaviour == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        subprocess.Popen(["setsid", "sleep", "1000"], start_new_session=True, env={"PATH": os.environ["PATH"]})
    steps = spec.recipe["train"]["steps"]
    step, total = newest(paths)
    events.write("started", processes=1, device="cpu", resumed_from=step, steps=steps)
    events.flush()
    while step < steps:
        time.sleep(1000 if behaviour == "deaf" else STEP_SECONDS)
        step += 1
        total += 1 / step
        events.write("metric", step=step, split="train", values={"loss": total})
        events.write("progress", step=step, steps=steps, tokens_per_second=1.0)
        events.flush()
        if behaviour == "poison" and step == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        if behaviour == "crash":
            raise SystemExit("RuntimeError: CUDA out of memory")
        if behaviour == "nan" and step == 7:
            events.write("failed", reason="nan_loss", message="the loss is not a number at step 7")
            return 1
        if step % CHECKPOINT_EVERY == 0 or stop:
            events.flush(sync=True)
            with folder_written_atomically(paths.checkpoint(step)) as folder:
                write_json(folder / "state.json", {"step": step, "total": total})
        if stop:
            events.write("stopped", step=step, why="asked")
            return 75
    if behaviour != "empty":
        finish(spec, paths, events, total, manifest=behaviour != "no-manifest")
    return 0


def newest(paths: JobPaths) -> tuple[int, float]:
    found = sorted(paths.checkpoints.glob("step-*/state.json"))
    if not found:
        return 0, 0.0
    state = read_json(found[-1])
    return state["step"], state["total"]


def finish(spec: JobSpec, paths: JobPaths, events: EventWriter, total: float, *, manifest: bool) -> None:
    events.write("baseline", split="validation", values={"bleu": 1.5})
    events.write("metric", step=spec.recipe["train"]["steps"], split="validation", values={"bleu": 60.0})
    with folder_written_atomically(paths.artifact(spec.attempt)) as folder:
        write_json(folder / "artifact.json", {"format": 1, "method": spec.recipe["method"]["type"]})
        (folder / "prompt.safetensors").write_text(repr(total))
        if manifest:
            write_manifest(folder)
    events.write("artifact", folder=str(paths.artifact(spec.attempt)))


def on_term(*_: object) -> None:
    global stop
    stop = True


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, on_term)
    sys.exit(main())
