"""pydantic's errors in plain words: the key as the user wrote it, what was expected, what was meant."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from orchestrator.recipe.faults import Finding, KeyPath, did_you_mean, shown


def findings(model: type[BaseModel], error: ValidationError) -> list[Finding]:
    """One finding for each wrong key, in pydantic's order."""
    found: dict[KeyPath, Finding] = {}
    for detail in error.errors(include_url=False):
        path, owner = _locate(model, detail["loc"])
        finding = _explain(detail, path, owner)
        found[finding.path] = finding  # of a union such as `int | float` the last, widest one stays
    return list(found.values())


def annotation_at(model: type[BaseModel], path: KeyPath) -> Any:
    """The type of a dotted key, over all members of the unions on the way; None for an unknown key."""
    annotation: Any = model
    for part in path:
        options = [_inside(option, part) for option in _options(annotation)]
        known = [option for option in options if option is not None]
        if not known:
            return None
        annotation = functools.reduce(lambda left, right: Union[left, right], known)  # noqa: UP007 - at run time
    return annotation


def boolean_findings(model: type[BaseModel], data: Any, path: KeyPath = ()) -> list[Finding]:
    """Booleans where numbers belong: pydantic would read `steps: true` as 1."""
    if isinstance(data, bool):
        kinds = set(_options(annotation_at(model, path)))
        fits = bool in kinds or not kinds & {int, float}
        return [] if fits else [Finding(path, f"must be a number, not {str(data).lower()}")]
    inside = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [finding for key, value in inside for finding in boolean_findings(model, value, (*path, key))]


def is_text(annotation: Any) -> bool:
    """Whether a value of this type can only be text (or null)."""
    kinds = [option for option in _options(annotation) if option is not type(None)]
    return bool(kinds) and all(option is str for option in kinds)


def _locate(model: type[BaseModel], loc: Iterable[str | int]) -> tuple[KeyPath, list[type[BaseModel]]]:
    """pydantic's `loc` without the names of union members, and the models that could own its last key."""
    annotation: Any = model
    path: list[str | int] = []
    owners: list[type[BaseModel]] = []
    for part in loc:
        options = _options(annotation)
        tagged = [option for option in options if _is_model(option) and part in _tags(option)]
        if len([option for option in options if _is_model(option)]) > 1 and tagged:
            annotation = tagged[0]
            continue
        inside = [found for option in options if (found := _inside(option, part)) is not None]
        owners = [option for option in options if _is_model(option)]
        if not inside and not owners:  # `int` and `float` of `int | float`, `[key]` of a mapping
            continue
        path.append(part)
        annotation = functools.reduce(lambda left, right: Union[left, right], inside) if inside else None  # noqa: UP007
    if path:
        return tuple(path), owners
    return (), [model]


def _explain(detail: ErrorDetails, path: KeyPath, owners: list[type[BaseModel]]) -> Finding:
    kind, context, value = detail["type"], detail.get("ctx", {}), detail["input"]
    if kind == "missing":
        return Finding(path, "is missing")
    if kind == "extra_forbidden":
        return Finding(path, _unknown_key(str(path[-1]), owners))
    if kind in {"union_tag_not_found", "union_tag_invalid"}:
        return _wrong_tag(detail, path, owners)
    if kind == "literal_error":
        allowed = _words(context["expected"].replace(" or ", ", "))
        return Finding(path, f"{shown(value)} is not one of {', '.join(allowed)}{did_you_mean(str(value), allowed)}")
    if kind == "value_error":
        return Finding(path, str(context["error"]))
    if kind in {"model_type", "model_attributes_type", "dict_type"}:
        return Finding(path, f"must be a mapping (`key: value` lines), not {shown(value)}")
    if kind == "string_type":
        return Finding(path, f"must be text, not {shown(value)}; put quotes around it")
    if kind == "string_pattern_mismatch":
        return Finding(path, f"{shown(value)} does not fit the pattern {context['pattern']}")
    message = detail["msg"].replace("Input should be", "must be").split(", unable to parse")[0].split(", got ")[0]
    return Finding(path, f"{message[0].lower()}{message[1:]}, not {shown(value)}")


def _unknown_key(key: str, owners: list[type[BaseModel]]) -> str:
    known = sorted({name for owner in owners for name in owner.model_json_schema()["properties"]})
    return f"unknown key{did_you_mean(key, known) or '; known here: ' + ', '.join(known)}"


def _wrong_tag(detail: ErrorDetails, path: KeyPath, owners: list[type[BaseModel]]) -> Finding:
    field = owners[0].model_fields[str(path[-1])].annotation if owners and path else None
    allowed = [tag for option in _options(field) if _is_model(option) for tag in _tags(option)]
    inside = (*path, "type")
    if detail["type"] == "union_tag_not_found":
        return Finding(inside, f"is missing; one of {', '.join(allowed)}")
    tag = str(detail.get("ctx", {}).get("tag"))
    return Finding(inside, f"{shown(tag)} is not one of {', '.join(allowed)}{did_you_mean(tag, allowed)}")


def _words(expected: str) -> list[str]:
    return [word.strip("' ") for word in expected.split(", ")]


def _options(annotation: Any) -> list[Any]:
    """The members of a union, Annotated taken off: `Annotated[int, …] | None` -> [int, NoneType]."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _options(get_args(annotation)[0])
    if origin in {Union, UnionType}:
        return [option for argument in get_args(annotation) for option in _options(argument)]
    return [] if annotation is None else [annotation]


def _inside(option: Any, part: str | int) -> Any:
    """The type under a key of a model or mapping, or an index of a list; None when there is none."""
    if _is_model(option):
        info = option.model_fields.get(part)
        return None if info is None else info.annotation
    arguments = get_args(option)
    if get_origin(option) is list and isinstance(part, int):
        return arguments[0]
    if get_origin(option) is dict and part != "[key]" and len(arguments) == 2:
        return arguments[1]
    return None


def _is_model(option: Any) -> bool:
    return isinstance(option, type) and issubclass(option, BaseModel)


def _tags(model: type[BaseModel]) -> list[str]:
    info = model.model_fields.get("type")
    if info is None or get_origin(info.annotation) is not Literal:
        return []
    return list(get_args(info.annotation))
