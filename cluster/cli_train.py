"""`autonomous train`: a model from token shards, and what its runs wrote."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.cli_common import Failure, JsonOption, examples, output, print_json, table
from cluster.pretraining import DriverName, restart_if_local, run_pretraining

if TYPE_CHECKING:
    from rich.console import Console

    from train.pretrain.config import PretrainingConfig
    from train.pretrain.loop import RunEnd

PANEL = "Training"
OutputOption = Annotated[
    Path | None, typer.Option("--output", metavar="FOLDER", help="Folder instead of the file's `output`.")
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Change a field of the run; may be repeated.")
]
DriverOption = Annotated[
    DriverName, typer.Option(help="Workers on Ray (started here, or joined), or this process alone.")
]
HomeOption = Annotated[
    Path | None,
    typer.Option(help="The system whose emergency stop ends the run. Default: this machine's, where there is one."),
]


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    group = typer.Typer(no_args_is_help=True, help="A model of your own, from token shards.")
    group.command(
        "pretrain",
        epilog=examples(
            "autonomous train pretrain --config configs/models/small.toml",
            "autonomous train pretrain --config my.toml --set optimizer.lr=1e-3 --set tokens=5000000",
        ),
    )(pretrain)
    group.command(
        "continue",
        epilog=examples(
            "autonomous train continue --config configs/continual/german.toml",
            "autonomous train continue --config my.toml --set optimizer.lr=1e-4",
        ),
    )(continue_)
    group.command("report", epilog=examples("autonomous train report RUN OTHER-RUN --output compared.html"))(report)
    group.command(
        "export",
        epilog=examples("autonomous train export RUN --to my-model", "autonomous train export RUN --step 500 --to x"),
    )(export)
    group.command("checkpoints", epilog=examples("autonomous train checkpoints RUN"))(checkpoints)
    app.add_typer(group, name="train", rich_help_panel=PANEL)


def pretrain(  # noqa: PLR0917 - the command's options
    config: Annotated[Path, typer.Option("--config", metavar="FILE", help="Configuration of the run (TOML).")],
    out: OutputOption = None,
    changes: SetOption = None,
    driver: DriverOption = DriverName.RAY,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train, and leave checkpoints, metrics, a report and a model folder that vLLM serves.

    A run that was killed goes on from its last committed checkpoint. Ctrl-C, a file named `stop` in the output folder and
    `autonomous emergency-stop` end it behind one.
    """
    from train.pretrain.config import load_pretraining_config

    settings = load_pretraining_config(config, output=out, overrides=parse_changes(changes or []))
    console = output(stderr=as_json)
    _train(settings, driver=driver, home=home, as_json=as_json, console=console)


