"""`autonomous demo` and `bench`: the long runs."""

from pathlib import Path
from typing import Annotated

import typer

from cluster.cli_common import ConfigOption, JsonOption, examples, find_config, output, print_json, table

PANEL = "Runs"


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command(
        rich_help_panel=PANEL,
        epilog=examples("autonomous demo", "autonomous demo --source ../my-project", "autonomous demo --once"),
    )(demo)
    app.command(
        rich_help_panel=PANEL,
        epilog=examples("autonomous bench", "autonomous bench loop --quick", "autonomous bench --json > claims.json"),
    )(bench)


def demo(
    source: Annotated[
        Path | None,
        typer.Option(
            help="Folder or git repository to learn from. Default: documentation found on this machine.",
            show_default=False,
        ),
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="End the system afterwards.")] = False,
    approve: Annotated[
        bool, typer.Option("--approve", help="Approve, in your name, a version that passed all gates.")
    ] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """The guided run: start, read documents, answer, learn, answer better, stop, reset.

    Writes demo-report.json and demo-report.html into the current folder.
    """
    from cluster.guided import run_guided

    report = run_guided(
        find_config(config),
        source=source,
        once=once,
        approve=approve,
        folder=Path.cwd(),
        console=output(stderr=as_json),
    )
    if as_json:
        print_json(report.model_dump(mode="json"))
    if not report.is_ok:
        raise typer.Exit(1)


def bench(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]...", help="Beginnings of file names in benchmarks/; none runs all."),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Few repeats: shows that it works, proves little.")] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure what was promised, on this machine.

    Exit status 1 if a benchmark broke; a missed target is a result.
    """
    from cluster.bench import discover, run_benchmarks
    from cluster.client import Client
    from cluster.config import load_config
    from cluster.state import read_state

    paths = discover(names or [])
    found = find_config(config)
    settings = load_config(found)
    state = read_state(settings.home)
    client = Client(state.url) if state else None
    notes = output(stderr=True)
    try:
        report = run_benchmarks(
            paths,
            config=settings,
            config_path=found,
            client=client,
            quick=quick,
            note=lambda text: notes.print(text, markup=False),
        )
    finally:
        if client is not None:
            client.close()
    if as_json:
        print_json(report.to_json())
    else:
        console = output()
        rows = [(c.name, c.target, c.measured, c.unit, c.verdict, c.conditions) for c in report.claims]
        console.print(
            table(
                "Claims", ("claim", "target", "measured", "unit", "target is", "conditions"), rows, right=("measured",)
            )
        )
        machine = ", ".join(f"{name} {value}" for name, value in report.machine.items())
        console.print(machine, markup=False, style="dim")
        for name, error in report.broken.items():
            console.print(f"{name} broke: {error}", markup=False)
    if report.broken:
        raise typer.Exit(1)
