"""What the environment says."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from orchestrator.errors import BadInput
from orchestrator.settings import load_settings, training_environment, without_secrets


def test_home_is_the_variable_else_the_nearest_registry_else_here(tmp_path: Path) -> None:
    deep = tmp_path / "a" / "b"
    deep.mkdir(parents=True)
    assert load_settings({}, deep).home == deep
    (tmp_path / "registry.db").touch()
    assert load_settings({}, deep).home == tmp_path
    (deep / "registry.db").mkdir()  # a folder is no registry
    assert load_settings({}, deep).home == tmp_path
    assert load_settings({"PTQ_HOME": str(deep)}, tmp_path).home == deep
    assert load_settings({"PTQ_HOME": ""}, deep).home == tmp_path
    assert not (tmp_path / "a" / "b" / "jobs").exists()


def test_a_strangers_registry_is_no_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder above that others may write to; where a group shares it, its mode says so."""
    deep = tmp_path / "a"
    deep.mkdir()
    (tmp_path / "registry.db").touch()
    owner = (tmp_path / "registry.db").stat().st_uid
    if owner == 0:  # root's is everybody's
        os.chown(tmp_path / "registry.db", 4711, -1)
    monkeypatch.setattr(os, "getuid", lambda: 4242)
    assert load_settings({"PTQ_USER": "x"}, deep).home == deep
    assert load_settings({"PTQ_USER": "x", "PTQ_HOME": str(tmp_path)}, deep).home == tmp_path
    tmp_path.chmod(0o2770)
    assert load_settings({}, deep).home == tmp_path


@pytest.mark.parametrize("value", ["nan", "inf", "-1", "1e999", "x"])
@pytest.mark.parametrize("name", ["PTQ_GRACE", "PTQ_RUN_MEMORY", "PTQ_THREADS"])
def test_numbers_that_are_none_are_refused(name: str, value: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="not a number"):
        load_settings({name: value}, tmp_path)


def test_home_keeps_links_and_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    monkeypatch.chdir(tmp_path)
    assert load_settings({"PTQ_HOME": "link/../link"}).home == tmp_path / "link"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_settings({"PTQ_HOME": "~/x"}).home == tmp_path / "x"


def test_the_registry_lies_in_the_home_unless_told(tmp_path: Path) -> None:
    assert load_settings({}, tmp_path).registry_url == f"sqlite:///{tmp_path}/registry.db"
    assert load_settings({"PTQ_REGISTRY": "postgresql://x"}, tmp_path).registry_url == "postgresql://x"


@pytest.mark.parametrize(("value", "offline"), [("1", True), ("TRUE", True), ("Yes", True), ("0", False), ("", False)])
def test_offline_is_read_as_the_hub_reads_it(value: str, offline: bool, tmp_path: Path) -> None:
    assert load_settings({"HF_HUB_OFFLINE": value}, tmp_path).offline is offline


@pytest.mark.parametrize(("value", "allowed"), [("1", True), ("true", False), ("", False), ("0", False)])
def test_remote_code_needs_a_clear_yes(value: str, allowed: bool, tmp_path: Path) -> None:
    assert load_settings({"PTQ_ALLOW_REMOTE_CODE": value}, tmp_path).allow_remote_code is allowed


@pytest.mark.parametrize(
    "address", ["http://ann:p@ss@host/x", "mysql+pymysql://u:pa/ss@host/db", "https://key@host", "a://u:p@h b://u:q@i"]
)
def test_no_password_of_an_address_is_told(address: str) -> None:
    told = without_secrets(f"no such database: {address}, see https://example.org/x@v1 or write to me@example.org")
    assert not re.search(r"p@ss|pa/ss|ss@|key|u:|p@h", told)
    assert told.endswith(", see https://example.org/x@v1 or write to me@example.org")


def test_a_user_without_a_name_is_a_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nameless() -> str:
        raise KeyError("getpwuid(): uid not found: 12345")

    monkeypatch.setattr("getpass.getuser", nameless)
    monkeypatch.setattr("os.getuid", lambda: 12345)
    assert load_settings({}, tmp_path).user == "12345"
    assert load_settings({"PTQ_USER": "ada"}, tmp_path).user == "ada"


def test_a_run_gets_the_settings_of_its_libraries_and_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    passed = ("PYTORCH_CUDA_ALLOC_CONF", "CUBLAS_WORKSPACE_CONFIG", "NCCL_DEBUG", "DEEPSPEED_TIMEOUT")
    for name in (*passed, "HF_TOKEN", "AWS_PROFILE"):
        monkeypatch.setenv(name, "x")
    found = training_environment(MORE="y")
    assert {name: found.get(name) for name in passed} == dict.fromkeys(passed, "x")
    assert found["MORE"] == "y"
    assert not {"HF_TOKEN", "AWS_PROFILE"} & found.keys()


def test_threads_are_what_is_said_else_a_fair_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _pid: range(12), raising=False)
    assert load_settings({"PTQ_THREADS": "3", "OMP_NUM_THREADS": "2"}, tmp_path).threads == 3
    assert load_settings({"OMP_NUM_THREADS": "2"}, tmp_path).threads == 2
    assert load_settings({}, tmp_path).threads == 12
    tmp_path.chmod(0o2770)  # a shared home
    assert load_settings({}, tmp_path).threads == 3
    monkeypatch.setattr("os.sched_getaffinity", lambda _pid: range(2), raising=False)
    assert load_settings({}, tmp_path).threads == 1


@pytest.mark.parametrize(
    ("value", "seen"), [("GPU-a, 1", ("GPU-a", "1")), ("", ()), ("-1", ()), ("0,-1,1", ("0",)), ("NoDevFiles", ())]
)
def test_granted_cards_are_read_as_cuda_reads_them(tmp_path: Path, value: str, seen: tuple[str, ...]) -> None:
    assert load_settings({"CUDA_VISIBLE_DEVICES": value}, tmp_path).visible_gpus == seen
    assert load_settings({}, tmp_path).visible_gpus is None
