"""`ptq demo`: the main job from a fresh folder to predictions, with the commands that a user would type."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator import demo as material
from orchestrator.cli.output.render import Advance, duration, note, number, progress, say, table
from orchestrator.errors import PtqError
from orchestrator.paths import ArtifactPaths, read_json
from orchestrator.settings import child_environment, load_settings
from orchestrator.states import JobResult, JobState

if TYPE_CHECKING:
    from orchestrator.registry.jobs import Job
    from orchestrator.registry.storage.engine import Registry

METHODS = ("prompt-tuning", "prefix-tuning", "p-tuning")
_EXAMPLES = 3
_POLL_SECONDS = 0.3


def register(app: typer.Typer) -> None:
    app.command("demo")(demo)


def demo(
    home: Annotated[Path, typer.Option("--home", metavar="DIR", help="the PTQ_HOME to use; made if missing")] = Path(
        "ptq-demo"
    ),
    slots: Annotated[int, typer.Option("--cpu-slots", min=1, max=64, help="jobs at a time")] = 2,
    only_data: Annotated[bool, typer.Option("--only-data", help="register the dataset and stop")] = False,
) -> None:
    """Train three prompts on a small frozen base and show what they changed. No network, no GPU, about a minute."""
    from orchestrator.dispatch.running.processes import boot_id

    boot_id()  # or it says that it needs Linux, before anything is made
    home = home.absolute()
    started = time.time()
    stage = Stage(home)
    _add_data(stage)
    if only_data:
        return
    stage.run("base", "add", material.BASE_NAME, str(material.BASE_FOLDER))
    recipes = [str(_recipe(method)) for method in METHODS]
    before = _newest_job(stage)
    stage.run("submit", *recipes)
    _work(stage, slots, before)
    jobs = [job for job in stage.jobs() if job.id > before]
    failed = [job for job in jobs if job.result is not JobResult.SUCCEEDED]
    if failed:
        raise PtqError(
            f"{len(failed)} of {len(jobs)} jobs did not succeed", hint=f"see `PTQ_HOME={home} ptq logs {failed[0].id}`"
        )
    _show(stage, jobs)
    say(f"\nAll of it took {duration(time.time() - started)}.")


@dataclass(frozen=True)
class Stage:
    """The demo's PTQ_HOME, and `ptq` commands run in it."""

    home: Path

    def run(self, *arguments: str) -> None:
        """Show and run one command; its output is shown only when it fails."""
        note(f"$ ptq {' '.join(_quoted(argument) for argument in arguments)}")
        done = subprocess.run(self._command(*arguments), env=self._environment(), capture_output=True, text=True)
        if done.returncode:
            raise PtqError(f"`ptq {arguments[0]}` ended with {done.returncode}\n{done.stdout}{done.stderr}")

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        note(f"$ ptq {' '.join(arguments)}")
        return subprocess.Popen(
            self._command(*arguments),
            env=self._environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def registry(self) -> Registry:
        from orchestrator.registry.storage.engine import Registry

        return Registry.open(load_settings(self._environment()), create=True)

    def jobs(self) -> list[Job]:
        from orchestrator.registry.jobs import list_jobs

        with self.registry().read() as connection:
            return sorted(list_jobs(connection), key=lambda job: job.id)

    def _environment(self) -> dict[str, str]:
        environment = child_environment(PTQ_HOME=str(self.home))
        environment.pop("PTQ_REGISTRY", None)
        return environment

    @staticmethod
    def _command(*arguments: str) -> list[str]:
        return [sys.executable, "-P", "-m", "orchestrator.cli.main", *arguments]


def _add_data(stage: Stage) -> None:
    from orchestrator.demo.dataset import write_rows

    with tempfile.TemporaryDirectory(prefix="ptq-demo-") as folder:
        files = write_rows(Path(folder))
        stage.run(
            "dataset",
            "add",
            material.DATASET_NAME,
            *(part for split, file in files.items() for part in (f"--{split}", str(file))),
        )


def _recipe(method: str) -> Path:
    from orchestrator.recipe.shipped import recipes_folder

    return recipes_folder() / "demo" / f"{method}.yaml"


def _newest_job(stage: Stage) -> int:
    return max((job.id for job in stage.jobs()), default=0)


def _work(stage: Stage, slots: int, before: int) -> None:
    """Run a worker until nothing is left to do, with a bar over all steps of all jobs."""
    worker = stage.start("worker", "--cpu-slots", str(slots), "--until-idle")
    try:
        with progress("training") as advance:
            while worker.poll() is None:
                _report([job for job in stage.jobs() if job.id > before], advance)
                time.sleep(_POLL_SECONDS)
    except BaseException:
        worker.terminate()
        raise
    finally:
        output, _ = worker.communicate()
    if worker.returncode:
        raise PtqError(f"the worker ended with {worker.returncode}\n{output}")


def _report(jobs: list[Job], advance: Advance) -> None:
    known = [job.steps for job in jobs if job.steps]
    done = sum(job.state is JobState.FINISHED for job in jobs)
    advance(
        sum(job.step for job in jobs),
        sum(known) if len(known) == len(jobs) else None,
        f"{done} of {len(jobs)} jobs done",
    )


def _show(stage: Stage, jobs: list[Job]) -> None:
    from orchestrator.cli.output.curves import draw
    from orchestrator.cli.output.series import curve_of
    from orchestrator.registry.artifacts import list_artifacts

    registry = stage.registry()
    artifacts = {artifact.job_id: artifact for artifact in list_artifacts(registry)}
    facts = {job.id: read_json(ArtifactPaths(artifacts[job.id].path).facts) for job in jobs}
    say("\nOne frozen base, three trained prompts.")
    say("The base can write six forms; each prompt asks for one, the advert.\n")
    scores = [f"{name} {when}" for name in ("BLEU", "exact") for when in ("untuned", "tuned")]
    columns = ["job", "method", "virtual tokens", "bytes", *scores, "time"]
    table(columns, [_row(job, facts[job.id], artifacts[job.id].bytes) for job in jobs], right=columns[2:])
    _show_examples(jobs, facts)
    picture = stage.home / "loss-curves.png"
    draw([curve_of(registry, job.id) for job in jobs], picture)
    say(f"\nLoss curves  {picture}")
    for job in jobs:
        say(f"Artifact     {artifacts[job.id].path}  ({job.method})")
    first = jobs[0].id
    say(f"\nLook around: export PTQ_HOME={_quoted(str(stage.home))}")
    say(f"             ptq status --all; ptq show {first}; ptq logs {first}; ptq events {first}")


def _row(job: Job, facts: dict[str, Any], size: int) -> list[object]:
    untuned, tuned = facts["baseline"]["validation"], facts["metrics"]["validation"]
    seconds = (job.finished_at or 0.0) - (job.started_at or 0.0)
    scores = [number(scores[name]) for name in ("bleu", "exact_match") for scores in (untuned, tuned)]
    return [job.id, job.method, facts["length"], f"{size:,}", *scores, duration(seconds)]


def _show_examples(jobs: list[Job], facts: dict[int, dict[str, Any]]) -> None:
    first = facts[jobs[0].id]["samples"]
    for number_, sample in enumerate(first[:_EXAMPLES]):
        say(f"\n{sample['input']}")
        say(f"  wanted         {sample['target']}")
        say(f"  untuned        {sample['base']}")
        for job in jobs:
            say(f"  {job.method:14} {facts[job.id]['samples'][number_]['tuned']}")


def _quoted(text: str) -> str:
    import shlex

    return shlex.quote(text)
