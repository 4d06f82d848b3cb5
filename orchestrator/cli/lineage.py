"""`ptq lineage`: where a thing comes from and what came of it, as text, JSON, Graphviz or Mermaid."""

from __future__ import annotations

import json as jsonlib
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.common import Json
from orchestrator.cli.output import render

if TYPE_CHECKING:
    from orchestrator.registry.lineage import Edge, Graph, Node


class Format(StrEnum):
    TEXT = "text"
    JSON = "json"
    DOT = "dot"
    MERMAID = "mermaid"


def register(app: typer.Typer) -> None:
    @app.command("lineage")
    def lineage(
        thing: Annotated[
            str, typer.Argument(metavar="X", help="artifact (a12, sst2@best), job (12), dataset (e2e@1) or base")
        ],
        format_: Annotated[Format, typer.Option("--format", help="dot: Graphviz; mermaid: for Markdown")] = Format.TEXT,
        json: Json = False,
    ) -> None:
        """Show where a thing comes from and what came of it."""
        from orchestrator.cli.common import open_registry
        from orchestrator.registry.lineage import lineage as find

        graph = find(open_registry(), thing)
        if json or format_ is Format.JSON:
            render.print_json(as_json(graph))
        elif format_ is Format.DOT:
            render.say(dot(graph))
        elif format_ is Format.MERMAID:
            render.say(mermaid(graph))
        else:
            for line in text(graph):
                render.say(line)


def text(graph: Graph) -> list[str]:
    """Two trees: what it comes from, and what came of it. A node that stands a second time is not opened again."""
    up = {node: [e for e in graph.edges if e.target == node] for node in graph.nodes}
    down = {node: [e for e in graph.edges if e.source == node] for node in graph.nodes}
    lines = [_name(graph.focus)]
    if up[graph.focus]:
        lines += ["", "comes from", *_tree(graph.focus, up, lambda edge: edge.source, set(), "")]
    if down[graph.focus]:
        lines += ["", "came of it", *_tree(graph.focus, down, lambda edge: edge.target, set(), "")]
    return lines


def _tree(node: Node, edges: dict[Node, list[Edge]], end: Any, opened: set[Node], indent: str) -> list[str]:
    lines = []
    found = sorted(edges[node], key=lambda edge: end(edge))
    for number, edge in enumerate(found, start=1):
        last = number == len(found)
        other = end(edge)
        again = other in opened and bool(edges[other])
        how = f" ({edge.how})" if edge.how else ""
        lines.append(f"{indent}{'└─' if last else '├─'} {_name(other)}{how}{' (see above)' if again else ''}")
        if not again:
            opened.add(other)
            lines += _tree(other, edges, end, opened, indent + ("   " if last else "│  "))
    return lines


def _name(node: Node) -> str:
    digest = f" [{node.digest.removeprefix('sha256:')[:12]}]" if node.digest else ""
    return f"{node.kind} {node.key}{f' {node.label}' if node.label else ''}{digest}"


def as_json(graph: Graph) -> dict[str, Any]:
    return {
        "focus": graph.focus.id,
        "nodes": [{"id": node.id, **vars(node)} for node in graph.nodes],
        "edges": [{"from": edge.source.id, "to": edge.target.id, "how": edge.how} for edge in graph.edges],
    }


_SHAPES = {"dataset": "cylinder", "base": "box3d", "job": "box", "artifact": "note"}


def dot(graph: Graph) -> str:
    """For `dot -Tsvg`."""
    lines = ["digraph lineage {", "  rankdir=LR;", "  node [fontname=sans];"]
    for node in graph.nodes:
        bold = ", penwidth=2" if node == graph.focus else ""
        lines.append(
            f"  {_quoted(node.id)} [label={_quoted(_label(node, chr(10)))}, shape={_SHAPES[node.kind]}{bold}];"
        )
    for edge in graph.edges:
        how = f" [label={_quoted(edge.how)}]" if edge.how else ""
        lines.append(f"  {_quoted(edge.source.id)} -> {_quoted(edge.target.id)}{how};")
    return "\n".join([*lines, "}"])


def mermaid(graph: Graph) -> str:
    """For a Markdown page."""
    numbers = {node: f"n{number}" for number, node in enumerate(graph.nodes)}
    ends = {"dataset": ("[(", ")]"), "base": ("[[", "]]"), "job": ("[", "]"), "artifact": ("([", "])")}
    lines = ["flowchart LR"]
    for node, number in numbers.items():
        left, right = ends[node.kind]
        label = _label(node, "<br/>").replace('"', "#quot;")
        lines.append(f'  {number}{left}"{label}"{right}')
    for edge in graph.edges:
        how = "|" + edge.how.replace('"', "#quot;") + "|" if edge.how else ""
        lines.append(f"  {numbers[edge.source]} -->{how} {numbers[edge.target]}")
    return "\n".join([*lines, f"  style {numbers[graph.focus]} stroke-width:3px"])


def _label(node: Node, line_end: str) -> str:
    return line_end.join(part for part in (f"{node.kind} {node.key}", node.label) if part)


def _quoted(text: str) -> str:
    return jsonlib.dumps(text, ensure_ascii=False)
