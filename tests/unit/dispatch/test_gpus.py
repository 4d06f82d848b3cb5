"""Which GPUs are free: NVML's view against ours, with a fake NVML in its place."""

from __future__ import annotations

import getpass
import json
import os
import subprocess
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from queue_helpers import open_registry

from orchestrator.cli import box
from orchestrator.cli.main import main
from orchestrator.dispatch.running import cards
from orchestrator.dispatch.running.launcher import run_environment, threads_per_process, training_command
from orchestrator.dispatch.scheduling.gpus import (
    FakeGpus,
    Gpu,
    GpuProcess,
    NoGpu,
    Nvml,
    driver_version,
    gpu_source,
    used_by,
)
from orchestrator.dispatch.scheduling.slots import CpuSlots, GpuSlots
from orchestrator.errors import BadInput
from orchestrator.jobspec import RunSpec
from orchestrator.settings import load_settings

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
    assert [slot.taken_by for slot in slots.look(())] == ["", "bob, pid 4711, 4.0 GiB"]


def test_our_own_processes_are_no_strangers() -> None:
    assert [slot.taken_by for slot in GpuSlots(source=FakeNvml(BOBS)).look({"gpu:GPU-b"})] == [""]


def test_memory_without_a_visible_process_counts() -> None:
    assert used_by(replace(IDLE, used_bytes=3 * GIB)) == "a process that cannot be seen from here, 3.0 GiB"


def test_a_gpu_that_falls_off_the_bus_is_not_free() -> None:
    nvml = FakeNvml(IDLE, BOBS)
    slots = GpuSlots(source=nvml)
    nvml.gpus.pop(0)
    assert slots.look(())[0].fault == "it does not answer"
    assert not slots.look(())[0].usable


def test_of_the_cards_that_the_driver_counts_those_that_answer_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def handle(index: int) -> int:
        if index in silent:
            raise DriverError("GPU is lost")
        return index

    monkeypatch.setitem(sys.modules, "pynvml", Driver())
    monkeypatch.setattr(Driver, "nvmlDeviceGetCount", lambda _self: 3, raising=False)
    monkeypatch.setattr(Driver, "nvmlDeviceGetHandleByIndex", lambda _self, index: handle(index), raising=False)
    monkeypatch.setattr(Driver, "nvmlDeviceGetUUID", lambda _self, index: f"GPU-{index}", raising=False)
    silent = {1}
    assert [gpu.slot for gpu in Nvml().look()] == ["gpu:GPU-0", "gpu:GPU-2"]
    silent = {0, 1, 2}
    with pytest.raises(NoGpu, match="the GPUs do not answer"):
        Nvml().look()


def test_a_run_of_another_home_has_the_card(tmp_path: Path) -> None:
    path = tmp_path / "gpus.json"
    path.write_text('[{"uuid": "GPU-a"}, {"uuid": "GPU-b"}]')
    ours, theirs = GpuSlots(source=FakeGpus(path)), GpuSlots(source=FakeGpus(path))
    with theirs.holding(["gpu:GPU-a"]) as held:
        child = subprocess.Popen(["sleep", "60"], pass_fds=held)
    assert [slot.taken_by for slot in ours.look(())] == ["a run of another PTQ_HOME", ""]
    with pytest.raises(cards.Held, match="GPU-a"), ours.holding(["gpu:GPU-b", "gpu:GPU-a"]):
        pytest.fail("it is held")
    assert ours.look(())[1].usable  # what was bound before the other was met is let go
    child.kill()
    child.wait()
    with ours.holding(["gpu:GPU-a", "gpu:GPU-b"]) as held:
        assert len(held) == 2


def test_what_an_ended_run_has_left_keeps_the_card_in_quarantine() -> None:
    left = replace(BOBS, processes=(GpuProcess(99, "ada", GIB, run="token"),))
    [slot] = GpuSlots(source=FakeNvml(left)).look(())
    assert (slot.taken_by, slot.fault) == ("", "pid 99 of an ended run is still on it")
    assert GpuSlots(source=FakeNvml(left)).look({slot.name})[0].usable  # the run has not ended


def test_a_card_that_the_driver_calls_broken_is_left_alone() -> None:
    [slot] = GpuSlots(source=FakeNvml(replace(IDLE, fault="its memory is broken"))).look(())
    assert (slot.usable, slot.fault) == (False, "its memory is broken")


class DriverError(Exception):
    pass


class Driver:
    """What `pynvml` answers, for the calls that we make."""

    NVMLError = DriverError
    nvmlMemory_v2 = 2
    rows = (0, 0, 0, 0)
    pid = os.getpid()

    def __getattr__(self, name: str) -> Any:
        answers = {
            "nvmlDeviceGetCount": 1,
            "nvmlDeviceGetUUID": "GPU-x",
            "nvmlDeviceGetName": "H200",
            "nvmlDeviceGetMemoryInfo": SimpleNamespace(total=139 * GIB, used=2 * GIB),
            "nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=71),
            "nvmlDeviceGetComputeRunningProcesses": [SimpleNamespace(pid=self.pid, usedGpuMemory=GIB)],
            "nvmlDeviceGetRemappedRows": self.rows,
            "nvmlSystemGetDriverVersion": "550.54.15",
            "nvmlSystemGetCudaDriverVersion_v2": 12040,
        }
        return lambda *_, **__: answers.get(name)


