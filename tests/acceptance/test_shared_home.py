"""One PTQ_HOME for three real accounts: one works, two submit, and each of them keeps what is theirs."""

from __future__ import annotations

import json
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from accounts import Account, accounts, as_on_debian
from queue_helpers import recipe_file

PTQ = ["-P", "-m", "orchestrator.cli.main"]
CANARY = "canary-4711"
#: What each of them has in the environment: none of it may be found in the home.
SECRETS = {"HF_TOKEN": f"hf-{CANARY}", "AWS_SECRET_ACCESS_KEY": f"aws-{CANARY}", "MY_OWN": f"own-{CANARY}"}
SECRETS |= {"PTQ_SMTP_PASSWORD": f"smtp-{CANARY}", "WANDB_API_KEY": f"wandb-{CANARY}"}


@dataclass
class Team:
    home: Path
    keeper: Account
    ada: Account
    bob: Account
    group: str

    def ptq(self, who: Account, *arguments: str, code: int = 0) -> str:
        done = who.run(str(who.python), *PTQ, *arguments, PTQ_HOME=str(self.home), PTQ_USER="somebody-else", **SECRETS)
        assert done.returncode == code, f"{who.name}: ptq {arguments}: {done.stdout}{done.stderr}"
        return done.stdout if code == 0 else done.stderr

    def shell(self, who: Account, command: str) -> int:
        return who.run("bash", "-c", command, umask=0o022).returncode


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    made = tmp_path_factory.mktemp("recipe")
    recipe = recipe_file(made)
    (made / "rows.jsonl").write_text('{"source": "a", "target": "b"}\n' * 4)
    with as_on_debian(), accounts(3) as (group, [keeper, ada, bob]):
        shared = keeper.folder.parent / "recipe"
        shutil.copytree(made, shared)
        shared.chmod(0o755)
        recipe = shared / recipe.name
        recipe.write_text(recipe.read_text().replace(str(made), str(shared)) + "description: environment\n")
        home = keeper.folder.parent / "home"
        home.mkdir()
        shutil.chown(home, keeper.uid)
        made_team = Team(home, keeper, ada, bob, group)
        made_team.ptq(keeper, "init", "--group", group)
        made_team.ptq(ada, "dataset", "add", "rows", "--train", str(shared / "rows.jsonl"))
        for who in (ada, bob):  # jobs 1 and 2 are ada's, 3 and 4 bob's
            made_team.ptq(who, "submit", str(recipe), str(recipe))
        yield made_team


def test_each_sees_both_under_the_names_of_their_accounts(team: Team) -> None:
    for who in (team.ada, team.bob):
        shown = json.loads(team.ptq(who, "status", "--json"))
        expected = {1: team.ada.name, 2: team.ada.name, 3: team.bob.name, 4: team.bob.name}
        assert {job["id"]: job["user"] for job in shown["jobs"]} == expected


WRITES_AND_DIES = """
import os
from orchestrator.cli.common import open_registry
from orchestrator.registry import controls
from orchestrator.sharing import keep_to_the_group
registry = open_registry()
keep_to_the_group(registry.paths.root)
with registry.write() as conn:
    controls.clear(conn, "nothing")
os._exit(0)  # SQLite's side files stay
"""


def test_side_files_that_one_member_has_made_keep_nobody_from_writing(team: Team) -> None:
    assert stat.S_IMODE(team.home.stat().st_mode) == 0o2770  # sticky, with fs.protected_regular = 2, it would not do
    for who, verb, said in ((team.ada, "pause", "job 1 paused"), (team.keeper, "resume", "job 1")):
        died = team.bob.run(str(team.bob.python), "-P", "-c", WRITES_AND_DIES, PTQ_HOME=str(team.home))
        assert died.returncode == 0, died.stderr
        assert (team.home / "registry.db-wal").stat().st_uid == team.bob.uid
        assert said in team.ptq(who, verb, "1")


def test_the_keeper_may_share_a_home_again_in_which_others_have_added(team: Team) -> None:
    assert team.ptq(team.keeper, "init", "--group", team.group).endswith(f"shared by the group {team.group}\n")


