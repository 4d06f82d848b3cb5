"""What `torch.compile` would be worth: a base's forward and backward of a fixed line of tokens, with and without it.

make proof-compiled

The best case for it: one length only, attention without gathering, nothing but the frozen model and the gradient of
its input. Processor seconds of one thread, so that a busy machine does not count.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from orchestrator.tuning.host import _fuse_activations
from tests.benchmarks.bench_world import _model
from tests.benchmarks.report import write_page

SHAPES = [("1M", 256), ("1M", 1024), ("22M", 256)]
ROUNDS = 7


def main() -> int:
    torch.set_num_threads(1)
    rows = []
    for base, tokens in SHAPES:
        model = _model(base).requires_grad_(False).eval()
        _fuse_activations(model)
        body = model.transformer
        inputs = torch.randn(1, tokens, model.config.n_embd)
        torch._dynamo.reset()
        compiled: Any = torch.compile(body, dynamic=False)
        begun = time.process_time()
        _step(compiled, inputs)
        cost = time.process_time() - begun
        plain, fast = _seconds(partial(_step, body, inputs), partial(_step, compiled, inputs))
        pays = "never" if fast >= plain else f"{cost / (plain - fast):,.0f}"
        rows.append(
            [base, tokens, f"{1e3 * plain:.1f}", f"{1e3 * fast:.1f}", f"{plain / fast:.2f}", f"{cost:.0f}", pays]
        )
        print(rows[-1], flush=True)
    columns = ["base", "tokens", "ms, as it is", "ms, compiled", "ratio", "s to compile", "steps until it has paid"]
    text = (
        "The forward and backward of a base's layers on one line of tokens that is as long at every step, as it is and "
        "through `torch.compile` (inductor). In a run the line is as long as the rows of the step happen to be: each "
        "other length would be compiled again, or padded. Processor seconds of one thread; the faster of several steps."
    )
    write_page("compiled", "What compiling would be worth", "make proof-compiled", text, columns, rows)
    return 0


def _step(body: Callable[..., Any], inputs: Tensor) -> None:
    states = inputs.clone().requires_grad_()
    found = body(inputs_embeds=states, use_cache=False).last_hidden_state
    nn.functional.mse_loss(found, torch.zeros_like(found)).backward()


def _seconds(*steps: Callable[[], None]) -> list[float]:
    """The least of each, in turns."""
    best = [float("inf")] * len(steps)
    for _ in range(ROUNDS):
        for number, step in enumerate(steps):
            begun = time.process_time()
            step()
            best[number] = min(best[number], time.process_time() - begun)
    return best


if __name__ == "__main__":
    sys.exit(main())
