"""Models of the Hugging Face hub: fetched once, at a commit that is fixed then."""

from __future__ import annotations

import re
from pathlib import Path

from orchestrator.errors import BadInput, NotFound

_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
#: What a base needs. Pickled weights are never fetched; Python code runs only where recipe and worker both allow it.
_WANTED = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "*.py"]


def is_hub_id(text: str) -> bool:
    """`gpt2` or `org/name`; not `./x`, `a/b/c`, `~/x` or `/x`."""
    return _ID.fullmatch(text) is not None and ".." not in text


def fetch_model(model: str, revision: str, *, offline: bool, hint: str) -> tuple[Path, str]:
    """(local folder, commit). NotFound when the hub lacks it or cannot be asked, BadInput without safetensors."""
    # Imported here: it costs 150 ms, and most commands never ask the hub.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        folder = Path(
            snapshot_download(
                model, revision=revision, allow_patterns=_WANTED, ignore_patterns=["*/*"], local_files_only=offline
            )
        )
    except HFValidationError as error:
        raise NotFound(f"there is no base and no folder {model!r}", hint=hint) from error
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise NotFound(_why(model, revision, offline, error), hint=hint) from error
    if not any(folder.glob("*.safetensors")):
        raise BadInput(
            "the hub has no safetensors of this model; a pickle can run code when it is loaded",
            where=f"{model} at {revision}",
            hint="choose a revision with safetensors (often `refs/pr/N`), or convert it and `ptq base add NAME PATH`",
        )
    return folder, folder.name


def _why(model: str, revision: str, offline: bool, error: Exception) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if offline:
        why = f"not in the local cache at revision {revision!r}, and HF_HUB_OFFLINE is set"
    elif status in {401, 403, 404}:
        why = f"the hub has none at revision {revision!r}, or it is private or gated (`hf auth login`)"
    else:
        why = f"not in the local cache at revision {revision!r}, and the hub cannot be reached"
    return f"there is no registered base and no folder {model!r}, and as a hub id: {why}"
