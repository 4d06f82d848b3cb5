"""Host memory: what processes hold, and what is written into a cgroup where one may be made."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from queue_helpers import wait_until

from orchestrator.dispatch.running.memory import Cgroup, held_by


def test_what_is_held_is_what_was_allocated() -> None:
    code = "x = b'1' * (100 << 20); import mmap; print('up', flush=True); input()"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        wait_until(lambda: held_by([process.pid]) > 100 << 20, what="100 MiB")
        assert held_by([process.pid]) < 130 << 20
        assert held_by([process.pid, process.pid]) > 200 << 20
    finally:
        process.kill()
        process.communicate()
    assert held_by([process.pid]) == 0


def cgroup_tree(root: Path) -> Path:
    """As systemd delegates it: the service's own processes in a leaf, the branch above theirs to divide."""
    own = root / "system.slice" / "ptq.service" / "worker"
    own.mkdir(parents=True)
    (root / "cgroup.controllers").write_text("cpu memory\n")
    (own.parent / "cgroup.subtree_control").touch()
    return own


def test_a_run_gets_a_branch_of_its_own_beside_the_workers(tmp_path: Path) -> None:
    own = cgroup_tree(tmp_path)
    made = Cgroup.make("ptq-run-1", 1 << 30, root=tmp_path, own=own)
    assert made is not None
    assert made.folder == own.parent / "ptq-run-1"
    assert (own / "cgroup.procs").read_text() == str(os.getpid())  # has been there, and is back
    (made.folder / "cgroup.procs").unlink()
    written = {path.name: path.read_text() for path in made.folder.iterdir()}
    assert written == {"memory.max": str(1 << 30), "memory.swap.max": "0", "memory.oom.group": "1"}
    assert (own.parent / "cgroup.subtree_control").read_text() == "+memory"
    with made.inside():
        assert (made.folder / "cgroup.procs").read_text() == str(os.getpid())
    assert (own / "cgroup.procs").read_text() == str(os.getpid())
    assert not made.killed()
    (made.folder / "memory.events").write_text("max 12\noom 1\noom_kill 3\n")
    assert made.killed()


def test_where_it_may_not_the_supervisor_watches_instead(tmp_path: Path) -> None:
    own = cgroup_tree(tmp_path)
    (own.parent / "cgroup.subtree_control").unlink()
    (own.parent / "cgroup.subtree_control").mkdir()  # cannot be written
    (own / "cgroup.subtree_control").mkdir()
    assert Cgroup.make("ptq-run-1", 1 << 30, root=tmp_path, own=own) is None
    assert not (own.parent / "ptq-run-1").exists()
    assert Cgroup.make("ptq-run-1", 1 << 30, root=tmp_path / "v1") is None
