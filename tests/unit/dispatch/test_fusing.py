"""Which jobs may share a run, and what the scheduler makes of it."""

from __future__ import annotations

import typing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from queue_helpers import BASE, add_jobs, open_registry, recipe

from orchestrator.cost import Cost, Load
from orchestrator.dispatch.scheduling.admission import Limits, default_limits, refusal
from orchestrator.dispatch.scheduling.box import Host, Slot
from orchestrator.dispatch.scheduling.fusing import (
    FROZEN_BASE_METHODS,
    Facts,
    alone_because,
    cost_name,
    fuse_key,
    steps_left,
    suspect,
)
from orchestrator.dispatch.scheduling.scheduler import schedule
from orchestrator.recipe.methods import Method
from orchestrator.registry import jobs
from orchestrator.registry.jobs import Submitted
from orchestrator.registry.queue import Waiting, waiting_jobs
from orchestrator.settings import Policy
from orchestrator.states import JobResult

LIMITS = Limits(jobs=4, tokens=1000, fill=300)
#: A step costs 10 ms and 10 us a token.
COST = Cost(((10.0, 0.01), (1010.0, 0.02)), 0.0, 0.0, 0.0, 1e9, 1e5, 0.0, 1e10)


def submitted(user: str = "ada", base: dict[str, Any] | None = None, **changes: Any) -> Submitted:
    made = recipe()
    for key, value in changes.items():
        part, _, name = key.partition("__")
        made[part] = {**made[part], name: value}
    return Submitted(user, made, {**BASE, **(base or {})})


def key(*args: Any, **changes: Any) -> str | None:
    return fuse_key(submitted(*args, **changes), device="cpu")


def test_what_is_a_jobs_own_does_not_matter() -> None:
    own = {"method__type": "prefix-tuning", "method__length": 9, "train__lr": 1.0, "train__steps": 7}
    own |= {"train__batch_size": 3, "train__accumulation": 4, "train__seeds": [8], "resources__priority": "high"}
    own |= {"resources__time_limit": 9.0, "task__input": "{other}"}
    assert key(**own) == key() == key("bob")


@pytest.mark.parametrize(
    "change",
    [
        {"base": {"fingerprint": "sha256:" + "1" * 64}},
        {"base": {"revision": "other"}},
        {"base": {"path": "/elsewhere"}},  # another tokenizer may lie there
        {"base__dtype": "bf16"},
        {"base__trust_remote_code": True},
        {"resources__zero": 3},
        {"resources__gpus": 2},
        {"resources__fuse": "user"},
    ],
)
def test_what_a_run_fixes_for_all_its_jobs_does(change: dict[str, Any]) -> None:
    assert key(**change) not in {None, key()}
    assert fuse_key(submitted(), device="cuda") != key()


def test_who_is_alone_and_who_shares_with_himself_only() -> None:
    assert key(resources__fuse="never") is None
    assert key(train__base_dropout=True) is None
    assert key(method__type="fine-tuning") is None
    assert key(train__base_lr=1e-5) is None
    assert (
        key("ada", resources__fuse="user") == key("ada", resources__fuse="user") != key("bob", resources__fuse="user")
    )


def test_every_method_has_been_thought_about() -> None:
    """A new method is alone until somebody has decided that it leaves the base as it is."""
    classes = typing.get_args(typing.get_args(Method)[0])
    names = {typing.get_args(one.model_fields["type"].annotation)[0] for one in classes}
    assert names >= FROZEN_BASE_METHODS
    assert {name for name in names if fuse_key(submitted(method__type=name), device="cpu") is None} == (
        names - FROZEN_BASE_METHODS
    )


def test_who_is_alone_is_told_why() -> None:
    assert alone_because(submitted().recipe) == ""
    assert alone_because(submitted(resources__fuse="never").recipe) == "its recipe says `fuse: never`"
    assert "one switch for all rows" in alone_because(submitted(train__base_dropout=True).recipe)
    assert alone_because(submitted(method__type="fine-tuning").recipe) == "fine-tuning has the base for itself"
    assert "neighbours would wait" in alone_because(submitted(method__type="autoprompt").recipe)
    assert alone_because(submitted(method__type="pet").recipe) == ""
    assert "patterns are measured" in alone_because(submitted(method__type="pet", method__weights="accuracy").recipe)
    assert (
        alone_because(submitted(method__type="pet", train__base_lr=1e-5).recipe)
        == "`train.base_lr` trains the base itself"
    )


