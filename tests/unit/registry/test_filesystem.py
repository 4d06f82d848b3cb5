"""Which filesystems are refused. The mount tables are real ones, shortened."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.registry.storage.filesystem import network_filesystem, read_mountinfo

MOUNTS = r"""
22 1 259:2 / / rw,relatime shared:1 - ext4 /dev/nvme0n1p2 rw
30 22 0:26 / /home rw,relatime shared:2 - nfs4 server:/export/home rw,vers=4.2
31 30 259:3 / /home/local rw,relatime shared:3 - xfs /dev/nvme1n1 rw
32 22 0:27 / /mnt/my\040share rw - cifs //server/share rw
33 22 0:28 / /mnt/ssh rw - fuse.sshfs me@host: rw
34 22 0:29 / /scratch rw shared:4 master:5 - lustre 10.0.0.1@tcp:/scratch rw
35 22 0:30 / /merged rw - fuse.mergerfs /a:/b rw
36 22 0:31 / /twice rw - nfs server:/a rw
37 36 0:32 / /twice rw - tmpfs tmpfs rw
"""


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/var/registry.db", None),
        ("/home/ann/registry.db", "nfs4"),
        ("/home/local/ann/registry.db", None),
        ("/homes/registry.db", None),
        ("/mnt/my share/registry.db", "cifs"),
        ("/mnt/ssh/new/folder/registry.db", "fuse.sshfs"),
        ("/scratch/registry.db", "lustre"),
        ("/merged/registry.db", None),
        ("/twice/registry.db", None),
    ],
)
def test_the_innermost_mount_decides(path: str, expected: str | None) -> None:
    assert network_filesystem(Path(path), lambda: MOUNTS) == expected


def test_unknown_is_taken_as_local() -> None:
    assert network_filesystem(Path("/anywhere"), lambda: "") is None
    assert network_filesystem(Path("/anywhere"), lambda: "garbage\n\n - \n") is None


def test_this_system_can_be_read(tmp_path: Path) -> None:
    assert " / " in read_mountinfo()
    assert network_filesystem(tmp_path) is None
