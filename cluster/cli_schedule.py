"""`autonomous schedule`: what runs by itself, when it is due, how it ended; and a run of it now."""

import time
from typing import Annotated, Any

import typer

from cluster.cli_common import (
    ByOption,
    ConfigOption,
    Failure,
    JsonOption,
    connect,
    examples,
    output,
    print_json,
    table,
    who,
)

PANEL = "The model"
POLL_S = 0.5
_FAILED = ("failed", "crashed", "dropped", "stopped")
"""Outcomes that a command which waits for them tells as a failure."""

NameArgument = Annotated[str, typer.Argument(help="learn, retrain, evaluate, drill, consolidate, or one of your own.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    group = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", help="What runs by itself, and when.")
    group.callback()(_schedule)
    group.command(name="list", epilog=examples("autonomous schedule list"))(listing)
    group.command(
        epilog=examples(
            'autonomous schedule run drill --reason "before the release"',
            "autonomous schedule run retrain --no-wait",
        )
    )(run)
    group.command(epilog=examples("autonomous schedule history drill", "autonomous schedule history learn -n 100"))(
        history
    )
    app.add_typer(group, name="schedule", rich_help_panel=PANEL)


def _schedule() -> None:
    """What runs by itself, and when."""


def listing(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show each job: when it is due next, what waits or runs, how it ended last."""
    with connect(config) as client:
        reply = client.schedules.all()
    if as_json:
        print_json(reply)
        return
    console = output()
    rows = [
        (row["name"], row["schedule"], _moment(row["next_due"]), _open(row["open"]), _last(row["last"]))
        for row in reply["schedules"]
    ]
    console.print(table(None, ("job", "schedule", "next (UTC)", "now", "last"), rows))
    for finding in reply["findings"]:
        console.print(f"Look at {finding}", markup=False)


def run(
    name: NameArgument,
    *,
    reason: Annotated[str, typer.Option(help="Why, for the audit log.")] = "asked on the command line",
    by: ByOption = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait for its end.")] = True,
    timeout_s: Annotated[float, typer.Option("--timeout", min=0, help="Seconds to wait; the run goes on.")] = 7200.0,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run a job now, once no other runs. Exit status 1 if it failed, was stopped or dropped."""
    with connect(config) as client:
        asked = client.schedules.run(name, by=by or who(), reason=reason)
        deadline = time.monotonic() + timeout_s
        while wait and asked["state"] != "ended":
            if time.monotonic() > deadline:
                raise Failure(
                    f"run {asked['id']} of {name} is {asked['state']} after {timeout_s:.0f} s and goes on; look at it with: "
                    f"autonomous schedule history {name}"
                )
            time.sleep(POLL_S)
            asked = next((one for one in client.schedules.runs(name, limit=100) if one["id"] == asked["id"]), asked)
    if as_json:
        print_json(asked)
    elif asked["state"] != "ended":
        output().print(f"Run {asked['id']} of {name} is {asked['state']}.", markup=False)
    else:
        output().print(f"{name}: {asked['outcome']}. {asked['detail']}", markup=False)
    if asked["outcome"] in _FAILED:
        raise typer.Exit(1)


def history(
    name: NameArgument,
    num_runs: Annotated[int, typer.Option("-n", "--lines", min=1, max=1000, help="Most runs.")] = 20,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show a job's runs, newest first."""
    with connect(config) as client:
        runs = client.schedules.runs(name, limit=num_runs)
    if as_json:
        print_json({"runs": runs})
        return
    rows = [
        (one["id"], one["slot"], _moment(one["started_at"]), one["outcome"] or one["state"], one["detail"])
        for one in runs
    ]
    output().print(table(None, ("run", "slot", "began (UTC)", "outcome", "detail"), rows, right=("run",)))


def _moment(seconds: float | None) -> str | None:
    return None if seconds is None else time.strftime("%Y-%m-%d %H:%M", time.gmtime(seconds))


def _open(runs: list[dict[str, Any]]) -> str:
    return ", ".join(f"{one['state']} ({one['slot']})" for one in runs)


def _last(last: dict[str, Any] | None) -> str:
    return "" if last is None else f"{last['outcome']}, {_moment(last['ended_at'])}"
