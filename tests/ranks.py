"""A run on two real ranks (gloo), forked from the test: nothing is loaded again, and a fault strikes one of them."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import traceback
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from pretend_cuda import pretended_card
from training_fixtures import MadeRun

from orchestrator.jobspec import RunSpec
from orchestrator.training.distributed import Processes
from orchestrator.training.run import Run

SECONDS = 60.0  #: a rank that waits longer than that for the other waits for ever


def on_two_ranks(
    made: MadeRun, spoil: Callable[[int], None], zero: int | None = None, device: str = "cpu"
) -> list[int | None]:
    """Train the run; `spoil` is called in each rank with its number first. Their exit codes, None: it hung.

    `zero`: as which the ranks are told to behave; nothing is sharded here. `device`: cuda is pretended.
    """
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        ranks = [
            context.Process(target=_rank, args=(made, spoil, Path(folder), number, zero, device)) for number in range(2)
        ]
        with warnings.catch_warnings():
            # Since 3.12 Python warns of a fork beside threads. Those of torch wait and hold no lock that a rank needs.
            warnings.filterwarnings("ignore", r"This process .* is multi-threaded, use of fork", DeprecationWarning)
            for rank in ranks:
                rank.start()
        for rank in ranks:
            rank.join(SECONDS)
        hung = [rank.is_alive() for rank in ranks]
        for rank in ranks:
            rank.kill()
            rank.join()
    return [None if late else rank.exitcode for rank, late in zip(ranks, hung, strict=True)]


def _rank(
    made: MadeRun, spoil: Callable[[int], None], folder: Path, number: int, zero: int | None, device: str
) -> None:
    code = 99
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder}/meet",
            rank=number,
            world_size=2,
            timeout=timedelta(seconds=SECONDS / 2),
        )
        torch.set_num_threads(1)
        with pretended_card() if device == "cuda" else nullcontext():
            spoil(number)
            nothing = None
            group = Processes(nothing, number, 2, torch.device(device), zero)  # type: ignore[arg-type]
            code = Run(group, made.folder, RunSpec.read(made.folder.spec)).train()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)
