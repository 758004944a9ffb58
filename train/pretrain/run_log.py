"""RunLog: what the training loop wrote of one run, read back for a report.

In: a metrics file of JSON lines, one object each, whose `kind` is a key of KINDS. Out: the records of the path that the run
took in the end: where it went back to an earlier step, what it wrote of the later ones before that is left out.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, ValidationError

Floats = npt.NDArray[np.float64]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class StepRecord(_Record):
    """One optimizer step. None, or nothing of a layer, where the loop does not measure it."""

    step: int
    tokens: int
    """Since the run began, over all ranks."""
    loss: float
    """Nats per token."""
    lr: float | None = None
    grad_norm: float | None = None
    tokens_per_s: float | None = None
    mfu: float | None = None
    """Share of the device's arithmetic peak."""
    expert_max_over_mean: tuple[float, ...] = ()
    """Of each layer with experts; 1 is an even load."""
    dead_experts: tuple[int, ...] = ()
    """Experts without a token, of each layer."""
    seconds: dict[str, float] = {}
    """By phase of the step."""


class EvaluationRecord(_Record):
    """Loss on held-out data, nats per token."""

    step: int
    tokens: int
    loss: float
    by_source: dict[str, float] = {}
    """Of each source of the data."""


class SampleRecord(_Record):
    """What the model wrote after a prompt."""

    step: int
    prompt: str
    text: str


class EventRecord(_Record):
    """A skip, rewind, restart, checkpoint or the like."""

    step: int
    event: str
    detail: Any = ""


class BaselineRecord(_Record):
    """Loss of another model on the held-out data, nats per token."""

    name: str
    loss: float


KINDS: dict[str, type[_Record]] = {
    "step": StepRecord,
    "evaluation": EvaluationRecord,
    "sample": SampleRecord,
    "event": EventRecord,
    "baseline": BaselineRecord,
}


@dataclass(frozen=True, slots=True)
class RunLog:
    """One run under a name."""

    name: str
    config: Mapping[str, Any] = field(default_factory=dict)
    """The resolved configuration; may be nested."""
    steps: list[StepRecord] = field(default_factory=list)
    evaluations: list[EvaluationRecord] = field(default_factory=list)
    samples: list[SampleRecord] = field(default_factory=list)
    events: list[EventRecord] = field(default_factory=list)
    """All that happened, also on what was left."""
    baselines: dict[str, float] = field(default_factory=dict)
    num_torn: int = 0
    """Lines that a writer left unfinished when it was killed."""

    def column(self, name: str) -> Floats:
        """A field of all steps; NaN where it was not measured."""
        values = (getattr(record, name) for record in self.steps)
        return np.array([np.nan if value is None else value for value in values], np.float64)

    def layers(self, name: str) -> Floats:
        """[steps, layers] of a field that has a value for each layer; NaN where it was not measured."""
        rows: list[tuple[float, ...]] = [getattr(record, name) for record in self.steps]
        num_layers = max(map(len, rows), default=0)
        found = np.full((len(rows), num_layers), np.nan)
        for row, values in zip(found, rows, strict=True):
            row[: len(values)] = values
        return found

    def tokens_at(self, steps: Sequence[int]) -> list[float]:
        """Tokens that were read when each step was done; between known steps in proportion."""
        if not self.steps:
            return [0.0] * len(steps)
        found: list[float] = np.interp(steps, [0, *self.column("step")], [0, *self.column("tokens")]).tolist()
        return found


def load_run(path: Path, *, name: str, config: Mapping[str, Any] | None = None) -> RunLog:
    """Read a metrics file. Raises ValueError naming file, line and field for a record that is none; OSError."""
    run = RunLog(name, dict(config or {}))
    num_torn = 0
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        try:
            data = json.loads(line) if line.strip() else None
        except ValueError:
            num_torn += 1
            continue
        if data is not None:
            _take(run, _parse(data, where=f"{path}, line {number}"))
    return RunLog(name, run.config, run.steps, run.evaluations, run.samples, run.events, run.baselines, num_torn)


def _parse(data: Any, *, where: str) -> _Record:
    kind = data.get("kind") if isinstance(data, dict) else None
    if kind not in KINDS:
        raise ValueError(f"{where}: kind is {kind!r}: a metrics file has records of {', '.join(KINDS)}")
    try:
        return KINDS[kind].model_validate(data)
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]
        raise ValueError(f"{where}: " + "; ".join(lines)) from error


def _take(run: RunLog, record: _Record) -> None:
    match record:
        case StepRecord():
            if run.steps and record.step <= run.steps[-1].step:
                for left in (run.steps, run.evaluations, run.samples):
                    _drop_from(left, record.step)
            run.steps.append(record)
        case EvaluationRecord():
            _drop_from(run.evaluations, record.step)
            run.evaluations.append(record)
        case SampleRecord():
            run.samples.append(record)
        case EventRecord():
            run.events.append(record)
        case BaselineRecord():
            run.baselines[record.name] = record.loss


def _drop_from(records: list[Any], step: int) -> None:
    while records and records[-1].step >= step:
        records.pop()
