"""A pre-training run from a terminal or a job: started, shown while it goes, and stopped.

In: a PretrainingConfig. Out: how it ended. What the workers are asked before every step (StopQuestion) is a file in the run's
folder and the system's emergency stop, both on storage that they see.
"""

import contextlib
import json
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from autonomous.safety.latch import Permit
    from train.pretrain.config import PretrainingConfig
    from train.pretrain.loop import RunEnd

FOLLOW_EVERY_S = 1.0
"""How often the metrics file of a run on Ray is looked at for the bar, seconds."""
STOP_NAME = "stop"
"""A file of this name in the run's folder ends the run; what it holds is the reason."""


class DriverName(StrEnum):
    """What runs the workers."""

    LOCAL = "local"
    RAY = "ray"


def restart_if_local(driver: DriverName) -> None:
    """Begin this command anew in the environment that training needs, unless it is there already or does not train itself."""
    if driver is DriverName.LOCAL:
        from train.allocator import restart_for_training

        restart_for_training([sys.executable, "-m", "cluster.cli", *sys.argv[1:]])


def run_pretraining(
    settings: "PretrainingConfig", *, driver: DriverName, home: Path | None, console: "Console"
) -> "RunEnd":
    """Run with a bar; starts or joins Ray where the driver needs it. `home`: see `stop_of`."""
    from cluster.progress import CountBar

    stop = stop_of(settings, home)
    restart_if_local(driver)
    if driver is DriverName.LOCAL:
        from train.pretrain.alone import run_alone

        with CountBar(console, "training") as bar, interrupts(stop):
            return run_alone(settings, stop_reason=stop, on_progress=bar.update)
    import ray

    from train.launch import run_training

    if not ray.is_initialized():
        ray.init(log_to_driver=False)
    with CountBar(console, "training") as bar, interrupts(stop), following(settings, bar.update):
        return run_training(settings, stop_reason=stop)


@dataclass(slots=True)
class StopQuestion:
    """Why the run has to stop; None if it may go on. Asked on the workers before every step."""

    stop_file: Path
    latch: Path
    """Of the system's emergency stop."""
    is_latch_needed: bool
    """Whether a latch that is not there is a stop; otherwise it counts from when it appears."""
    _permit: "Permit | None" = field(default=None, init=False)
    """Of this process: a stop that was reset between two questions counts as well."""

    def __call__(self) -> str | None:
        """The reason."""
        from autonomous.safety.latch import Latch, LearningStopped
        from autonomous.safety.processes import register

        if self.stop_file.exists():
            return self.stop_file.read_text("utf-8").strip() or f"{self.stop_file} is there"
        try:
            if self._permit is not None:
                self._permit.check()
            elif self.is_latch_needed or self.latch.exists():
                self._permit = Latch.open(self.latch).permit("pre-training", within="learner")
                register(self.latch.parent, role="trainer", within="learner")
        except LearningStopped as error:
            return f"the emergency stop: {error}"
        return None


def stop_of(settings: "PretrainingConfig", home: Path | None) -> StopQuestion:
    """What the workers ask; a stop of an earlier attempt is forgotten.

    `home`: of the system whose emergency stop counts; None is this machine's default, which may not have one yet.
    Raises ValueError for a `home` without one.
    """
    is_named = home is not None
    if home is None:
        from cluster.cli_common import find_config
        from cluster.config import load_config

        home = load_config(find_config(None)).home.expanduser()
    latch = home / "safety" / "latch"
    if is_named and not latch.exists():
        raise ValueError(
            f"--home {home}: there is no emergency stop ({latch}); give the folder of a system that was started once"
        )
    stop_file = settings.output / STOP_NAME
    stop_file.unlink(missing_ok=True)
    return StopQuestion(stop_file, latch, is_latch_needed=latch.exists())


@contextlib.contextmanager
def following(settings: "PretrainingConfig", on_progress: Callable[[int, int, str], None]) -> Iterator[None]:
    """Show the steps that the workers write to the metrics file, until the block ends."""
    from train.pretrain.run_writer import METRICS_NAME

    path, is_over = settings.output / METRICS_NAME, threading.Event()
    start = path.stat().st_size if path.exists() else 0

    def follow() -> None:
        place, is_last = start, False
        while not is_last:
            is_last = is_over.wait(FOLLOW_EVERY_S)  # and look once more
            if not path.exists():
                continue
            with path.open("rb") as file:
                file.seek(place)
                lines = file.read().split(b"\n")
            place += sum(len(line) + 1 for line in lines[:-1])
            if (last := _last_step(lines[:-1])) is not None:
                note = f"loss {last['loss']:.4f}, {last.get('tokens_per_s', 0):,.0f} tokens/s"
                on_progress(last["step"], settings.total_steps, note)

    thread = threading.Thread(target=follow, name="follow-metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def _last_step(lines: list[bytes]) -> dict[str, Any] | None:
    """The last record of a step, if there is one; a line that a killed worker has cut off is none."""
    for line in reversed(lines):
        with contextlib.suppress(ValueError):
            record: dict[str, Any] = json.loads(line)
            if record["kind"] == "step":
                return record
    return None


@contextlib.contextmanager
def interrupts(stop: StopQuestion) -> Iterator[None]:
    """Ctrl-C and SIGTERM ask the workers to stop behind a checkpoint; the second one ends this process at once."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def ask(number: int, _: Any) -> None:
        restore()
        stop.stop_file.parent.mkdir(parents=True, exist_ok=True)
        stop.stop_file.write_text(f"{signal.Signals(number).name} was received", "utf-8")

    for number in before:
        signal.signal(number, ask)
    try:
        yield
    finally:
        restore()
