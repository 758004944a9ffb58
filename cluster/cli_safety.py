"""`autonomous emergency-stop`, `reset`, `audit verify`: a person's hold on the system.

None of them needs the system: they work on the latch file, which every side effect asks at its commit, on the records of the
processes, and on the audit log.
"""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.cli_common import (
    ConfigOption,
    Failure,
    JsonOption,
    examples,
    find_config,
    not_running,
    output,
    print_json,
    who,
)

if TYPE_CHECKING:
    from autonomous.safety.monitor import SafetyMonitor

PANEL = "Safety"

ByOption = Annotated[
    str | None, typer.Option("--by", help="Your name in the audit log. Default: the login name.", show_default=False)
]


class Category(StrEnum):
    """How hard a stop is."""

    PAUSE = "pause"
    STOP = "stop"
    KILL = "kill"


class StopScope(StrEnum):
    """What a stop concerns."""

    LEARNER = "learner"
    LEARNING = "learning"
    ALL = "all"


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command(
        name="emergency-stop",
        rich_help_panel=PANEL,
        epilog=examples(
            "autonomous emergency-stop",
            'autonomous emergency-stop --reason "it repeats a false claim"',
            "autonomous emergency-stop --category pause        after the running step",
            "autonomous emergency-stop --category kill --scope all        learning and answers, processes and all",
            "autonomous emergency-stop --home ~/.autonomous/laptop      without a readable configuration",
        ),
    )(emergency_stop)
    app.command(
        rich_help_panel=PANEL, epilog=examples('autonomous reset --reason "cause found and removed" --by alice')
    )(reset)
    app.command(rich_help_panel=PANEL, epilog=examples("autonomous watchdog"))(watchdog)
    audit = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", help="The hash-chained log of who did what.")
    audit.command(epilog=examples("autonomous audit verify", "autonomous audit verify --json"))(verify)
    audit.callback()(_audit)
    app.add_typer(audit, name="audit", rich_help_panel=PANEL)


def _audit() -> None:
    """The hash-chained log of who did what."""


def emergency_stop(
    *,
    reason: Annotated[str, typer.Option(help="Why, for the audit log.")] = "pulled on the command line",
    category: Annotated[
        Category,
        typer.Option(
            help="pause: after the running step. stop: nothing more takes effect. kill: and the processes are killed."
        ),
    ] = Category.STOP,
    scope: Annotated[
        StopScope,
        typer.Option(
            help="learner: training and what it leads to. learning: memory and promotions too. all: answers too."
        ),
    ] = StopScope.LEARNING,
    by: ByOption = None,
    home: Annotated[
        Path | None,
        typer.Option(help="The system's folder, when its configuration cannot be read.", show_default=False),
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Stop all learning, now and until a person resets it.

    No optimizer step, memory write or promotion takes effect any more; answering goes on, unless the scope is all. A stop
    that holds is made harder or wider, never softer or narrower. Works when everything else is down.
    """
    person = by or who()
    home, monitor = _monitor_of(home or _home_of(config))
    pull = {Category.PAUSE: monitor.pause, Category.STOP: monitor.stop, Category.KILL: monitor.kill}[category]
    answer = pull(reason=reason, by=person, scope=scope.value)
    problems = [answer[name] for name in ("latch_error", "audit_error") if name in answer]
    left = [one for one in answer.get("processes", ()) if not one["is_gone"]]
    if as_json:
        print_json({**answer, "home": str(home)})
        if problems or left:
            raise typer.Exit(1)
        return
    console = output()
    console.print(
        f"Stopped after {1000 * answer['seconds']:.0f} ms (mode {answer['mode']}, scope {answer['scope']}).",
        markup=False,
    )
    if "processes" in answer:
        num_gone = len(answer["processes"]) - len(left)
        console.print(f"Killed: {num_gone} of {len(answer['processes'])} processes were looked for and are gone.")
    for one in left:
        console.print(f"NOT known to be gone: {one['role']}, pid {one['pid']}: {one['problem']}", markup=False)
    for problem in problems:
        console.print(f"But: {problem}", markup=False)
    console.print("" if answer["scope"] == "all" else "Answering goes on.")
    console.print('Undo, when the cause is known: autonomous reset --reason "..." --by NAME', markup=False)
    if problems or left:
        raise Failure("the stop holds as far as it was told above; see to what is left")


def _monitor_of(home: Path) -> "tuple[Path, SafetyMonitor]":
    """The home and its safety monitor, over the files of the home: no service is needed."""
    from autonomous.safety.latch import Latch
    from autonomous.safety.monitor import SafetyMonitor

    home = home.expanduser()
    if not home.is_dir():
        raise Failure(f"there is no system in {home}; name its configuration with --config or its folder with --home")

    def audit(**row: Any) -> None:
        from autonomous.versions.ledger import VersionLedger

        if (home / "ledger.sqlite").exists():
            VersionLedger(home / "ledger.sqlite").append_audit(**row)

    return home, SafetyMonitor(Latch.open(home / "safety" / "latch"), audit=audit)


def _home_of(config: Path | None) -> Path:
    from cluster.config import ConfigError, load_config

    try:
        return load_config(find_config(config)).home
    except ConfigError as error:
        raise Failure(f"{error}; or name the system's folder: autonomous emergency-stop --home FOLDER") from error


def reset(
    reason: Annotated[str, typer.Option(help="What caused the stop, and why it is safe now.")],
    by: Annotated[str, typer.Option(help="Your name; it goes into the audit log.")],
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Permit learning again after an emergency stop. Starts nothing. Works when the system is down."""
    from autonomous.safety.latch import LatchChanged

    _, monitor = _monitor_of(_home_of(config))
    try:
        answer = monitor.reset(reason=reason, by=by)
    except (LatchChanged, OSError, ValueError) as error:
        raise Failure(str(error)) from error
    if as_json:
        print_json(answer)
    else:
        output().print(f"Learning is permitted again (mode {answer['mode']}). Nothing was started: autonomous learn")


def watchdog(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """See that the watchdog runs, which carries out kills from outside of Ray; while it is silent nothing is learned."""
    from cluster.config import load_config
    from cluster.watchdog import WatchdogProblem, start_watchdog

    home = load_config(find_config(config)).home
    try:
        is_new = start_watchdog(home)
    except WatchdogProblem as error:
        raise Failure(str(error)) from error
    if as_json:
        print_json({"started": is_new, "home": str(home)})
    else:
        output().print("The watchdog was started." if is_new else "The watchdog runs.")


def verify(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Check that no row of the audit log was altered, dropped or reordered. Works when the system is down."""
    from autonomous.versions.ledger import VersionLedger
    from cluster.config import load_config

    found = find_config(config)
    ledger = load_config(found).home / "ledger.sqlite"
    if not ledger.exists():
        not_running(found)
    report = VersionLedger(ledger).verify_audit()
    if as_json:
        print_json(
            {
                "ok": report.ok,
                "num_rows": report.num_rows,
                "first_bad_seq": report.first_bad_seq,
                "reason": report.reason,
            }
        )
    elif report.ok:
        output().print(f"The audit log is whole: {report.num_rows} rows, each hash follows from the one before.")
    if not report.ok:
        if not as_json:
            raise Failure(f"the audit log is broken at row {report.first_bad_seq}: {report.reason}")
        raise typer.Exit(1)
