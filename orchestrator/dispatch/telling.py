"""The program of one notification: `python -m orchestrator.dispatch.telling`, told on its standard input what to do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException
from typing import Any

from orchestrator.settings import child_environment

PATIENCE = 60.0  #: seconds that a hook or a webhook may take
#: The exit code is the sum of the ways that have failed. 1 is none of them: it is Python's own for a fault of ours.
BY_COMMAND, BY_WEBHOOK = 2, 4


def main() -> int:
    order = json.load(sys.stdin)
    faults = {BY_COMMAND: _run(order), BY_WEBHOOK: _post(order)}
    for fault in filter(None, faults.values()):
        sys.stderr.write(f"notify: {fault}\n")
    return sum(way for way, fault in faults.items() if fault)


def _run(order: Mapping[str, Any]) -> str:
    if not order["command"]:
        return ""
    facts = order["facts"]
    extra = {"PTQ_JOB": str(facts["id"]), "PTQ_JOB_RESULT": str(facts["result"]), "PTQ_JOB_USER": str(facts["user"])}
    try:
        done = subprocess.run(
            order["command"], input=json.dumps(facts).encode(), env=child_environment(**extra), timeout=PATIENCE,
            check=False, cwd=os.sep,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{order['command'][0]}: {error}"
    return f"{order['command'][0]}: ended with {done.returncode}" if done.returncode else ""


def _post(order: Mapping[str, Any]) -> str:
    if order["webhook"] is None:
        return ""
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(order["webhook"], json.dumps(order["facts"]).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE):
            return ""
    except (OSError, ValueError, HTTPException) as error:
        # Neither the address nor an error's own words, which may hold it: who knows it may post there.
        why = f"HTTP {error.code}" if isinstance(error, urllib.error.HTTPError) else _why(error)
        return f"the webhook of queue.toml at {_host(order['webhook'])}: {why}"


def _host(address: str) -> str:
    try:
        return urllib.parse.urlsplit(address).hostname or "?"
    except ValueError:
        return "?"


def _why(error: BaseException) -> str:
    cause = getattr(error, "reason", error)
    return getattr(cause, "strerror", None) or type(cause).__name__


if __name__ == "__main__":
    sys.exit(main())
