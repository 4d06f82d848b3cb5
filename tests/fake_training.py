"""Speaks the training program's contract without training anything: `python fake_training.py RUN_FOLDER`.

Its number after step s is the sum of 1/i for i up to s, so that a wrong resume shows. Jobs join through the inbox and
leave alone, as in the real program. What a job should do besides is read from its recipe's description: nan, crash
(end the whole program), poison (KILL it), pauses (stops itself at step 12 of its first try, until SIGCONT), held (takes
no last step before `let_go` in queue_helpers.py; the others of its run go on), one of `unruly.KINDS`, greedy (for
memory), talkative, hang (never reach another step boundary), empty (leave without an artifact), no-manifest,
environment (print it).
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # a run's processes take no module from where they are (PYTHONSAFEPATH)

import unruly

from orchestrator import failpoints
from orchestrator.events import EventWriter
from orchestrator.jobspec import JobSpec, RunSpec, close_inbox, take_tickets
from orchestrator.manifest import write_manifest
from orchestrator.paths import JobPaths, RunPaths, folder_written_atomically, read_json, write_json

STEP_SECONDS = 0.02
CHECKPOINT_EVERY = 5

stop = any_failed = False


@dataclass
class FakeJob:
    spec: JobSpec
    paths: JobPaths
    events: EventWriter
    step: int
    total: float
    until: float

    @classmethod
    def open(cls, folder: str, began: float) -> FakeJob:
        paths = JobPaths(Path(folder))
        spec = JobSpec.read(paths.spec)
        print(f"fake training: job {spec.job}, attempt {spec.attempt}, pid {os.getpid()}", flush=True)
        events = EventWriter(paths.events, spec.attempt)
        step, total = newest(paths)
        limit = spec.recipe["resources"].get("time_limit")
        job = cls(spec, paths, events, step, total, began + (limit or 1e9))
        events.write("started", processes=1, device="cpu", resumed_from=step, steps=job.steps)
        events.flush()
        if job.behaviour == "environment":
            subprocess.run(["env"], check=True)
        if job.behaviour in unruly.KINDS:
            unruly.be(job.behaviour)
        if job.behaviour == "greedy":
            hoard = [bytearray(b"x" * (8 << 20))]
            while True:
                hoard.append(bytearray(b"x" * (8 << 20)))
                time.sleep(0.05)
        if job.behaviour == "talkative":
            sys.stdout.write("a long line of a long log\n" * 4_000_000)
        return job

    @property
    def behaviour(self) -> str:
        return str(self.spec.recipe["description"])

    @property
    def steps(self) -> int:
        return int(self.spec.recipe["train"]["steps"])

    def advance(self) -> bool:
        """One step; False when the job has left."""
        if self.behaviour == "held" and self.step == self.steps - 1 and not (self.paths.root / "let-go").exists():
            return True
        if self.step < self.steps:
            self.step += 1
            self.total += 1 / self.step
            self.events.write("metric", step=self.step, split="train", values={"loss": self.total})
            self.events.write("progress", step=self.step, steps=self.steps, tokens_per_second=1.0)
            self.events.flush()
        failpoints.reach("training.stepped")
        if self.behaviour == "poison" and self.step == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.behaviour == "pauses" and self.step == 12 and self.spec.attempt == 1:
            os.kill(os.getpid(), signal.SIGSTOP)
        if self.behaviour == "crash":
            raise SystemExit("RuntimeError: CUDA out of memory")
        if self.behaviour == "hang" and self.step == 5:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(1000)
        if self.behaviour == "nan" and self.step == 7:
            message = "the loss is not a number at step 7"
            return self.leave("failed", reason="nan_loss", message=message, alone=True)
        if self.step % CHECKPOINT_EVERY == 0:
            self.checkpoint()
        if self.step >= self.steps:
            return self.finish()
        return True

    def checkpoint(self) -> None:
        self.events.flush(sync=True)
        with folder_written_atomically(self.paths.checkpoint(self.step)) as folder:
            write_json(folder / "state.json", {"step": self.step, "total": self.total})
        failpoints.reach("training.checkpointed")

    def asked_to_leave(self) -> bool:
        if time.monotonic() > self.until:
            self.checkpoint()
            return not self.leave("failed", reason="timeout", message="the time limit is over", alone=True)
        if self.paths.stop_request.exists():
            asked = read_json(self.paths.stop_request)
            if asked["attempt"] == self.spec.attempt:
                self.checkpoint()
                return not self.leave("stopped", step=self.step, why=asked["why"])
        return False

    def finish(self) -> bool:
        if self.behaviour == "empty":
            self.events.close()
            return False
        self.events.write("baseline", split="validation", values={"bleu": 1.5})
        self.events.write("metric", step=self.steps, split="validation", values={"bleu": 60.0})
        folder = self.paths.artifact(self.spec.attempt)
        with folder_written_atomically(folder) as made:
            write_json(made / "artifact.json", {"format": 1, "method": self.spec.recipe["method"]["type"]})
            (made / "prompt.safetensors").write_text(repr(self.total))
            if self.spec.recipe["method"]["type"] == "lm-adapt":
                shutil.copytree(self.spec.base.path, made / "base")
                write_json(made / "base" / "origin.json", {"parent": self.spec.base.id, "steps": self.steps})
            if self.behaviour != "no-manifest":
                write_manifest(made)
        return self.leave("artifact", folder=str(folder))

    def leave(self, last_word: str, **fields: object) -> bool:
        global any_failed
        any_failed = any_failed or last_word == "failed"
        self.events.write(last_word, **fields)
        self.events.close()
        failpoints.reach("training.left")
        return False


def main() -> int:
    began = time.monotonic()
    paths = RunPaths(Path(sys.argv[1]))
    run = RunSpec.read(paths.spec)
    present = [FakeJob.open(folder, began) for folder in run.jobs]
    empty_since = time.monotonic()
    while True:
        if stop and present:
            for job in present:
                job.checkpoint()
                job.leave("stopped", step=job.step, why="asked")
            return 75
        present += [FakeJob.open(ticket.folder, time.monotonic()) for ticket in take_tickets(paths)]
        present = [job for job in present if not job.asked_to_leave()]
        if present:
            empty_since = time.monotonic()
        elif stop or (time.monotonic() - empty_since >= run.keep_warm_seconds and close_inbox(paths)):
            return int(any_failed)
        time.sleep(STEP_SECONDS)
        present = [job for job in present if job.advance()]


def newest(paths: JobPaths) -> tuple[int, float]:
    found = sorted(paths.checkpoints.glob("step-*/state.json"))
    if not found:
        return 0, 0.0
    state = read_json(found[-1])
    return state["step"], state["total"]


def on_term(*_: object) -> None:
    global stop
    stop = True


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, on_term)
    sys.exit(main())
