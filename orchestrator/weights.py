"""A base's weights on disk, read without torch: which safetensors files, and one fingerprint over all tensors.

The fingerprint does not depend on how the tensors are spread over files. Format of a safetensors file:
8 bytes little-endian header length, a JSON header {name: {dtype, shape, data_offsets}}, the data.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from orchestrator.errors import BadInput

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_CHUNK = 1 << 22
_AGAIN = "fetch the model again, or save it again with `model.save_pretrained(folder)`"


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder. Pickled weights are refused (they can run code when loaded)."""
    index = folder / INDEX
    if index.is_file():
        return _indexed(folder, index)
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    pickles = sorted(p.name for p in folder.glob("*") if p.suffix in {".bin", ".pt", ".pth", ".ckpt", ".pkl"})
    if pickles:
        raise BadInput(
            f"only pickled weights ({', '.join(pickles)}); a pickle can run code when it is loaded",
            where=str(folder),
            hint="save the model again with `model.save_pretrained(folder, safe_serialization=True)`",
        )
    raise BadInput(
        f"no {SINGLE} in this folder", where=str(folder), hint="name a folder that `model.save_pretrained` wrote"
    )


def fingerprint(folder: Path) -> str:
    """sha256 over (name, dtype, shape, bytes) of every tensor in the order of their names."""
    tensors = sorted((entry for path in weight_files(folder) for entry in _tensors(path)), key=lambda e: e[0])
    total = hashlib.sha256()
    for name, facts, path, start, end in tensors:
        total.update(json.dumps([name, facts["dtype"], facts["shape"], end - start]).encode())
        for chunk in _read(path, start, end):
            total.update(chunk)
    return "sha256:" + total.hexdigest()


def tensor_names(folder: Path) -> frozenset[str]:
    """Names of all tensors in the files."""
    return frozenset(name for path in weight_files(folder) for name, *_ in _tensors(path))


def tensor_shapes(path: Path) -> dict[str, list[int]]:
    """Name -> shape of every tensor in one safetensors file."""
    return {name: list(facts["shape"]) for name, facts, *_ in _tensors(path)}


def parameter_count(folder: Path) -> int:
    """Numbers in all tensors of the files (tied weights are stored once)."""
    count = 0
    for path in weight_files(folder):
        for _, facts, *_ in _tensors(path):
            size = 1
            for dimension in facts["shape"]:
                size *= dimension
            count += size
    return count


def _indexed(folder: Path, index: Path) -> list[Path]:
    """The files that an index of several names, all of them there."""
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        outside = any(Path(name).name != name for name in names)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput("not readable as an index of safetensors files", where=str(index), hint=_AGAIN) from error
    if outside:
        raise BadInput("names a file outside the folder", where=str(index))
    missing = [name for name in names if not (folder / name).is_file()]
    if missing or not names:
        what = f"names {missing[0]}, which is not in the folder" if missing else "names no files"
        raise BadInput(what, where=str(index), hint=_AGAIN)
    return [folder / name for name in names]


def _tensors(path: Path) -> Iterator[tuple[str, dict[str, Any], Path, int, int]]:
    header, data_start = _header(path)
    for name, facts in header.items():
        if name != "__metadata__":
            start, end = facts["data_offsets"]
            yield name, facts, path, data_start + start, data_start + end


def _header(path: Path) -> tuple[dict[str, Any], int]:
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else -1
        if not 0 < length <= min(size - 8, 100_000_000):
            raise BadInput("not a safetensors file (its header length is impossible)", where=str(path), hint=_AGAIN)
        try:
            header = json.loads(file.read(length))
            end = max((_end(facts) for name, facts in header.items() if name != "__metadata__"), default=0)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise BadInput(
                "not a safetensors file (its header is not readable)", where=str(path), hint=_AGAIN
            ) from error
    if end > size - 8 - length:
        raise BadInput("the safetensors file is truncated", where=str(path), hint=_AGAIN)
    return header, 8 + length


def _end(facts: dict[str, Any]) -> int:
    """Where a tensor's data end; ValueError for a header that cannot be one."""
    start, end = facts["data_offsets"]
    numbers = [start, end, *facts["shape"]]
    if not isinstance(facts["dtype"], str) or not isinstance(facts["shape"], list):
        raise ValueError
    if not all(type(number) is int and number >= 0 for number in numbers) or end < start:
        raise ValueError
    return int(end)


def _read(path: Path, start: int, end: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(start)
        left = end - start
        while left > 0:
            chunk = file.read(min(_CHUNK, left))
            if not chunk:
                raise BadInput("the safetensors file is truncated", where=str(path))
            left -= len(chunk)
            yield chunk
