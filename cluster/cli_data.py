"""`autonomous data`: training tokens from raw web pages, code and documents, and what that costs at scale."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.cli_common import JsonOption, examples, output, print_json, table
from cluster.cli_plan import parse_count

if TYPE_CHECKING:
    from rich.console import Console

    from train.data.config import PipelineConfig
    from train.data.estimate import Estimate
    from train.data.pipeline import DriverKind
    from train.data.report import PipelineReport

PANEL = "Training"


class DriverName(StrEnum):
    """What runs the jobs of a pipeline."""

    LOCAL = "local"
    RAY = "ray"
    RAY_DATA = "ray_data"


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    group = typer.Typer(no_args_is_help=True, help="Training tokens from raw web pages, code and documents.")
    group.command(
        "run",
        epilog=examples(
            "autonomous data run --config configs/data/example.toml",
            "autonomous data run --config my.toml --output s3://bucket/tokens --driver ray",
        ),
    )(run)
    group.command(
        "estimate",
        epilog=examples(
            "autonomous data estimate --tokens 15e12 --cores 4096",
            "autonomous data estimate --tokens 1T --cores 64 --usd-per-core-hour 0.03 --json",
        ),
    )(estimate)
    app.add_typer(group, name="data", rich_help_panel=PANEL)


def run(  # noqa: PLR0917 - the command's options
    config: Annotated[Path, typer.Option("--config", metavar="FILE", help="Configuration of the run (TOML).")],
    out: Annotated[
        str | None, typer.Option("--output", metavar="FOLDER", help="Folder or URI instead of the file's `output`.")
    ] = None,
    driver: Annotated[DriverName, typer.Option(help="This process, Ray tasks, or Ray Data.")] = DriverName.LOCAL,
    workers: Annotated[
        int | None, typer.Option(help="Ray tasks at once. Default: the cluster's CPUs.", show_default=False, min=1)
    ] = None,
    restart: Annotated[bool, typer.Option("--restart", help="Delete what the output folder holds of a run.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Read the sources and write text, packed tokens, an audit of what was dropped, a manifest and a report.

    A run that was killed goes on where it stood; its results are the same as if it had not been.
    """
    from train.data.config import load_pipeline_config

    settings = load_pipeline_config(config, output=out)
    report = run_pipeline(
        settings, driver=driver.value, workers=workers, restart=restart, console=output(stderr=as_json)
    )
    if as_json:
        print_json(report.model_dump(mode="json"))
    else:
        _print(report, where=settings.output, console=output())


def estimate(  # noqa: PLR0917 - the command's options
    tokens: Annotated[str, typer.Option(help="Tokens wanted; 15e12, 15T, 300B are understood.")] = "15T",
    cores: Annotated[int, typer.Option(help="CPU cores of the cluster.", min=1)] = 4096,
    usd_per_core_hour: Annotated[float, typer.Option(help="Price of a core for an hour.", min=0)] = 0.04,
    passed_share: Annotated[
        float | None,
        typer.Option(help="Share of extracted text that passes the rules; 0.5 if not given.", min=0.001, max=1),
    ] = None,
    unique_share: Annotated[
        float | None, typer.Option(help="Share of it that is no duplicate; 0.56 if not given.", min=0.001, max=1)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Core-hours, shuffle volume, index size and dollars, from rates that are measured here and now (about a minute)."""
    from train.data.estimate import estimate_run, measure_rates

    console = output(stderr=as_json)
    count = parse_count(tokens, option="--tokens")
    shares = {"passed_share": passed_share, "unique_share": unique_share}
    found = estimate_run(
        measure_rates(on_stage=lambda stage: console.print(f"  measuring {stage}", markup=False)),
        tokens=count, cores=cores, usd_per_core_hour=usd_per_core_hour,
        **{name: share for name, share in shares.items() if share is not None},
    )  # fmt: skip
    if as_json:
        print_json(found.model_dump(mode="json"))
        return
    _print_estimate(found, console)


def run_pipeline(
    settings: "PipelineConfig", *, driver: "DriverKind", workers: int | None, restart: bool, console: "Console"
) -> "PipelineReport":
    """Run with a bar per phase; starts or joins Ray where the driver needs it."""
    from cluster.progress import CountBar
    from train.data.pipeline import DataPipeline

    if driver != "local":
        import ray

        if not ray.is_initialized():
            ray.init(log_to_driver=False)
    pipeline = DataPipeline(settings, driver=driver, num_workers=workers)
    bar: CountBar | None = None
    shown = ""

    def on_progress(label: str, done: int, total: int) -> None:
        nonlocal bar, shown
        if label != shown:
            if bar is not None:
                bar.__exit__()
            bar, shown = CountBar(console, label), label
            bar.__enter__()
        assert bar is not None
        bar.update(done, total)

    try:
        return pipeline.run(restart=restart, on_progress=on_progress)
    finally:
        if bar is not None:
            bar.__exit__()


def _print(report: "PipelineReport", *, where: str, console: "Console") -> None:
    rows = [
        (row.step, f"{row.documents:,}", f"{'~ ' if row.is_estimate else ''}{row.tokens:,}") for row in report.funnel
    ]
    console.print(
        table("What became of the documents", ("step", "documents", "tokens"), rows, right=("documents", "tokens"))
    )
    found = report.duplicates["estimate"]
    if found["num_pairs"]:
        recall = "unknown" if found["recall"] is None else f"{found['recall']:.1%}"
        interval = f"{found['precision_low']:.1%} to {found['precision_high']:.1%}"
        console.print(
            f"Near duplicates: precision {found['precision']:.1%} ({interval}, {found['num_pairs']} compared exactly), "
            f"recall of the pairs above the threshold {recall}",
            markup=False,
        )
    if report.losses:
        console.print(f"{report.losses:,} losses, {report.lost_bytes:,} bytes: see losses.jsonl", markup=False)
    console.print(
        f"{report.tokens_out:,} tokens in {report.sequences:,} sequences, {report.shards:,} shards\n"
        f"Report: {where}/report.html, manifest.json",
        markup=False,
    )


def _print_estimate(found: "Estimate", console: "Console") -> None:
    rows = [(line.name, line.text, line.formula) for line in found.lines]
    console.print(table("From rates measured on this machine", ("item", "value", "formula"), rows, right=("value",)))
