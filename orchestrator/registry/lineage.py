"""Where a thing comes from and what came of it: datasets, bases, jobs and artifacts as a graph.

parent dataset version -> derived version -> job -> artifact -> job that was warm-started from it
base -> job -> artifact -> base that was adapted to it
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from orchestrator.errors import BadInput, NotFound
from orchestrator.paths import HomePaths
from orchestrator.registry import jobs as job_verbs
from orchestrator.registry.aliases import ALIAS
from orchestrator.registry.artifacts import Artifact, get_artifact
from orchestrator.registry.bases import list_bases
from orchestrator.registry.datasets import get_version
from orchestrator.registry.storage.engine import Registry
from orchestrator.registry.storage.tables import (
    aliases,
    artifacts,
    dataset_versions,
    datasets,
    derivations,
    jobs,
)

_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, order=True)
class Node:
    kind: str  #: dataset, base, job or artifact
    key: str  #: e2e@1, tiny, 12, a3
    #: What a person wants to read beside it.
    label: str = field(default="", compare=False)
    digest: str = field(default="", compare=False)

    @property
    def id(self) -> str:
        return f"{self.kind}:{self.key}"


@dataclass(frozen=True)
class Edge:
    source: Node
    target: Node
    how: str = field(default="", compare=False)  #: warm start, or the operation that derived a dataset


@dataclass(frozen=True)
class Graph:
    focus: Node
    nodes: list[Node]
    edges: list[Edge]


def lineage(registry: Registry, reference: str) -> Graph:
    """All ancestors and all descendants of `a12`, `12` (a job), `sst2@best`, `e2e@1`, `e2e` or a base.

    Raises NotFound and BadInput.
    """
    with registry.read() as connection:
        walker = _Walker(registry, connection)
        focus = walker.find(reference)
        edges = list(dict.fromkeys([*_reach(focus, walker.parents), *_reach(focus, walker.children)]))
    nodes = {focus: focus} | {node: node for edge in edges for node in (edge.source, edge.target)}
    return Graph(focus, sorted(nodes.values()), edges)


def warm_starts(recipe: dict[str, Any]) -> list[str]:
    """Digests of the artifacts of the store that a job's prompt starts from."""
    init = (recipe.get("method") or {}).get("init") or {}
    folders = init.get("path") if init.get("type") == "prompt" else None
    names = [Path(str(folder)).name for folder in folders or []]
    return [f"sha256:{name}" for name in names if _DIGEST.fullmatch(name)]


def with_stored_starts(recipe: Mapping[str, Any], paths: HomePaths) -> Mapping[str, Any]:
    """The recipe as this home has it: the artifacts that its prompt starts from, in this home's store."""
    digests = warm_starts(dict(recipe))
    if not digests:
        return recipe
    init = recipe["method"]["init"]
    stored = {paths.artifact(digest).name: str(paths.artifact(digest)) for digest in digests}
    folders = [stored.get(Path(path).name, path) for path in init["path"]]
    return {**recipe, "method": {**recipe["method"], "init": {**init, "path": folders}}}


def _reach(start: Node, step: Callable[[Node], Iterable[Edge]]) -> Iterator[Edge]:
    seen, todo = {start}, [start]
    while todo:
        node = todo.pop()
        for edge in step(node):
            yield edge
            other = edge.source if edge.target == node else edge.target
            if other not in seen:
                seen.add(other)
                todo.append(other)


