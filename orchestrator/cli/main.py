"""`ptq`: one verb per file in this folder; this file only lists them and turns errors into exit codes.

Nothing heavy is imported here or at the top of a verb's file: `ptq status` must feel instant.
"""

from __future__ import annotations

import os
import sys
from typing import Any, NoReturn

import typer

from orchestrator.errors import PtqError
from orchestrator.settings import load_settings
from orchestrator.sharing import account_name, keep_to_the_group

INTERRUPTED = 130


def build_app() -> typer.Typer:
    """The whole command tree."""
    app = typer.Typer(
        name="ptq",
        help="Train prompts, prefixes and P-tuning on frozen language models, as a queue that a team shares.",
        no_args_is_help=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    for verb in _verbs():
        verb.register(app)

    @app.callback(invoke_without_command=True)
    def bare(context: typer.Context) -> None:
        if context.invoked_subcommand is None:
            from orchestrator.cli.status import show

            show()

    return app


def _verbs() -> tuple[Any, ...]:
    """In the order in which `ptq --help` shows them."""
    from orchestrator.cli import (
        artifact,
        base,
        cancel,
        care,
        compare,
        dataset,
        demo,
        events,
        init,
        jobs,
        lineage,
        logs,
        pause,
        plot,
        predict,
        recipe,
        reproduce,
        reserve,
        retry,
        run,
        score,
        show,
        status,
        submit,
        worker,
    )

    return (
        init, demo, dataset, base, recipe, submit, run, worker, status, jobs, show, compare, logs, events, plot,
        cancel, retry, pause, reserve, reproduce, artifact, lineage, predict, score, care,
    )  # fmt: skip


def main() -> None:
    """The console command."""
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        keep_to_the_group(load_settings().home)
        build_app()(arguments, prog_name="ptq", standalone_mode=True)
    except PtqError as error:
        if debug:
            raise
        sys.stderr.write(f"ptq: {error}\n")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except SystemExit as ended:  # typer makes an exit code 1 of a pipe that nobody reads any more
        _leave(0 if isinstance(ended.__context__, BrokenPipeError) else ended.code)
    except PermissionError as error:
        if debug:
            raise
        what = f"{error.filename}: you may not read or write this"
        sys.stderr.write(f"ptq: {what}\n  `ls -ld` shows whose it is; you are {account_name(os.getuid())}\n")
        sys.exit(PtqError.exit_code)
    except Exception as error:
        if debug:
            raise
        what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        sys.stderr.write(f"ptq: {what}\n  not foreseen: add --debug to the command to see where, and report it\n")
        sys.exit(PtqError.exit_code)


def _leave(code: str | int | None) -> NoReturn:
    try:
        if sys.stdout is not None:  # a shell may have closed it
            sys.stdout.flush()
    except OSError as error:  # Python must not try again at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):  # else nobody reads the rest
            sys.stderr.write(f"ptq: the output cannot be written ({error.strerror})\n")
            code = code or PtqError.exit_code
    sys.exit(code)


if __name__ == "__main__":
    main()
