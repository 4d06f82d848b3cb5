"""Which job a number stands for, and one name for the one machine that a file serves, whatever that is called today."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("token", sa.String(length=40), nullable=True))
    if op.get_bind().dialect.name == "sqlite":
        _give_one_name()


def _give_one_name() -> None:
    """Runs and slots were entered under the machine's name of that day.

    Where it has changed while a run was open, a slot may have been given away twice: the later run keeps it.
    """
    newest = "SELECT max(id) FROM {table} WHERE {open} GROUP BY {what}"
    leases = newest.format(table="leases", open="released_at IS NULL", what="slot")
    op.execute(f"UPDATE leases SET released_at = expires_at WHERE released_at IS NULL AND id NOT IN ({leases})")
    runs = newest.format(table="runs", open="ended_at IS NULL", what="port")
    op.execute(f"UPDATE runs SET port = NULL WHERE ended_at IS NULL AND id NOT IN ({runs})")
    for table in ("leases", "runs", "workers"):
        op.execute(f"UPDATE {table} SET host = 'localhost'")