class _Walker:
    def __init__(self, registry: Registry, connection: Connection) -> None:
        self._registry = registry
        self._connection = connection
        self._bases = {base.name: base for base in list_bases(registry)}

    def find(self, reference: str) -> Node:
        if re.fullmatch(r"[0-9]{1,9}", reference):
            return self._job(job_verbs.get_job(self._connection, int(reference)).id)
        if re.fullmatch(r"a[0-9]{1,9}|(sha256:)?[0-9a-f]{12,64}", reference) or ALIAS.fullmatch(reference):
            return self._artifact(get_artifact(self._registry, reference).id)
        if reference in self._bases:
            return self._base(reference, self._bases[reference].fingerprint)
        try:
            return self._dataset(get_version(self._registry, reference).id)
        except (NotFound, BadInput) as error:
            raise NotFound(
                f"there is no artifact, job, dataset or base {reference!r}",
                hint="write a12, a job's number, sst2@best, e2e@1 or a base's name",
            ) from error

    def parents(self, node: Node) -> Iterator[Edge]:
        if node.kind == "job" and node.key.isdecimal():
            row = self._one(sa.select(jobs.c.base, jobs.c.dataset_version_id, jobs.c.recipe).where(_is(jobs, node)))
            yield Edge(self._base(row.base["id"], row.base["fingerprint"]), node)
            yield Edge(self._dataset(row.dataset_version_id), node)
            for parent in self._stored(warm_starts(row.recipe)):
                yield Edge(parent, node, "warm start")
        elif node.kind == "artifact" and node.key[1:].isdecimal():
            row = self._one(
                sa.select(artifacts.c.job_id, artifacts.c.origin, artifacts.c.summary).where(_is(artifacts, node))
            )
            if row.job_id is not None:
                yield Edge(self._job(row.job_id), node)
            else:
                yield from self._elsewhere(node, row.summary, row.origin or {})
        elif node.kind == "dataset" and not node.label.endswith("in another registry"):
            query = sa.select(derivations).where(derivations.c.child_id == self._version_id(node))
            for row in self._connection.execute(query):
                yield Edge(self._dataset(row.parent_id), node, str(row.operation.get("do", "")))

        elif node.kind == "base":
            yield from self._adapted_from(node)

    def _adapted_from(self, node: Node) -> Iterator[Edge]:
        """The artifact that a base was registered from, or what its origin says where that is not here."""
        known = self._bases.get(node.key)
        origin = known.facts.origin if known is not None else None
        if not origin:
            return
        made = self._maker(origin)
        if made is not None:
            yield Edge(self._artifact(made), node, "registered")
            return
        fingerprint = str(origin.get("fingerprint", ""))
        here = [name for name, one in self._bases.items() if one.fingerprint == fingerprint]
        parent = self._base(here[0] if here else str(origin.get("parent")), fingerprint)
        yield Edge(parent, node, f"{origin.get('steps')} steps of LM adaptation")

    def _maker(self, origin: Mapping[str, Any]) -> int | None:
        """The artifact of this registry with this origin: job numbers are other jobs' elsewhere."""
        rows = self._connection.execute(
            sa.select(artifacts.c.id, jobs.c.base, datasets.c.name, dataset_versions.c.version)
            .select_from(artifacts.join(jobs).join(dataset_versions).join(datasets))
            .where(jobs.c.id == origin.get("job"), jobs.c.method == "lm-adapt")
        )
        for row in rows:
            if (row.base["fingerprint"], f"{row.name}@{row.version}") == (
                origin.get("fingerprint"),
                origin.get("dataset"),
            ):
                return int(row.id)
        return None

    def _elsewhere(self, node: Node, summary: dict[str, Any], origin: dict[str, Any]) -> Iterator[Edge]:
        """What an imported artifact says of where it was made."""
        base = summary.get("base") or {}
        if base.get("fingerprint"):
            here = [name for name, known in self._bases.items() if known.fingerprint == base["fingerprint"]]
            yield Edge(self._base(here[0] if here else str(base.get("id")), base["fingerprint"]), node)
        if origin.get("job"):
            job = origin["job"]
            label = f"{job.get('name')}: {job.get('method')}, seed {job.get('seed')}, in another registry"
            yield Edge(Node("job", f"{job.get('id')} of {job.get('user')}", label), node)
        data = origin.get("dataset") or {}
        if data.get("digest"):
            found = self._numbers(sa.select(dataset_versions.c.id).where(dataset_versions.c.digest == data["digest"]))
            there = Node("dataset", f"{data.get('name')}@{data.get('version')}", "in another registry", data["digest"])
            yield Edge(self._dataset(found[0]) if found else there, node)
        for parent in self._stored(origin.get("parents", [])):
            yield Edge(parent, node, "warm start")

    def children(self, node: Node) -> Iterator[Edge]:
        if node.kind == "job":
            for number in self._numbers(sa.select(artifacts.c.id).where(artifacts.c.job_id == int(node.key))):
                yield Edge(node, self._artifact(number))
        elif node.kind == "artifact":
            # The recipe names a folder of the store, which is named by the digest.
            named = sa.cast(jobs.c.recipe, sa.String).contains(node.digest.removeprefix("sha256:"))
            for number in self._numbers(sa.select(jobs.c.id).where(named)):
                yield Edge(node, self._job(number), "warm start")
            origin = sa.cast(artifacts.c.origin, sa.String).contains(node.digest)
            for number in self._numbers(sa.select(artifacts.c.id).where(origin)):
                yield Edge(node, self._artifact(number), "warm start")
            yield from self._made_from(lambda origin: self._maker(origin) == int(node.key[1:]), node)
        elif node.kind == "dataset":
            version = self._version_id(node)
            for row in self._connection.execute(sa.select(derivations).where(derivations.c.parent_id == version)):
                yield Edge(node, self._dataset(row.child_id), str(row.operation.get("do", "")))
            for number in self._numbers(sa.select(jobs.c.id).where(jobs.c.dataset_version_id == version)):
                yield Edge(node, self._job(number))
        else:
            same = jobs.c.base["fingerprint"].as_string() == node.digest
            for number in self._numbers(sa.select(jobs.c.id).where(same)):
                yield Edge(node, self._job(number))
            yield from self._made_from(
                lambda origin: origin.get("fingerprint") == node.digest and self._maker(origin) is None, node
            )

    def _made_from(self, was: Callable[[Mapping[str, Any]], bool], node: Node) -> Iterator[Edge]:
        for name, base in self._bases.items():
            if base.facts.origin and was(base.facts.origin):
                made = self._base(name, base.fingerprint)
                yield from (edge for edge in self._adapted_from(made) if edge.source == node)

    def _one(self, query: sa.Select[Any]) -> Any:
        return self._connection.execute(query).one()

    def _numbers(self, query: sa.Select[Any]) -> list[int]:
        return sorted(row[0] for row in self._connection.execute(query))

    def _stored(self, digests: Iterable[str]) -> Iterator[Node]:
        for digest in dict.fromkeys(digests):
            query = sa.select(artifacts.c.id).where(artifacts.c.digest == digest)
            found = self._numbers(query)
            yield self._artifact(found[0]) if found else Node("artifact", digest[7:19], "not here any more", digest)

    def _job(self, number: int) -> Node:
        row = self._one(
            sa.select(jobs.c.name, jobs.c.method, jobs.c.seed, jobs.c.state, jobs.c.result).where(jobs.c.id == number)
        )
        return Node("job", str(number), f"{row.name}: {row.method}, seed {row.seed}, {row.result or row.state}")

    def _artifact(self, number: int) -> Node:
        row = self._one(sa.select(artifacts.c.digest, artifacts.c.method, artifacts.c.origin).where(_number(number)))
        names = sa.select(aliases.c.name).where(aliases.c.artifact_id == number).order_by(aliases.c.name)
        known = list(self._connection.execute(names).scalars())
        imported = [f"imported from {row.origin['format']}"] if row.origin else []
        return Node("artifact", f"a{number}", ", ".join([row.method, *imported, *known]), row.digest)

    def _dataset(self, number: int) -> Node:
        query = sa.select(datasets.c.name, dataset_versions).join(datasets).where(dataset_versions.c.id == number)
        row = self._one(query)
        return Node("dataset", f"{row.name}@{row.version}", f"{sum(row.splits.values()):,} rows", row.digest)

    def _base(self, name: str, fingerprint: str) -> Node:
        known = self._bases.get(name)
        label = known.facts.architecture if known is not None else ""
        return Node("base", name, label, fingerprint)

    def _version_id(self, node: Node) -> int:
        return get_version(self._registry, node.key).id


def _is(table: sa.Table, node: Node) -> sa.ColumnElement[bool]:
    return table.c.id == int(node.key.removeprefix("a")) if node.key.removeprefix("a").isdecimal() else sa.false()


def _number(number: int) -> sa.ColumnElement[bool]:
    return artifacts.c.id == number


def parents_of(registry: Registry, artifact: Artifact) -> list[str]:
    """Digests of the artifacts that this one was warm-started from."""
    if artifact.job_id is None:
        return list((artifact.origin or {}).get("parents", []))
    with registry.read() as connection:
        return warm_starts(job_verbs.get_job(connection, artifact.job_id).recipe)
