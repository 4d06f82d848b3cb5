"""An artifact moves with everything it comes from; a bundle that is not whole or not harmless is refused."""

from __future__ import annotations

import json
import pickle
import shutil
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from registry_helpers import add_dataset, finished_job, registry_at

from orchestrator.errors import BadInput
from orchestrator.registry import artifacts
from orchestrator.registry.artifacts import get_artifact, list_artifacts
from orchestrator.registry.bundles import read_bundle, write_bundle
from orchestrator.registry.datasets import list_versions, verify
from orchestrator.registry.lineage import lineage
from orchestrator.registry.storage.engine import Registry
from orchestrator.settings import load_settings

ROWS = [{"source": f"s{i}", "target": f"t{i}"} for i in range(50)]
Members = dict[str, bytes]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a2, which starts from a1, with the rows."""
    folder = tmp_path_factory.mktemp("there")
    registry = registry_at(folder / "home")
    version = add_dataset(registry, folder, "e2e", ROWS)
    first = finished_job(registry, folder / "jobs", version)
    init = {"type": "prompt", "path": [str(first.path)], "weights": None}
    second = finished_job(registry, folder / "jobs", version, number=0.7, init=init)
    assert write_bundle(registry, second, folder / "b.ptq", with_data=True) == "2 artifacts, 1 dataset"
    registry.close()
    return folder / "b.ptq"


@pytest.fixture
def empty(tmp_path: Path) -> Registry:
    return Registry.open(load_settings({"PTQ_HOME": str(tmp_path / "here"), "PTQ_USER": "bob"}), create=True)


def test_everything_arrives(bundle: Path, empty: Registry, tmp_path: Path) -> None:
    found = read_bundle(empty, bundle, user="bob", now=9.0)
    assert [artifacts.verify(one) for one in list_artifacts(empty)] == [[], []]
    (version,) = list_versions(empty)
    assert (version.ref, version.splits, verify(version)) == ("e2e@1", {"train": 50}, [])
    graph = lineage(empty, found.ref)
    kinds = sorted(node.kind for node in graph.nodes)
    assert kinds == ["artifact", "artifact", "base", "dataset", "job", "job"]
    assert any(edge.how == "warm start" and edge.target.key == found.ref for edge in graph.edges)
    assert read_bundle(empty, bundle, user="bob", now=10.0) == found
    assert len(list_artifacts(empty)) == 2
    # and on to a third registry
    third = Registry.open(load_settings({"PTQ_HOME": str(tmp_path / "third")}), create=True)
    assert write_bundle(empty, found, tmp_path / "c.ptq", with_data=False) == "2 artifacts"
    again = read_bundle(third, tmp_path / "c.ptq", user="eve", now=11.0)
    assert again.digest == found.digest
    names = {node.key: node.label for node in lineage(third, again.ref).nodes if node.kind == "dataset"}
    assert names == {"e2e@1": "in another registry"}


def members_of(bundle: Path) -> Members:
    with zipfile.ZipFile(bundle) as file:
        return {name: file.read(name) for name in file.namelist()}


def pack(path: Path, members: Members, **options: Any) -> None:
    with zipfile.ZipFile(path, "w", options.get("compression", zipfile.ZIP_STORED)) as file:
        for name, data in members.items():
            file.writestr(name, data)


def prompt_of(members: Members) -> str:
    return next(name for name in members if name.endswith("prompt.safetensors"))


def _index(change: Callable[[dict[str, Any]], None]) -> Callable[[Members, Path], None]:
    def spoil(members: Members, path: Path) -> None:
        index = json.loads(members["bundle.json"])
        change(index)
        pack(path, members | {"bundle.json": json.dumps(index).encode()})

    return spoil


def _more(name: str, data: bytes = b"{}") -> Callable[[Members, Path], None]:
    return lambda members, path: pack(path, members | {name: data})


def _symlink(members: Members, path: Path) -> None:
    pack(path, members)
    with zipfile.ZipFile(path, "a") as file:
        link = zipfile.ZipInfo(f"artifacts/{'a' * 64}/artifact.json")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        file.writestr(link, "/etc/passwd")


def _bit(members: Members, path: Path) -> None:
    name = prompt_of(members)
    data = bytearray(members[name])
    data[-1] ^= 1
    pack(path, members | {name: bytes(data)})


def _twice(members: Members, path: Path) -> None:
    pack(path, members)
    with zipfile.ZipFile(path, "a") as file, pytest.warns(UserWarning, match="Duplicate"):
        file.writestr("bundle.json", members["bundle.json"])


def _truncated(members: Members, path: Path) -> None:
    pack(path, members)
    path.write_bytes(path.read_bytes()[:-100])


def _flipped_archive(members: Members, path: Path) -> None:
    pack(path, members)
    data = bytearray(path.read_bytes())
    data[data.index(b"sha256") + 10] ^= 4
    path.write_bytes(bytes(data))


def _overlapping(members: Members, path: Path) -> None:
    """Parts that all point to the same bytes: the sizes add up to more than the file."""
    name = prompt_of(members)
    pack(path, {**members, name: b"\0" * 100_000})
    with zipfile.ZipFile(path, "a") as file:
        big = file.getinfo(name)
        for number in range(50):
            copy = zipfile.ZipInfo(name.replace("prompt", f"p{number}"))
            copy.header_offset, copy.CRC, copy.file_size, copy.compress_size = (
                big.header_offset, big.CRC, big.file_size, big.compress_size,
            )  # fmt: skip
            file.filelist.append(copy)
            file.NameToInfo[copy.filename] = copy
        file._didModify = True


HOSTILE: dict[str, tuple[Callable[[Members, Path], None], str]] = {
    "outside": (_more("../../x.json"), "not a name in a bundle"),
    "absolute": (_more("/etc/x.json"), "not a name in a bundle"),
    "outside, deep": (_more(f"artifacts/{'a' * 64}/../../../x.json"), "not a name in a bundle"),
    "backslash": (_more(f"artifacts/{'a' * 64}\\x.json"), "not a name in a bundle"),
    "hidden": (_more(f"artifacts/{'a' * 64}/.bashrc.json"), "not a name in a bundle"),
    "pickle": (_more(f"artifacts/{'a' * 64}/prompt.pkl", pickle.dumps([1])), "no file of an artifact"),
    "program": (_more(f"artifacts/{'a' * 64}/run.py"), "no file of an artifact"),
    "folder without an entry": (_more(f"artifacts/{'a' * 64}/x.json"), "do not agree"),
    "symlink": (_symlink, "is a link"),
    "zip bomb": (
        lambda m, p: pack(p, m | {prompt_of(m): bytes(10**7)}, compression=zipfile.ZIP_DEFLATED),
        "compressed",
    ),
    "overlapping parts": (_overlapping, "larger than the whole"),
    "renamed pickle": (lambda m, p: pack(p, m | {prompt_of(m): pickle.dumps({"a": 1})}), "differs from its hash"),
    "bit": (_bit, "differs from its hash"),
    "missing file": (lambda m, p: pack(p, {n: d for n, d in m.items() if n != prompt_of(m)}), "missing"),
    "no index": (lambda m, p: pack(p, {n: d for n, d in m.items() if n != "bundle.json"}), "has one bundle.json"),
    "two indices": (_twice, "no name twice"),
    "index of the future": (_index(lambda i: i.update(format=99)), "format 99"),
    "index without artifacts": (_index(lambda i: i.pop("artifacts")), "does not describe"),
    "digest that is a path": (
        _index(lambda i: i.update(datasets=[{"digest": "../../x", "name": "e"}])),
        "not describe",
    ),
    "other digest": (_index(lambda i: i.update(artifact="sha256:" + "0" * 64)), "does not describe"),
    "split that is a path": (_index(lambda i: i["datasets"][0].update(splits={"../x": 1})), "cannot be read"),
    "dataset name": (_index(lambda i: i["datasets"][0].update(name="../x")), "cannot be a name"),
    "bad rows": (_index(lambda i: i["datasets"][0].update(bad_rows="x")), "cannot be read"),
    "splits that are a list": (_index(lambda i: i["datasets"][0].update(splits=["train"])), "cannot be read"),
    "tag that is no text": (_index(lambda i: i["datasets"][0].update(tags=[{}])), "cannot be read"),
    "rows that are not there": (
        _index(lambda i: i["datasets"][0].update(splits=dict.fromkeys(i["datasets"][0]["splits"], 99))),
        "cannot be read",
    ),
    "its own ancestor": (_index(lambda i: i["artifacts"][0].update(parents=[i["artifact"]])), "does not describe"),
    "ancestor that is no digest": (_index(lambda i: i["artifacts"][1].update(parents=[{}])), "does not describe"),
    "job that is none": (_index(lambda i: i["artifacts"][0].update(job="x")), "does not describe"),
    "truncated": (_truncated, "not a bundle"),
    "flipped": (_flipped_archive, ""),
    "text": (lambda m, p: p.write_text("hello") and None, "not a bundle"),
    "deep json": (lambda m, p: pack(p, m | {"bundle.json": b"[" * 100_000}), "does not describe"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_and_damaged_bundles_leave_nothing(case: str, bundle: Path, empty: Registry, tmp_path: Path) -> None:
    spoil, reason = HOSTILE[case]
    spoil(members_of(bundle), tmp_path / "bad.ptq")
    with pytest.raises(BadInput) as caught:
        read_bundle(empty, tmp_path / "bad.ptq", user="bob", now=1.0)
    assert reason in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["bad.ptq"]


def test_what_is_bundled_can_be_taken_in(empty: Registry, tmp_path: Path) -> None:
    """An adapted base brings its tokenizer's chat template along."""
    registry = registry_at(tmp_path / "there")
    version = add_dataset(registry, tmp_path, "e2e", ROWS)
    adapted = finished_job(registry, tmp_path / "jobs", version, more="base/chat_template.jinja")
    strange = finished_job(registry, tmp_path / "jobs", version, number=0.7, more="base/model.bin")
    write_bundle(registry, adapted, tmp_path / "a.ptq", with_data=False)
    assert read_bundle(empty, tmp_path / "a.ptq", user="bob", now=1.0).digest == adapted.digest
    with pytest.raises(BadInput, match=r"base/model.bin is no file of an artifact"):
        write_bundle(registry, strange, tmp_path / "b.ptq", with_data=False)
    assert not list(tmp_path.glob("*b.ptq*"))
    registry.close()


def test_a_damaged_artifact_is_not_bundled(bundle: Path, empty: Registry, tmp_path: Path) -> None:
    found = read_bundle(empty, bundle, user="bob", now=9.0)
    (found.path / "prompt.safetensors").write_bytes(b"")
    with pytest.raises(BadInput, match="damaged"):
        write_bundle(empty, found, tmp_path / "c.ptq", with_data=False)
    shutil.rmtree(get_artifact(empty, "a1").path)
    assert not list(tmp_path.glob("*c.ptq*"))
