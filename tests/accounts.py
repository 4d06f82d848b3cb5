"""UNIX accounts made for a test, and commands run as them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Account:
    name: str
    uid: int
    gid: int
    team: int  #: the group that all of them are in
    folder: Path
    python: Path  #: an interpreter that it can run; `tests` and ptq lie in its path
    path: str

    def run(self, *command: str, umask: int = 0o077, **environment: str) -> subprocess.CompletedProcess[str]:
        """As at a login of this account: its own environment, its own (strict) umask."""
        env = {"PATH": os.environ["PATH"], "HOME": str(self.folder), "LOGNAME": self.name, "USER": self.name}
        env |= {
            "LD_LIBRARY_PATH": str(self.python.parents[1] / "lib")
        }  # its libpython may be found by an absolute path
        env |= {"PYTHONPATH": self.path, "OMP_NUM_THREADS": "1", **environment}
        return subprocess.run(
            command, env=env, cwd=self.folder, user=self.uid, group=self.gid, extra_groups=[self.team], umask=umask,
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip


@contextmanager
def accounts(count: int) -> Iterator[tuple[str, list[Account]]]:
    """A group and accounts in it, gone afterwards. Skips where that is impossible, and says why."""
    if os.getuid() != 0:
        pytest.skip("only root can make accounts")
    for tool in ("useradd", "groupadd"):
        if shutil.which(tool) is None:
            pytest.skip(f"there is no {tool} here")
    mark = uuid.uuid4().hex[:6]
    team = f"ptq{mark}"
    with ExitStack() as stack:
        _system(stack, ["groupadd", team], ["groupdel", team])
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ptq-accounts-")))
        folder.chmod(0o755)  # pytest's own folders let nobody else in
        python, path = _interpreter(stack, folder)
        made = [_account(stack, f"ptq{mark}{letter}", team, folder, python, path) for letter in "abcdefg"[:count]]
        tried = made[0].run(str(python), "-P", "-c", "import orchestrator.cli.main, fake_training")
        assert tried.returncode == 0, tried.stderr
        yield team, made


@contextmanager
def as_on_debian() -> Iterator[None]:
    """With the kernel's protection of files in sticky folders as Debian sets it, where it may be set."""
    switch = Path("/proc/sys/fs/protected_regular")
    try:
        before = switch.read_text()
        switch.write_text("2\n")
    except OSError:  # a kernel without it, or a container
        yield
        return
    try:
        yield
    finally:
        switch.write_text(before)


def _interpreter(stack: ExitStack, folder: Path) -> tuple[Path, str]:
    """This interpreter and this checkout where every account can reach them, for they may lie in a home of root's."""
    places = {"python": Path(sys.base_prefix), "site": Path(pytest.__file__).parent.parent, "repository": REPOSITORY}
    for name, source in places.items():
        (folder / name).mkdir()
        command = ["mount", "--bind", str(source), str(folder / name)]
        if subprocess.run(command, capture_output=True, timeout=30, check=False).returncode:
            pytest.skip("root may not mount here, and other accounts cannot reach the interpreter")
        stack.callback(subprocess.run, ["umount", "--lazy", str(folder / name)], check=False, timeout=30)
    path = ":".join(str(folder / part) for part in ("repository", "repository/tests", "site"))
    return folder / "python" / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}", path


def _account(stack: ExitStack, name: str, team: str, folder: Path, python: Path, path: str) -> Account:
    import grp
    import pwd

    _system(stack, ["useradd", "--no-create-home", "--user-group", "--groups", team, name], ["userdel", name])
    known = pwd.getpwnam(name)
    own = folder / name
    own.mkdir(mode=0o700)
    os.chown(own, known.pw_uid, known.pw_gid)
    return Account(name, known.pw_uid, known.pw_gid, grp.getgrnam(team).gr_gid, own, python, path)


def _system(stack: ExitStack, make: list[str], remove: list[str]) -> None:
    subprocess.run(make, check=True, capture_output=True, timeout=30)
    stack.callback(subprocess.run, remove, check=False, capture_output=True, timeout=30)
