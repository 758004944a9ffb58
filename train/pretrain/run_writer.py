"""RunWriter: what the loop measures, to where people look: the metrics file, TensorBoard, Ray, the log.

In: records of run_log.py, on rank 0. Out: `metrics.jsonl`, one object per line, every step; `tensorboard/`, and calls of
`publish` (Ray's metrics) and of `on_progress` (a bar), every `every_steps`. A line is written whole or, where the process is
killed or the disk full, cut at its end: the reader leaves that one out.
"""

import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event

from train.files import DISK_FULL
from train.pretrain.run_log import KINDS

logger = logging.getLogger(__name__)

METRICS_NAME, TENSORBOARD_NAME = "metrics.jsonl", "tensorboard"
Publish = Callable[[Mapping[str, float]], None]
"""Takes values by name."""
OnProgress = Callable[[int, int, str], None]
"""Takes steps done, steps of the run, and a note."""
FLUSH_EVERY_S = 10.0
"""How late TensorBoard may see a value."""


class PhaseTimer:
    """Seconds by phase of a step."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Adds what the block takes."""
        start = self._clock()
        try:
            yield
        finally:
            self.seconds[phase] = self.seconds.get(phase, 0.0) + self._clock() - start

    def take(self) -> dict[str, float]:
        """Since the last call."""
        taken, self.seconds = self.seconds, {}
        return taken


class TensorBoard:
    """An event file, written on the thread that calls: tensorboardX's own writer has a thread, which a full disk ends, and
    whoever calls it afterwards waits for ever."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._events = EventsWriter(str(folder / "events"), f".{os.getpid()}")
        self._flushed_at = time.monotonic()

    def add_scalars(self, section: str, step: int, values: Mapping[str, float]) -> None:
        """Each under `section`/its name."""
        self._add([summary.scalar(f"{section}/{name}", value) for name, value in values.items()], step)

    def add_text(self, tag: str, text: str, step: int) -> None:
        """Markdown."""
        self._add([summary.text(tag, text)], step)

    def close(self) -> None:
        """Write what is buffered."""
        with _no_room_is_logged(self._folder):
            self._events.close()

    def _add(self, summaries: list[Any], step: int) -> None:
        with _no_room_is_logged(self._folder):
            for one in summaries:
                self._events.write_event(Event(wall_time=time.time(), step=step, summary=one))
            if time.monotonic() - self._flushed_at > FLUSH_EVERY_S:
                self._flushed_at = time.monotonic()
                self._events.flush()


class RunWriter:
    """Rank 0's; the other ranks have none."""

    def __init__(
        self,
        folder: Path,
        *,
        every_steps: int,
        total_steps: int,
        publish: Publish = lambda _: None,
        on_progress: OnProgress = lambda *_: None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / METRICS_NAME
        _end_torn_line(self._path)
        self._file, self._is_torn = self._path.open("ab", buffering=0), False
        self._board = TensorBoard(folder / TENSORBOARD_NAME)
        self._every, self._total = every_steps, total_steps
        self._publish, self._on_progress = publish, on_progress

    def write(self, kind: str, **fields: Any) -> None:
        """One record. Where there is no room for it, it is left out, and that is logged: checkpoints say what can be done.

        Raises ValueError for a field that a reader would not understand.
        """
        known = KINDS[kind].model_fields
        if unknown := fields.keys() - known.keys():
            raise ValueError(f"{', '.join(sorted(unknown))}: no field of a {kind} record; there are {', '.join(known)}")
        record = KINDS[kind].model_validate(fields)
        values = {"kind": kind} | record.model_dump(mode="json", exclude_defaults=True)
        line = b"\n" * self._is_torn + json.dumps(values).encode() + b"\n"
        with _no_room_is_logged(self._path):
            self._is_torn = self._file.write(line) < len(line)

    def step(self, step: int, **fields: Any) -> None:
        """A step's record; every `every_steps`, and at the end, it goes on to TensorBoard and the rest."""
        self.write("step", step=step, **fields)
        if step % self._every and step != self._total:
            return
        seconds = {f"seconds/{phase.replace(' ', '_')}": value for phase, value in fields["seconds"].items()}
        values = {name: value for name, value in fields.items() if isinstance(value, int | float)} | seconds
        for name in ("expert_max_over_mean", "dead_experts"):
            if fields[name]:
                values[name] = max(fields[name])
        self._board.add_scalars("train", step, values)
        self._publish(values)
        note = f"loss {fields['loss']:.4f}, {fields['tokens_per_s']:,.0f} tokens/s"
        self._on_progress(step, self._total, note)
        logger.info(
            "step %d of %d: %s, gradient norm %.3f, rate %.2e",
            step,
            self._total,
            note,
            fields["grad_norm"],
            fields["lr"],
        )

    def evaluation(self, step: int, *, tokens: int, loss: float, by_source: Mapping[str, float]) -> None:
        """Loss on held-out shards."""
        self.write("evaluation", step=step, tokens=tokens, loss=loss, by_source=dict(by_source))
        values = {"held_out_loss": loss} | {f"held_out_loss/{name}": value for name, value in by_source.items()}
        self._board.add_scalars("evaluation", step, values)
        self._publish({"held_out_loss": loss})
        parts = ", ".join(f"{name} {value:.4f}" for name, value in by_source.items())
        logger.info("step %d: held-out loss %.4f (%s)", step, loss, parts)

    def sample(self, step: int, *, prompt: str, text: str) -> None:
        """What the model wrote."""
        self.write("sample", step=step, prompt=prompt, text=text)
        self._board.add_text("sample", f"{prompt}**{text}**", step)

    def event(self, step: int, event: str, detail: Any = "") -> None:
        """Something that does not happen every step."""
        self.write("event", step=step, event=event, detail=detail)
        logger.info("step %d: %s %s", step, event, detail)

    def close(self) -> None:
        """Write all that is buffered."""
        self._file.close()
        self._board.close()


@contextmanager
def _no_room_is_logged(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        logger.warning("%s: no room for a record (%s)", path, error.strerror)


def _end_torn_line(path: Path) -> None:
    """A line that a killed process left without its end must not swallow the next one."""
    if not path.exists() or not path.stat().st_size:
        return
    with path.open("rb+") as file:
        file.seek(-1, 2)
        if file.read(1) != b"\n":
            file.write(b"\n")
