"""Damaged weight files are refused with the file's name, never with an error of the JSON or number inside."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import BadInput
from orchestrator.weights import fingerprint, parameter_count, tensor_names, weight_files


def write(path: Path, header: Any, data: bytes = b"12345678") -> None:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def tensor(**changes: Any) -> dict[str, Any]:
    return {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}}


def test_a_sound_file(tmp_path: Path) -> None:
    write(tmp_path / "model.safetensors", {**tensor(), "__metadata__": {"format": "pt"}})
    assert tensor_names(tmp_path) == {"w"}
    assert parameter_count(tmp_path) == 2


@pytest.mark.parametrize(
    "header",
    [
        [],
        {"w": 3},
        tensor(shape="x"),
        tensor(shape=["x"]),
        tensor(shape=[-1]),
        tensor(dtype=None),
        tensor(data_offsets=["a", 8]),
        tensor(data_offsets=[8, 0]),
        tensor(data_offsets=[-8, 8]),
        tensor(data_offsets=[0, 9]),
        tensor(data_offsets=[0]),
        tensor(data_offsets=[0, True]),
    ],
)
@pytest.mark.parametrize("use", [tensor_names, parameter_count, fingerprint])
def test_a_header_that_cannot_be_one(tmp_path: Path, header: Any, use: Any) -> None:
    write(tmp_path / "model.safetensors", header)
    with pytest.raises(BadInput, match=r"model\.safetensors"):
        use(tmp_path)


@pytest.mark.parametrize(
    ("index", "said"),
    [
        ("{", "not readable"),
        ("[]", "not readable"),
        ("{}", "not readable"),
        ('{"weight_map": {"w": 3}}', "not readable"),
        ('{"weight_map": {}}', "names no files"),
        ('{"weight_map": {"w": "part-1.safetensors"}}', "part-1.safetensors, which is not in the folder"),
        ('{"weight_map": {"w": "../x.safetensors"}}', "outside the folder"),
    ],
)
def test_an_index_that_cannot_be_one(tmp_path: Path, index: str, said: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(BadInput, match="index.json") as caught:
        weight_files(tmp_path)
    assert said in str(caught.value)
