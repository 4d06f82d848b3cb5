"""The scheduler is a pure function: properties, and the few decisions that a person would argue about."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.dispatch.scheduling.box import Host, Slot
from orchestrator.dispatch.scheduling.line import Line
from orchestrator.dispatch.scheduling.scheduler import Plan, schedule
from orchestrator.registry.queue import Waiting
from orchestrator.settings import Policy, Team
from orchestrator.states import JobResult

SLOTS = [Slot(f"cpu:{number}") for number in range(4)]
CARDS = [Slot(f"gpu:{name}") for name in "abcd"]
HOUR = 3600.0
NOW = 1_000_000.0
USERS = ("ada", "bob", "eve")


def test_a_job_that_made_room_does_not_take_the_age_of_one_that_waits_for_it() -> None:
    """Else it would be back at once, and the job that it made room for would have had its turn for nothing."""
    again = Waiting(1, 1, 50, 1, user="ada", since=NOW)
    after = Waiting(2, 0, 50, 1, (1,), user="ada", since=NOW - 72 * HOUR)
    paused = Waiting(4, 0, 50, 1, user="ada", since=NOW - 72 * HOUR, paused_by="ada")
    other = Waiting(3, 0, 50, 1, user="bob", since=NOW - HOUR)
    [card, *_] = CARDS
    plan = schedule([again, after, other, paused], [card], {}, {1: None}, policy=Policy(), usage={}, now=NOW)
    assert plan.placements == {3: (card.name,)}
    ready = replace(after, after=())
    plan = schedule([again, ready, other], [card], {}, {}, policy=Policy(), usage={}, now=NOW)
    assert plan.placements == {1: (card.name,)}  # its neighbour in line lets it pass


@dataclass
class Situation:
    """All that the scheduler is told."""

    waiting: list[Waiting]
    slots: list[Slot]
    hosts: list[Host]
    endings: dict[int, JobResult | None]
    usage: dict[str, float]
    policy: Policy
    held: dict[str, int | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.held |= {slot: next(iter(host.jobs), None) for host in self.hosts for slot in host.slots}

    def plan(self, **changes: Any) -> Plan:
        asked = {"policy": self.policy, "usage": self.usage, "now": NOW, **changes}
        return schedule(self.waiting, self.slots, self.held, self.endings, self.hosts, **asked)

    @property
    def free(self) -> set[str]:
        return {slot.name for slot in self.slots if slot.usable} - set(self.held)

    @property
    def by_id(self) -> dict[int, Waiting]:
        return {job.id: job for job in self.waiting}


@st.composite
def jobs(draw: st.DrawFn, number: int) -> Waiting:
    after = draw(st.lists(st.integers(31, 34), unique=True, max_size=2).map(tuple))
    return Waiting(
        number, 0, draw(st.sampled_from([0, 50, 100])), draw(st.integers(1, 6)), after,
        user=draw(st.sampled_from(USERS)), since=NOW - draw(st.sampled_from([0.0, 60.0, 50 * HOUR])),
        time_limit=draw(st.sampled_from([None, 60.0, HOUR, 9 * HOUR])),
        group=draw(st.sampled_from([None, 1, 2])), at_once=draw(st.sampled_from([None, 1, 2])),
        after_any=frozenset(draw(st.sets(st.sampled_from(after))) if after else ()),
        paused_by=draw(st.sampled_from(["", "", "", "eve"])),
    )  # fmt: skip


@st.composite
def situations(draw: st.DrawFn) -> Situation:
    waiting = [draw(jobs(n)) for n in draw(st.lists(st.integers(1, 30), unique=True, max_size=10))]
    count = draw(st.integers(0, 6))
    taken = st.sampled_from([("", ""), ("", ""), ("", ""), ("bob, pid 7", ""), ("", "it does not answer")])
    slots = [Slot(f"gpu:{n}", *draw(taken)) for n in range(count)]
    hosts, names = [], [slot.name for slot in slots if slot.usable]
    while names and draw(st.booleans()):
        mine, names = names[: (size := draw(st.integers(1, 3)))], names[size:]
        number = len(hosts) + 1
        moments = st.sampled_from([None, NOW + 60, NOW + HOUR, NOW + 20 * HOUR])
        hosts.append(
            Host(
                number, tuple(mine), (100 + number,), users=(draw(st.sampled_from(USERS)),),
                priority=draw(st.sampled_from([0, 50, 100])), started_at=NOW - draw(st.sampled_from([0.0, 2 * HOUR])),
                ends_at=draw(moments), expected=draw(moments), ending=draw(st.sampled_from([False, False, True])),
            )
        )  # fmt: skip
    usage = {user: draw(st.sampled_from([0.0, HOUR, 90 * HOUR])) for user in USERS}
    policy = Policy(
        turn=draw(st.sampled_from([None, HOUR])),
        quotas=draw(st.sampled_from([{}, {"ada": 2}, {"*": 3, "eve": 0}])),
        teams=draw(st.sampled_from([{}, {"nlp": Team(frozenset({"ada", "bob"}), 3)}])),
        weights=draw(st.sampled_from([{}, {"ada": 3.0}])),
    )
    endings = {other: draw(st.sampled_from([None, *JobResult])) for other in range(31, 35)}
    return Situation(waiting, slots, hosts, dict(endings), usage, policy)


def may_start(job: Waiting, endings: dict[int, JobResult | None]) -> bool:
    """As a person would say it."""
    done = all(
        endings[other] is not None if other in job.after_any else endings[other] is JobResult.SUCCEEDED
        for other in job.after
    )
    return done and not job.paused_by


@given(situations())
def test_no_slot_is_given_twice_or_while_somebody_has_it(situation: Situation) -> None:
    given_away = [name for names in situation.plan().placements.values() for name in names]
    assert len(given_away) == len(set(given_away))
    assert set(given_away) <= situation.free


@given(situations())
def test_every_job_is_placed_whole_or_told_why_not(situation: Situation) -> None:
    plan = situation.plan()
    assert set(plan.placements) | set(plan.reasons) == {job.id for job in situation.waiting}
    assert not set(plan.placements) & set(plan.reasons)
    assert all(plan.reasons.values())
    assert sorted(plan.order) == sorted(job.id for job in situation.waiting)
    for job in situation.waiting:
        if job.id in plan.placements:
            assert len(plan.placements[job.id]) == job.slots
            assert may_start(job, situation.endings)


@given(situations())
def test_no_quota_and_no_cap_is_overrun(situation: Situation) -> None:
    plan, policy = situation.plan(), situation.policy
    have = dict.fromkeys(USERS, 0)
    for host in situation.hosts:
        have[host.users[0]] += len(host.slots)
    before = dict(have)
    groups: dict[int, list[Waiting]] = {}
    for job_id in plan.placements:
        job = situation.by_id[job_id]
        have[job.user] += job.slots
        groups.setdefault(job.group or 0, []).append(job)
    for user in USERS:
        quota = policy.quota(user)
        assert quota is None or have[user] == before[user] or have[user] <= quota
    for team in policy.teams.values():
        now, then = (sum(counts[user] for user in team.members) for counts in (have, before))
        assert team.quota is None or now == then or now <= team.quota
    for number, started in groups.items():
        if number:
            assert len(started) <= max((job.at_once or 99) for job in started)
            for place, job in enumerate(started):
                assert job.at_once is None or place < job.at_once


def blocked(plan: Plan) -> int | None:
    """The first in line that waits for slots."""
    return next((number for number in plan.order if " free" in plan.reasons.get(number, "")), None)


@given(situations())
def test_nobody_passes_the_first_in_line_who_could_make_it_wait_longer(situation: Situation) -> None:
    """Where runs end as expected or at their limit, the first in line starts no later than without them."""
    plan, jobs_of = situation.plan(), situation.by_id
    first = blocked(plan)
    if first is None:
        return
    place = plan.order.index(first)
    passed = [jobs_of[number] for number in plan.order[place:] if number in plan.placements]
    ahead = [jobs_of[number] for number in plan.order[:place] if number in plan.placements]
    ends = [
        (NOW if host.ending else min((m for m in (host.ends_at, host.expected) if m), default=NOW), len(host.slots))
        for host in situation.hosts
    ]
    ends += [(NOW if job.time_limit is None else NOW + job.time_limit, job.slots) for job in ahead]
    free = len(situation.free) - sum(job.slots for job in ahead)
    alone = start_of(jobs_of[first].slots, free, ends)
    if alone == NOW:
        assert not passed or all(job.slots <= free + sum(n for _, n in ends) - jobs_of[first].slots for job in passed)
    slow = [
        (NOW if host.ending else host.ends_at or float("inf"), len(host.slots)) for host in situation.hosts
    ] + [(NOW + (job.time_limit or float("inf")), job.slots) for job in (*ahead, *passed)]  # fmt: skip
    if alone < float("inf") and passed:
        later = start_of(jobs_of[first].slots, free - sum(job.slots for job in passed), slow)
        without = start_of(jobs_of[first].slots, free, slow[: len(slow) - len(passed)])
        assert later <= max(alone, without)


def start_of(needed: int, free: int, ends: list[tuple[float, int]]) -> float:
    if needed <= free:
        return NOW
    for moment, count in sorted(ends):
        free += count
        if needed <= free:
            return max(NOW, moment)
    return float("inf")


@given(situations())
def test_slots_are_not_left_idle_without_need(situation: Situation) -> None:
    """Who is still in line though a slot is free waits for something else, or behind somebody who needs more."""
    plan = situation.plan()
    free = len(situation.free) - sum(len(names) for names in plan.placements.values())
    first = blocked(plan)
    for number, why in plan.reasons.items():
        if situation.by_id[number].slots <= free and first is None:
            assert number in plan.never | set(plan.broken) or why.startswith(
                ("waits for", "paused by", "group g", f"needs {situation.by_id[number].slots}, ")
            )


@given(situations())
def test_only_runs_that_have_had_their_turn_make_room_and_no_more_than_are_needed(situation: Situation) -> None:
    plan = situation.plan()
    for run, number in plan.preempt.items():
        host = next(host for host in situation.hosts if host.run == run)
        job = situation.by_id[number]
        assert situation.policy.turn is not None
        assert NOW - host.started_at >= situation.policy.turn
        assert not host.ending
        assert job.user not in host.users or job.priority > host.priority
    if plan.preempt:
        free = len(situation.free) - sum(len(names) for names in plan.placements.values())
        coming = sum(len(host.slots) for host in situation.hosts if host.ending)
        sizes = [len(host.slots) for host in situation.hosts if host.run in plan.preempt]
        needed = situation.by_id[next(iter(plan.preempt.values()))].slots - free - coming
        assert sum(sizes) >= needed
        assert all(sum(sizes) - size < needed for size in sizes)


@given(situations())
def test_paused_means_that_nothing_starts_and_nobody_is_sent_away(situation: Situation) -> None:
    plan = situation.plan(paused="the queue is paused")
    assert not plan.placements
    assert not plan.joins
    assert not plan.preempt


@given(situations())
def test_it_is_a_function(situation: Situation) -> None:
    assert situation.plan() == situation.plan()


def test_priority_first_then_the_older() -> None:
    waiting = [Waiting(1, 0, 50, 1), Waiting(2, 0, 100, 1), Waiting(3, 0, 50, 1)]
    plan = schedule(waiting, SLOTS[:2], {}, {})
    assert set(plan.placements) == {2, 1}
    assert plan.reasons[3] == "needs 1 slot, 0 free, job 2 holds 1, job 1 holds 1"


def test_the_reason_names_holders_strangers_and_when_they_go() -> None:
    slots = [CARDS[0], Slot("gpu:b", "bob, pid 8812"), CARDS[2], CARDS[3], Slot("gpu:e", fault="it does not answer")]
    host = Host(9, ("gpu:a",), (41,), users=("eve",), expected=NOW + 20 * 60)
    plan = schedule([Waiting(5, 0, 50, 4, user="ada")], slots, {"gpu:a": 41}, {}, [host], now=NOW)
    assert plan.reasons[5] == (
        "needs 4 GPUs, 2 free, 1 external (bob, pid 8812), 1 quarantined (it does not answer), "
        "job 41 ends in about 20 min"
    )


def test_a_job_that_is_too_large_for_the_box_holds_nobody_up() -> None:
    plan = schedule([Waiting(1, 0, 100, 9), Waiting(2, 0, 50, 1)], SLOTS, {}, {})
    assert plan.never == {1}
    assert plan.reasons == {1: "needs 9 slots, this worker has 4"}
    assert set(plan.placements) == {2}


def test_dependencies_on_success_and_on_any_end() -> None:
    waiting = [Waiting(5, 0, 50, 1, (1,)), Waiting(6, 0, 50, 1, (2,)), Waiting(7, 0, 50, 1, (3, 4))]
    waiting += [
        Waiting(8, 0, 50, 1, (2, 1), after_any=frozenset({2})),
        Waiting(9, 0, 50, 1, (3,), after_any=frozenset({3})),
    ]
    endings = {1: JobResult.SUCCEEDED, 2: JobResult.FAILED, 3: None, 4: JobResult.SUCCEEDED}
    plan = schedule(waiting, SLOTS, {}, endings)
    assert set(plan.placements) == {5, 8}
    assert plan.broken == {6: 2}
    assert (plan.reasons[7], plan.reasons[9]) == ("waits for job 3", "waits for job 3")


def test_who_has_used_less_comes_first_and_what_is_given_counts_at_once() -> None:
    waiting = [Waiting(n, 0, 50, 1, user="ada") for n in (1, 2, 3)] + [
        Waiting(n, 0, 50, 1, user="bob") for n in (4, 5, 6)
    ]
    plan = schedule(waiting, SLOTS, {}, {}, usage={"ada": 9 * HOUR, "bob": HOUR})
    assert plan.order[:3] == [4, 5, 6]
    plan = schedule(waiting, SLOTS, {}, {})
    assert sorted(plan.placements) == [1, 2, 4, 5]
    plan = schedule(waiting, SLOTS, {}, {}, policy=Policy(weights={"ada": 3.0}))
    assert sorted(plan.placements) == [1, 2, 3, 4]


def test_a_class_outranks_a_share_and_age_outranks_both_in_the_end() -> None:
    heavy = Waiting(1, 0, 50, 1, user="ada", since=NOW)
    light = Waiting(2, 0, 0, 1, user="bob", since=NOW)
    assert schedule([light, heavy], SLOTS, {}, {}, usage={"ada": 1e9}, now=NOW).order == [1, 2]
    old = replace(light, since=NOW - 10 * 86400)
    fresh = Waiting(3, 0, 100, 1, user="eve", since=NOW)
    assert schedule([old, fresh], SLOTS, {}, {}, usage={"bob": 1e9}, now=NOW).order == [2, 3]


@pytest.mark.parametrize(("limit", "passes"), [(30 * 60, True), (2 * HOUR, False), (None, False)])
def test_a_short_job_passes_while_the_first_in_line_waits_anyway(limit: float | None, passes: bool) -> None:
    host = Host(1, ("gpu:a", "gpu:b"), (9,), users=("eve",), ends_at=NOW + HOUR)
    waiting = [Waiting(1, 0, 100, 3, user="ada"), Waiting(2, 0, 50, 1, user="bob", time_limit=limit)]
    plan = schedule(waiting, CARDS[:3], {"gpu:a": 9, "gpu:b": 9}, {}, [host], now=NOW)
    assert (2 in plan.placements) is passes
    if limit is None:
        said = "waits behind job 1, which needs 3 GPUs and may start in about 60 min"
        assert plan.reasons[2] == f"{said}; with a shorter time limit it could pass"


def test_a_job_takes_what_the_first_in_line_will_not_need() -> None:
    host = Host(1, ("gpu:a", "gpu:b"), (9,), users=("eve",), ends_at=NOW + HOUR)
    waiting = [Waiting(1, 0, 100, 3, user="ada"), Waiting(2, 0, 50, 1, user="bob"), Waiting(3, 0, 50, 1, user="bob")]
    plan = schedule(waiting, CARDS, {"gpu:a": 9, "gpu:b": 9}, {}, [host], now=NOW)
    assert set(plan.placements) == {2}


def test_strangers_in_the_way_let_limited_jobs_pass() -> None:
    slots = [*CARDS[:2], Slot("gpu:c", "bob, pid 7")]
    waiting = [Waiting(1, 0, 50, 3), Waiting(2, 0, 50, 1, time_limit=HOUR), Waiting(3, 0, 50, 1)]
    plan = schedule(waiting, slots, {}, {}, now=NOW)
    assert set(plan.placements) == {2}
    assert plan.reasons[3].endswith("that others use; with a time limit it could pass")


def test_a_run_that_has_had_its_turn_makes_room_for_another_user_but_not_for_its_own() -> None:
    host = Host(4, ("gpu:a",), (9,), users=("ada",), priority=50, started_at=NOW - 2 * HOUR)
    usage = {"ada": 10 * HOUR}

    def preempted(job: Waiting, **changes: Any) -> dict[int, int]:
        return schedule([job], CARDS[:1], {"gpu:a": 9}, {}, [replace(host, **changes)], usage=usage, now=NOW).preempt

    bobs = Waiting(5, 0, 50, 1, user="bob", since=NOW)
    assert preempted(bobs) == {4: 5}
    assert preempted(bobs, started_at=NOW - 60) == {}
    assert preempted(bobs, ending=True) == {}
    assert preempted(bobs, priority=100) == {}
    assert preempted(bobs, reservation=3) == {}
    assert preempted(replace(bobs, user="ada", since=NOW - 9 * HOUR)) == {}
    assert preempted(replace(bobs, user="ada", priority=100)) == {4: 5}


def test_age_brings_a_job_to_the_front_but_takes_nobodys_turn_away() -> None:
    """Else who has a long queue would take the cards of those who have used little, an hour at a time."""
    host = Host(4, ("gpu:a",), (9,), users=("bob",), priority=50, started_at=NOW - 2 * HOUR)
    aged = Waiting(5, 0, 50, 1, user="ada", since=NOW - 9 * 86400)
    usage = {"ada": 100 * HOUR, "bob": HOUR}
    assert schedule([aged], CARDS[:1], {"gpu:a": 9}, {}, [host], usage=usage, now=NOW).preempt == {}
    assert schedule([aged], CARDS[:1], {"gpu:a": 9}, {}, [host], usage={"bob": HOUR}, now=NOW).preempt == {4: 5}


def test_of_a_users_jobs_one_that_had_a_turn_goes_on_before_another_begins() -> None:
    waiting = [
        Waiting(1, 0, 50, 1, user="ada", since=NOW - 9 * HOUR),
        Waiting(2, 1, 50, 1, user="ada", since=NOW),
        Waiting(3, 0, 100, 1, user="ada", since=NOW),
        Waiting(4, 0, 50, 1, user="bob", since=NOW - 8 * HOUR),
    ]
    assert schedule(waiting, SLOTS, {}, {}, now=NOW, paused="nothing is given").order == [3, 2, 4, 1]


def test_quotas_of_users_and_teams_say_what_is_full() -> None:
    host = Host(1, ("gpu:a", "gpu:b"), (9,), users=("ada",), expected=NOW + 600)
    policy = Policy(quotas={"ada": 2}, teams={"nlp": Team(frozenset({"ada", "bob"}), 3)})
    waiting = [Waiting(1, 0, 50, 1, user="ada"), Waiting(2, 0, 50, 2, user="bob"), Waiting(3, 0, 50, 1, user="eve")]
    plan = schedule(waiting, CARDS, {"gpu:a": 9, "gpu:b": 9}, {}, [host], policy=policy, now=NOW)
    assert set(plan.placements) == {3}
    assert plan.reasons[1] == "needs 1, ada has 2 of at most 2 GPUs, job 9 ends in about 10 min"
    assert plan.reasons[2] == "needs 2, team nlp has 2 of at most 3 GPUs, job 9 ends in about 10 min"
    assert schedule([Waiting(1, 0, 50, 3, user="ada")], CARDS, {}, {}, policy=policy).never == {1}


def test_a_group_runs_so_many_at_a_time() -> None:
    host = Host(1, ("gpu:a",), (9,), users=("ada",), groups=(7,))
    waiting = [Waiting(n, 0, 50, 1, user="ada", group=7, at_once=2) for n in (1, 2)]
    plan = schedule(waiting, CARDS, {"gpu:a": 9}, {}, [host])
    assert set(plan.placements) == {1}
    assert plan.reasons[2] == "group g7 runs 2 at a time"


def test_a_reservation_stands_in_line() -> None:
    host = Host(1, ("gpu:a",), users=("eve",), reservation=3, ends_at=NOW + 2 * HOUR)
    waiting = [Waiting(-4, 0, 100, 4, user="ada", time_limit=HOUR), Waiting(2, 0, 50, 1, user="ada", time_limit=HOUR)]
    plan = schedule(waiting, CARDS, {"gpu:a": None}, {}, [host], now=NOW)
    assert plan.reasons[-4] == "needs 4 GPUs, 3 free, reservation r3 (eve) ends in about 2 h"
    assert set(plan.placements) == {2}


@given(st.lists(st.tuples(st.sampled_from(USERS), st.sampled_from([0, 50, 100]), st.integers(0, 10**6)), max_size=12))
def test_the_line_is_in_the_order_of_ranks(made: list[tuple[str, int, int]]) -> None:
    """As a sort of all jobs by their rank gives it, while nobody is given anything."""
    waiting = [Waiting(n, 0, p, 1, user=user, since=NOW - age) for n, (user, p, age) in enumerate(made, start=1)]
    line = Line(waiting, {"ada": 5 * HOUR, "bob": 60.0}, {"eve": 2.0}, Policy(), NOW)
    ranks = [line.rank(job) for job in waiting]
    expected = [job.id for _, job in sorted(zip(ranks, waiting, strict=True), key=lambda one: (-one[0], one[1].id))]
    assert [job.id for job in line] == expected


def test_nothing_starves() -> None:
    """A stream of high-priority single jobs, one an hour for ever, against a low job that needs the whole box."""
    big = Waiting(1, 0, 0, 4, user="ada", since=0.0)
    running: list[tuple[float, int]] = []  # (end, id)
    stream, hour = 2, 0
    while hour < 24 * 30:
        now = hour * HOUR
        running = [one for one in running if one[0] > now]
        hosts = [
            Host(j, (f"gpu:{'abcd'[i]}",), (j,), users=("bob",), ends_at=end) for i, (end, j) in enumerate(running)
        ]
        held = {host.slots[0]: host.jobs[0] for host in hosts}
        waiting = [big] + [Waiting(stream + k, 0, 100, 1, user="bob", since=now, time_limit=3 * HOUR) for k in range(2)]
        plan = schedule(waiting, CARDS, held, {}, hosts, now=now, policy=Policy(turn=None))
        if 1 in plan.placements:
            break
        running += [(now + 3 * HOUR, number) for number in plan.placements]
        stream, hour = stream + 2, hour + 1
    assert hour < 24 * 7  # two classes are six days
