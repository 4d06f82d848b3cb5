"""`manifest.json`: the hash of every file of a folder, written last. A folder is complete when its manifest holds."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from orchestrator.paths import json_text, write_json

NAME = "manifest.json"
FORMAT = 1


def write_manifest(folder: Path) -> str:
    """Hash every file of `folder`, write the manifest, return the folder's digest (the manifest's own hash)."""
    files = {
        name: {"sha256": file_sha256(folder / name), "bytes": (folder / name).stat().st_size}
        for name in _entries(folder)
        if (folder / name).is_file()
    }
    write_json(folder / NAME, {"format": FORMAT, "files": files})
    return digest_of(folder)


def digest_of(folder: Path) -> str:
    return "sha256:" + file_sha256(folder / NAME)


def manifest_faults(folder: Path) -> list[str]:
    """What does not hold: a missing manifest, missing, changed or added files. Empty when the folder is whole."""
    try:
        text = (folder / NAME).read_bytes()
        manifest = json.loads(text)
        files = {str(name): (str(f["sha256"]), int(f["bytes"])) for name, f in dict(manifest["files"]).items()}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return [f"{folder / NAME}: missing or not readable"]
    faults = [f"{name}: {fault}" for name, expected in files.items() if (fault := _fault(folder, name, expected))]
    present = {name for name in _entries(folder) if (folder / name).is_symlink() or (folder / name).is_file()}
    faults += [f"{name}: not in the manifest" for name in sorted(present - set(files))]
    # A flipped bit in a space or a line's end would change nothing that is read: every byte has to be as we write it.
    if not faults and text != json_text({"format": FORMAT, "files": manifest["files"]}).encode():
        return [f"{folder / NAME}: not as it was written"]
    return faults


def _fault(folder: Path, name: str, expected: tuple[str, int]) -> str | None:
    path = folder / name
    inside = path.resolve() == folder.resolve() / name
    if ".." in Path(name).parts or Path(name).is_absolute() or not inside:
        return "leads out of the folder"  # or through a symbolic link
    if not path.is_file():
        return "missing"
    return None if (file_sha256(path), path.stat().st_size) == expected else "differs from its hash"


def _entries(folder: Path) -> list[str]:
    """Everything below the folder but its own manifest (one further down is a file like any other)."""
    return [name for path in sorted(folder.rglob("*")) if (name := path.relative_to(folder).as_posix()) != NAME]


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
