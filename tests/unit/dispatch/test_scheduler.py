"""The scheduler is a pure function: properties, and the few decisions that a person would argue about."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.dispatch.scheduler import Slot, schedule
from orchestrator.registry.jobs import Waiting
from orchestrator.states import JobResult

SLOTS = [Slot(f"cpu:{number}") for number in range(4)]


@st.composite
def situations(draw: st.DrawFn) -> tuple[list[Waiting], list[Slot], dict[str, int | None], dict[int, JobResult | None]]:
    ids = draw(st.lists(st.integers(1, 30), unique=True, max_size=10))
    others = st.lists(st.integers(31, 40), unique=True, max_size=2).map(tuple)
    waiting = [
        Waiting(job, 0, draw(st.sampled_from([0, 50, 100])), draw(st.integers(1, 6)), draw(others)) for job in ids
    ]
    slots = [
        Slot(f"gpu:{n}", draw(st.sampled_from(["", "", "", "bob (pid 7)"]))) for n in range(draw(st.integers(0, 6)))
    ]
    names = [slot.name for slot in slots]
    held = {name: 99 for name in names if draw(st.booleans())}
    endings = {other: draw(st.sampled_from([None, *JobResult])) for other in range(31, 41)}
    return waiting, slots, dict(held), dict(endings)


@given(situations())
def test_no_slot_is_given_twice_or_while_somebody_has_it(situation: tuple) -> None:
    waiting, slots, held, endings = situation
    plan = schedule(waiting, slots, held, endings)
    given_away = [name for names in plan.placements.values() for name in names]
    assert len(given_away) == len(set(given_away))
    assert set(given_away) <= {slot.name for slot in slots if not slot.taken_by} - set(held)


@given(situations())
def test_every_job_is_placed_whole_or_told_why_not(situation: tuple) -> None:
    waiting, slots, held, endings = situation
    plan = schedule(waiting, slots, held, endings)
    assert set(plan.placements) | set(plan.reasons) == {job.id for job in waiting}
    assert not set(plan.placements) & set(plan.reasons)
    assert all(plan.reasons.values())
    for job in waiting:
        if job.id in plan.placements:
            assert len(plan.placements[job.id]) == job.slots
            assert all(endings[other] is JobResult.SUCCEEDED for other in job.after)


@given(situations())
def test_nobody_slips_past_the_first_in_line(situation: tuple) -> None:
    waiting, slots, held, endings = situation
    plan = schedule(waiting, slots, held, endings)
    ready = [
        job
        for job in sorted(waiting, key=lambda job: (-job.priority, job.id))
        if job.slots <= len(slots) and all(endings[other] is JobResult.SUCCEEDED for other in job.after)
    ]
    placed = [job.id in plan.placements for job in ready]
    assert placed == sorted(placed, reverse=True)


@given(situations())
def test_slots_are_not_left_idle_without_need(situation: tuple) -> None:
    waiting, slots, held, endings = situation
    plan = schedule(waiting, slots, held, endings)
    taken = sum(len(names) for names in plan.placements.values())
    free = sum(not slot.taken_by and slot.name not in held for slot in slots) - taken
    ready = [
        job
        for job in sorted(waiting, key=lambda job: (-job.priority, job.id))
        if job.id not in plan.placements
        and job.slots <= len(slots)
        and all(endings[other] is JobResult.SUCCEEDED for other in job.after)
    ]
    assert not ready or ready[0].slots > free


def test_priority_first_then_the_older() -> None:
    waiting = [Waiting(1, 0, 50, 1), Waiting(2, 0, 100, 1), Waiting(3, 0, 50, 1)]
    plan = schedule(waiting, SLOTS[:2], {}, {})
    assert set(plan.placements) == {2, 1}
    assert plan.reasons[3] == "needs 1 slot, 0 free, job 2 holds 1, job 1 holds 1"


def test_the_reason_names_holders_and_strangers() -> None:
    slots = [Slot("gpu:a"), Slot("gpu:b", "bob (pid 7, 2.0 GiB)"), Slot("gpu:c")]
    plan = schedule([Waiting(5, 0, 50, 2)], slots, {"gpu:a": 4}, {})
    assert plan.reasons[5] == "needs 2 slots, 1 free, job 4 holds 1, gpu:b is used by bob (pid 7, 2.0 GiB)"


def test_a_job_that_is_too_large_for_the_box_holds_nobody_up() -> None:
    plan = schedule([Waiting(1, 0, 100, 9), Waiting(2, 0, 50, 1)], SLOTS, {}, {})
    assert plan.never == {1}
    assert plan.reasons == {1: "needs 9 slots, this worker has 4"}
    assert set(plan.placements) == {2}


def test_dependencies() -> None:
    waiting = [Waiting(5, 0, 50, 1, (1,)), Waiting(6, 0, 50, 1, (2,)), Waiting(7, 0, 50, 1, (3, 4))]
    endings = {1: JobResult.SUCCEEDED, 2: JobResult.FAILED, 3: None, 4: JobResult.SUCCEEDED}
    plan = schedule(waiting, SLOTS, {}, endings)
    assert set(plan.placements) == {5}
    assert plan.broken == {6: 2}
    assert plan.reasons[7] == "waits for job 3"
