"""`autonomous sources`: what the system reads by itself, how far, and what it refused."""

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from cluster.cli_common import (
    ByOption,
    ConfigOption,
    JsonOption,
    connect,
    examples,
    output,
    print_json,
    size_text,
    table,
    who,
)

PANEL = "The model"

SourceArgument = Annotated[str, typer.Argument(help="From: autonomous sources list")]


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    group = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", help="What it reads by itself.")
    group.callback()(_sources)
    command = group.command
    command("list", epilog=examples("autonomous sources list"))(list_sources)
    command(
        epilog=examples(
            'autonomous sources add wiki --folder ~/wiki --include "*.md"',
            "autonomous sources add app --git ~/src/app --branch main",
            "autonomous sources add news --url https://example.org/feed.json --text-field body --id-field id",
            "autonomous sources add tickets --jsonl /var/log/tickets.jsonl --every 5",
        )
    )(add)
    command(epilog=examples('autonomous sources remove wiki --reason "it moved"'))(remove)
    command(epilog=examples("autonomous sources read wiki"))(read)
    command(epilog=examples("autonomous sources refused wiki", "autonomous sources refused wiki --json"))(refused)
    app.add_typer(group, name="sources", rich_help_panel=PANEL)


def _sources() -> None:
    """What it reads by itself."""


def list_sources(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Every source, how far it was read, and what is wrong with it."""
    with connect(config) as client:
        reply = client.sources.all()
    if as_json:
        print_json(reply)
        return
    console = output()
    if not reply["sources"]:
        console.print("No source is read. Add one with: autonomous sources add")
    else:
        titles = ("id", "kind", "documents", "refused", "read", "last", "problem")
        rows = [
            (
                one["id"], one["kind"], one["num_documents"], one["num_refused"], size_text(one["num_bytes"]),
                _ago(one["last_read_at"]), one["error"],
            )
            for one in reply["sources"]
        ]  # fmt: skip
        console.print(table(None, titles, rows, right=("documents", "refused", "read")))
    if reply["waits_for"]:
        console.print(f"Nothing is read now: {reply['waits_for']}", markup=False)


def add(
    *,
    source_id: Annotated[str, typer.Argument(metavar="ID", help="Its name: letters, digits and . _ -")],
    folder: Annotated[Path | None, typer.Option(help="A folder of text files.", show_default=False)] = None,
    git: Annotated[Path | None, typer.Option(help="A git repository.", show_default=False)] = None,
    url: Annotated[str | None, typer.Option(help="An address: JSON, JSON Lines or a page.", show_default=False)] = None,
    jsonl: Annotated[
        Path | None, typer.Option(help="A file of JSON Lines that others append to.", show_default=False)
    ] = None,
    include: Annotated[
        list[str] | None, typer.Option(help="Glob of what is read; may be repeated.", show_default=False)
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(help="Glob of what is not read; may be repeated.", show_default=False)
    ] = None,
    branch: Annotated[str | None, typer.Option(help="Of a repository. Default: HEAD.", show_default=False)] = None,
    text_field: Annotated[str | None, typer.Option(help="Of a record. Default: text.", show_default=False)] = None,
    id_field: Annotated[str | None, typer.Option(help="Of a record: the same id replaces.", show_default=False)] = None,
    title_field: Annotated[str | None, typer.Option(help="Of a record.", show_default=False)] = None,
    time_field: Annotated[str | None, typer.Option(help="Of a record.", show_default=False)] = None,
    every: Annotated[float | None, typer.Option(help="Seconds between looks. Default: 60.", show_default=False)] = None,
    reason: Annotated[str, typer.Option(help="Why, for the audit log.")] = "added on the command line",
    by: ByOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Read a folder, a git repository, an address or a growing file from now on.

    What it has is stored within seconds, and whatever comes later when it comes. All other settings: [[agent.sources]] in the
    configuration.
    """
    places: dict[str, tuple[str, Any]] = {
        "folder": ("path", _absolute(folder)),
        "git": ("repository", _absolute(git)),
        "http": ("url", url),
        "jsonl": ("path", _absolute(jsonl)),
    }
    given = {kind: place for kind, place in places.items() if place[1] is not None}
    if len(given) != 1:
        raise typer.BadParameter("give one of --folder, --git, --url and --jsonl")
    ((kind, (field, value)),) = given.items()
    settings = {
        "include": include, "exclude": exclude, "branch": branch, "text_field": text_field, "id_field": id_field,
        "title_field": title_field, "time_field": time_field, "interval_s": every,
    }  # fmt: skip
    source = {"id": source_id, "kind": kind, field: value}
    source |= {name: setting for name, setting in settings.items() if setting is not None and setting != []}
    with connect(config) as client:
        reply = client.sources.add(source, by=by or who(), reason=reason)
    if as_json:
        print_json(reply)
    else:
        output().print(f"{source_id} is read from now on; see: autonomous sources list", markup=False)


def remove(
    source_id: SourceArgument,
    reason: Annotated[str, typer.Option(help="Why, for the audit log.")],
    by: ByOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Read a source no longer. What it said stays stored: autonomous memory forget erases that."""
    with connect(config) as client:
        client.sources.remove(source_id, by=by or who(), reason=reason)
    if as_json:
        print_json({"id": source_id})
    else:
        output().print(f"{source_id} is not read any more; what it said stays stored.", markup=False)


def read(source_id: SourceArgument, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Look at a source without waiting for its interval."""
    with connect(config) as client:
        reply = client.sources.read_now(source_id)
    if as_json:
        print_json(reply)
    else:
        output().print(f"{source_id} is looked at now; see: autonomous sources list", markup=False)


def refused(
    source_id: SourceArgument,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Most rows.")] = 100,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """What of a source is neither recalled nor learned, why, and what to do."""
    with connect(config) as client:
        reply = client.sources.refused(source_id, limit=limit)
    if as_json:
        print_json(reply)
        return
    rows = [(one["key"], one["status"], one["reason"], one["fix"]) for one in reply["refused"]]
    shown = (
        table(None, ("document", "status", "reason", "fix"), rows) if rows else f"Nothing of {source_id} was refused."
    )
    output().print(shown, markup=False)


def _absolute(path: Path | None) -> str | None:
    return None if path is None else str(path.expanduser().absolute())


def _ago(moment: float | None) -> str:
    if moment is None:
        return "never"
    seconds = max(0.0, time.time() - moment)
    return f"{seconds:.0f} s ago" if seconds < 120 else time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(moment))