def continue_(  # noqa: PLR0917 - the command's options
    config: Annotated[Path, typer.Option("--config", metavar="FILE", help="What goes on, and with what (TOML).")],
    out: OutputOption = None,
    changes: SetOption = None,
    driver: DriverOption = DriverName.RAY,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Go on with a run on new data, and keep reading some of the old.

    How much of the old follows from how far the new data are from it, unless the file says. The report shows the held-out loss
    on both. Ends and goes on as `pretrain` does.
    """
    from train.continual.pretraining import continued_run, load_continual_config

    restart_if_local(driver)  # before anything is told
    console = output(stderr=as_json)
    settings, told = continued_run(load_continual_config(config, output=out, overrides=parse_changes(changes or [])))
    console.print(told, markup=False)
    _train(settings, driver=driver, home=home, as_json=as_json, console=console)


def report(
    runs: Annotated[list[Path], typer.Argument(help="Output folders of runs; the first is the one in question.")],
    out: Annotated[
        Path | None, typer.Option("--output", metavar="FILE", help="Default: report.html in the first.")
    ] = None,
    title: Annotated[str, typer.Option(help="Of the page.")] = "",
    as_json: JsonOption = False,
) -> None:
    """One HTML page: losses, rates, time and load of the runs, drawn over each other."""
    from train.pretrain.engine import REPORT_NAME, open_run
    from train.pretrain.report import write_report
    from train.pretrain.run_log import load_run
    from train.pretrain.run_writer import METRICS_NAME

    logs = [
        load_run(run / METRICS_NAME, name=run.resolve().name, config=open_run(run).model_dump(mode="json"))
        for run in runs
    ]
    path = out or runs[0] / REPORT_NAME
    write_report(logs, path=path, title=title or " and ".join(log.name for log in logs))
    if as_json:
        print_json({"report": str(path)})
    else:
        output().print(str(path), markup=False)


def export(
    run: Annotated[Path, typer.Argument(help="Output folder of a run.")],
    to: Annotated[Path, typer.Option("--to", metavar="FOLDER", help="Folder of the model; empty, or not there.")],
    step: Annotated[int | None, typer.Option(help="Checkpoint of this step; default: the last one.", min=0)] = None,
    as_json: JsonOption = False,
) -> None:
    """A committed checkpoint as a Hugging Face folder, which transformers loads and vLLM serves."""
    from train.pretrain.checkpoint_store import CHECKPOINTS_NAME, CheckpointStore
    from train.pretrain.engine import open_run
    from train.pretrain.export import export_checkpoint, model_of

    config = open_run(run)
    store = CheckpointStore(run / CHECKPOINTS_NAME)
    info = store.latest() if step is None else store.find(step)
    if info is None:
        raise Failure(f"{run} has no committed checkpoint yet")
    export_checkpoint(info, to, config=model_of(info), tokenizer_from=config.tokenizer_folder)
    if as_json:
        print_json({"folder": str(to), "step": info.step})
    else:
        output().print(f"{to}: the model of step {info.step}", markup=False)


def checkpoints(
    run: Annotated[Path, typer.Argument(help="Output folder of a run.")], as_json: JsonOption = False
) -> None:
    """The committed checkpoints of a run."""
    from train.pretrain.checkpoint_store import CHECKPOINTS_NAME, CheckpointStore
    from train.pretrain.engine import open_run

    open_run(run)
    found = CheckpointStore(run / CHECKPOINTS_NAME).committed()
    rows = [
        {"name": info.name, "step": info.step, "ranks": info.manifest.world_size, "bytes": info.size_bytes,
         "created": time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(info.manifest.created_at))}
        for info in found
    ]  # fmt: skip
    if as_json:
        print_json(rows)
        return
    columns = ("name", "step", "ranks", "bytes", "created")
    cells = [tuple(f"{row[name]:,}" if name == "bytes" else str(row[name]) for name in columns) for row in rows]
    output().print(table(f"Checkpoints of {run}", columns, cells, right=("step", "ranks", "bytes")))


def parse_changes(changes: list[str]) -> dict[str, Any]:
    """FIELD=VALUE texts; values are TOML, or else text. Raises ValueError for one without a `=`."""
    import tomllib

    found: dict[str, Any] = {}
    for change in changes:
        name, equals, text = change.partition("=")
        if not equals or not name:
            raise ValueError(f"--set {change!r}: write it as FIELD=VALUE, such as optimizer.lr=1e-3")
        try:
            found[name] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            found[name] = text
    return found


def _train(
    settings: "PretrainingConfig", *, driver: DriverName, home: Path | None, as_json: bool, console: "Console"
) -> None:
    """Run, and say how it ended; a run that was stopped is a Failure."""
    end = run_pretraining(settings, driver=driver, home=home, console=console)
    _tell_end(settings, end, as_json=as_json, console=console)
    if end.ending != "finished":
        raise Failure(f"stopped at step {end.step}: {end.reason}; the same command goes on from there", code=130)


def _tell_end(settings: "PretrainingConfig", end: "RunEnd", *, as_json: bool, console: "Console") -> None:
    from train.pretrain.engine import REPORT_NAME

    models = sorted(settings.output.glob("model-*"))
    if as_json:
        print_json(
            {"ending": end.ending, "step": end.step, "tokens": end.tokens, "reason": end.reason,
             "output": str(settings.output), "model": str(models[-1]) if models else None}
        )  # fmt: skip
    elif end.ending == "finished":
        console.print(
            f"{end.step:,} steps, {end.tokens:,} tokens\nModel: {models[-1]}\nReport: {settings.output / REPORT_NAME}",
            markup=False,
        )
