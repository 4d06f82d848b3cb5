"""An index that holds the line: the front of a queue of 100,000 jobs is found without reading them."""

from __future__ import annotations

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    columns = ["state", "user", "group_id", "priority", "submitted_at", "queued_at", "paused_by"]
    op.create_index("ix_jobs_line", "jobs", columns, unique=False)
