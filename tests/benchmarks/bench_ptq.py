"""The training program of a run, and at its end the most memory that it ever held.

    python -m tests.benchmarks.bench_ptq RUN_FOLDER

Prints one JSON line last: {"bytes": …}.
"""

from __future__ import annotations

import json
import os
import sys

from orchestrator.training import run
from tests.benchmarks.bench_memory import peak_bytes

if __name__ == "__main__":
    exit_code = run.main(sys.argv[1:])
    print(json.dumps({"bytes": peak_bytes()}), flush=True)
    os._exit(exit_code)  # as the program itself ends: threads that DeepSpeed leaves behind are not joined
