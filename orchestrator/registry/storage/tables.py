"""The registry's tables (SQLAlchemy Core). Nothing here is SQLite's own: PostgreSQL takes the same tables.

Times are seconds since the epoch (UTC). A shipped migration is never edited; a test proves that the migrations
and these tables are the same schema.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    Boolean,
    CheckConstraint,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    false,
    text,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

datasets = Table(
    "datasets",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(100), nullable=False, unique=True),
    Column("created_at", Float, nullable=False),
)

dataset_versions = Table(
    "dataset_versions",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("dataset_id", ForeignKey("datasets.id"), nullable=False),
    Column("version", Integer, nullable=False),
    Column("digest", String(80), nullable=False),  #: over all rows of all splits
    Column("fields", JSON, nullable=False),  #: [name, …] in the order of the source
    Column("splits", JSON, nullable=False),  #: {split: rows}
    Column("bad_rows", Integer, nullable=False, default=0),  #: set aside with --skip-bad
    Column("source", JSON, nullable=False),  #: where it was read from, and with which options
    Column("created_at", Float, nullable=False),
    Column("created_by", String(100), nullable=False),
    Column("statistics", JSON, nullable=True),  #: see data.statistics; None for versions of an older ptq
    # What people say of it may change; the rows above never do.
    Column("licence", String(100), nullable=True),
    Column("origin", Text, nullable=True),  #: where the rows were published or who made them
    Column("tags", JSON, nullable=True),  #: [word, …]
    UniqueConstraint("dataset_id", "version"),
    UniqueConstraint("dataset_id", "digest"),
)

derivations = Table(
    "derivations",
    metadata,
    Column("child_id", ForeignKey("dataset_versions.id"), primary_key=True),
    Column("parent_id", ForeignKey("dataset_versions.id"), primary_key=True),
    Column("operation", JSON, nullable=False),  #: {do: filter | sample | split | map, …}; see data.derive
)

bases = Table(
    "bases",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(200), nullable=False, unique=True),
    Column("path", Text, nullable=False),
    Column("source", Text, nullable=False),  #: folder or hub id that the user named
    Column("revision", String(100), nullable=False),  #: commit of a hub id, else the fingerprint
    Column("fingerprint", String(80), nullable=False),  #: weights.fingerprint
    Column("kind", String(20), nullable=False),  #: causal | seq2seq | masked
    Column("facts", JSON, nullable=False),  #: see recipe.bases.BaseFacts
    Column("created_at", Float, nullable=False),
    Column("created_by", String(100), nullable=False),
    Column("licence", String(100), nullable=True),
)

groups = Table(
    "groups",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(100), nullable=False),
    Column("user", String(100), nullable=False),
    Column("submitted_at", Float, nullable=False),
    Column("at_once", Integer, nullable=True),  #: how many of its jobs may run at a time
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("group_id", ForeignKey("groups.id"), nullable=True),
    Column("name", String(100), nullable=False),
    Column("user", String(100), nullable=False),
    Column("state", String(20), nullable=False),  #: states.JobState; changed by registry.jobs.move only
    Column("result", String(20), nullable=True),  #: states.JobResult
    Column("reason", String(40), nullable=True),  #: states.Reason
    Column("message", Text, nullable=True),  #: for a person: why it ended, or why it waits
    Column("attempt", Integer, nullable=False, default=0),  #: grows at each claim, never shrinks
    Column("counted_attempts", Integer, nullable=False, default=0),  #: tries that count against max_attempts
    Column("max_attempts", Integer, nullable=False),
    Column("priority", Integer, nullable=False),  #: higher runs first
    Column("slots", Integer, nullable=False),  #: GPUs or CPU slots needed at once
    Column("recipe", JSON, nullable=False),  #: recipe.schema.JobRecipe
    Column("source", Text, nullable=False),  #: the recipe file as submitted
    Column("command", JSON, nullable=False),  #: the command line that submitted it
    Column("seed", Integer, nullable=False),
    Column("method", String(40), nullable=False),
    Column("base", JSON, nullable=False),  #: jobspec.BaseSpec
    Column("dataset_version_id", ForeignKey("dataset_versions.id"), nullable=False),
    Column("run_id", ForeignKey("runs.id"), nullable=True),  #: the current or last run
    Column("step", Integer, nullable=False, default=0),
    Column("steps", Integer, nullable=True),  #: known once the data are counted
    Column("events_offset", Integer, nullable=False, default=0),  #: bytes of events.jsonl already taken in
    Column("submitted_at", Float, nullable=False),
    Column("started_at", Float, nullable=True),
    Column("finished_at", Float, nullable=True),
    Column("uid", Integer, nullable=True),  #: the account that submitted it; None: before accounts were kept
    Column("not_before", Float, nullable=True),  #: a queued job that failed waits until then for its next try
    Column("queued_at", Float, nullable=True),  #: since when it waits, where that is not since submission
    Column("paused_by", String(100), nullable=True),  #: who keeps it from starting
    Column("token", String(40), nullable=True),  #: no other job's, in any registry; None: before tokens were kept
    CheckConstraint("(state = 'finished') = (result IS NOT NULL)", name="result_when_finished"),
    Index(None, "state", "priority", "id"),
    Index(None, "state", "finished_at"),
    # All that decides who is in front of a line: to find its front, no job itself is read.
    Index("ix_jobs_line", "state", "user", "group_id", "priority", "submitted_at", "queued_at", "paused_by"),
    Index(None, "run_id"),
    Index(None, "group_id"),
)

dependencies = Table(
    "dependencies",
    metadata,
    Column("job_id", ForeignKey("jobs.id"), primary_key=True),
    Column("after_id", ForeignKey("jobs.id"), primary_key=True),
    Column("any_end", Boolean, nullable=False, server_default=false()),  #: any end will do; else success
)

workers = Table(
    "workers",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("host", String(200), nullable=False),
    Column("pid", Integer, nullable=False),
    Column("pid_started", Float, nullable=False),  #: start time of the pid: tells a reused pid
    Column("boot_id", String(80), nullable=False),
    Column("slots", JSON, nullable=False),  #: ["cpu:0", …] or ["gpu:GPU-…", …]
    Column("started_at", Float, nullable=False),
    Column("heartbeat_at", Float, nullable=False),
    Column("ended_at", Float, nullable=True),
    Column("drained_by", String(100), nullable=True),  #: who has asked it to start nothing more and leave
)

runs = Table(
    "runs",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("worker_id", ForeignKey("workers.id"), nullable=False),
    Column("host", String(200), nullable=False),
    Column("boot_id", String(80), nullable=False),
    Column("token", String(40), nullable=False, unique=True),  #: PTQ_RUN in the environment of every process of the run
    Column("started_at", Float, nullable=False),
    Column("ended_at", Float, nullable=True),
    Column("exit", JSON, nullable=True),  #: the supervisor's exit record
    Column("port", Integer, nullable=True),  #: for its processes' rendezvous; its own as long as it is open
    Index(
        "uq_runs_live_port",
        "host",
        "port",
        unique=True,
        sqlite_where=text("ended_at IS NULL"),
        postgresql_where=text("ended_at IS NULL"),
    ),
)

leases = Table(
    "leases",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("run_id", ForeignKey("runs.id"), nullable=False),
    Column("host", String(200), nullable=False),
    Column("slot", String(100), nullable=False),  #: cpu:<n> or gpu:<uuid>
    Column("expires_at", Float, nullable=False),
    Column("released_at", Float, nullable=True),
    # The database itself refuses a second live owner of a slot.
    Index(
        "uq_leases_live_slot",
        "host",
        "slot",
        unique=True,
        sqlite_where=text("released_at IS NULL"),
        postgresql_where=text("released_at IS NULL"),
    ),
    Index(None, "run_id"),
)

reservations = Table(
    "reservations",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("user", String(100), nullable=False),
    Column("uid", Integer, nullable=False),  #: the account that may release it
    Column("slots", Integer, nullable=False),
    Column("seconds", Float, nullable=False),
    Column("note", Text, nullable=False),
    Column("submitted_at", Float, nullable=False),
    Column("started_at", Float, nullable=True),
    Column("run_id", ForeignKey("runs.id"), nullable=True),  #: a run without processes, which holds the leases
    Column("ended_at", Float, nullable=True),
    Column("ended_by", String(100), nullable=True),
    Column("holder", String(100), nullable=True),  #: the process that it ends with (dispatch.running.processes.mark)
    Index(None, "ended_at"),
)

#: What each user has taken of the boxes: slot-seconds, decayed to the moment `at`.
usage = Table(
    "usage",
    metadata,
    Column("user", String(100), primary_key=True),
    Column("seconds", Float, nullable=False),
    Column("at", Float, nullable=False),
)

#: Switches of the whole queue, by name (see registry.controls).
controls = Table(
    "controls",
    metadata,
    Column("name", String(40), primary_key=True),
    Column("value", JSON, nullable=False),
    Column("by", String(100), nullable=False),
    Column("at", Float, nullable=False),
)

metrics = Table(
    "metrics",
    metadata,
    Column("job_id", ForeignKey("jobs.id"), primary_key=True),
    Column("split", String(20), primary_key=True),  #: train | validation | test; base:<split> for the untuned base
    Column("name", String(60), primary_key=True),
    Column("step", Integer, primary_key=True),
    Column("value", Float, nullable=True),
    sqlite_with_rowid=False,  # the key is the table: half the bytes a point, and a job's points lie side by side
)

#: The newest point of each series: what lists, filters and sorting read, instead of searching millions of points.
latest_metrics = Table(
    "latest_metrics",
    metadata,
    Column("job_id", ForeignKey("jobs.id"), primary_key=True),
    Column("split", String(20), primary_key=True),
    Column("name", String(60), primary_key=True),
    Column("step", Integer, nullable=False),
    Column("value", Float, nullable=True),
    sqlite_with_rowid=False,
)

job_events = Table(
    "job_events",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("job_id", ForeignKey("jobs.id"), nullable=False, index=True),
    Column("attempt", Integer, nullable=False),
    Column("at", Float, nullable=False),
    Column("actor", String(100), nullable=False),  #: user:<name>, worker:<id>, run:<id>
    Column("kind", String(40), nullable=False),
    Column("detail", JSON, nullable=False),
)

artifacts = Table(
    "artifacts",
    metadata,
    Column("id", Integer, primary_key=True),
    # A job leaves one artifact; one that was imported has no job here.
    Column("job_id", ForeignKey("jobs.id"), nullable=True, unique=True),
    Column("attempt", Integer, nullable=False),
    Column("digest", String(80), nullable=False),  #: of its manifest; names its folder in the store
    Column("method", String(40), nullable=False),
    Column("summary", JSON, nullable=False),  #: artifact.json without its bulk
    Column("bytes", Integer, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("origin", JSON, nullable=True),  #: of an imported one: {format, source, user, …}; see registry.imports
)

aliases = Table(
    "aliases",
    metadata,
    Column("name", String(120), primary_key=True),  #: e.g. sst2@best
    Column("artifact_id", ForeignKey("artifacts.id"), nullable=False),
)

#: Who moved which alias when; never changed, never removed.
alias_moves = Table(
    "alias_moves",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(120), nullable=False, index=True),
    Column("from_digest", String(80), nullable=True),  #: of the artifact that it named before
    Column("to_digest", String(80), nullable=True),  #: None: the alias was removed
    Column("at", Float, nullable=False),
    Column("user", String(100), nullable=False),
    Column("why", Text, nullable=False, default=""),
)
