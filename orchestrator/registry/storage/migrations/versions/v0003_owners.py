"""Jobs know the account that submitted them, and when they may be tried again."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("uid", sa.Integer(), nullable=True))
    op.add_column("jobs", sa.Column("not_before", sa.Float(), nullable=True))
