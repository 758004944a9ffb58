"""How long work shows itself: a bar or a spinner on a terminal, plain lines elsewhere.

In flow the reports of the work (`on_stage`, `on_status`, `on_progress` callbacks); out flows text on a rich console.
"""

import time
from typing import Any, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.status import Status

PLAIN_LINE_EVERY_S = 5.0
"""Without a terminal a long loop reports itself this often, seconds."""


class StageLines:
    """Prints each stage of a bring-up or shut-down with its seconds; call it as `on_stage`."""

    def __init__(self, console: Console) -> None:
        self.seconds: dict[str, float] = {}
        self._console = console
        self._spinner: Status | None = None

    def __call__(self, stage: str, seconds: float | None) -> None:
        """`seconds` is None when the stage begins."""
        self.close()
        if seconds is None:
            if self._console.is_terminal:
                self._spinner = self._console.status(f"{escape(stage)} ...")
                self._spinner.start()
            return
        self.seconds[stage] = seconds
        self._console.print(f"  {escape(stage):<22} {seconds:>7.1f} s")

    def close(self) -> None:
        """Take the spinner away; idempotent."""
        if self._spinner is not None:
            self._spinner.stop()
            self._spinner = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class CountBar:
    """A counted loop: `update(done, total, note)`."""

    def __init__(self, console: Console, label: str) -> None:
        self._console = console
        self._label = label
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._line_at = time.monotonic()
        self._line = ""

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("  {task.description}"),
                BarColumn(bar_width=30),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[note]}"),
                console=self._console,
            )
            self._bar.start()
            self._task = self._bar.add_task(escape(self._label), total=None, note="")
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self._line:
            self._console.print(self._line)

    def update(self, done: int, total: int | None, note: str = "", *, label: str | None = None) -> None:
        """Show where the loop stands."""
        label = label or self._label
        if self._bar is not None:
            self._bar.update(self._task, description=escape(label), completed=done, total=total, note=escape(note))
            return
        self._line = f"  {escape(label)}: {done}{f'/{total}' if total else ''}{f', {escape(note)}' if note else ''}"
        if time.monotonic() - self._line_at >= PLAIN_LINE_EVERY_S:
            self._line_at = time.monotonic()
            self._console.print(self._line)
            self._line = ""


class LearningLines:
    """Shows a learning run; call it as `on_status` of `Client.follow`. Remembers the learning curve it saw."""

    def __init__(self, console: Console) -> None:
        self.curve: list[tuple[int, float]] = []
        """(step, loss in nats per token), in order."""
        self.phases: list[tuple[str, float]] = []
        """(phase, seconds since the start at which it was first seen)."""
        self._start = time.monotonic()
        self._console = console
        self._bar = CountBar(console, "learning")

    def __enter__(self) -> Self:
        self._bar.__enter__()
        return self

    def __exit__(self, *exit_facts: object) -> None:
        self._bar.__exit__(*exit_facts)

    def __call__(self, status: dict[str, Any]) -> None:
        phase, step, loss = str(status["phase"]), int(status.get("step") or 0), status.get("loss")
        if not self.phases or self.phases[-1][0] != phase:
            self.phases.append((phase, round(time.monotonic() - self._start, 2)))
            if not self._console.is_terminal:
                self._console.print(f"  {phase} (at {self.phases[-1][1]:.1f} s)")
        if loss is not None and step and (not self.curve or self.curve[-1][0] < step):
            self.curve.append((step, float(loss)))
        note = f"loss {loss:.3f}" if loss is not None else ""
        self._bar.update(step, status.get("num_steps") or None, note, label=phase)
