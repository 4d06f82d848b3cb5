"""The processes of one run: rank and world, the frozen base on its device or in a DeepSpeed engine, and the sums.

Prompts live outside any wrapper: every rank holds the same prompts, works on its share of each step's rows, and one
all-reduce of one flat buffer (gradients, losses, wishes to stop) makes the step the same on all ranks. So jobs join
and leave without touching an engine.

DeepSpeed: a frozen base has no gradients and no optimizer states, so stages 0 to 2 shard nothing that matters and
stage 3 shards the base. Stages 1 and 2 refuse to start without an optimizer: they get one parameter that nothing uses.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedType, InitProcessGroupKwargs
from torch import Tensor, nn

from orchestrator.training.extensions import alone_in, extensions_folder, load_communication
from orchestrator.tuning.host import BaseHost

#: How long ranks wait for one of them. NCCL's default are 10 minutes, and the first rank alone reads all of a large
#: base's weights for its fingerprint: 140 GB from a slow network disk take 20.
PATIENCE = timedelta(hours=1)


@dataclass
class Processes:
    """The group of processes that this one belongs to."""

    accelerator: Accelerator
    rank: int
    world: int
    device: torch.device
    zero: int | None  #: DeepSpeed ZeRO stage

    @property
    def first(self) -> bool:
        return self.rank == 0

    @property
    def sharded(self) -> bool:
        """Whether the ranks wait for each other in every forward."""
        return self.zero == 3 and self.world > 1

    def share(self, items: Sequence[Any]) -> list[Any]:
        """This rank's items: every `world`-th, beginning with its own number."""
        return list(items[self.rank :: self.world])

    def sum_(self, buffer: Tensor) -> Tensor:
        """Sum `buffer` over all ranks, in place."""
        if self.world > 1:
            dist.all_reduce(buffer)
        return buffer

    def gather(self, value: Any) -> list[Any]:
        """`value` of every rank, on every rank, in rank order."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def same_everywhere(self, parameters: Iterable[Tensor]) -> None:
        """Copy rank 0's values to all ranks."""
        if self.world > 1:
            for parameter in parameters:
                dist.broadcast(parameter.data, src=0)

    def close(self) -> None:
        if dist.is_initialized():
            dist.destroy_process_group()


def join(*, device: str, processes: int, zero: int | None) -> Processes:
    """Join the group that `accelerate launch` made (or be alone)."""
    grouped = processes > 1 or zero is not None
    backend = {"backend": "gloo"} if device == "cpu" else {}  # accelerate's own choice would be none, on a card nccl
    group = [InitProcessGroupKwargs(timeout=PATIENCE, **backend)] if grouped else []
    if zero is not None and device == "cpu":
        load_communication()
    elif zero is not None:
        with alone_in(extensions_folder()):
            pass  # no lock file of a dead process is left
    # `Accelerator(cpu=True)` silently drops DeepSpeed; with DeepSpeed the launcher has already chosen the device.
    accelerator = Accelerator(cpu=device == "cpu" and zero is None, kwargs_handlers=group)
    if (zero is not None) != (accelerator.distributed_type == DistributedType.DEEPSPEED):
        raise RuntimeError(f"asked for ZeRO {zero}, accelerate gave {accelerator.distributed_type}")
    return Processes(
        accelerator=accelerator,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
        device=torch.device("cpu") if device == "cpu" else accelerator.device,
        zero=zero,
    )


def load_as(processes: Processes, dtype: str) -> None:
    """Before the base is loaded: in which precision. ZeRO-3 makes every weight fp32 as it comes, unless it is told."""
    if processes.zero == 3:
        plugin = processes.accelerator.state.deepspeed_plugin
        plugin.deepspeed_config.update({kind: {"enabled": kind == dtype} for kind in ("bf16", "fp16")})
        plugin.set_deepspeed_weakref()  # transformers reads a copy, made anew here


def place(host: BaseHost, processes: Processes) -> None:
    """Move the frozen base to its device; under DeepSpeed, into an engine."""
    if processes.zero is None:
        host.model.to(processes.device)
        return
    config = processes.accelerator.state.deepspeed_plugin.deepspeed_config
    config["train_micro_batch_size_per_gpu"] = 1
    config["gradient_accumulation_steps"] = 1
    # accelerate would clip by one norm over all jobs (its default is 1.0); each job clips by its own.
    config["gradient_clipping"] = 0.0
    engine_input = _Engined(host.model, anchored=processes.zero in (1, 2))
    arguments: list[Any] = [engine_input]
    if engine_input.anchor is not None:
        arguments.append(torch.optim.AdamW([engine_input.anchor], lr=1e-6))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prepared = processes.accelerator.prepare(*arguments)
    engine = prepared[0] if isinstance(prepared, tuple) else prepared
    engine.eval()
    host.model.eval()
    # Calling the engine itself would demand `engine.backward`; its module carries the same hooks.
    host.module = engine.module.base
    if processes.zero == 3:
        host.gathered = _gathered


@contextmanager
def _gathered(weight: Tensor) -> Iterator[Tensor]:
    """A sharded weight as a whole. On all ranks."""
    import deepspeed  # heavy, and here it is loaded already

    with deepspeed.zero.GatheredParameters([weight]):
        yield weight


class _Engined(nn.Module):
    """What DeepSpeed is given: the base, and for stages 1 and 2 a parameter of one number that nothing uses."""

    def __init__(self, base: nn.Module, *, anchored: bool) -> None:
        super().__init__()
        self.base = base
        self.config = base.config  # accelerate reads the hidden size from it
        self.anchor = nn.Parameter(torch.zeros(1)) if anchored else None