def test_what_the_driver_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", Driver())
    [gpu] = Nvml().look()
    me = GpuProcess(os.getpid(), getpass.getuser(), GIB)
    assert gpu == Gpu(0, "GPU-x", "H200", 139 * GIB, 2 * GIB, (me,), utilisation=71, claim="gpu:GPU-x")
    assert driver_version() == "550.54.15, up to CUDA 12.4"
    monkeypatch.setattr(Driver, "rows", (0, 1, 1, 0))
    assert "needs a reset" in Nvml().look()[0].fault
    monkeypatch.setattr(Driver, "nvmlDeviceGetRemappedRows", _refuses, raising=False)
    monkeypatch.setattr(Driver, "nvmlDeviceGetUtilizationRates", _refuses, raising=False)
    assert (Nvml().look()[0].fault, Nvml().look()[0].utilisation) == ("", None)
    monkeypatch.setattr(Driver, "nvmlSystemGetCudaDriverVersion_v2", _refuses, raising=False)
    assert driver_version() is None


def test_the_doctor_says_what_torch_sees_of_the_cards(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two cards of a real driver, a torch without CUDA; then one that sees both. No driver: torch is not asked."""

    def doctor(*options: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["ptq", "doctor", *options])
        with pytest.raises(SystemExit) as end:
            main()
        return int(end.value.code or 0), capsys.readouterr().out

    seen: dict[str, Any] = {"torch": "2.13.0+cpu", "built_for": None, "gpus": [], "why_none": "a build without CUDA"}
    registry = open_registry(home)
    registry.close()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(box, "_what_torch_sees", lambda: seen)
    assert doctor()[0] == 0
    driver = Driver()
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    code, said = doctor()
    assert code == 1
    assert "torch 2.13.0+cpu, built without CUDA, sees 0 of 1; driver 550.54.15, up to CUDA 12.4" in said
    assert "wrong: torch sees 0 of 1: a build without CUDA" in said
    code, said = doctor("--json")
    assert (code, json.loads(said)["whole"]) == (1, False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # hidden on purpose, in this shell alone
    assert doctor()[0] == 0
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    seen |= {"torch": "2.13.0+cu126", "built_for": "12.6", "gpus": ["x"], "why_none": ""}
    code, said = doctor("--json")
    assert (code, json.loads(said)["box"]["torch"]) == (0, seen)
    assert json.loads(said)["whole"]
    assert "torch 2.13.0+cu126, built for CUDA 12.6, sees 1 of 1" in doctor()[1]
    monkeypatch.setattr(Driver, "nvmlDeviceGetCount", lambda *_: 2, raising=False)
    assert "wrong: torch sees 1 of 2: a container hides the others" in doctor()[1]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-x")  # one of the two is this shell's
    assert doctor()[0] == 0


def test_the_program_that_the_doctor_starts_says_what_torch_sees() -> None:
    found = box._what_torch_sees()
    version = metadata.version("torch")  # PyPI's CUDA build leaves `+cu130` out here
    assert found["torch"].partition("+")[0] == version.partition("+")[0]
    assert bool(found["gpus"]) is not bool(found["why_none"])


def _refuses(*_: object) -> None:
    raise DriverError("not supported")


def test_a_file_in_the_place_of_a_driver(tmp_path: Path) -> None:
    path = tmp_path / "gpus.json"
    source = gpu_source(load_settings({"PTQ_FAKE_GPUS": str(path)}, tmp_path))
    with pytest.raises(NoGpu, match="not a list of GPUs"):
        source.look()
    path.write_text(json.dumps([{}, {"processes": [{"pid": 8812, "user": "bob", "bytes": 2 * GIB}]}]))
    assert [used_by(gpu) for gpu in source.look()] == ["", "bob, pid 8812, 2.0 GiB"]
    path.write_text('{"error": "the driver is gone"}')
    with pytest.raises(NoGpu, match="the driver is gone"):
        source.look()
    assert isinstance(gpu_source(load_settings({}, tmp_path)), Nvml)


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


def test_no_file_in_a_runs_folder_is_taken_for_a_module(tmp_path: Path) -> None:
    """`python -m` would look in the current folder first, and that is the run's."""
    (tmp_path / "trap.py").write_text("print('caught')")
    environment = {**os.environ, **run_environment(spec())}
    tried = [sys.executable, "-m", "trap"]
    done = subprocess.run(tried, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, "No module named trap" in done.stderr) == (1, "", True)
