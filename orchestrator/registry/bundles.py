"""Bundles: an artifact with everything it comes from, in one file, from one registry to another.

A zip file, nothing in it compressed (so it cannot unpack to more than it is):

bundle.json              what is in it and how it hangs together
artifacts/<digest>/…     the artifact, and those that it was warm-started from
datasets/<digest>/…      the rows that they were trained on, with `--with-data`

A bundle is somebody else's file: names, kinds, sizes and hashes are checked before anything is written outside a
staging folder, and nothing that could be a program is taken in.
"""

from __future__ import annotations

import json
import re
import shutil
import stat
import uuid
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator import __version__
from orchestrator.data import store
from orchestrator.data.staging import Staged, staging_folder
from orchestrator.errors import BadInput, RegistryUnusable
from orchestrator.manifest import digest_of, manifest_faults
from orchestrator.paths import folder_name, fsync_file, fsync_folder, read_json
from orchestrator.registry import jobs as job_verbs
from orchestrator.registry.artifacts import Artifact, get_artifact, keep_import, stage_artifact
from orchestrator.registry.datasets import DatasetVersion, Notes, add_version, list_versions
from orchestrator.registry.lineage import parents_of
from orchestrator.registry.names import check_name
from orchestrator.registry.storage.engine import Registry
from orchestrator.weights import tensor_shapes

FORMAT = 1
#: What reading rows that somebody else wrote may raise.
DAMAGE: tuple[type[Exception], ...] = (*store.DAMAGE, KeyError, TypeError, AttributeError, OverflowError)
INDEX = "bundle.json"
_MOST_INDEX = 50_000_000
_NAME = re.compile(r"(artifacts|datasets)/([0-9a-f]{64})/((?:[A-Za-z0-9][A-Za-z0-9._-]*/)*[A-Za-z0-9][A-Za-z0-9._-]*)")
#: Texts are a tokenizer's, and so are templates, beside the weights of an adapted base.
_KINDS = {"artifacts": (".safetensors", ".json", ".jsonl", ".txt", ".jinja"), "datasets": (".arrow", ".json", ".jsonl")}


