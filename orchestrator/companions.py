"""The files beside a base's weights: configuration, tokenizer, generation settings, code. They decide what a text is to
the base, and what it writes.

The weights have one fingerprint (`weights.fingerprint`); of these each file has its own, so that a change has a name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.errors import BadInput
from orchestrator.manifest import file_sha256

#: How the names of what transformers reads begin: the configuration, and the files of every tokenizer.
_BEGINNINGS = (
    "config.json",
    "generation_config.json",
    "tokenizer",
    "vocab",
    "merges",
    "special_tokens_map",
    "added_tokens",
    "spiece",
    "sentencepiece",
    "source.spm",
    "target.spm",
    "tekken",
    "bpe",
    "dict",
)
_SUFFIXES = (".py", ".model", ".spm", ".tiktoken", ".codes")
#: These are compared by what they say: two versions of transformers write the same settings differently.
_SETTINGS = ("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json")
#: Who wrote a file and from where, and how chats are laid out, which nothing here reads.
_SILENT = frozenset(
    {"transformers_version", "_name_or_path", "name_or_path", "_commit_hash", "is_local", "chat_template"}
)


def companions(folder: Path) -> dict[str, str]:
    """File -> its digest."""
    names = sorted(path.name for path in folder.iterdir() if _is_read(path))
    return {name: _digest(folder / name) for name in names}


def changes(then: Mapping[str, str], folder: Path) -> list[str]:
    """What is not as it was, in words. Empty where all is, and where nothing was written down then."""
    if not then:
        return []
    now = companions(folder)
    told = [f"{name} {'was changed' if name in now else 'is gone'}" for name in then if now.get(name) != then[name]]
    return told + [f"{name} is new" for name in now if name not in then]


def refuse_changes(then: Mapping[str, str], folder: Path, since: str) -> None:
    """BadInput where a file is not as it was when …; `since` says when."""
    told = changes(then, folder)
    if told:
        raise BadInput(
            f"{', '.join(told)} since {since}: the same text may be other tokens now",
            where=str(folder),
            hint="put it back as it was, or register a folder that has it so: `ptq base add NAME PATH`",
        )


def _is_read(path: Path) -> bool:
    return path.is_file() and (path.name.startswith(_BEGINNINGS) or path.suffix in _SUFFIXES)


def _digest(path: Path) -> str:
    settings = _settings(path) if path.name in _SETTINGS else None
    if settings is None:
        return "sha256:" + file_sha256(path)
    said = {key: value for key, value in settings.items() if key not in _SILENT}
    return "sha256:" + hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _settings(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
