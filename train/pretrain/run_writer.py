"""RunWriter: what the loop measures, to where people look: the metrics file, TensorBoard, Ray, the log.

In: records of run_log.py, on rank 0. Out: `metrics.jsonl`, one object per line, every step; `tensorboard/`, and calls of
`publish` (Ray's metrics) and of `on_progress` (a bar), every `every_steps`. A line is written whole or, where the process is
killed, cut at its end: the reader leaves that one out.
"""

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from train.pretrain.run_log import KINDS

logger = logging.getLogger(__name__)

METRICS_NAME, TENSORBOARD_NAME = "metrics.jsonl", "tensorboard"
Publish = Callable[[Mapping[str, float]], None]
"""Takes values by name."""
OnProgress = Callable[[int, int, str], None]
"""Takes steps done, steps of the run, and a note."""


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
        self._file = self._path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(folder / TENSORBOARD_NAME), flush_secs=10)
        self._every, self._total = every_steps, total_steps
        self._publish, self._on_progress = publish, on_progress

    def write(self, kind: str, step: int, **fields: Any) -> None:
        """One record. Raises ValueError for a field that a reader would not understand."""
        record = KINDS[kind].model_validate({"step": step, **fields})
        values = {"kind": kind} | record.model_dump(mode="json", exclude_defaults=True)
        self._file.write(json.dumps(values) + "\n")
        self._file.flush()

    def step(self, step: int, **fields: Any) -> None:
        """A step's record; every `every_steps`, and at the end, it goes on to TensorBoard and the rest."""
        self.write("step", step, **fields)
        if step % self._every and step != self._total:
            return
        seconds = {f"seconds/{phase.replace(' ', '_')}": value for phase, value in fields["seconds"].items()}
        values = {name: value for name, value in fields.items() if isinstance(value, int | float)} | seconds
        for name in ("expert_max_over_mean", "dead_experts"):
            if fields[name]:
                values[name] = max(fields[name])
        self._show("train", step, values)
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
        self.write("evaluation", step, tokens=tokens, loss=loss, by_source=dict(by_source))
        values = {"held_out_loss": loss} | {f"held_out_loss/{name}": value for name, value in by_source.items()}
        self._show("evaluation", step, values)
        self._publish({"held_out_loss": loss})
        parts = ", ".join(f"{name} {value:.4f}" for name, value in by_source.items())
        logger.info("step %d: held-out loss %.4f (%s)", step, loss, parts)

    def sample(self, step: int, *, prompt: str, text: str) -> None:
        """What the model wrote."""
        self.write("sample", step, prompt=prompt, text=text)
        self._board.add_text("sample", f"{prompt}**{text}**", step)

    def event(self, step: int, event: str, detail: Any = "") -> None:
        """Something that does not happen every step."""
        self.write("event", step, event=event, detail=detail)
        logger.info("step %d: %s %s", step, event, detail)

    def close(self) -> None:
        """Write all that is buffered."""
        self._file.close()
        self._board.close()

    def _show(self, section: str, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._board.add_scalar(f"{section}/{name}", value, step)


def _end_torn_line(path: Path) -> None:
    """A line that a killed process left without its end must not swallow the next one."""
    if not path.exists() or not path.stat().st_size:
        return
    with path.open("rb+") as file:
        file.seek(-1, 2)
        if file.read(1) != b"\n":
            file.write(b"\n")
