"""Who is looked at next: the order of the line. Pure.

A job's rank is a sum of three parts, in points; a priority class (low, normal, high) is worth `CLASS` points:

- its class: 0, 50 or 100;
- ageing: `CLASS` points for each `policy.ageing` seconds that it has waited, without end, so that every job comes first
  some day, whatever arrives after it (of a user's jobs of one class, those that had a turn go before new ones);
- its user's share: `CLASS` x 2^-(used / fair), where `used` is the user's part of all GPU-hours (decayed by
  `policy.half_life`, plus an hour for each slot held now) and `fair` is the user's weight among those who are here.
  This is Slurm's classic fair-share factor. It lies between 0 and `CLASS`, so among jobs that have waited equally long
  a class is never overruled by a share.

A user's own jobs differ in class and age only, so each user's line is sorted once, and the next job is the best of the
users' first ones. Shares change while the plan is made: who has just been given a slot stands further back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence

from orchestrator.registry.queue import Waiting
from orchestrator.settings import Policy

CLASS = 50.0
PROMISE = 3600.0  #: seconds of use that a slot held now counts as, beside what has been used of it


class Line:
    def __init__(
        self,
        waiting: Sequence[Waiting],
        usage: Mapping[str, float],
        holding: Mapping[str, float],
        policy: Policy,
        now: float,
        may_start: Callable[[Waiting], bool] = lambda _job: True,
    ) -> None:
        """`usage`: user -> decayed slot-seconds; `holding`: user -> slots held now. `may_start`: if slots are free."""
        self._policy, self._now, self._may_start = policy, now, may_start
        self._used = {user: max(0.0, seconds) for user, seconds in usage.items()}
        self._all_used = sum(self._used.values())
        for user, slots in holding.items():
            self.gives(user, slots)
        self._points = self._points_of(waiting)
        self._lines: dict[str, deque[Waiting]] = {}
        for job in sorted(waiting, key=lambda job: (-self._own(job), job.attempt == 0, job.id < 0, abs(job.id))):
            self._lines.setdefault(job.user, deque()).append(job)
        here = {*self._lines, *(user for user, slots in holding.items() if slots > 0)}
        self._weights = sum(policy.weights.get(user, 1.0) for user in here)

    def __iter__(self) -> Iterator[Waiting]:
        while self._lines:
            shares = {user: self.share(user) for user in self._lines}
            user = min(self._lines, key=lambda one: self._key(self._lines[one][0], shares[one]))
            job = self._lines[user].popleft()
            if not self._lines[user]:
                del self._lines[user]
            yield job

    def gives(self, user: str, slots: float) -> None:
        """The user holds this many more from now on."""
        self._used[user] = self._used.get(user, 0.0) + slots * PROMISE
        self._all_used += slots * PROMISE

    def share(self, user: str) -> float:
        """1: has used nothing; 1/2: just what is fair; towards 0: much more."""
        used = self._used.get(user, 0.0)
        if used <= 0.0:
            return 1.0
        fair = self._policy.weights.get(user, 1.0) / max(self._weights, self._policy.weights.get(user, 1.0))
        return float(2.0 ** -(used / self._all_used / fair))

    def rank(self, job: Waiting) -> float:
        """Of one of the waiting jobs."""
        return self._own(job) + CLASS * self.share(job.user)

    def standing(self, users: Sequence[str], priority: int) -> float:
        """The rank without age: what decides whose turn it is. Of several users the best."""
        return priority + CLASS * max((self.share(user) for user in users), default=0.0)

    def _own(self, job: Waiting) -> float:
        """What does not depend on the user's share: class and age."""
        return self._points[job.id]

    def _points_of(self, waiting: Sequence[Waiting]) -> dict[int, float]:
        """A user's jobs of one class change places among themselves: one that had a turn already goes on before another
        begins, and takes over the age of the one that it passes. Only those that wait for nothing but slots do: with
        the age of one that waits for it, a job that has just made room for somebody would be back at once."""
        alike: dict[tuple[str, int, int], list[Waiting]] = {}
        for job in waiting:
            alike.setdefault((job.user, job.priority, 0 if self._may_start(job) else job.id), []).append(job)
        points: dict[int, float] = {}
        for (_, priority, _), jobs in alike.items():
            # A clock that was set back makes nobody younger than new.
            ages = sorted((max(0.0, self._now - job.since) for job in jobs), reverse=True)
            jobs.sort(key=lambda job: (job.attempt == 0, job.since, job.id < 0, abs(job.id)))
            points |= {
                job.id: priority + CLASS * age / self._policy.ageing for job, age in zip(jobs, ages, strict=True)
            }
        return points

    def _key(self, job: Waiting, share: float) -> tuple[float, bool, int]:
        return (-(self._own(job) + CLASS * share), job.id < 0, abs(job.id))
