"""docs/reference/ is made from the code and says what the code says."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from orchestrator.events import KINDS
from orchestrator.recipe.schema import Recipe
from orchestrator.states import JobState, Reason

REPOSITORY = Path(__file__).resolve().parent.parent
SCRIPT = REPOSITORY / "docs" / "generate_reference.py"
REFERENCE = REPOSITORY / "docs" / "reference"


def generate(*arguments: str, script: Path = SCRIPT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_the_pages_are_current() -> None:
    checked = generate("--check")
    assert checked.returncode == 0, checked.stderr


def test_a_stale_page_is_named_and_left_alone(tmp_path: Path) -> None:
    """In a copy of docs/: one page touched, one missing."""
    script = tmp_path / "generate_reference.py"
    script.write_bytes(SCRIPT.read_bytes())
    assert generate(script=script).returncode == 0
    (tmp_path / "reference" / "states.md").write_text("old")
    (tmp_path / "reference" / "events.md").unlink()
    checked = generate("--check", script=script)
    assert checked.returncode == 1
    assert re.findall(r"reference/(\S+) is stale", checked.stderr) == ["events.md", "states.md"]
    assert (tmp_path / "reference" / "states.md").read_text() == "old"


def test_every_event_state_and_reason_is_there() -> None:
    events = (REFERENCE / "events.md").read_text(encoding="utf-8")
    assert all(f"| `{kind}` |" in events for kind in KINDS)
    states = (REFERENCE / "states.md").read_text(encoding="utf-8")
    assert all(f"| `{member.value}` |" in states for member in [*JobState, *Reason])


def test_every_link_inside_a_page_leads_somewhere() -> None:
    page = (REFERENCE / "recipe.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (.*)$", page, re.MULTILINE)
    anchors = {re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    links = set(re.findall(r"\]\(#([^)]*)\)", page))
    assert links
    assert links <= anchors


def test_the_schema_takes_the_short_forms_that_recipes_may_use() -> None:
    """What validators accept beyond the fields' own types, or editors would mark good recipes."""
    schema = json.loads((REFERENCE / "recipe.schema.json").read_text(encoding="utf-8"))
    assert {"minLength": 1, "type": "string"} in schema["properties"]["base"]["anyOf"]
    assert schema["$defs"]["Train"]["properties"]["seed"]["type"] == "integer"
    time_limit = schema["$defs"]["Resources"]["properties"]["time_limit"]["anyOf"]
    assert {"type": "string"} in time_limit
    assert "type" not in schema["$defs"]["MlpReparameterization"].get("required", [])
    assert schema["additionalProperties"] is False
    assert set(schema["properties"]) == set(Recipe.model_fields)


def test_every_variable_that_is_read_is_there() -> None:
    source = (REPOSITORY / "orchestrator" / "settings.py").read_text(encoding="utf-8")
    page = (REFERENCE / "settings.md").read_text(encoding="utf-8")
    read = set(re.findall(r"\"((?:PTQ|HF|CUDA)_[A-Z_]+[A-Z])\"", source)) - {"PTQ_FAILPOINTS"}  # that one is for tests
    assert {"PTQ_REGISTRY", "PTQ_GRACE", "PTQ_RUN_MEMORY"} <= read
    assert {name for name in read if f"| `{name}` |" not in page} == set()
