"""Sharing a box: usage, quotas' caps, pauses, reservations, leased ports, and indexes for long histories."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("groups", sa.Column("at_once", sa.Integer(), nullable=True))
    op.add_column("jobs", sa.Column("queued_at", sa.Float(), nullable=True))
    op.add_column("jobs", sa.Column("paused_by", sa.String(length=100), nullable=True))
    op.create_index(op.f("ix_jobs_state_finished_at"), "jobs", ["state", "finished_at"], unique=False)
    op.create_index(op.f("ix_jobs_run_id"), "jobs", ["run_id"], unique=False)
    op.create_index(op.f("ix_jobs_group_id"), "jobs", ["group_id"], unique=False)
    op.add_column("dependencies", sa.Column("any_end", sa.Boolean(), server_default=sa.false(), nullable=False))
    op.add_column("workers", sa.Column("drained_by", sa.String(length=100), nullable=True))
    op.add_column("runs", sa.Column("port", sa.Integer(), nullable=True))
    op.create_index(
        "uq_runs_live_port",
        "runs",
        ["host", "port"],
        unique=True,
        sqlite_where=sa.text("ended_at IS NULL"),
        postgresql_where=sa.text("ended_at IS NULL"),
    )
    op.create_index(op.f("ix_leases_run_id"), "leases", ["run_id"], unique=False)
    op.create_table(
        "reservations",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("user", sa.String(length=100), nullable=False),
        sa.Column("uid", sa.Integer(), nullable=False),
        sa.Column("slots", sa.Integer(), nullable=False),
        sa.Column("seconds", sa.Float(), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.Column("submitted_at", sa.Float(), nullable=False),
        sa.Column("started_at", sa.Float(), nullable=True),
        sa.Column("run_id", sa.Integer(), nullable=True),
        sa.Column("ended_at", sa.Float(), nullable=True),
        sa.Column("ended_by", sa.String(length=100), nullable=True),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_reservations_run_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_reservations")),
    )
    op.create_index(op.f("ix_reservations_ended_at"), "reservations", ["ended_at"], unique=False)
    op.create_table(
        "usage",
        sa.Column("user", sa.String(length=100), nullable=False),
        sa.Column("seconds", sa.Float(), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("user", name=op.f("pk_usage")),
    )
    op.create_table(
        "controls",
        sa.Column("name", sa.String(length=40), nullable=False),
        sa.Column("value", sa.JSON(), nullable=False),
        sa.Column("by", sa.String(length=100), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_controls")),
    )
