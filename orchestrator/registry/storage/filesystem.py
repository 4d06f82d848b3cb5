"""Which kind of filesystem a file is on, from /proc/self/mountinfo (proc(5)). Unknown is taken as local."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

#: Their locks or shared memory do not hold between hosts, and SQLite's WAL needs both.
NETWORK = frozenset(
    {"nfs", "nfs3", "nfs4", "cifs", "smb", "smb2", "smb3", "smbfs", "ncpfs", "afs", "coda", "ceph", "lustre", "gpfs"}
    | {"beegfs", "glusterfs", "orangefs", "pvfs2", "panfs", "wekafs", "ocfs2", "gfs2", "acfs", "moosefs", "juicefs"}
)
#: FUSE filesystems that are local disks.
LOCAL_FUSE = frozenset({"fuse.ntfs", "fuse.ntfs-3g", "fuseblk", "fuse.fuse-overlayfs", "fuse.mergerfs", "fuse.bindfs"})


def read_mountinfo() -> str:
    """The mounts of this process, or nothing where the system has no such file."""
    try:
        return Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return ""


def network_filesystem(path: Path, mountinfo: Callable[[], str] = read_mountinfo) -> str | None:
    """The type (nfs4, fuse.sshfs, …) when `path` is, or would be made, on a network filesystem."""
    kind = _type_of(path.resolve(), mountinfo())
    if kind in NETWORK or (kind.startswith("fuse.") and kind not in LOCAL_FUSE):
        return kind
    return None


def _type_of(path: Path, mountinfo: str) -> str:
    best, kind = -1, ""
    for line in mountinfo.splitlines():
        # 36 35 98:0 /root /mount/point options [optional…] - type source super-options
        before, separator, after = line.partition(" - ")
        columns = before.split(" ")
        if not separator or len(columns) < 5:
            continue
        point = Path(_unescaped(columns[4]))
        # A later mount on the same point hides the earlier one.
        if path.is_relative_to(point) and len(point.parts) >= best:
            best, kind = len(point.parts), after.split(" ", 1)[0]
    return kind


def _unescaped(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
