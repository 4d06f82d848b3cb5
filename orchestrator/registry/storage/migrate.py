"""Alembic, run from the program: no alembic.ini, no environment variables, on a connection that the caller owns."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection

from orchestrator.registry.storage import migrations

FOLDER = Path(migrations.__file__).parent


def upgrade(connection: Connection) -> None:
    """Run what is missing up to the newest migration, inside the caller's transaction."""
    command.upgrade(configuration(connection), "head")


def configuration(connection: Connection | None = None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(FOLDER).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config
