"""A systemd unit for the worker. `KillMode=process`: its restart leaves the runs alone, as its death does."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

_UNIT = """\
[Unit]
Description=ptq worker in {home}
Documentation=https://www.freedesktop.org/software/systemd/man/systemd.kill.html
After=local-fs.target nvidia-persistenced.service

[Service]
User={user}
Environment={environment}
ExecStart={command}
Restart=always
RestartSec=5
# Only the worker is ended, never the supervisors and what they train: the next worker takes them over.
KillMode=process
# A training that runs out of memory must not take the worker with it.
OOMPolicy=continue
OOMScoreAdjust=-500
# Limits on host memory (resources.memory) are then the kernel's, each run in a cgroup of its own (systemd 254).
Delegate=memory
DelegateSubgroup=worker

[Install]
WantedBy=multi-user.target"""


def unit(home: Path, user: str, options: Sequence[str] = (), *, python: str = sys.executable) -> str:
    """The text of ptq-worker.service."""
    command = " ".join([_quoted(python.replace("%", "%%")), "-P", "-m", "orchestrator.cli.main", "worker", *options])
    return _UNIT.format(home=_plain(home), user=user, environment=_quoted(f"PTQ_HOME={_plain(home)}"), command=command)


def how_to_install(user: str) -> str:
    target = "/etc/systemd/system/ptq-worker.service"
    return (
        f"install it with: ptq worker --install-service | sudo tee {shlex.quote(target)}\n"
        f"  then: sudo systemctl daemon-reload && sudo systemctl enable --now ptq-worker  (it runs as {user})"
    )


def _plain(home: Path) -> str:
    """systemd expands `%` in most of its lines."""
    return str(home).replace("%", "%%")


def _quoted(text: str) -> str:
    """As systemd.syntax(7) reads it: in double quotes, with a backslash before quotes and backslashes."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