def write_bundle(registry: Registry, artifact: Artifact, output: Path, *, with_data: bool) -> str:
    """Write the file, all at once or not at all; what is in it, in words. Raises BadInput and RegistryUnusable."""
    chain = _chain(registry, artifact)
    records = [_record(registry, one) for one in chain]
    versions = _versions(registry, records) if with_data else []
    members: dict[str, Path] = {}
    for one in chain:
        members |= _members(f"artifacts/{folder_name(one.digest)}", one.path, one.ref)
    for version in versions:
        members |= _members(f"datasets/{folder_name(version.digest)}", version.path, version.ref)
    index = {"format": FORMAT, "ptq": __version__, "artifact": artifact.digest, "artifacts": records}
    index["datasets"] = [_described(version) for version in versions]
    temporary = output.with_name(f".{output.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as file:
            file.writestr(INDEX, json.dumps(index, ensure_ascii=False, indent=1))
            for name, path in members.items():
                file.write(path, name)
        fsync_file(temporary)
        temporary.rename(output)
        fsync_folder(output.absolute().parent)
    except OSError as error:
        raise RegistryUnusable(f"the bundle cannot be written ({error.strerror})", where=str(output)) from error
    finally:
        temporary.unlink(missing_ok=True)
    data = f", {len(versions)} dataset{'s' if len(versions) > 1 else ''}" if versions else ""
    return f"{len(chain)} artifact{'s' if len(chain) > 1 else ''}{data}"


def read_bundle(registry: Registry, path: Path, *, user: str, now: float) -> Artifact:
    """Take everything in. Raises BadInput for what is not a whole and harmless bundle; then nothing was written."""
    try:
        with zipfile.ZipFile(path) as file:
            members = _checked_members(file, path)
            index = _index(file, path)
            with staging_folder(registry.paths) as folder:
                _extract(file, members, folder)
                _check_folders(folder, index, path)
                return _keep(registry, folder, index, path, user=user, now=now)
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        raise _refused(path, f"not a bundle, or a damaged one ({error})") from error


def _chain(registry: Registry, artifact: Artifact) -> list[Artifact]:
    """The artifact and all it was warm-started from, ancestors first."""
    found: dict[str, Artifact] = {}

    def visit(one: Artifact) -> None:
        for digest in parents_of(registry, one):
            if digest not in found:
                visit(get_artifact(registry, digest))
        found[one.digest] = one

    visit(artifact)
    return list(found.values())


def _record(registry: Registry, artifact: Artifact) -> dict[str, Any]:
    record: dict[str, Any] = {"digest": artifact.digest, "name": artifact.job_name, "method": artifact.method}
    record["parents"] = parents_of(registry, artifact)
    record["dataset"] = artifact.summary.get("dataset")
    record["base"] = artifact.summary.get("base")
    if artifact.job_id is None:
        return record | {"origin": artifact.origin}
    with registry.read() as connection:
        job = job_verbs.get_job(connection, artifact.job_id)
    names = ("id", "name", "user", "command", "seed", "method", "submitted_at", "started_at", "finished_at", "source")
    return record | {"job": {name: getattr(job, name) for name in names}}


def _versions(registry: Registry, records: list[dict[str, Any]]) -> list[DatasetVersion]:
    wanted = {record["dataset"]["digest"] for record in records if record["dataset"]}
    found = {version.digest: version for version in list_versions(registry) if version.digest in wanted}
    return list(found.values())


def _described(version: DatasetVersion) -> dict[str, Any]:
    names = ("name", "version", "digest", "splits", "bad_rows", "source", "statistics", "licence", "origin")
    more = {"fields": list(version.fields), "tags": list(version.tags)}
    return {name: getattr(version, name) for name in names} | more


def _members(name: str, folder: Path, ref: str) -> dict[str, Path]:
    """Name in the bundle -> file. Raises BadInput for what is damaged, and for what would be taken in nowhere."""
    faults = manifest_faults(folder)
    if faults:
        raise BadInput(f"{ref} is damaged: {faults[0]}", where=str(folder), hint="see `ptq doctor`")
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    for file in files:
        if reason := _name_fault(f"{name}/{file}"):
            raise BadInput(f"{ref} cannot be bundled: {file} {reason}", where=str(folder))
    return {f"{name}/{file}": path for file, path in files.items()}


def _refused(path: Path, reason: str) -> BadInput:
    return BadInput(f"{reason}; nothing was taken in", where=str(path))


def _checked_members(file: zipfile.ZipFile, path: Path) -> list[zipfile.ZipInfo]:
    members = file.infolist()
    names = [member.filename for member in members]
    if names.count(INDEX) != 1 or len(set(names)) != len(names):
        raise _refused(path, f"a bundle has one {INDEX} and no name twice")
    for member in members:
        reason = _member_fault(member)
        if reason:
            raise _refused(path, f"{member.filename!r} {reason}")
    if sum(member.file_size for member in members) > path.stat().st_size:
        raise _refused(path, "its parts are larger than the whole")
    return [member for member in members if member.filename != INDEX]


def _member_fault(member: zipfile.ZipInfo) -> str | None:
    mode = member.external_attr >> 16
    if stat.S_IFMT(mode) not in {0, stat.S_IFREG}:
        return "is a link or something else that is not a plain file"
    if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
        return "is compressed, which nothing in a bundle is"
    if member.flag_bits & 1:
        return "is encrypted"
    if member.filename == INDEX:
        return None if member.file_size <= _MOST_INDEX else "is too large"
    return _name_fault(member.filename)


def _name_fault(name: str) -> str | None:
    match = _NAME.fullmatch(name)
    if match is None:
        return "is not a name in a bundle"
    if not match[3].endswith(_KINDS[match[1]]):
        return "is no file of an artifact or a dataset"
    return None


def _ancestors_first(records: Sequence[Mapping[str, Any]]) -> bool:
    """As `_chain` writes them: what an artifact was started from stands before it, so nothing is its own ancestor."""
    before: set[str] = set()
    for record in records:
        parents = record["parents"]
        facts = (record.get(name) for name in ("job", "dataset", "base", "origin"))
        if not isinstance(parents, list) or not before.issuperset(parents):
            return False
        if not all(fact is None or isinstance(fact, Mapping) for fact in facts):
            return False
        before.add(record["digest"])
    return True


def _index(file: zipfile.ZipFile, path: Path) -> dict[str, Any]:
    try:
        index = json.loads(file.read(INDEX))
        number = index["format"]
        if number == FORMAT:
            digests = [record["digest"] for record in index["artifacts"]]
            # folder_name refuses what is no digest.
            known = {folder_name(digest) for digest in [*digests, *(one["digest"] for one in index["datasets"])]}
            whole = index["artifact"] in digests and len(known) > 0
            lists = _ancestors_first(index["artifacts"])
            for one in index["datasets"]:
                check_name(one["name"], "dataset")
            if whole and lists:
                return dict(index)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _refused(path, f"{INDEX} does not describe a bundle ({error!r})") from error
    if number != FORMAT:
        raise _refused(path, f"the bundle has format {number!r}, this ptq reads {FORMAT}")
    raise _refused(path, f"{INDEX} does not describe a bundle")


def _extract(file: zipfile.ZipFile, members: list[zipfile.ZipInfo], folder: Path) -> None:
    for member in members:
        target = folder / member.filename
        target.parent.mkdir(parents=True, exist_ok=True)
        with file.open(member) as source, target.open("xb") as out:  # checks the member's CRC at its end
            shutil.copyfileobj(source, out, 1 << 20)
        fsync_file(target)


def _check_folders(folder: Path, index: Mapping[str, Any], path: Path) -> None:
    """Every folder that the index names is whole, and there is no other."""
    named = {("artifacts", folder_name(record["digest"])) for record in index["artifacts"]}
    named |= {("datasets", folder_name(one["digest"])) for one in index["datasets"]}
    there = {(kind.name, one.name) for kind in folder.iterdir() for one in kind.iterdir()}
    if named != there:
        raise _refused(path, f"{INDEX} and the folders do not agree")
    for kind, name in sorted(named):
        one = folder / kind / name
        faults = manifest_faults(one) or list(_content_faults(one))
        if kind == "artifacts" and not faults and digest_of(one) != f"sha256:{name}":
            faults = ["its manifest is another one"]
        if faults:
            raise _refused(path, f"{kind}/{name[:12]}: {faults[0]}")
    for one in index["datasets"]:
        _check_rows(folder / "datasets" / folder_name(one["digest"]), one, path)


def _content_faults(folder: Path) -> Iterator[str]:
    """A suffix is easily written: what does not read as what it says is no file of ours."""
    for file in sorted(folder.rglob("*")):
        try:
            if file.suffix == ".safetensors":
                tensor_shapes(file)
            elif file.suffix == ".json":
                read_json(file)
        except (BadInput, ValueError, RecursionError):
            yield f"{file.relative_to(folder)} is not what its name says"


def _check_rows(folder: Path, record: Mapping[str, Any], path: Path) -> None:
    try:
        if {f"{split}.arrow" for split in record["splits"]} != {file.name for file in folder.glob("*.arrow")}:
            raise ValueError("other splits than files")
        digest = store.digest_of(folder, list(record["fields"]), list(record["splits"]))
        _staged_rows(folder, record, path)
        if any(store.count_rows(folder, split) != rows for split, rows in record["splits"].items()):
            raise ValueError("other numbers of rows")
    except DAMAGE as error:
        raise _refused(path, f"the rows of {record.get('name')!r} cannot be read") from error
    if digest != record["digest"]:
        raise _refused(path, f"the rows of {record.get('name')!r} have the digest {digest}")


def _keep(registry: Registry, folder: Path, index: Mapping[str, Any], path: Path, *, user: str, now: float) -> Artifact:
    staged = [
        (record, stage_artifact(registry.paths, folder / "artifacts" / folder_name(record["digest"])))
        for record in index["artifacts"]
    ]
    for one in index["datasets"]:
        _keep_rows(registry, folder / "datasets" / folder_name(one["digest"]), one, path, user=user, now=now)
    numbers = {}
    with registry.write() as connection:
        for record, files in staged:
            origin = {"format": "bundle", "source": str(path.absolute()), "user": user}
            kept = {name: record[name] for name in ("job", "dataset", "base", "parents", "origin") if name in record}
            numbers[record["digest"]] = keep_import(connection, files, kept | origin, now=now)
    return get_artifact(registry, f"a{numbers[index['artifact']]}")


def _keep_rows(
    registry: Registry, folder: Path, record: Mapping[str, Any], path: Path, *, user: str, now: float
) -> None:
    staged, notes = _staged_rows(folder, record, path)
    add_version(registry, str(record["name"]), staged, user=user, now=now, notes=notes)


def _staged_rows(folder: Path, record: Mapping[str, Any], path: Path) -> tuple[Staged, Notes]:
    """As the index describes them; raises ValueError, TypeError, KeyError or AttributeError where it makes no sense."""
    source = {"bundle": str(path.absolute()), "of": record.get("source")}
    splits = {str(name): int(rows) for name, rows in record["splits"].items()}
    bad = int(record.get("bad_rows", 0))
    statistics = record.get("statistics")
    words = [record.get("licence"), record.get("origin"), *(record.get("tags") or ()), *record["fields"]]
    if not all(word is None or isinstance(word, str) for word in words):
        raise TypeError("a licence, origin, tag or field that is no text")
    if not isinstance(statistics, dict | None):
        raise TypeError("statistics that are no table")
    staged = Staged(folder, record["digest"], tuple(record["fields"]), splits, bad, source, statistics)
    return staged, Notes(record.get("licence"), record.get("origin"), tuple(record.get("tags") or ()))
