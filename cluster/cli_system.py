"""`autonomous up`, `down`, `status`, `logs`: the system as processes."""

import time
from pathlib import Path
from typing import Annotated, Any

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
    short_path,
    size_text,
    table,
)

PANEL = "The system"


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    add = app.command
    add(rich_help_panel=PANEL, epilog=examples("autonomous up", "autonomous up --config configs/laptop.toml"))(up)
    add(rich_help_panel=PANEL, epilog=examples("autonomous down", "autonomous down --config my.toml"))(down)
    add(rich_help_panel=PANEL, epilog=examples("autonomous status", "autonomous status --json | jq .pointers"))(status)
    add(
        rich_help_panel=PANEL,
        epilog=examples(
            "autonomous logs                 which files there are, by part",
            "autonomous logs episodic        the last lines of the episodic actor",
            "autonomous logs engine -n 200 -f",
        ),
    )(logs)


def up(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Start the system on this machine: Ray, the actors, the HTTP service.

    If a stage fails, everything that was started is ended again.
    """
    from cluster.config import load_config
    from cluster.progress import StageLines
    from cluster.up import BringUpError, bring_up

    found = find_config(config)
    settings = load_config(found)
    console = output(stderr=as_json)
    started = time.monotonic()
    try:
        with StageLines(console) as stages:
            report = bring_up(settings, on_stage=_quiet if as_json else stages, config_path=found.resolve())
    except BringUpError as error:
        raise Failure(str(error)) from error
    seconds = round(time.monotonic() - started, 2)
    if as_json:
        print_json(
            {
                "url": report.url, "dashboard_url": report.dashboard_url, "stages": report.stages,
                "pids": report.pids, "seconds": seconds,
            }
        )  # fmt: skip
        return
    console.print(f"Up in {seconds:.1f} s.  Console and API: {report.url}   Ray dashboard: {report.dashboard_url}")
    console.print('Next: autonomous add FOLDER   autonomous ask "..."   autonomous down', markup=False)


def down(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """End every process of the system and verify that none is left.

    Everything that was stored and learned stays on disk.
    """
    from cluster.config import load_config
    from cluster.progress import StageLines
    from cluster.stop import NotUp, bring_down

    found = find_config(config)
    console = output(stderr=as_json)
    try:
        with StageLines(console) as stages:
            report = bring_down(load_config(found).home, on_stage=_quiet if as_json else stages)
    except NotUp:
        not_running(found)
    except RuntimeError as error:  # processes that survive a kill
        raise Failure(str(error)) from error
    if as_json:
        print_json({"num_processes_ended": report.num_processes_ended, "seconds": round(report.seconds, 2)})
    else:
        console.print(f"Down: {report.num_processes_ended} processes ended in {report.seconds:.1f} s, none is left.")


def status(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """What serves, what is known, what is being learned."""
    from cluster.config import load_config
    from cluster.state import read_state

    found = find_config(config)
    with connect(config, timeout_s=20.0) as client:
        facts = client.status()
        url = client.base_url
    state = read_state(load_config(found).home)
    if as_json:
        print_json({"url": url, "dashboard_url": state.dashboard_url if state else None, **facts})
        return
    rows = [("address", url), ("dashboard", state.dashboard_url if state else None), *_status_rows(facts)]
    output().print(table(None, ("", "now"), rows))


def _status_rows(facts: dict[str, Any]) -> list[tuple[str, str | None]]:
    pointers, memory, delays = facts.get("pointers") or {}, facts.get("memory") or {}, facts.get("delays") or {}
    learning, safety = facts.get("learning") or {}, facts.get("safety") or {}
    rows: list[tuple[str, str | None]] = [("up for", _duration(facts.get("uptime_s")))]
    rows += [(f"version {name}", pointers.get(name)) for name in ("v2", "v1", "v3")]
    if canary := (facts.get("rollout") or {}).get("canary"):
        waits_for = f"; waits for: {canary['waits_for']}" if canary.get("waits_for") else ""
        rows.append(("canary", f"{canary['version']} answers {canary['percent']:g} % of the users{waits_for}"))
    if "error" in memory:
        rows.append(("memory", str(memory["error"])))
    else:
        waiting = int(memory.get("last_seq") or 0) - int(memory.get("indexed_seq") or 0)
        lag = f", {waiting} wait for the index" if waiting > 0 else ""
        size = size_text(float(memory.get("size_bytes") or 0))
        rows.append(
            (
                "memory",
                f"{memory.get('num_documents', 0)} documents, {memory.get('num_episodes', 0)} passages, {size}{lag}",
            )
        )
    rows.append(
        (
            "to be learned",
            f"{facts['pending_episodes']} passages" if facts.get("pending_episodes") is not None else None,
        )
    )
    rows.append(("learning", _learning_line(learning)))
    mode = str(safety.get("mode") or safety.get("error") or "unknown")
    why = (
        f" by {safety.get('by')}: {safety.get('reason')}"
        if mode not in ("armed", "unknown") and safety.get("by")
        else ""
    )
    rows.append(("emergency stop", f"{'not set' if mode == 'armed' else mode}{why}"))
    rows += [("look at", finding) for finding in facts.get("findings") or ()]
    rows += [(f"{name.removesuffix('_s')} delay", _duration(value)) for name, value in delays.items()]
    return rows


def _learning_line(learning: dict[str, Any]) -> str:
    if not learning:
        return "nothing yet since the start"
    line = f"{learning['run_id']}: {learning['phase']}"
    if learning["phase"] == "training" and learning.get("num_steps"):
        line += f", step {learning.get('step')} of {learning['num_steps']}"
    if learning.get("state"):
        line += f", {learning['state']}"
    return line + (f", {learning['error']}" if learning.get("error") else "")


def _duration(seconds: Any) -> str | None:
    if seconds is None:
        return None
    seconds = float(seconds)
    if seconds < 120:
        return f"{seconds:.2f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def logs(
    part: Annotated[
        str | None, typer.Argument(help="Part of an actor's or a file's name; none lists the files.")
    ] = None,
    num_lines: Annotated[int, typer.Option("-n", "--lines", min=0, help="Lines of each file.")] = 40,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on printing new lines until Ctrl-C.")] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the log files of the system, of its actors and of Ray."""
    from cluster import logs as log_files
    from cluster.config import load_config
    from cluster.state import read_state

    found = find_config(config)
    home = load_config(found).home
    state = read_state(home)
    every = log_files.find_logs(home, session_dir=Path(state.session_dir) if state else None)
    if not every:
        raise Failure(f"there are no logs under {home / 'logs'}: the system has not run yet; autonomous up writes them")
    if follow and (as_json or part is None):
        raise Failure("-f follows the files of one part, as text: autonomous logs PART -f", code=2)
    if part is None:
        _list_logs(every, as_json=as_json)
        return
    chosen = log_files.matching(every, part)
    if not chosen:
        parts = ", ".join(sorted({log.part for log in every}))
        raise Failure(f"no log belongs to '{part}'; there are: {parts}")
    ends = [(log, log_files.last_lines(log.path, num_lines)) for log in reversed(chosen)]
    if as_json:
        print_json(
            {"lines": [{"part": log.part, "file": str(log.path), "line": line} for log, end in ends for line in end]}
        )
    else:
        for log, end in ends:
            print(
                *([f"==> {log.part}  {log.path}"] if len(ends) > 1 and end else []),
                *end,
                sep="\n",
                end="\n" if end else "",
            )
    if follow:
        names = {log.path: log.part for log in chosen}
        for path, line in log_files.follow(list(names), is_wanted=lambda: True):
            print(f"{names[path]}: {line}" if len(names) > 1 else line, flush=True)


def _list_logs(every: list[Any], *, as_json: bool) -> None:
    if as_json:
        print_json(
            {"files": [{"part": log.part, "file": str(log.path), "size_bytes": log.size_bytes} for log in every]}
        )
        return
    rows = [
        (
            log.part,
            size_text(log.size_bytes),
            time.strftime("%H:%M:%S", time.localtime(log.changed_at)),
            short_path(log.path),
        )
        for log in every
    ]
    output().print(table(None, ("part", "size", "written", "file"), rows, right=("size",)))
    output().print("Show one with: autonomous logs PART", markup=False)


def _quiet(stage: str, seconds: float | None) -> None:
    """Nothing but the JSON object goes out."""
