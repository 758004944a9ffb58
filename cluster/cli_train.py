"""`autonomous train`: a model from token shards, and what its runs wrote."""

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.cli_common import Failure, JsonOption, examples, output, print_json, table

if TYPE_CHECKING:
    from rich.console import Console

    from train.pretrain.config import PretrainingConfig
    from train.pretrain.loop import RunEnd

PANEL = "Training"
FOLLOW_EVERY_S = 1.0
"""How often the metrics file of a run on Ray is looked at for the bar, seconds."""


class DriverName(StrEnum):
    """What runs the workers."""

    LOCAL = "local"
    RAY = "ray"


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
    group.command("report", epilog=examples("autonomous train report RUN OTHER-RUN --output compared.html"))(report)
    group.command(
        "export",
        epilog=examples("autonomous train export RUN --to my-model", "autonomous train export RUN --step 500 --to x"),
    )(export)
    group.command("checkpoints", epilog=examples("autonomous train checkpoints RUN"))(checkpoints)
    app.add_typer(group, name="train", rich_help_panel=PANEL)


def pretrain(
    config: Annotated[Path, typer.Option("--config", metavar="FILE", help="Configuration of the run (TOML).")],
    out: Annotated[
        Path | None, typer.Option("--output", metavar="FOLDER", help="Folder instead of the file's `output`.")
    ] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Change a field; may be repeated.")
    ] = None,
    driver: Annotated[
        DriverName, typer.Option(help="Workers on Ray (started here, or joined), or this process alone.")
    ] = DriverName.RAY,
    as_json: JsonOption = False,
) -> None:
    """Train, and leave checkpoints, metrics, a report and a model folder that vLLM serves.

    A run that was killed goes on from its last committed checkpoint; Ctrl-C ends it behind one.
    """
    from train.pretrain.config import load_pretraining_config

    settings = load_pretraining_config(config, output=out, overrides=parse_changes(changes or []))
    console = output(stderr=as_json)
    end = run_pretraining(settings, driver=driver, console=console)
    _tell_end(settings, end, as_json=as_json, console=console)
    if end.ending != "finished":
        raise Failure(f"stopped at step {end.step}: {end.reason}; the same command goes on from there", code=130)


def report(
    runs: Annotated[list[Path], typer.Argument(help="Output folders of runs; the first is the one in question.")],
    out: Annotated[
        Path | None, typer.Option("--output", metavar="FILE", help="Default: report.html in the first.")
    ] = None,
    title: Annotated[str, typer.Option(help="Of the page.")] = "",
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
    output().print(str(path), markup=False)


def export(
    run: Annotated[Path, typer.Argument(help="Output folder of a run.")],
    to: Annotated[Path, typer.Option("--to", metavar="FOLDER", help="Folder of the model; empty, or not there.")],
    step: Annotated[int | None, typer.Option(help="Checkpoint of this step; default: the last one.", min=0)] = None,
) -> None:
    """A committed checkpoint as a Hugging Face folder, which transformers loads and vLLM serves."""
    from train.pretrain.checkpoint_store import CheckpointStore
    from train.pretrain.engine import CHECKPOINTS_NAME, open_run
    from train.pretrain.export import export_checkpoint

    config = open_run(run)
    store = CheckpointStore(run / CHECKPOINTS_NAME)
    info = store.latest() if step is None else store.find(step)
    if info is None:
        raise Failure(f"{run} has no committed checkpoint yet")
    export_checkpoint(info, to, config=config.model, tokenizer_from=config.tokenizer_folder)
    output().print(f"{to}: the model of step {info.step}", markup=False)


def checkpoints(
    run: Annotated[Path, typer.Argument(help="Output folder of a run.")], as_json: JsonOption = False
) -> None:
    """The committed checkpoints of a run."""
    from train.pretrain.checkpoint_store import CheckpointStore
    from train.pretrain.engine import CHECKPOINTS_NAME, open_run

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


def run_pretraining(settings: "PretrainingConfig", *, driver: DriverName, console: "Console") -> "RunEnd":
    """Run with a bar; starts or joins Ray where the driver needs it."""
    from cluster.progress import CountBar

    with CountBar(console, "training") as bar:
        if driver is DriverName.LOCAL:
            from train.allocator import restart_for_training
            from train.pretrain.engine import run_alone

            restart_for_training([sys.executable, "-m", "cluster.cli", *sys.argv[1:]])

            with _interrupts() as stop_reason:
                return run_alone(settings, stop_reason=stop_reason, on_progress=bar.update)
        import ray

        from train.launch import run_training

        if not ray.is_initialized():
            ray.init(log_to_driver=False)
        stop_file = settings.output / "stop"
        stop_file.unlink(missing_ok=True)
        with following(settings, bar.update), _interrupts(lambda: stop_file.write_text("interrupted")):
            return run_training(settings, stop_reason=partial(read_stop_file, stop_file))


def read_stop_file(path: Path) -> str | None:
    """On the workers: why they are asked to stop."""
    return path.read_text("utf-8") or "stopped" if path.exists() else None


@contextlib.contextmanager
def following(settings: "PretrainingConfig", on_progress: Callable[[int, int, str], None]) -> Iterator[None]:
    """Show the steps that the workers write to the metrics file, until the block ends."""
    import json

    from train.pretrain.run_writer import METRICS_NAME

    path, is_over = settings.output / METRICS_NAME, threading.Event()
    start = path.stat().st_size if path.exists() else 0

    def follow() -> None:
        place = start
        while not is_over.wait(FOLLOW_EVERY_S):
            if not path.exists():
                continue
            with path.open("rb") as file:
                file.seek(place)
                lines = file.read().split(b"\n")
            place += sum(len(line) + 1 for line in lines[:-1])
            steps = [json.loads(line) for line in lines[:-1] if b'"kind": "step"' in line]
            if steps:
                last = steps[-1]
                note = f"loss {last['loss']:.4f}, {last.get('tokens_per_s', 0):,.0f} tokens/s"
                on_progress(last["step"], settings.total_steps, note)

    thread = threading.Thread(target=follow, name="follow-metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


@contextlib.contextmanager
def _interrupts(ask: Callable[[], object] = lambda: None) -> Iterator[Callable[[], str | None]]:
    """Ctrl-C and SIGTERM are a wish to stop behind a checkpoint; the second one ends at once."""
    wishes: list[str] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def wish(number: int, _: Any) -> None:
        wishes.append(signal.Signals(number).name)
        ask()
        for one, handler in before.items():
            signal.signal(one, handler)

    for number in before:
        signal.signal(number, wish)
    try:
        yield lambda: f"{wishes[0]} was received" if wishes else None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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
