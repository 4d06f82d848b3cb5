"""What a team remembers: aliases, facts about datasets and their parents, imported artifacts, newest metrics."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    _datasets_and_bases()
    _metrics()
    _artifacts()


def _datasets_and_bases() -> None:
    op.add_column("dataset_versions", sa.Column("statistics", sa.JSON(), nullable=True))
    op.add_column("dataset_versions", sa.Column("licence", sa.String(length=100), nullable=True))
    op.add_column("dataset_versions", sa.Column("origin", sa.Text(), nullable=True))
    op.add_column("dataset_versions", sa.Column("tags", sa.JSON(), nullable=True))
    op.add_column("bases", sa.Column("licence", sa.String(length=100), nullable=True))
    op.create_table(
        "derivations",
        sa.Column("child_id", sa.Integer(), nullable=False),
        sa.Column("parent_id", sa.Integer(), nullable=False),
        sa.Column("operation", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["child_id"], ["dataset_versions.id"], name=op.f("fk_derivations_child_id")),
        sa.ForeignKeyConstraint(["parent_id"], ["dataset_versions.id"], name=op.f("fk_derivations_parent_id")),
        sa.PrimaryKeyConstraint("child_id", "parent_id", name=op.f("pk_derivations")),
    )


def _metrics() -> None:
    """The same points in a table that is its own key, and the newest of each series beside them."""
    _metric_table("new_metrics", "metrics", step_in_key=True)
    op.execute("INSERT INTO new_metrics SELECT job_id, split, name, step, value FROM metrics ORDER BY 1, 2, 3, 4")
    op.drop_table("metrics")
    op.rename_table("new_metrics", "metrics")
    _metric_table("latest_metrics", "latest_metrics", step_in_key=False)
    op.execute(
        "INSERT INTO latest_metrics SELECT m.job_id, m.split, m.name, m.step, m.value FROM metrics AS m JOIN "
        "(SELECT job_id, split, name, max(step) AS step FROM metrics GROUP BY job_id, split, name) AS newest "
        "ON m.job_id = newest.job_id AND m.split = newest.split AND m.name = newest.name AND m.step = newest.step"
    )


def _metric_table(name: str, called: str, *, step_in_key: bool) -> None:
    key = ["job_id", "split", "name", *(["step"] if step_in_key else [])]
    op.create_table(
        name,
        sa.Column("job_id", sa.Integer(), nullable=False),
        sa.Column("split", sa.String(length=20), nullable=False),
        sa.Column("name", sa.String(length=60), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("value", sa.Float(), nullable=True),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f(f"fk_{called}_job_id")),
        sa.PrimaryKeyConstraint(*key, name=op.f(f"pk_{called}")),
        sqlite_with_rowid=False,
    )


def _artifacts() -> None:
    with op.batch_alter_table("artifacts") as artifacts:
        artifacts.alter_column("job_id", existing_type=sa.Integer(), nullable=True)
        artifacts.add_column(sa.Column("origin", sa.JSON(), nullable=True))
    op.create_table(
        "aliases",
        sa.Column("name", sa.String(length=120), nullable=False),
        sa.Column("artifact_id", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["artifact_id"], ["artifacts.id"], name=op.f("fk_aliases_artifact_id")),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_aliases")),
    )
    op.create_table(
        "alias_moves",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=120), nullable=False),
        sa.Column("from_digest", sa.String(length=80), nullable=True),
        sa.Column("to_digest", sa.String(length=80), nullable=True),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("user", sa.String(length=100), nullable=False),
        sa.Column("why", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_alias_moves")),
    )
    op.create_index(op.f("ix_alias_moves_name"), "alias_moves", ["name"], unique=False)
