"""`autonomous emergency-stop`, `reset`, `audit verify`: a person's hold on the system.

The stop does not need the system: it writes the latch file that every side effect asks at its commit, and only then
tells the service, so that the stop is in the audit log.
"""

import time
from contextlib import suppress
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.cli_common import (
    ConfigOption,
    Failure,
    JsonOption,
    connect,
    examples,
    find_config,
    not_running,
    output,
    print_json,
    who,
)
from cluster.client import Client
from cluster.client_errors import ClientError

if TYPE_CHECKING:
    from autonomous.safety.latch import LatchState
    from autonomous.safety.processes import Killed

PANEL = "Safety"
TELL_TIMEOUT_S = 5.0
"""The latch holds already; a service that is busy is not waited for longer."""

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
    from autonomous.safety.latch import Latch
    from autonomous.safety.processes import kill_registered
    from cluster.state import read_state

    start = time.monotonic()
    home = (home or _home_of(config)).expanduser()
    if not home.is_dir():
        raise Failure(f"there is no system in {home}; name its configuration with --config or its folder with --home")
    person = by or who()
    (home / "safety").mkdir(exist_ok=True)
    latch = Latch.open(home / "safety" / "latch")
    held = getattr(latch, category.value)(reason=reason, by=person, scope=scope.value)
    latched_s = time.monotonic() - start
    killed = kill_registered(home / "safety", held.scope) if held.mode == "killed" else []
    killed_s = time.monotonic() - start
    state = read_state(home)
    told = _tell(state.url, reason, person, category.value, scope.value) if state else "it is not running"
    if told is not None:
        _audit_alone(home, person, held, killed)
    survivors = [one.pid for one in killed if not one.is_gone]
    facts: dict[str, Any] = {
        "mode": held.mode,
        "scope": held.scope,
        "latched_s": round(latched_s, 4),
        "killed_s": round(killed_s, 4) if held.mode == "killed" else None,
        "processes": [asdict(one) for one in killed],
        "service": told or "told",
        "home": str(home),
    }
    if as_json:
        print_json(facts)
        if survivors:
            raise typer.Exit(1)
        return
    console = output()
    console.print(
        f"Stopped: the latch is on disk after {latched_s * 1000:.0f} ms (mode {held.mode}, scope {held.scope}).",
        markup=False,
    )
    if held.mode == "killed":
        gone = f"{len(killed) - len(survivors)} of {len(killed)} processes on this machine are gone"
        console.print(f"Killed: {gone} after {killed_s * 1000:.0f} ms.", markup=False)
    if survivors:
        raise Failure(f"processes {survivors} survive SIGKILL; look at them with ps, the latch holds all the same")
    if told is None:
        goes_on = "" if held.scope == "all" else " Answering goes on."
        console.print(f"The service confirms it and has written it to the audit log.{goes_on}")
    else:
        console.print(
            f"The service was not told: {told}. The stop holds all the same, also after a restart.", markup=False
        )
    console.print('Undo, when the cause is known: autonomous reset --reason "..." --by NAME', markup=False)


def _audit_alone(home: Path, person: str, held: "LatchState", killed: "list[Killed]") -> None:
    """Write the stop to the ledger where no service does. It holds whether that succeeds or not."""
    from autonomous.versions.ledger import VersionLedger

    if (home / "ledger.sqlite").exists():
        with suppress(Exception):
            VersionLedger(home / "ledger.sqlite").append_audit(
                actor=person,
                action=f"safety.{held.mode}",
                subject="latch",
                after=asdict(held),
                evidence={"processes": [asdict(one) for one in killed]},
            )


def _home_of(config: Path | None) -> Path:
    from cluster.config import ConfigError, load_config

    try:
        return load_config(find_config(config)).home
    except ConfigError as error:
        raise Failure(f"{error}; or name the system's folder: autonomous emergency-stop --home FOLDER") from error


def _tell(url: str, reason: str, by: str, category: str, scope: str) -> str | None:
    """Have the service record the stop; returns None or why it could not."""
    try:
        with Client(url) as client:
            client.stop(by=by, reason=reason, category=category, scope=scope, timeout_s=TELL_TIMEOUT_S)
    except ClientError as error:
        return str(error)
    return None


def reset(
    reason: Annotated[str, typer.Option(help="What caused the stop, and why it is safe now.")],
    by: Annotated[str, typer.Option(help="Your name; it goes into the audit log.")],
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Permit learning again after an emergency stop. Starts nothing."""
    with connect(config) as client:
        reply = client.reset(by=by, reason=reason)
    if as_json:
        print_json(reply)
    else:
        output().print(
            f"Learning is permitted again (mode {reply.get('mode', 'armed')}). Nothing was started: autonomous learn"
        )


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
