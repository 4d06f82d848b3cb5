"""Every recipe that comes with ptq loads, is found by editors' schemas, and says what it is for and how it is run."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.recipe.bases import BaseFacts
from orchestrator.recipe.document import read_document
from orchestrator.recipe.expand import expand
from orchestrator.recipe.fit import fit_faults
from orchestrator.recipe.fit_scores import score_templates
from orchestrator.recipe.load import load_recipe
from orchestrator.recipe.shipped import SCHEMA_HEADER, find_shipped, shipped_recipes
from orchestrator.recipe.tasks import task_templates
from orchestrator.tasks import captions
from orchestrator.tasks.template import parse

REPOSITORY = Path(__file__).resolve().parent.parent
FILES = sorted((REPOSITORY / "recipes").rglob("*.y*ml"))
RECIPES = [path for path in FILES if "pretrain" not in read_document(path)[1].data]


def named(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


def test_there_are_recipes() -> None:
    assert len(RECIPES) >= 3
    assert {path.suffix for path in FILES} == {".yaml"}


@pytest.mark.parametrize("path", RECIPES, ids=named)
def test_it_loads_and_makes_jobs(path: Path) -> None:
    assert expand(load_recipe(path).recipe)


@pytest.mark.parametrize("path", RECIPES, ids=named)
def test_editors_find_its_schema(path: Path) -> None:
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith(SCHEMA_HEADER)
    schema = path.parent / first.removeprefix(SCHEMA_HEADER)
    assert schema.resolve() == REPOSITORY / "docs" / "reference" / "recipe.schema.json"
    assert schema.is_file()


@pytest.mark.parametrize("path", RECIPES, ids=named)
def test_it_opens_with_its_purpose_and_the_command(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    comment = lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))]
    assert len(comment) > 2
    assert comment[1].startswith("# ")
    commands = [line.removeprefix("#").strip() for line in comment]
    assert any(line in {f"ptq submit {named(path)}", f"ptq run {named(path)}"} for line in commands)


def test_all_of_them_are_listed_with_a_purpose() -> None:
    listed = shipped_recipes()
    assert [recipe.path for recipe in listed] == FILES
    assert all(20 < len(recipe.purpose) < 300 for recipe in listed)
    assert find_shipped("zh/p-tuning").path == find_shipped("recipes/zh/p-tuning.yaml").path


#: What the configurations on the hub say of the bases that the papers name:
#: kind, model_type, architecture, H, L, V, positions, width of an embedding.
HUB = {
    "albert/albert-xxlarge-v2": ("masked", "albert", "AlbertForMaskedLM", 4096, 12, 30000, 512, 128),
    "bert-base-uncased": ("masked", "bert", "BertForMaskedLM", 768, 12, 30522, 512, 768),
    "hfl/chinese-roberta-wwm-ext": ("masked", "bert", "BertForMaskedLM", 768, 12, 21128, 512, 768),
    "bert-base-cased": ("masked", "bert", "BertForMaskedLM", 768, 12, 28996, 512, 768),
    "roberta-large": ("masked", "roberta", "RobertaForMaskedLM", 1024, 24, 50265, 512, 1024),
    "gpt2-medium": ("causal", "gpt2", "GPT2LMHeadModel", 1024, 24, 50257, 1024, 1024),
    "facebook/bart-large": ("seq2seq", "bart", "BartModel", 1024, 12, 50265, 1024, 1024),
    "google/t5-base-lm-adapt": ("seq2seq", "t5", "T5ForConditionalGeneration", 768, 12, 32128, None, 768),
    "Qwen/Qwen2.5-7B": ("causal", "qwen2", "Qwen2ForCausalLM", 3584, 28, 152064, 131072, 3584),
    "Qwen/Qwen2.5-72B": ("causal", "qwen2", "Qwen2ForCausalLM", 8192, 80, 152064, 131072, 8192),
    "google/t5-v1_1-base": ("seq2seq", "t5", "T5ForConditionalGeneration", 768, 12, 32128, None, 768),
}
AT_PAPERS_SETTINGS = [path for path in RECIPES if load_recipe(path).recipe.base.model in HUB]


def hub_facts(model: str) -> BaseFacts:
    kind, model_type, architecture, hidden, layers, vocab, positions, width = HUB[model]
    return BaseFacts(
        kind=kind,  # type: ignore[arg-type]
        model_type=model_type,
        architecture=architecture,
        hidden=hidden,
        layers=layers,
        vocab=vocab,
        max_positions=positions,
        mask_token=kind == "masked",
        lm_head=True,
        parameters=10**8,
        remote_code=False,
        embedding_width=width,
        biases=model_type != "t5",
    )


def test_every_base_of_the_hub_is_known_here() -> None:
    """The others are bases that are pretrained or added here: their recipes are run by the tests and the proofs."""
    assert {load_recipe(path).recipe.base.model for path in AT_PAPERS_SETTINGS} == set(HUB)
    rest = {load_recipe(path).recipe.base.model for path in RECIPES if path not in AT_PAPERS_SETTINGS}
    assert not [model for model in rest if "/" in model or "bert-" in model or "gpt2" in model]


@pytest.mark.parametrize("path", AT_PAPERS_SETTINGS, ids=named)
def test_a_recipe_at_the_papers_settings_fits_its_base(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `ptq submit` looks at it, with a dataset that has the fields it names, beside LAMA's list of words."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "common_vocab_cased.txt").write_text("Paris\n", encoding="utf-8")
    monkeypatch.setattr(captions, "why_not", lambda: None)
    recipe = load_recipe(path).recipe
    texts = [text for _, text in task_templates(recipe.task)] + list(getattr(recipe.method, "patterns", []))
    texts += [text for _, text in score_templates(recipe)]
    fields = sorted({field for text in texts for field in parse(text).fields})
    assert fit_faults(recipe, hub_facts(recipe.base.model), fields, {"train": 5000, "validation": 500}) == []