def test_costs_are_those_of_the_base_its_precision_and_the_device() -> None:
    def name(model: str = "a card", threads: int = 1, **changes: Any) -> str:
        return cost_name(submitted(**changes), model=model, threads=threads)

    assert name() == name(train__lr=1.0, method__length=9)
    others = [
        name("another card"), name(threads=2), name(base__dtype="bf16"), name(resources__zero=3),
        name(resources__gpus=2), name(base={"fingerprint": "sha256:" + "1" * 64}),
    ]  # fmt: skip
    assert len({name(), *others}) == 7


def test_what_is_known_of_a_job_comes_from_recipe_data_and_what_was_measured(home: Path) -> None:
    registry = open_registry(home)
    [number] = add_jobs(registry)
    facts = Facts(registry.paths, model="a card", threads=2)
    with registry.read() as conn:
        [before] = facts.complete(conn, waiting_jobs(conn), device="cuda")
        assert (before.cost, before.load.rows, facts.loads(conn, [number])) == (None, 16, [before.load])
        known = jobs.submitted(conn, [number])[number]
        COST.write(registry.paths.calibration(cost_name(known, model="a card", threads=2)), {})
        [after] = facts.complete(conn, waiting_jobs(conn), device="cuda")
        [elsewhere] = Facts(registry.paths).complete(conn, waiting_jobs(conn), device="cuda")
    registry.close()
    assert after == replace(before, cost=COST)
    assert elsewhere == before


def test_steps_left() -> None:
    assert steps_left(submitted(train__steps=9).recipe, 4) == 5
    assert steps_left(submitted(train__steps=None, train__epochs=2).recipe, 4) is None


@pytest.mark.parametrize(
    ("crashes", "counted", "most", "expected"),
    [(0, 0, 1, False), (0, 2, 3, False), (1, 1, 3, False), (2, 2, 9, True), (1, 1, 2, True), (1, 0, 1, True)],
)
def test_a_job_that_two_runs_went_down_with_is_tried_alone_and_so_is_the_last_try_after_one(
    crashes: int, counted: int, most: int, expected: bool
) -> None:
    job = Waiting(1, 1, 50, 1, counted_attempts=counted, max_attempts=most)
    assert suspect(job, crashes) is expected


@st.composite
def situations(draw: st.DrawFn) -> tuple[list[Waiting], list[Slot], dict[str, int | None], list[Host]]:
    keys, costs = st.sampled_from([None, "a", "b"]), st.sampled_from([None, COST])
    waiting = [
        Waiting(
            number, 0, draw(st.sampled_from([0, 50])), draw(st.integers(1, 3)),
            key=draw(keys), load=Load(1, draw(st.sampled_from([50, 200, 600, 2000]))), cost=draw(costs),
            steps=draw(st.none() | st.integers(1, 9)),
        )
        for number in range(draw(st.integers(0, 8)))
    ]  # fmt: skip
    hosts, slots, held = [], [], {}
    for number in range(draw(st.integers(0, 3))):
        count = draw(st.integers(0, 4))
        live = tuple(range(100 * (number + 1), 100 * (number + 1) + count))
        loads, steps = (Load(1, 200),) * count, draw(st.integers(0, 9))
        hosts.append(Host(number, (f"s{number}",), live, draw(keys), loads, draw(costs), steps, LIMITS))
        slots.append(Slot(f"s{number}"))
        held[f"s{number}"] = live[0] if live else None
    slots += [Slot(f"free{number}") for number in range(draw(st.integers(0, 2)))]
    return waiting, slots, dict(held), hosts


@given(situations())
def test_no_run_is_overfull_and_nobody_shares_with_a_stranger(situation: tuple) -> None:
    waiting, slots, held, hosts = situation
    plan = schedule(waiting, slots, held, {}, hosts, LIMITS)
    seen = {job.id: job for job in waiting}
    groups = [
        (host.key, host.cost, list(host.loads), [seen[j] for j, r in plan.joins.items() if r == host.run])
        for host in hosts
    ]
    groups += [
        (
            seen[one].key,
            seen[one].cost,
            [seen[one].load],
            [seen[j] for j, leader in plan.companions.items() if leader == one],
        )
        for one in plan.placements
    ]
    for shared, cost, loads, joiners in groups:
        assert {job.key for job in joiners} <= {shared} - {None}
        for job in joiners:
            assert refusal(cost, LIMITS, loads, job.load) is None
            loads.append(job.load)


