"""The program of a run in double precision: `python wide_training.py RUN_FOLDER`.

What differs between a job in company and the same job alone is then no rounding of single precision: a neighbour that
reached it by a hundred-millionth would be seen.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # a run's processes take no module from where they are (PYTHONSAFEPATH)

from isolation import precision

from orchestrator.dispatch.running.launcher import TRAINING, training_command
from orchestrator.jobspec import RunSpec
from orchestrator.paths import RunPaths
from orchestrator.training import run


def wide_command(spec: RunSpec, paths: RunPaths) -> list[str]:
    """The real one, but for the program."""
    command = training_command(spec, paths)
    at = command.index(TRAINING)
    return [*command[: at - 1], str(Path(__file__).resolve()), *command[at + 1 :]]


if __name__ == "__main__":
    with precision("fp64"):
        exit_code = run.main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)  # as the program itself ends
