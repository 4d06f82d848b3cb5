"""Why a job waits, in words that a person acts on. Pure."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence

from orchestrator.dispatch.scheduling.box import Host, Slot
from orchestrator.registry.queue import Waiting

_SHOWN = 4  #: holders; of the others only the number is told
_TOLD = 2  #: runs that it may not join; likewise


def why(
    job: Waiting,
    all_slots: Sequence[Slot],
    held: Mapping[str, int | None],
    hosts: Sequence[Host],
    placed: Mapping[int, int],
    full: Sequence[str],
    free: int,
    gone: Mapping[int, object],
    now: float,
) -> str:
    """For the first in line that must wait for slots.

    `placed`: jobs that start now -> their slots; `full`: runs that it may not join, and why; `gone`: runs that have
    just been asked to make room.
    """
    parts = [f"needs {slots(job.slots, all_slots)}, {free} free"]
    parts += [f"1 external ({slot.taken_by})" for slot in all_slots if slot.taken_by and slot.name not in held]
    parts += [f"1 quarantined ({slot.fault})" for slot in all_slots if slot.fault and slot.name not in held]
    known = {slot.name for slot in all_slots}
    here = [host for host in hosts if known & set(host.slots)]
    here.sort(key=lambda host: (_end(host, now), host.run))
    holders = [_holder(host, len(known & set(host.slots)), host.run in gone, all_slots, now) for host in here]
    holders += [f"{name(other)} holds {count}" for other, count in placed.items()]
    holders += _others(held, hosts, placed, known)
    if len(holders) > _SHOWN:
        holders[_SHOWN - 1 :] = [f"{len(holders) - _SHOWN + 1} more hold the rest"]
    parts += holders
    parts += [f"may not join {said}" for said in full[:_TOLD]]
    if len(full) > _TOLD:
        parts.append(f"nor {len(full) - _TOLD} more on its base")
    return ", ".join(parts)


def apart(key: str | None, other: str | None) -> str:
    """Why jobs on one base share no run, by their fuse keys (see `fusing`); empty: they may, or have other bases."""
    try:
        one, two = (dict(json.loads(each or "")) for each in (key, other))
    except (ValueError, TypeError):
        return ""
    differing = [name for name in one if one[name] != two.get(name)]
    return ", ".join(_APART[name] for name in differing) if set(differing) <= set(_APART) else ""


_APART = {
    "dtype": "another `base.dtype`",
    "code": "another `base.trust_remote_code`",
    "processes": "another `resources.gpus`",
    "zero": "another `resources.zero`",
    "memory": "another `resources.memory`",
    "user": "`fuse: user` shares with the same user's jobs only",
}


def behind(job: Waiting, first: Waiting, all_slots: Sequence[Slot], until: float, now: float) -> str:
    """For a job that may not pass the first in line."""
    text = f"waits behind {name(first.id)}, which needs {slots(first.slots, all_slots)}"
    if now < until < math.inf:
        text += f" and may start in {about(until - now)}"
        if job.time_limit is None:
            text += "; with a shorter time limit it could pass"
    elif until == math.inf and job.time_limit is None:
        text += " that others use; with a time limit it could pass"
    return text


def first_end(hosts: Sequence[Host], now: float) -> str:
    """`, job 12 ends in about 20 min`, or nothing where that is not known."""
    known = [host for host in hosts if _end(host, now) < math.inf]
    if not known:
        return ""
    host = min(known, key=lambda host: _end(host, now))
    return f", {_whose(host)} {_ends(host, now)}"


def name(number: int) -> str:
    """A reservation stands in line under minus its number."""
    return f"job {number}" if number >= 0 else f"reservation r{-number}"


def names(numbers: Sequence[int]) -> str:
    """`job 3`, `jobs 3-8, 11`."""
    return ("job " if len(numbers) == 1 else "jobs ") + id_ranges(numbers)


def id_ranges(numbers: Iterable[int]) -> str:
    """`3-8, 11`"""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and parts[-1][-1] == number - 1:
            parts[-1] = [parts[-1][0], number]
        else:
            parts.append([number])
    return ", ".join("-".join(map(str, part)) for part in parts)


def unit(count: int, all_slots: Sequence[Slot]) -> str:
    word = "GPU" if any(slot.name.startswith("gpu:") for slot in all_slots) else "slot"
    return word if count == 1 else f"{word}s"


def slots(count: int, all_slots: Sequence[Slot]) -> str:
    return f"{count} {unit(count, all_slots)}"


def about(seconds: float) -> str:
    """`less than a minute`, `about 20 min`, `about 2 h`, `about 3 days`."""
    if seconds < 60:
        return "less than a minute"
    if seconds < 90 * 60:
        return f"about {seconds / 60:.0f} min"
    if seconds < 36 * 3600:
        return f"about {seconds / 3600:.0f} h"
    return f"about {seconds / 86400:.0f} days"


def _holder(host: Host, count: int, goes: bool, all_slots: Sequence[Slot], now: float) -> str:
    whose = _whose(host)
    if goes and host.jobs:
        return f"{whose} {'makes' if len(host.jobs) == 1 else 'make'} room for it"
    if host.ending or goes or (not host.jobs and host.reservation is None):
        return f"run {host.run} (ending) holds {count}"
    if _end(host, now) < math.inf:
        several = f" ({slots(count, all_slots)})" if count > 1 else ""
        return f"{whose}{several} {_ends(host, now)}"
    return f"{whose} {'hold' if len(host.jobs) > 1 else 'holds'} {count}"


def _whose(host: Host) -> str:
    if host.reservation is not None:
        return f"reservation r{host.reservation} ({host.users[0] if host.users else '?'})"
    return names(host.jobs) if host.jobs else f"run {host.run}"


def _ends(host: Host, now: float) -> str:
    verb = "end" if len(host.jobs) > 1 else "ends"
    if host.expected is not None and (host.ends_at is None or host.expected <= host.ends_at):
        return f"{verb} in {about(host.expected - now)}"
    return f"{verb} in {about(_end(host, now) - now)}" + ("" if host.reservation is not None else " at the latest")


def _end(host: Host, now: float) -> float:
    """When it ends, as far as is known."""
    known = [moment for moment in (host.ends_at, host.expected) if moment is not None]
    return max(now, min(known)) if known else math.inf


def _others(
    held: Mapping[str, int | None], hosts: Sequence[Host], placed: Mapping[int, int], known: set[str]
) -> list[str]:
    """Slots that are held though no run is known to hold them: claimed this moment."""
    told = {slot for host in hosts for slot in host.slots}
    counts: dict[int, int] = {}
    for slot, job in held.items():
        if slot in known and slot not in told and job is not None and job not in placed:
            counts[job] = counts.get(job, 0) + 1
    return [f"{name(job)} holds {count}" for job, count in counts.items()]
