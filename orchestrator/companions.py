"""The files beside a base's weights: configuration, tokenizer, generation settings, code. They decide what a text is to
the base, and what it writes.

The weights have one fingerprint (`weights.fingerprint`); of these each file has its own, so that a change has a name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from orchestrator.errors import BadInput
from orchestrator.manifest import file_sha256

#: What transformers reads beside the weights: the configuration, and the files of every tokenizer. Anybody's own code
#: or word lists may lie in the same folder.
_NAMES = frozenset(
    {"config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"}
    | {"vocab.json", "vocab.txt", "merges.txt", "vocab.bpe", "bpe.codes", "dict.txt", "tekken.json"}
    | {"spiece.model", "sentencepiece.model", "sentencepiece.bpe.model", "spm.model", "spm_char.model"}
    | {"source.spm", "target.spm", "vocab-src.json", "vocab-tgt.json", "entity_vocab.json", "target_vocab.json"}
    | {"byte_maps.json", "emoji.json", "normalizer.json", "prophetnet.tokenizer"}
    | {"word_shape.json", "word_pronunciation.json"}
)
_TOKENIZER = "tokenizer."  #: begins tokenizer.json, tokenizer.model, and those for one version: tokenizer.4.0.0.json
_OF_OWN_CODE = (".py", ".model", ".spm", ".tiktoken", ".codes")  #: code that a base brings, and what that may read
#: These are compared by what they say: two versions of transformers write the same settings differently.
_SETTINGS = ("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json")
#: Who wrote a file and from where, and how chats are laid out, which nothing here reads.
_SILENT = frozenset(
    {"transformers_version", "_name_or_path", "name_or_path", "_commit_hash", "is_local", "chat_template"}
)


def companions(folder: Path) -> dict[str, str]:
    """File -> its digest."""
    is_read = _reader(folder)
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and is_read(path.name))
    return {name: _digest(folder / name) for name in names}


def changes(then: Mapping[str, str], folder: Path) -> list[str]:
    """What is not as it was, in words. Empty where all is, and where nothing was written down then.

    An older ptq wrote down other files too, which nobody reads: they do not count.
    """
    if not then:
        return []
    now, is_read = companions(folder), _reader(folder)
    differ = [name for name in then if now.get(name) != then[name] and is_read(name)]
    told = [f"{name} {'was changed' if name in now else 'is gone'}" for name in differ]
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


def _reader(folder: Path) -> Callable[[str], bool]:
    """Whether a file of that name is read from this folder."""
    own_code = any(
        (_settings(folder / name) or {}).get("auto_map") for name in ("config.json", "tokenizer_config.json")
    )

    def is_read(name: str) -> bool:
        return name in _NAMES or name.startswith(_TOKENIZER) or (own_code and name.endswith(_OF_OWN_CODE))

    return is_read


def _digest(path: Path) -> str:
    settings = _settings(path) if path.name in _SETTINGS else None
    if settings is None:
        return "sha256:" + file_sha256(path)
    said = {key: value for key, value in settings.items() if key not in _SILENT}
    return "sha256:" + hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _settings(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
