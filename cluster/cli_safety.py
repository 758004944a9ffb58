"""`autonomous emergency-stop`, `reset`, `audit verify`, `audit show`: a person's hold on the system.

None of them needs the system: they work on the latch file, which every side effect asks at its commit, on the records of the
processes, and on the audit log.
"""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.cli_common import (
    WAITS,
    ByOption,
    ConfigOption,
    Failure,
    JsonOption,
    examples,
    find_config,
    not_running,
    output,
    print_json,
    print_waiting,
    table,
    who,
)

if TYPE_CHECKING:
    from autonomous.config import AutonomousConfig
    from autonomous.safety.monitor import SafetyMonitor
    from autonomous.versions.readonly import ReadOnlyLedger
    from cluster.config import SystemConfig

PANEL = "Safety"


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
        rich_help_panel=PANEL,
        epilog=examples(
            'autonomous reset --reason "cause found and removed" --by alice',
            'autonomous reset --reason "I agree" --by bob      where two people decide: the second one',
            'autonomous reset --withdraw --reason "not yet" --by alice',
        ),
    )(reset)
    app.command(rich_help_panel=PANEL, epilog=examples("autonomous watchdog"))(watchdog)
    audit = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", help="The hash-chained log of who did what.")
    audit.command(epilog=examples("autonomous audit verify", "autonomous audit verify --json"))(verify)
    audit.command(
        epilog=examples(
            "autonomous audit show", "autonomous audit show --about ver-0123456789ab", "autonomous audit show --json"
        )
    )(show)
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


def _monitor_of(home: Path, agent: "AutonomousConfig | None" = None) -> "tuple[Path, SafetyMonitor]":
    """The home and its safety monitor, over the files of the home: no service is needed. `agent` for a reset."""
    from autonomous.safety.latch import Latch
    from autonomous.safety.monitor import SafetyMonitor

    home = home.expanduser()
    if not home.is_dir():
        raise Failure(f"there is no system in {home}; name its configuration with --config or its folder with --home")

    def audit(**row: Any) -> None:
        from autonomous.versions.ledger import VersionLedger

        if (home / "ledger.sqlite").exists():
            VersionLedger(home / "ledger.sqlite").append_audit(**row)

    latch = Latch.open(home / "safety" / "latch")
    if agent is None:
        return home, SafetyMonitor(latch, audit=audit)
    within_s = agent.safety.second_person_within_s
    two_people = any(one.needs_two_people for one in (agent, *_running_agent(home)))
    return home, SafetyMonitor(latch, audit=audit, two_people=two_people, second_person_within_s=within_s)


def _running_agent(home: Path) -> "list[AutonomousConfig]":
    """The configuration that the system was last brought up with: one person cannot get round its rule with another file."""
    import json

    from autonomous.config import AutonomousConfig

    try:
        resolved = json.loads((home / "resolved-config.json").read_text(encoding="utf-8"))
        return [AutonomousConfig.model_validate(resolved["agent"])]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Failure(
            f"{home / 'resolved-config.json'} cannot be read ({error}), so it is not known whether two people decide: "
            "autonomous up writes it anew"
        ) from error


def _home_of(config: Path | None) -> Path:
    return _settings_of(config).home


def _settings_of(config: Path | None) -> "SystemConfig":
    from cluster.config import ConfigError, load_config

    try:
        return load_config(find_config(config))
    except ConfigError as error:
        raise Failure(f"{error}; or name the system's folder: autonomous emergency-stop --home FOLDER") from error


def reset(
    *,
    reason: Annotated[str, typer.Option(help="What caused the stop, and why it is safe now.")],
    by: Annotated[str, typer.Option(help="Your name; it goes into the audit log.")],
    withdraw: Annotated[
        bool, typer.Option("--withdraw", help="Take back a reset that waits for a second person.")
    ] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Permit learning again after an emergency stop. Starts nothing. Works when the system is down.

    Where two people decide (agent.safety.two_people), the first one's reset waits for the second's: exit status 4. A
    stop that is pulled in between voids it.
    """
    import sqlite3

    from autonomous.consent import NothingRequested, SecondPersonNeeded
    from autonomous.safety.latch import LatchChanged
    from memory.store import StoreFull

    settings = _settings_of(config)
    _, monitor = _monitor_of(settings.home, settings.agent)
    try:
        answer = (monitor.withdraw_reset if withdraw else monitor.reset)(reason=reason, by=by)
    except (LatchChanged, NothingRequested, SecondPersonNeeded, OSError, ValueError) as error:
        raise Failure(str(error)) from error
    except (StoreFull, sqlite3.Error) as error:
        ledger = settings.home / "ledger.sqlite"
        raise Failure(
            f"the reset could not be written to {ledger} ({error}), so the stop holds: free disk space, or restore a damaged "
            "ledger from a backup"
        ) from error
    waiting = answer.get("waiting")
    if as_json:
        print_json(answer)
    elif withdraw:
        output().print(f"Taken back. The stop holds (mode {answer['mode']}).")
    elif waiting:
        print_waiting(waiting)
    else:
        output().print(f"Learning is permitted again (mode {answer['mode']}). Nothing was started: autonomous learn")
    if waiting and not withdraw:
        raise typer.Exit(WAITS)


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
    """Check that no row of the audit log was altered, dropped or reordered. Works when the system is down; changes nothing.

    With agent.audit_checkpoint the log is compared with the checkpoint there too.
    """
    ledger = _ledger_of(config)
    report = ledger.verify_audit()
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


def show(
    *,
    about: Annotated[
        str | None, typer.Option(help="Only what concerns this version or run.", show_default=False)
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Most rows, the newest.")] = 30,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """The newest rows of the audit log: who did what, when and why. Works when the system is down."""
    from dataclasses import asdict

    from autonomous.versions.explain import moment
    from autonomous.versions.history import Step

    ledger = _ledger_of(config)
    rows = ledger.audit_about(about, limit) if about else ledger.audit(limit)
    if as_json:
        print_json({"rows": [asdict(row) for row in rows]})
        return
    shown = []
    for row in reversed(rows):
        step = Step.of(row)
        moved = f"{step.from_state} -> {step.to_state}" if step.from_state and step.to_state else step.to_state
        shown.append((row.seq, moment(row.ts), row.actor, row.action, row.subject, moved, step.reason))
    console = output()
    console.print(table(None, ("row", "when", "who", "did", "to", "state", "why"), shown, right=("row",)))
    console.print("The hash of each row binds all before it: autonomous audit verify", style="dim")


def _ledger_of(config: Path | None) -> "ReadOnlyLedger":
    from autonomous.versions.readonly import ReadOnlyLedger

    settings = _settings_of(config)
    path = settings.home / "ledger.sqlite"
    if not path.exists():
        not_running(find_config(config))
    return ReadOnlyLedger(path, checkpoint_folder=settings.agent.audit_checkpoint)
