"""The command `autonomous`: what a person types to run, ask, teach and stop a system.

Commands are grouped by file: cli_system.py (up, down, status, logs), cli_model.py (ask, add, learn, versions, rollback),
cli_governance.py (approve, reject, release, explain, forensics), cli_evaluate.py (evaluate), cli_memory.py (memory),
cli_sources.py (sources), cli_tools.py (tool), cli_feedback.py (feedback, gaps), cli_schedule.py (schedule), cli_safety.py
(emergency-stop, reset, audit), cli_runs.py (demo, bench), cli_plan.py (plan), cli_data.py (data), cli_train.py (train). Heavy
parts are imported by the commands that need them, so that help is quick.
"""

import sqlite3
import sys
from collections.abc import Sequence

import typer

from cluster import (
    cli_data,
    cli_evaluate,
    cli_feedback,
    cli_governance,
    cli_memory,
    cli_model,
    cli_plan,
    cli_runs,
    cli_safety,
    cli_schedule,
    cli_sources,
    cli_system,
    cli_tools,
    cli_train,
)
from cluster.cli_common import Failure, examples, print_error
from cluster.client_errors import ApiError, ClientError
from memory.store import StoreFull

app = typer.Typer(
    name="autonomous",
    help="A self-hosted language model that keeps learning, safely.",
    epilog=examples(
        "autonomous up                                  start everything on this machine",
        "autonomous add docs/                           give it documents",
        'autonomous ask "What does the with statement do?"',
        "autonomous learn                               train on what is new, swap it in if it passes",
        "autonomous emergency-stop                      no learning takes effect after this",
        "autonomous down",
    ),
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

PARTS = (
    cli_system,
    cli_model,
    cli_governance,
    cli_evaluate,
    cli_memory,
    cli_sources,
    cli_tools,
    cli_feedback,
    cli_schedule,
    cli_safety,
    cli_runs,
    cli_plan,
    cli_data,
    cli_train,
)
for part in PARTS:
    part.register(app)


def run(arguments: Sequence[str]) -> int:
    """Run one command line; returns the exit status (cli_common names them). Errors are one line, never a trace."""
    as_json = "--json" in arguments
    try:
        outcome = app(args=list(arguments), prog_name="autonomous", standalone_mode=False)
    except Failure as failure:
        print_error(str(failure), as_json=as_json)
        return failure.code
    except ApiError as error:
        print_error(str(error), as_json=as_json, status=error.status, param=error.param, code=error.code)
        return 1
    except (ClientError, StoreFull, ValueError, TimeoutError, OSError, sqlite3.Error) as error:
        print_error(_sentence(error), as_json=as_json)
        return 1
    except typer.Abort:
        print_error("interrupted", as_json=as_json)
        return 130
    except typer.TyperException as error:  # wrong usage
        if message := error.format_message():
            command = getattr(getattr(error, "ctx", None), "command_path", "autonomous")
            print_error(f"{message} See: {command} --help", as_json=as_json)
        return error.exit_code
    return outcome if isinstance(outcome, int) else 0


def _sentence(error: Exception) -> str:
    """An error as a person reads it. SQLite's own say neither what they are about nor what to do."""
    if not isinstance(error, sqlite3.Error):
        return str(error)
    return (
        f"a database of the system cannot be used ({error}): free disk space where it is full, end what holds a lock, "
        "restore a damaged file from a backup"
    )


def main() -> None:
    """The console script."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
