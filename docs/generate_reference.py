"""Writes docs/reference/ from the code.

python docs/generate_reference.py            write the pages
python docs/generate_reference.py --check    write nothing; exit 1 and name the pages that are stale
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import typer.main
from pydantic import BaseModel

from orchestrator import events, settings, states
from orchestrator.cli.main import build_app
from orchestrator.cli.service import unit
from orchestrator.recipe.pretrain import PretrainRecipe
from orchestrator.recipe.schema import Recipe, recipe_schema

FOLDER = Path(__file__).resolve().parent / "reference"
NOTE = "<!-- Made by docs/generate_reference.py from the code; change the code, then run `make docs`. -->\n"


def main() -> int:
    parser = argparse.ArgumentParser(description="Write docs/reference/ from the code.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a page is stale")
    check = parser.parse_args().check
    stale = [name for name, make in PAGES.items() if not _is_current(FOLDER / name, make())]
    if check:
        for name in stale:
            print(f"docs/reference/{name} is stale; run `make docs`", file=sys.stderr)
        return 1 if stale else 0
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in stale:
        (FOLDER / name).parent.mkdir(exist_ok=True)
        (FOLDER / name).write_text(PAGES[name](), encoding="utf-8")
        print(f"docs/reference/{name}")
    return 0


def cli_page() -> str:
    """Every command, its arguments and options."""
    root = typer.main.get_command(build_app())
    parts = [f"# Commands\n\n{NOTE}\n{_help(root)}\n\n{_EXIT_CODES}"]
    parts += [_command(command, context) for command, context in _walk(root, "ptq", None)]
    return "\n\n".join(parts) + "\n"


def recipe_page() -> str:
    return _keys(f"# Recipes\n\n{NOTE}\n{_RECIPES}", Recipe)


def pretrain_page() -> str:
    return _keys(f"# Recipes of bases\n\n{NOTE}\n{_PRETRAIN}", PretrainRecipe)


def _keys(opening: str, model: type[BaseModel]) -> str:
    """Every key of a file: type, range, default, meaning."""
    schema = model.model_json_schema()
    named = schema["$defs"]
    order = [name for name in _reachable(schema, named) if named[name].get("type") == "object"]
    parts = [opening, _model(model.__name__, schema, "## The file")]
    parts += [_model(name, named[name], f"## {_title(name, named[name])}") for name in order]
    return "\n\n".join(parts) + "\n"


def schema_page() -> str:
    return json.dumps(recipe_schema(), indent=1, ensure_ascii=False) + "\n"


def events_page() -> str:
    """What training writes into events.jsonl."""
    text = (events.__doc__ or "").replace("`states.Reason`", "reason of [states](states.md)")
    rows = [f"| `{kind}` | {', '.join(f'`{name}`' for name in fields)} |" for kind, fields in events.KINDS.items()]
    table = "\n".join(["| kind | fields |", "|---|---|", *rows])
    return f"# Events\n\n{NOTE}\nFormat {events.FORMAT}.\n\n{text.strip()}\n\n{table}\n"


def states_page() -> str:
    """States, results, reasons and the allowed moves."""
    moves = [
        f"| {old} | {', '.join(new for new in states.JobState if new in states.MOVES[old])} |"
        for old in states.JobState
    ]
    retried = ", ".join(f"`{reason}`" for reason in states.Reason if reason in states.RETRIED)
    uncounted = ", ".join(f"`{reason}`" for reason in states.Reason if reason in states.UNCOUNTED)
    return "\n".join(
        [
            f"# States, results and reasons\n\n{NOTE}",
            f"{(states.__doc__ or '').strip()}\n",
            f"## States\n\n{_members(states.JobState)}\n",
            "## Allowed moves\n\n| from | to |\n|---|---|\n" + "\n".join(moves) + "\n",
            f"## Results\n\n{_members(states.JobResult)}\n",
            f"## Reasons\n\n{(states.Reason.__doc__ or '').strip()}\n\n{_members(states.Reason)}\n",
            f"Queued again while attempts are left: {retried}.\n",
            f"Queued again without counting as an attempt: {uncounted}.\n",
        ]
    )


def settings_page() -> str:
    """Environment variables, from the comments in settings.py."""
    found = [*_variables(Path(str(settings.__file__)).read_text(encoding="utf-8")), _PASSED_ON]
    rows = [f"| `{name}` | {meaning} |" for name, meaning in found]
    return "\n".join([f"# Settings\n\n{NOTE}\n{_SETTINGS}\n", "| variable | meaning |", "|---|---|", *rows]) + "\n"


def _variables(source: str) -> list[tuple[str, str]]:
    """Each `#: NAME: meaning` of the class Settings, continued lines joined."""
    body = source[source.index("class Settings") : source.index("\ndef load_settings")]
    body = re.sub(r"\n    #: {2,}", " ", body)
    return re.findall(r"#: ([A-Z_]{5,}): (.*)$", body, re.MULTILINE)


def service_page() -> str:
    return unit(Path("/srv/ptq"), "ptq", python="/opt/ptq/bin/python") + "\n"


PAGES: dict[str, Callable[[], str]] = {
    "cli.md": cli_page,
    "recipe.md": recipe_page,
    "pretrain.md": pretrain_page,
    "recipe.schema.json": schema_page,
    "events.md": events_page,
    "states.md": states_page,
    "settings.md": settings_page,
    "../howto/ptq-worker.service": service_page,
}

_EXIT_CODES = """Every command takes `--debug`: a failure then shows its traceback.