def test_nobody_changes_anothers_job(team: Team) -> None:
    said = team.ptq(team.bob, "cancel", "1", code=2)
    assert f"job 1 is {team.ada.name}'s; you are {team.bob.name}" in said
    assert f"job 3 is {team.bob.name}'s" in team.ptq(team.ada, "cancel", "1", "3", code=2)  # all or none
    assert "job 2 cancelled" in team.ptq(team.ada, "cancel", "2")
    assert f"job 2 is {team.ada.name}'s" in team.ptq(team.bob, "retry", "2", code=2)
    assert "job 4 cancelled" in team.ptq(team.keeper, "cancel", "4")  # the account that made the home may
    states = {job["id"]: job["state"] for job in json.loads(team.ptq(team.ada, "status", "--json"))["jobs"]}
    assert states == {1: "queued", 2: "finished", 3: "queued", 4: "finished"}


def test_one_account_works_and_leaves_what_all_may_read_and_nobody_may_change(team: Team) -> None:
    environment = {"PTQ_HOME": str(team.home), **SECRETS}
    refused = team.bob.run(str(team.bob.python), *PTQ, "worker", "--cpu-slots", "1", "--until-idle", **environment)
    assert (refused.returncode, f"run by {team.keeper.name}" in refused.stderr) == (2, True)
    policy = team.home / "queue.toml"
    assert team.shell(team.bob, f'echo \'[notify]\ncommand = ["touch", "{team.home}/owned"]\' > {policy}') == 0
    trapped = team.keeper.run(str(team.keeper.python), *PTQ, "worker", "--cpu-slots", "1", **environment)
    assert (trapped.returncode, "may be written by others than" in trapped.stderr) == (2, True)
    policy.unlink()
    tests = team.keeper.python.parents[2] / "repository" / "tests"
    program = str(tests / "fake_worker.py"), str(tests / "fake_training.py")
    done = team.keeper.run(str(team.keeper.python), *program, "1", "until-idle", **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    for who in (team.ada, team.bob):
        results = {job["id"]: job["result"] for job in json.loads(team.ptq(who, "status", "--json"))["jobs"]}
        assert results[1] == results[3] == "succeeded"
        assert "LOGNAME" in team.ptq(who, "logs", "1")  # the program has printed its whole environment
        assert "starting" in team.ptq(who, "events", "1")
        assert "a1" in team.ptq(who, "artifact", "verify", "a1")
    for victim in ("jobs/1/events.jsonl", "jobs/1", "runs/1/run.log", "runs/1", "store/artifacts/*/prompt.safetensors"):
        path = f"{team.home}/{victim}"
        for who in (team.ada, team.bob):
            assert team.shell(who, f"echo x >> {path} || echo x > {path}/x || rm -rf {path}") != 0, (who, victim)
    assert team.shell(team.bob, f"rm -rf {team.home}/store/datasets/*") != 0  # ada's
    assert team.ptq(team.bob, "artifact", "verify", "a1")
    assert team.ptq(team.ada, "dataset", "verify", "rows")


def test_rows_that_another_account_has_added_get_a_second_name(team: Team) -> None:
    rows = team.keeper.folder.parent / "recipe" / "rows.jsonl"
    assert "mine@1: 4 rows" in team.ptq(team.bob, "dataset", "add", "mine", str(rows))
    assert team.ptq(team.bob, "dataset", "verify", "mine") == "mine@1: whole\n"


def test_nobody_is_told_of_room_that_another_account_keeps(team: Team) -> None:
    left = team.home / "store" / "datasets" / ("0" * 64)
    make = f"mkdir {left} && echo x > {left}/x && touch -d '2 hours ago' {left}"
    assert team.ada.run("bash", "-c", make, umask=0o027).returncode == 0
    for who in (team.bob, team.keeper):
        assert json.loads(team.ptq(who, "gc", "--yes", "--json"))["found"] == []
        (found,) = json.loads(team.ptq(who, "gc", "--json"))["found"]
        assert (found["path"], found["owner"]) == (str(left), team.ada.name)
    (gone,) = json.loads(team.ptq(team.ada, "gc", "--yes", "--json"))["found"]
    assert (gone["owner"], left.exists()) == ("", False)


def test_no_secret_of_anybody_is_in_the_home(team: Team) -> None:
    files = [path for path in team.home.rglob("*") if path.is_file()]
    assert any(path.name == "run.log" for path in files)
    assert [path for path in files if CANARY.encode() in path.read_bytes()] == []


def test_strangers_see_nothing_and_modes_do_not_depend_on_anybodys_umask(team: Team) -> None:
    for path in [team.home, *team.home.rglob("*")]:
        mode = path.stat().st_mode
        assert mode & stat.S_IRWXO == 0, path
        assert mode & stat.S_IRGRP, path
        assert path.stat().st_gid == team.keeper.team, path
    assert stat.S_IMODE((team.home / "registry.db").stat().st_mode) == 0o660
