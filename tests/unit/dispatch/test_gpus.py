"""Which GPUs are free: NVML's view against ours, with a fake NVML in its place."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.dispatch.gpus import Gpu, GpuProcess, NoGpu, used_by
from orchestrator.dispatch.launcher import run_environment, threads_per_process, training_command
from orchestrator.dispatch.slots import CpuSlots, GpuSlots
from orchestrator.errors import BadInput
from orchestrator.jobspec import RunSpec

GIB = 1 << 30
IDLE = Gpu(0, "GPU-a", "H200", 139 * GIB, GIB // 2)
BOBS = Gpu(1, "GPU-b", "H200", 139 * GIB, 5 * GIB, (GpuProcess(4711, "bob", 4 * GIB),))


class FakeNvml:
    def __init__(self, *gpus: Gpu) -> None:
        self.gpus = list(gpus)

    def look(self) -> list[Gpu]:
        return self.gpus


def test_a_stranger_on_a_gpu_is_named_and_the_gpu_not_given_away() -> None:
    slots = GpuSlots(source=FakeNvml(IDLE, BOBS))
    assert slots.names == ["gpu:GPU-a", "gpu:GPU-b"]
    assert [slot.taken_by for slot in slots.look(())] == ["", "bob (pid 4711, 4.0 GiB)"]


def test_our_own_processes_are_no_strangers() -> None:
    assert [slot.taken_by for slot in GpuSlots(source=FakeNvml(BOBS)).look({"gpu:GPU-b"})] == [""]


def test_memory_without_a_visible_process_counts() -> None:
    assert used_by(replace(IDLE, used_bytes=3 * GIB)) == "a process that cannot be seen from here (3.0 GiB)"


def test_a_gpu_that_falls_off_the_bus_is_not_free() -> None:
    nvml = FakeNvml(IDLE, BOBS)
    slots = GpuSlots(source=nvml)
    nvml.gpus.pop(0)
    assert slots.look(())[0].taken_by


def test_gpus_by_index() -> None:
    assert GpuSlots([1], FakeNvml(IDLE, BOBS)).names == ["gpu:GPU-b"]
    with pytest.raises(NoGpu, match="no GPU 7"):
        GpuSlots([7], FakeNvml(IDLE, BOBS))


def test_a_worker_has_a_slot() -> None:
    with pytest.raises(BadInput):
        CpuSlots(0)


def spec(**values: object) -> RunSpec:
    fields = {"run": 1, "token": "t", "jobs": [], "processes": 2, "device": "cuda", "gpus": ["GPU-b", "GPU-a"]}
    return RunSpec(**{**fields, "zero": None, "port": 5, **values})  # type: ignore[arg-type]


def test_gpus_are_named_by_uuid_in_pci_order() -> None:
    environment = run_environment(spec(threads=3))
    assert environment["CUDA_VISIBLE_DEVICES"] == "GPU-b,GPU-a"
    assert environment["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert environment["OMP_NUM_THREADS"] == "3"
    assert not {"HF_HUB_OFFLINE", "ACCELERATE_USE_CPU"} & set(environment)


def test_a_cpu_run_sees_no_gpu_and_keeps_deepspeed() -> None:
    assert run_environment(spec(device="cpu"))["CUDA_VISIBLE_DEVICES"] == ""
    zero = run_environment(spec(device="cpu", zero=2))
    assert zero["DS_ACCELERATOR"] == "cpu"
    assert "ACCELERATE_USE_CPU" not in zero  # accelerate would leave DeepSpeed out


@pytest.mark.parametrize(
    ("values", "present", "absent"),
    [
        ({"processes": 1, "device": "cpu"}, {"--cpu"}, {"--multi_gpu", "--use_deepspeed"}),
        ({"processes": 2, "device": "cpu"}, {"--multi_gpu"}, {"--cpu", "--use_deepspeed"}),
        ({"processes": 2, "zero": 3}, {"--use_deepspeed", "--zero_stage"}, {"--cpu", "--multi_gpu"}),
    ],
)
def test_the_command_that_accelerate_needs(
    values: dict[str, object], present: set[str], absent: set[str], tmp_path
) -> None:  # type: ignore[no-untyped-def]
    from orchestrator.paths import RunPaths

    command = training_command(spec(**values), RunPaths(tmp_path))
    assert present <= set(command)
    assert not absent & set(command)
    assert command[-3:] == ["-m", "orchestrator.training.run", str(tmp_path)]


def test_threads_are_a_share_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    assert [threads_per_process(slots) for slots in (1, 2, 3, 100)] == [8, 4, 2, 1]
