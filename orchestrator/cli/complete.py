"""Shell completion: jobs, groups and reservations from the registry, recipes from disk and by name.

Whatever goes wrong, it offers nothing.
"""

from __future__ import annotations

SHOWN = 60  #: newest first; a shell that asks whether to show 100,000 ids is of no use


def complete_jobs(incomplete: str) -> list[tuple[str, str]]:
    """(id, what it is)"""
    try:
        from orchestrator.registry import jobs
        from orchestrator.registry.storage.engine import Registry
        from orchestrator.settings import load_settings

        registry = Registry.open(load_settings())
        with registry.read() as conn:
            return jobs.completions(conn, incomplete, limit=SHOWN)
    except Exception:  # a traceback in the middle of somebody's command line helps nobody
        return []


def complete_recipes(incomplete: str) -> list[str]:
    """Folders and YAML files, as a path that is begun."""
    from pathlib import Path

    folder, _, start = incomplete.rpartition("/")
    base = Path(folder or ("/" if incomplete.startswith("/") else ".")).expanduser()
    prefix = f"{folder}/" if "/" in incomplete else ""
    try:
        here = sorted(base.iterdir())
    except OSError:
        return []
    offered = [path for path in here if path.name.startswith(start) and (start or not path.name.startswith("."))]
    files = [f"{prefix}{path.name}" for path in offered if path.suffix in {".yaml", ".yml"} and path.is_file()]
    return files + [f"{prefix}{path.name}/" for path in offered if path.is_dir()]


def complete_names(incomplete: str) -> list[tuple[str, str]]:
    """(recipe that comes with ptq, its purpose)"""
    try:
        from orchestrator.recipe.shipped import shipped_recipes

        return [(one.name, one.purpose) for one in shipped_recipes() if one.name.startswith(incomplete)]
    except Exception:  # as above
        return []


def complete_reservations(incomplete: str) -> list[tuple[str, str]]:
    """(reservation that has not ended, whose it is)"""
    try:
        from orchestrator.registry import reservations
        from orchestrator.registry.storage.engine import Registry
        from orchestrator.settings import load_settings

        with Registry.open(load_settings()).read() as conn:
            found = [(f"r{one.id}", f"{one.user}, {one.note}") for one in reservations.unfinished(conn)]
        return [one for one in found if one[0].startswith(incomplete)]
    except Exception:  # as above
        return []
