"""`--set a.b=c`: one value put in place of the file's. Values are YAML; a text key takes its text as it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

from orchestrator.recipe.document import Document, parse_value
from orchestrator.recipe.faults import Fault, KeyPath
from orchestrator.recipe.messages import annotation_at, is_text

PLACE = "--set"

#: Setting one of a pair takes the other out of the file: a recipe has only one of them.
_INSTEAD: dict[KeyPath, KeyPath] = {
    ("train", "seed"): ("train", "seeds"),
    ("train", "seeds"): ("train", "seed"),
    ("train", "steps"): ("train", "epochs"),
    ("train", "epochs"): ("train", "steps"),
}


def apply(document: Document, overrides: Sequence[str], model: type[BaseModel]) -> None:
    """Put the overrides into the document, in order; what is wrong with them is added to its faults.

    A key that the recipe sweeps is taken out of the sweep: the value on the command line is the one that is meant.
    """
    for text in overrides:
        key, equals, value_text = text.partition("=")
        path = key_path(key)
        if not equals or not all(path):
            document.faults.append(
                Fault(PLACE, "", f"`{text}` is not key=value; write for example --set train.lr=1e-3")
            )
            continue
        value, faults = _value(value_text, path, model)
        document.faults.extend(faults)
        if not faults:
            _put(document, path, value)


def key_path(key: str) -> KeyPath:
    """`train.lr` -> ("train", "lr"). A sweep's keys have dots: `sweep.train.lr` -> ("sweep", "train.lr")."""
    head, dot, rest = key.strip().partition(".")
    if head == "sweep" and dot:
        return (head, rest)
    return tuple(key.strip().split("."))


def put(data: dict[str, Any], path: KeyPath, value: Any) -> str | None:
    """Set a nested value, making the mappings on the way; the fault when something else is in the way."""
    inside: Any = data
    for depth, part in enumerate(path[:-1]):
        if part == "base" and isinstance(inside.get(part), str):
            inside[part] = {"model": inside[part]}  # `base: gpt2` is short for `base: {model: gpt2}`
        if inside.get(part) is None:
            inside[part] = {}
        inside = inside[part]
        if not isinstance(inside, dict):
            return f"`{'.'.join(map(str, path[: depth + 1]))}` holds no keys; set it as a whole"
    inside[path[-1]] = value
    return None


def _value(text: str, path: KeyPath, model: type[BaseModel]) -> tuple[Any, list[Fault]]:
    value, faults = parse_value(text, path, PLACE)
    if is_text(annotation_at(model, path)) and (faults or not isinstance(value, str | None)):
        return text, []  # --set task.input='{text} [MASK]' needs no second pair of quotes
    return value, faults


def _put(document: Document, path: KeyPath, value: Any) -> None:
    made = [path[:end] for end in range(1, len(path)) if path[:end] not in document.places]
    problem = put(document.data, path, value)
    if problem:
        document.faults.append(Fault(PLACE, ".".join(map(str, path)), problem))
        return
    _forget(document, path)
    document.places.update(dict.fromkeys([*made, path], PLACE))
    if path in _INSTEAD:
        _remove(document, _INSTEAD[path])
    if path[0] != "sweep":
        _leave_sweep(document, path)


def _leave_sweep(document: Document, path: KeyPath) -> None:
    sweep = document.data.get("sweep")
    dotted = ".".join(map(str, path))
    if isinstance(sweep, dict):
        for key in [key for key in sweep if key == dotted or key.startswith(f"{dotted}.")]:
            _remove(document, ("sweep", key))


def _remove(document: Document, path: KeyPath) -> None:
    inside: Any = document.data
    for part in path[:-1]:
        inside = inside.get(part)
        if not isinstance(inside, dict):
            return
    inside.pop(path[-1], None)
    _forget(document, path)


def _forget(document: Document, path: KeyPath) -> None:
    """What stood under the key stands in the file no longer."""
    for known in [known for known in document.places if known[: len(path)] == path]:
        del document.places[known]
