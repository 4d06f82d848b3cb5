"""Can the virtual tokens start where the recipe says? Files and folders are looked at, their tensors not loaded."""

from __future__ import annotations

import ast
import re
import struct
from pathlib import Path

from orchestrator.errors import BadInput
from orchestrator.paths import ArtifactPaths
from orchestrator.recipe.bases import BaseFacts
from orchestrator.recipe.faults import Finding, KeyPath
from orchestrator.recipe.methods import Method, PrefixTuning, PTuningV2
from orchestrator.recipe.schema import Recipe
from orchestrator.recipe.starts import FileInit, LabelsInit, PromptInit, VocabInit
from orchestrator.recipe.tasks import fixed_words, own_choices
from orchestrator.weights import tensor_shapes

INIT: KeyPath = ("method", "init")
PATH: KeyPath = (*INIT, "path")


def starting_findings(recipe: Recipe, length: int) -> list[Finding]:
    """What is wrong whatever the base."""
    init = getattr(recipe.method, "init", None)
    if isinstance(init, VocabInit) and not in_layers(recipe.method) and length > init.top:
        what = f"{length} virtual tokens cannot start from {init.top} different tokens"
        return [Finding((*INIT, "top"), what)]
    if isinstance(init, LabelsInit) and init.words is None and not fixed_words(recipe.task):
        what = "the task names no labels to take them from"
        if own_choices(recipe.task):
            what = "the words to choose from differ by row, so there are none to take"
        return [Finding((*INIT, "words"), f"is missing; {what}")]
    return []


def starting_file_findings(recipe: Recipe, facts: BaseFacts, length: int) -> list[Finding]:
    """What is wrong with the files that the virtual tokens start from, on this base."""
    init = getattr(recipe.method, "init", None)
    try:
        if isinstance(init, FileInit):
            _check_array(Path(init.path), length, facts.embedding_width)
        if isinstance(init, PromptInit):
            for folder in init.path:
                _check_prompt(ArtifactPaths(Path(folder)).prompt, recipe.method, facts, length)
    except BadInput as error:
        return [Finding(PATH, f"{error.where}: {error.message}")]
    except OSError as error:
        return [Finding(PATH, f"{error.filename}: {error.strerror}")]
    return []


def in_layers(method: Method) -> bool:
    """Whether it trains keys and values, not input embeddings."""
    return isinstance(method, PTuningV2) or (isinstance(method, PrefixTuning) and not method.embedding_only)


def _check_array(path: Path, length: int, width: int | None) -> None:
    shape = npy_shape(path)
    if len(shape) != 2 or shape[0] != length or width not in {None, shape[1]}:
        wanted = f"[{length}, {width or 'the width of the embeddings'}]"
        raise BadInput(f"holds numbers of shape {list(shape)}; {wanted} is needed", where=str(path))


def _check_prompt(path: Path, method: Method, facts: BaseFacts, length: int) -> None:
    shapes = tensor_shapes(path)
    if in_layers(method):
        found = {
            name: shape[3] for name, shape in shapes.items() if name.startswith("keys_values.") and len(shape) == 5
        }
        if not found:
            raise BadInput(f"holds no keys and values, which {method.type} needs", where=str(path))
        lengths = set(found.values())
    else:
        shape = shapes.get("embeddings")
        if shape is None or len(shape) != 2:
            raise BadInput(f"holds no input embeddings, which {method.type} needs", where=str(path))
        if facts.embedding_width not in {None, shape[1]}:
            what = f"its virtual tokens are {shape[1]} wide, the base's embeddings {facts.embedding_width}"
            raise BadInput(what, where=str(path))
        lengths = {shape[0]}
    if lengths != {length}:
        raise BadInput(f"holds {max(lengths)} virtual tokens, the recipe {length}", where=str(path))


def npy_shape(path: Path) -> tuple[int, ...]:
    """Of the floating-point array in a .npy file, from its header alone. Raises BadInput and OSError.

    Format: b"\\x93NUMPY", version (2 bytes), header length (2 bytes little-endian; 4 from version 2), a Python literal.
    """
    with path.open("rb") as file:
        magic = file.read(8)
        wide = magic[6:7] > b"\x01"
        prefix = file.read(4 if wide else 2)
        if magic[:6] != b"\x93NUMPY" or len(prefix) != (4 if wide else 2):
            raise BadInput("not a .npy file", where=str(path))
        (size,) = struct.unpack("<I" if wide else "<H", prefix)
        text = file.read(min(size, 100_000)).decode("latin-1")
    try:
        header = ast.literal_eval(text.strip())
        kind, shape = str(header["descr"]), tuple(int(n) for n in header["shape"])
    except (ValueError, SyntaxError, KeyError, TypeError, MemoryError, RecursionError) as error:
        raise BadInput("its .npy header is not readable", where=str(path)) from error
    if not re.fullmatch(r"[<>=|]?f[248]", kind):
        raise BadInput(f"holds {kind}, not floating-point numbers", where=str(path))
    return shape
