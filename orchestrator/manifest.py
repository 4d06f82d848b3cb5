"""`manifest.json`: the hash of every file of a folder, written last. A folder is complete when its manifest holds."""

from __future__ import annotations

import hashlib
from pathlib import Path

from orchestrator.paths import read_json, write_json

NAME = "manifest.json"


def write_manifest(folder: Path) -> str:
    """Hash every file of `folder`, write the manifest, return the folder's digest (the manifest's own hash)."""
    files = {
        path.relative_to(folder).as_posix(): {"sha256": file_sha256(path), "bytes": path.stat().st_size}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != NAME
    }
    write_json(folder / NAME, {"format": 1, "files": files})
    return digest_of(folder)


def digest_of(folder: Path) -> str:
    return "sha256:" + file_sha256(folder / NAME)


def manifest_faults(folder: Path) -> list[str]:
    """What does not hold: a missing manifest, missing, changed or added files. Empty when the folder is whole."""
    try:
        manifest = read_json(folder / NAME)
        files = dict(manifest["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return [f"{folder / NAME}: missing or not readable"]
    faults = []
    for name, expected in files.items():
        path = folder / name
        if ".." in Path(name).parts or Path(name).is_absolute() or path.is_symlink():
            faults.append(f"{name}: leads out of the folder")
        elif not path.is_file():
            faults.append(f"{name}: missing")
        elif path.stat().st_size != expected["bytes"] or file_sha256(path) != expected["sha256"]:
            faults.append(f"{name}: differs from its hash")
    present = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p.name != NAME}
    faults += [f"{name}: not in the manifest" for name in sorted(present - set(files))]
    return faults


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