@given(situations())
def test_every_job_starts_one_way_or_is_told_why_not(situation: tuple) -> None:
    waiting, slots, held, hosts = situation
    plan = schedule(waiting, slots, held, {}, hosts, LIMITS)
    ways = [set(plan.placements), set(plan.joins), set(plan.companions), set(plan.reasons)]
    assert sum(map(len, ways)) == len(set().union(*ways)) == len(waiting)
    given_away = [name for names in plan.placements.values() for name in names]
    assert len(given_away) == len(set(given_away))
    assert not set(given_away) & set(held)


@given(situations())
def test_sharing_never_makes_the_first_in_line_wait_longer_in_steps(situation: tuple) -> None:
    waiting, slots, held, hosts = situation
    plan = schedule(waiting, slots, held, {}, hosts, LIMITS)
    line = sorted(waiting, key=lambda job: (-job.priority, job.id))
    blocked = next((job for job in line if "free" in plan.reasons.get(job.id, "")), None)
    if blocked is None:
        return
    assert not set(plan.placements) & {job.id for job in line[line.index(blocked) :]}
    for host in hosts:
        joiners = [job for job in line if plan.joins.get(job.id) == host.run]
        ahead = [job for job in joiners if line.index(job) < line.index(blocked)]
        longest = max([host.steps, *(job.steps or 0 for job in ahead)])
        for job in set(joiners) - set(ahead):
            assert job.steps is not None
            assert job.steps <= longest


def waiting(number: int, **more: Any) -> Waiting:
    return Waiting(number, 0, 50, **{"slots": 1, "key": "k", "load": Load(1, 100), "steps": 10, **more})


FREE = [Slot("gpu:a"), Slot("gpu:b")]


def test_waiting_jobs_of_one_base_start_together_until_it_pays_to_take_another_slot() -> None:
    plan = schedule([waiting(n) for n in range(1, 7)], FREE, {}, {}, (), LIMITS)
    assert plan.placements == {1: ("gpu:a",), 4: ("gpu:b",)}
    assert plan.companions == {2: 1, 3: 1, 5: 4, 6: 4}
    assert plan.alone == {4: "job 1's run: a slot of its own is faster"}


def test_measured_costs_say_who_shares() -> None:
    """Three small jobs cost a card nothing that shows; a large one has the other to itself, and a second one waits."""
    small = [waiting(n, cost=COST, load=Load(1, 50)) for n in (1, 2, 3)]
    large = [waiting(n, cost=COST, load=Load(64, 128)) for n in (4, 5)]
    alone = waiting(6, key=None, alone="its recipe says `fuse: never`")
    plan = schedule([*small, *large, alone], FREE, {}, {}, (), Limits(slowdown=3.0, gain=1.2))
    assert plan.companions == {2: 1, 3: 1}
    assert plan.placements == {1: ("gpu:a",), 4: ("gpu:b",)}
    assert plan.alone == {4: "job 1's run: a step would take 9.0 times as long as alone, more than 3"}
    assert "may not join job 1's run: a step would take 9.0 times as long as alone, more than 3" in plan.reasons[5]
    assert "may not join job 4's run: it would not pay" in plan.reasons[5]
    told = schedule([alone], FREE[:1], {"gpu:a": 3}, {}, [Host(7, ("gpu:a",), (3,), "k", (Load(1, 50),), COST)])
    assert told.reasons[6].endswith("may not join any run: its recipe says `fuse: never`")


def test_on_a_cpu_free_slots_come_first_and_then_all_share_alike() -> None:
    plan = schedule([waiting(n) for n in range(1, 5)], FREE, {}, {}, (), default_limits("cpu"))
    assert plan.placements == {1: ("gpu:a",), 2: ("gpu:b",)}
    assert plan.companions == {3: 1, 4: 2}


def test_when_nothing_is_free_a_job_joins_what_runs_while_there_is_room() -> None:
    host = Host(7, ("gpu:a",), (3, 5), "k", (Load(1, 400),) * 2, None, 0, LIMITS)
    plan = schedule([waiting(8), waiting(9), waiting(10)], FREE[:1], {"gpu:a": 3}, {}, [host])
    assert plan.joins == {8: 7, 9: 7}
    assert (
        plan.reasons[10]
        == "needs 1 GPU, 0 free, jobs 3, 5, 8-9 hold 1, may not join run 7: it has 4 jobs, and takes at most 4"
    )


