"""LM adaptation registers the base it makes: once, whatever dies meanwhile; a name that is taken is refused at once."""

from __future__ import annotations

from pathlib import Path

import pytest
from in_process import ptq
from machine import Killed
from queue_helpers import add_jobs, base_folder, get
from test_reconcile import Box, a_new_worker, box  # noqa: F401

from orchestrator.dispatch import reproduce
from orchestrator.registry import bases, history, jobs
from orchestrator.registry.artifacts import get_artifact
from orchestrator.states import JobResult, JobState

RECIPE = """\
name: adapted
base: parent
dataset: rows
task: {{type: text, input: "{{source}}"}}
method: {{type: lm-adapt, register_as: "{name}"}}
train: {{{train}, lr: 0.1}}
"""


@pytest.fixture
def ready(box: Box, tmp_path: Path) -> Box:  # noqa: F811
    """With rows and a base `parent`; job 1 is somebody else's."""
    add_jobs(box.registry, steps=1)
    box.go_on(4)
    bases.add_base(box.registry, "parent", str(base_folder(tmp_path / "parent")), user="ada", now=1.0)
    return box


def submit(folder: Path, name: str, train: str = "steps: 4") -> str:
    path = folder / "adapted.yaml"
    path.write_text(RECIPE.format(name=name, train=train))
    done = ptq("submit", path)
    assert (done.returncode == 0) == (not done.stderr or "no worker" in done.stderr)
    return done.stderr if done.returncode else ""


def told(box: Box, job: int, kind: str) -> list[dict[str, object]]:  # noqa: F811
    with box.registry.read() as conn:
        return [one.detail for one in history.list_events(conn, job) if one.kind == kind]


@pytest.mark.parametrize("where", ["worker.staged", "worker.settled"])
def test_the_base_is_there_when_the_job_has_succeeded(ready: Box, tmp_path: Path, where: str) -> None:
    assert not submit(tmp_path, "adapted-{steps}-{seed}")
    assert get(ready.registry, 2).recipe["method"]["register_as"] == "adapted-4-1"
    ready.machine.die_at = where
    with pytest.raises(Killed):
        ready.go_on(9)
    done = get(ready.registry, 2).result is JobResult.SUCCEEDED
    assert done == (where == "worker.settled")
    assert ("adapted-4-1" in {one.name for one in bases.list_bases(ready.registry)}) == done  # both or neither
    a_new_worker(ready)
    ready.go_on(4)
    assert get(ready.registry, 2).result is JobResult.SUCCEEDED
    base = bases.get_base(ready.registry, "adapted-4-1")
    assert base.path == get_artifact(ready.registry, "2").path / "base"
    assert base.facts.origin == {"parent": "parent", "steps": 4}
    assert (base.created_by, bases.faults(base)) == (get(ready.registry, 2).user, [])
    assert told(ready, 2, "registered") == [{"base": "adapted-4-1"}]
    assert ptq("base", "add", "adapted-4-1", "a2").returncode == 0  # the same again, by hand: nothing new


def test_a_name_that_is_taken_meanwhile_costs_the_name_alone(ready: Box, tmp_path: Path) -> None:
    assert not submit(tmp_path, "mine")
    other = bases.add_base(ready.registry, "mine", str(base_folder(tmp_path / "other", 1.0)), user="bob", now=1.0)
    ready.go_on(9)
    assert get(ready.registry, 2).result is JobResult.SUCCEEDED
    assert bases.get_base(ready.registry, "mine") == other
    assert get_artifact(ready.registry, "2").method == "lm-adapt"
    assert "another base is called mine by now; `ptq base add NAME a2`" in str(told(ready, 2, "warning"))
    assert ptq("base", "add", "mine-too", "a2").returncode == 0


def test_an_artifact_without_its_base_is_not_complete(ready: Box, tmp_path: Path) -> None:
    assert not submit(tmp_path, "mine")
    ready.go_on(2)
    (tmp_path / "parent" / "config.json").unlink()
    ready.go_on(9)
    job = get(ready.registry, 2)
    assert (job.result, str(job.reason)) == (JobResult.FAILED, "incomplete_artifact")
    assert "no config.json" in str(job.message)
    assert "mine" not in {one.name for one in bases.list_bases(ready.registry)}


REFUSED = [
    ("parent", "steps: 4", "there is another base 'parent'"),
    ("promised", "steps: 4", "job 2 is going to register 'promised'"),
    ("new", "steps: 4, seeds: [1, 2]", "2 jobs would register one base 'new'"),
    ("new-{steps}", "epochs: 1", "names {steps}, which are not known of epochs"),
    ("new-{width}", "steps: 4", "register_as"),
]


def test_what_could_not_be_registered_is_refused_at_submit(ready: Box, tmp_path: Path) -> None:
    assert not submit(tmp_path, "promised")
    for name, train, fault in REFUSED:
        assert fault in submit(tmp_path, name, train)
    twice = [tmp_path / f"{number}.yaml" for number in range(2)]
    for path in twice:
        path.write_text(RECIPE.format(name="new", train="steps: 4"))
    assert "2 jobs would register one base 'new'" in ptq("submit", *twice).stderr
    with ready.registry.read() as conn:
        assert len(jobs.list_jobs(conn)) == 2


def test_a_job_that_is_tried_again_is_asked_for_its_name_too(ready: Box, tmp_path: Path) -> None:
    assert not submit(tmp_path, "mine")
    assert ptq("cancel", "2").returncode == 0
    assert not submit(tmp_path, "mine")
    refused = ptq("retry", "2")
    assert (refused.returncode, "job 3 is going to register 'mine'" in refused.stderr) == (2, True)
    assert get(ready.registry, 2).state is JobState.FINISHED


def test_epochs_and_seeds_name_each_base(ready: Box, tmp_path: Path) -> None:
    assert not submit(tmp_path, "a-{seed}", "epochs: 1, seeds: [1, 2]")
    assert [get(ready.registry, job).recipe["method"]["register_as"] for job in (2, 3)] == ["a-1", "a-2"]


def test_each_job_of_a_sweep_has_a_base_of_its_own(ready: Box, tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(RECIPE.format(name="a-{steps}-{seed}", train="seeds: [1, 2]") + "sweep: {train.steps: [1, 2]}\n")
    assert ptq("submit", path).returncode == 0
    ready.go_on(16)
    made = {one.name: one.facts.origin["steps"] for one in bases.list_bases(ready.registry) if one.facts.origin}
    assert made == {"a-1-1": 1, "a-1-2": 1, "a-2-1": 2, "a-2-2": 2}


def test_a_job_that_is_reproduced_leaves_the_name_alone(
    ready: Box, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not submit(tmp_path, "mine")
    ready.go_on(9)
    base = bases.get_base(ready.registry, "mine")
    monkeypatch.setattr(reproduce.datasets, "verify", lambda _: [])  # these rows are in no file
    again = reproduce.repeat_job(ready.registry, 2, user="ada", command=["ptq"], now=2.0)
    ready.go_on(9)
    assert get(ready.registry, again).result is JobResult.SUCCEEDED
    assert told(ready, again, "warning") == told(ready, again, "registered") == []
    assert bases.get_base(ready.registry, "mine") == base
