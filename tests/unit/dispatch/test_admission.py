"""Who may share a run, from measured costs: properties of the decision, and what it says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from queue_helpers import recipe

from orchestrator.cost import Cost, Load
from orchestrator.dispatch.scheduling.admission import USABLE, Limits, default_limits, leaves_a_slot_free, refusal
from orchestrator.dispatch.scheduling.loads import load_of

GB = 1e9
#: A step costs 10 ms and 10 us a token; 1 ms a job.
COST = Cost(((8.0, 0.01), (1008.0, 0.02), (4008.0, 0.05)), 0.001, 0.0, 0.0, 2 * GB, 1e6, 0.0, 16 * GB)
SMALL, LARGE = Load(4, 32), Load(64, 64)
ANY = Limits(jobs=99, tokens=10**9, slowdown=1e9, gain=0.0)

loads = st.builds(
    Load,
    rows=st.integers(1, 64),
    row_tokens=st.integers(1, 300),
    row_labels=st.integers(1, 64),
    passes=st.integers(1, 4),
    parameters=st.integers(0, 10**8),
)


@st.composite
def costs(draw: st.DrawFn) -> Cost:
    small = st.floats(0, 1e-3)
    tokens = sorted(draw(st.lists(st.integers(1, 10**5), min_size=1, max_size=5, unique=True)))
    seconds = sorted(draw(st.lists(st.floats(1e-4, 10), min_size=len(tokens), max_size=len(tokens))))
    curve = tuple((float(t), s) for t, s in zip(tokens, seconds, strict=True))
    memory = draw(st.floats(1e8, 1e11))
    return Cost(
        curve, draw(small), draw(small), draw(small), GB, draw(st.floats(0, 1e6)), draw(st.floats(0, 1e5)), memory
    )


present_loads = st.lists(loads, min_size=1, max_size=6)
limits = st.builds(
    Limits,
    jobs=st.integers(1, 8),
    tokens=st.integers(100, 50_000),
    slowdown=st.floats(1, 20),
    gain=st.floats(1, 1.5),
)


@given(costs() | st.none(), limits, loads)
def test_an_empty_run_takes_any_job(cost: Cost | None, limit: Limits, new: Load) -> None:
    assert refusal(cost, limit, [], new) is None
    assert leaves_a_slot_free(cost, limit, [], new)


@given(costs(), limits, present_loads, loads)
def test_who_is_let_in_fits_pays_and_slows_nobody_too_much(
    cost: Cost, limit: Limits, present: list[Load], new: Load
) -> None:
    if refusal(cost, limit, present, new) is not None:
        return
    together = [*present, new]
    assert len(together) <= limit.jobs
    assert cost.bytes(together) <= USABLE * cost.capacity_bytes
    separately = cost.seconds(present) + cost.seconds([new])
    assert separately >= limit.gain * cost.seconds(together) * (1 - 1e-9)
    assert all(cost.seconds(together) <= limit.slowdown * cost.seconds([one]) * (1 + 1e-9) for one in together)


@given(costs() | st.none(), limits, present_loads, loads, st.randoms())
def test_the_order_in_which_they_came_does_not_matter(
    cost: Cost | None, limit: Limits, present: list[Load], new: Load, chance: object
) -> None:
    shuffled = list(reversed(present))
    assert (refusal(cost, limit, present, new) is None) == (refusal(cost, limit, shuffled, new) is None)


@given(costs() | st.none(), limits, present_loads, loads)
def test_wider_limits_and_more_memory_refuse_nobody_who_was_let_in(
    cost: Cost | None, limit: Limits, present: list[Load], new: Load
) -> None:
    if refusal(cost, limit, present, new) is not None:
        return
    wider = Limits(limit.jobs + 1, limit.tokens * 2, limit.fill, limit.slowdown * 2, limit.gain / 2)
    roomier = cost and replace(cost, capacity_bytes=2 * cost.capacity_bytes)
    assert refusal(roomier, wider, present, new) is None


@given(costs(), present_loads, loads)
def test_another_job_never_makes_a_step_cheaper(cost: Cost, present: list[Load], new: Load) -> None:
    assert cost.seconds([*present, new]) >= cost.seconds(present) * (1 - 1e-9)
    assert cost.bytes([*present, new]) >= cost.bytes(present)
    assert cost.slowdown([*present, new]) >= 1 - 1e-9


def test_small_steps_are_shared_and_large_ones_are_not() -> None:
    """Two small steps cost little more than one; of two large ones the fixed part is next to nothing."""
    assert COST.gain([SMALL], SMALL) > 1.6
    assert COST.gain([LARGE], LARGE) < 1.13
    limit = Limits(gain=1.2)
    assert refusal(COST, limit, [SMALL] * 3, SMALL) is None
    said = refusal(COST, limit, [LARGE], LARGE)
    assert said is not None
    assert said.startswith("it would not pay: separate steps take 1.1")


def test_a_small_job_is_not_dragged_along_by_a_large_one() -> None:
    said = refusal(COST, Limits(slowdown=3.0), [SMALL], LARGE)
    assert said == "a step would take 4.4 times as long as alone, more than 3"
    assert said == refusal(COST, Limits(slowdown=3.0), [LARGE], SMALL)


def test_memory_is_weights_once_and_everything_else_by_what_each_brings() -> None:
    assert COST.bytes([SMALL, LARGE]) == 2 * GB + 1e6 * (4 * 32 + 64 * 64)
    said = refusal(COST, ANY, [LARGE], replace(LARGE, rows=128))
    assert said == "a step would need 14.3 GB of 12.8 GB of memory"
    tuned = refusal(COST, ANY, [SMALL], replace(SMALL, parameters=10**9))
    assert tuned == "a step would need 18.3 GB of 12.8 GB of memory"


def test_padding_costs_where_it_was_found_to() -> None:
    padded = replace(COST, padding_seconds=1e-5, token_bytes=1e5)
    ragged = [Load(64, 8), Load(1, 512)]
    assert COST.seconds(ragged) == pytest.approx(0.002 + 0.01 + 1e-5 * (1024 - 8))
    assert padded.seconds(ragged) == pytest.approx(COST.seconds(ragged) + 1e-5 * (65 * 512 - 1024))
    assert refusal(COST, Limits(), ragged[:1], ragged[1]) is None
    said = refusal(padded, Limits(slowdown=99), ragged[:1], ragged[1])
    assert said is not None
    assert said.startswith("it would not pay")


def test_passes_of_accumulation_are_forwards_of_their_own() -> None:
    halves = replace(LARGE, rows=32, passes=2)
    assert COST.seconds([halves]) == pytest.approx(COST.seconds([replace(LARGE, rows=32)]) * 2 - 0.001)
    assert COST.bytes([halves]) < COST.bytes([LARGE])


def test_unmeasured_a_number_of_tokens_decides() -> None:
    limit = Limits(tokens=256)
    assert refusal(None, limit, [SMALL], SMALL) is None
    assert refusal(None, limit, [SMALL] * 2, SMALL) == "a step would have about 384 tokens, more than 256"
    assert refusal(None, Limits(jobs=2), [SMALL] * 2, SMALL) == "it has 2 jobs, and takes at most 2"
    said = refusal(None, Limits(slowdown=3.0), [SMALL], LARGE)  # (1024 + 4224) / (1024 + 128)
    assert said == "a step would take 4.6 times as long as alone, more than 3"


def test_a_free_slot_is_the_better_place_unless_sharing_is_nearly_free() -> None:
    gpu, cpu = default_limits("cuda"), default_limits("cpu")
    assert leaves_a_slot_free(COST, gpu, [SMALL], SMALL)
    assert not leaves_a_slot_free(COST, gpu, [LARGE], LARGE)
    assert not leaves_a_slot_free(COST, cpu, [SMALL], SMALL)
    assert leaves_a_slot_free(None, gpu, [SMALL], SMALL)
    assert not leaves_a_slot_free(None, replace(gpu, fill=200), [SMALL], SMALL)


def test_costs_are_kept_and_a_damaged_file_is_as_if_nothing_were_measured(tmp_path: Path) -> None:
    path = tmp_path / "costs" / "base.json"
    assert Cost.read(path) is None
    COST.write(path, {"base": "tiny"})
    assert Cost.read(path) == COST
    path.write_text(path.read_text().replace('"job_seconds"', '"others"'))
    assert Cost.read(path) is None
    for text in ("", "[]", '{"format": 9}', '{"format": 1, "about": {}, "curve": []}'):
        path.write_text(text)
        assert Cost.read(path) is None


def test_of_two_measurements_the_faster_is_kept() -> None:
    disturbed = replace(COST, curve=tuple((tokens, 5 * seconds) for tokens, seconds in COST.curve))
    assert disturbed.faster(COST) == COST.faster(disturbed) == COST.faster(None) == COST


def load(field_bytes: float | None = None, processes: int = 1, **changes: object) -> Load:
    made = recipe()
    for key, value in changes.items():
        part, _, name = key.partition("__")
        made[part] = {**made[part], name: value}
    return load_of(made, {"path": "/nowhere"}, field_bytes, processes)


def test_what_a_job_brings() -> None:
    assert load() == Load(rows=16, row_tokens=256 + 64 + 2, row_labels=64)
    assert load(train__batch_size=8, train__accumulation=3).rows == 3
    assert load(processes=2).rows == 8
    assert load(task__max_input_tokens=10, task__max_new_tokens=5).row_tokens == 10 + 5 + 2
    assert load(field_bytes=30.0).row_tokens == round((2 * 30 + len("{source}") + len("{target}")) / 3) + 2
    assert load(field_bytes=1e9).row_tokens == load().row_tokens
    assert load(method__type="prefix-tuning").row_tokens == 256 + 64  # its tokens are in the layers


def test_what_is_trained_is_counted_from_the_bases_shape(tmp_path: Path) -> None:
    from queue_helpers import base_folder

    base = {"path": str(base_folder(tmp_path / "base"))}  # H = 4, L = 1
    made = recipe()

    def trained(**method: object) -> int:
        return load_of({**made, "method": {"type": "prompt-tuning", "length": 5, **method}}, base, None, 1).parameters

    assert trained() == 5 * 4
    assert trained(type="prefix-tuning") == 5 * 2 * 4
    assert trained(type="prefix-tuning", reparameterization={"hidden": 3}) == 5 * 4 + 4 * 3 + 3 * 2 * 4