def test_who_may_not_join_a_run_on_the_same_base_is_told_why() -> None:
    own, others = (key(user=user, resources__fuse="user") for user in ("ada", "bob"))
    host = Host(7, ("gpu:a",), (3,), own, (Load(1, 400),), None, 0, LIMITS)

    def told(mine: str | None) -> str:
        return schedule([waiting(8, key=mine)], FREE[:1], {"gpu:a": 3}, {}, [host]).reasons[8]

    assert told(others).endswith("may not join run 7: `fuse: user` shares with the same user's jobs only")
    assert told(key(base__dtype="bf16")).endswith(
        "another `base.dtype`, `fuse: user` shares with the same user's jobs only"
    )
    another = key(base={"id": "b", "path": "/b", "revision": "r", "fingerprint": "f2", "kind": "causal"})
    assert "may not join" not in told(another)


def test_a_warm_base_is_joined_first_and_gives_way_to_who_needs_its_slot() -> None:
    warm = Host(7, ("gpu:a",), (), "k", limits=LIMITS)
    assert schedule([waiting(8)], FREE, {"gpu:a": 3}, {}, [warm]).joins == {8: 7}
    assert schedule([waiting(8, load=Load(1, 99_999))], FREE, {"gpu:a": 3}, {}, [warm]).joins == {8: 7}
    plan = schedule([waiting(8, key="other")], FREE[:1], {"gpu:a": 3}, {}, [warm])
    assert (plan.leave, plan.reasons[8]) == ([7], "needs 1 GPU, 0 free, run 7 (ending) holds 1")
    assert schedule([waiting(8, key="other")], FREE, {"gpu:a": 3}, {}, [warm]).leave == []
    busy = replace(warm, jobs=(3,))
    assert schedule([waiting(8, key="other")], FREE[:1], {"gpu:a": 3}, {}, [busy]).leave == []


def test_a_run_is_not_joined_and_asked_to_leave_in_one_plan() -> None:
    """The joiner would be sent back to the line at once."""
    warm = Host(7, ("gpu:a",), (), "k", limits=LIMITS)
    large = Load(1, 99_999)
    plan = schedule([waiting(8, load=large), waiting(9, load=large)], FREE[:1], {"gpu:a": 3}, {}, [warm])
    assert (plan.joins, plan.leave) == ({8: 7}, [])
    assert plan.reasons[9].startswith("needs 1 GPU, 0 free, job 8 holds 1, may not join run 7: ")
    ready = Policy(turn=1.0)
    old = replace(warm, jobs=(3,), users=("bob",), started_at=0.0, loads=(Load(1, 100),), steps=50)
    first, second = waiting(1, slots=1, key=None, user="ada"), waiting(2, user="ada", since=1.0)
    plan = schedule([first, second], FREE[:1], {"gpu:a": 3}, {}, [old], policy=ready, usage={"bob": 1e6}, now=1e4)
    assert (plan.preempt, plan.joins) == ({7: 1}, {})


def test_who_is_behind_joins_only_what_goes_on_anyway() -> None:
    host = Host(7, ("gpu:a",), (3,), "k", (Load(1, 100),), None, 50, LIMITS)
    line = [waiting(1, slots=2, key=None), waiting(2, steps=50), waiting(4, steps=51), waiting(5, steps=None)]
    plan = schedule(line, FREE, {"gpu:a": 3}, {}, [host])
    assert plan.joins == {2: 7}
    assert plan.reasons[4] == "waits behind job 1, which needs 2 GPUs"
    assert plan.reasons[5] == "waits behind job 1, which needs 2 GPUs"


def test_dependencies_come_first() -> None:
    host = Host(7, ("gpu:a",), (3,), "k", (Load(1, 100),), None, 50, LIMITS)
    line = [waiting(8, after=(3,)), waiting(9, after=(4,))]
    plan = schedule(line, FREE, {"gpu:a": 3}, {3: None, 4: JobResult.FAILED}, [host])
    assert plan.joins == {}
    assert plan.reasons == {8: "waits for job 3", 9: "job 4 did not succeed"}