Exit codes: 0 done, 1 the job or command failed, 2 bad input (nothing was written), 3 no such thing, 4 not finished yet,
130 interrupted."""

_SETTINGS = """Read from the environment of whoever types a command, or of the worker (`Environment=` lines of
[its service](../howto/ptq-worker.service)). None is needed: without any, everything lies in the nearest parent folder
that holds a `registry.db` of one's own (or root's, or one that a group shares). How a box is shared is said in a
file, [queue.toml](../howto/shared-box.md)."""

_PASSED_ON = (
    "PTQ_PASS_ENV",
    "names of variables, with commas, that a worker hands to its runs though it would keep them to itself",
)

_RECIPES = """A recipe is one YAML file. Unknown keys are refused; `ptq recipe check FILE` names every fault with
its line. `ptq submit FILE --set train.lr=1e-3` puts a value over the file's. Editors complete and check recipes that
begin with

```yaml
# yaml-language-server: $schema=PATH/TO/docs/reference/recipe.schema.json
```

Scalars are read by YAML 1.2: `no` is text, `5e-5` is a number.

In templates `{field}` is a field of the row, `[P:3]` three virtual tokens, `[MASK]` the base's mask token; `{{` and
`}}` write braces, `\\[` a bracket that opens nothing. Values of fields are put in as they are and never parsed."""

_PRETRAIN = """What `ptq base pretrain FILE -o FOLDER` reads: a small base is trained from scratch on rows of a dataset,
in one process. The base of the demo and those of the proofs on real data are made so."""


def _is_current(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == text


def _walk(command: Any, name: str, parent: Any) -> Iterator[tuple[Any, Any]]:
    context = command.context_class(command, info_name=name, parent=parent)
    children = getattr(command, "commands", {})
    if parent is None or not children or command.callback:
        yield command, context
    for child in children.values():
        if not child.hidden:
            yield from _walk(child, str(child.name), context)


def _command(command: Any, context: Any) -> str:
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    lines = [f"## `{context.command_path}`", "", _help(command), "", "```", usage, "```"]
    arguments = [p for p in command.params if p.param_type_name == "argument" and not getattr(p, "hidden", False)]
    options = [p for p in command.params if p.param_type_name == "option" and not p.hidden and p.name != "help"]
    for parameters in (arguments, options):
        if parameters:
            word = "argument" if parameters is arguments else "option"
            lines += ["", f"| {word} | meaning |", "|---|---|"]
            lines += [f"| `{_spelling(p, context)}` | {_meaning(p, context)} |" for p in parameters]
    return "\n".join(lines)


def _help(command: Any) -> str:
    return re.sub(r"[ \t]*\n[ \t]*(?=\S)", " ", (command.help or "").strip().replace("\b\n", ""))


def _spelling(parameter: Any, context: Any) -> str:
    if parameter.param_type_name == "argument":
        return str(parameter.make_metavar(context)).replace("|", "\\|")
    names = ", ".join([*parameter.opts, *parameter.secondary_opts])
    return names if parameter.is_flag else f"{names} {parameter.make_metavar(context)}".replace("|", "\\|")


def _meaning(parameter: Any, context: Any) -> str:
    text = " ".join((parameter.help or "").split()).replace("|", "\\|")
    default = parameter.get_default(context, call=False)
    if parameter.multiple:
        text += " May be given several times."
    if default in (None, False, [], ()) or parameter.required or callable(default):
        return text
    return f"{text} Default: `{default}`."


def _reachable(schema: dict[str, Any], named: dict[str, Any]) -> list[str]:
    """Names of the models that the schema refers to, in the order of their first mention, depth first."""
    found: dict[str, None] = {}

    def visit(node: Any) -> None:
        if isinstance(node, list):
            for item in node:
                visit(item)
        if isinstance(node, dict):
            name = str(node.get("$ref", "")).removeprefix("#/$defs/")
            if name and name not in found:
                found[name] = None
                visit(named[name])
            for key, item in node.items():
                if key != "discriminator":
                    visit(item)

    visit(schema["properties"])
    return list(found)


def _title(name: str, model: dict[str, Any]) -> str:
    kind = model["properties"].get("type", {}).get("const")
    return f"{name} (`type: {kind}`)" if kind else name


def _model(name: str, model: dict[str, Any], heading: str) -> str:
    required = model.get("required", [])
    lines = [heading, "", model.get("description", ""), "", "| key | value | default | meaning |", "|---|---|---|---|"]
    for key, field in model["properties"].items():
        default = "required" if key in required else f"`{json.dumps(field['default'])}`" if "default" in field else ""
        meaning = field.get("description", "").replace("|", "\\|").replace("\n", " ")
        lines.append(f"| `{key}` | {_value(field)} | {default} | {meaning} |")
    return "\n".join(lines)


def _value(field: dict[str, Any]) -> str:
    """What a key takes, in words."""
    if "$ref" in field:
        name = field["$ref"].removeprefix("#/$defs/")
        return f"[{name}](#{_anchor(name)})"
    for union in ("anyOf", "oneOf"):
        if union in field:
            return " or ".join(dict.fromkeys(_value(option) for option in field[union]))
    if isinstance(field.get("type"), list):
        return "text"  # label words: numbers and truth values are taken as text
    if "const" in field:
        return f"`{field['const']}`"
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if field.get("type") == "array":
        return f"list of {_grouped(field['items'])}"
    if field.get("type") == "object":
        inner = field.get("additionalProperties")
        return f"mapping to {_grouped(inner)}" if isinstance(inner, dict) else "mapping"
    limits = ", ".join(f"{sign} {field[key]}" for key, sign in _LIMITS.items() if key in field)
    return f"{_TYPES[field['type']]} {limits}".strip() if "type" in field else "any value"


def _grouped(field: dict[str, Any]) -> str:
    text = _value(field)
    return f"({text})" if " or " in text or ", `" in text else text


_TYPES = {"string": "text", "integer": "whole number", "number": "number", "boolean": "true or false", "null": "null"}
_LIMITS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def _anchor(name: str) -> str:
    named = PretrainRecipe.model_json_schema()["$defs"] | Recipe.model_json_schema()["$defs"]
    model = named[name]
    return re.sub(r"[^a-z0-9 -]", "", _title(name, model).lower()).replace(" ", "-")


def _members(enum: Any) -> str:
    """A table of an enum's values and the `#:` comments beside them."""
    source = Path(str(states.__file__)).read_text(encoding="utf-8")
    lines = ["| value | meaning |", "|---|---|"]
    for member in enum:
        comment = re.search(rf"^ +{member.name} = .*?#: (.*)$", source, re.MULTILINE)
        lines.append(f"| `{member.value}` | {comment.group(1) if comment else member.value.replace('_', ' ')} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
