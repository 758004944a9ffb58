"""DriftMonitor: tells when a stream stops being like what came before, and in which way.

In: observations in the order of the stream. Out: a Drift for each change, of one of four kinds:

language  the mix of languages is another
domain    the inputs are about other things, in the same languages
task      other outputs are wanted for the same kind of inputs
temporal  inputs and outputs look the same, and the model's error rises: what was right no longer is

Languages, inputs and outputs are compared window by window with a reference, by the two-sample test of the maximum mean
discrepancy (arXiv:0805.2368) with permutations: a Gaussian kernel of embeddings, the equality of languages. The error has an
adaptive window (ADWIN, river), and only its rise counts: a model that learns gets better all the time.
Both assume that observations are independent: give one per document, not one per paragraph.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field, model_validator
from river.drift import ADWIN

DriftKind = Literal["language", "domain", "task", "temporal"]
Vector = Float[np.ndarray, " width"]
SUSPICIOUS = 0.01
"""p value up to which a thing is taken to have changed in a window in which another one surely has."""
STATE_VERSION = 1


class DriftConfig(BaseModel):
    """How much is compared, and how sure an alarm has to be."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    window: int = Field(64, ge=8)
    """Observations that are compared with the reference at a time."""
    reference: int = Field(128, ge=8)
    """Observations of the reference: the first ones since the last drift."""
    significance: float = Field(1e-3, gt=0, lt=0.5)
    """Probability of a false alarm, of each test of each window."""
    num_permutations: int = Field(2000, ge=1)
    """Of a test. Its smallest p value is 1 / (this + 1)."""
    error_delta: float = Field(2e-3, gt=0, lt=1)
    """ADWIN's delta."""
    error_ceiling: float = Field(1.0, gt=0)
    """The largest error that counts, larger ones are cut: 1 for right and wrong, some 10 for nats per token."""
    error_memory: int = Field(4096, ge=64)
    """Errors since which ADWIN is built anew from the later half of them."""
    seed: int = 0
    """Of the permutations."""

    @model_validator(mode="after")
    def _can_alarm(self) -> Self:
        if self.significance < 1 / (self.num_permutations + 1):
            raise ValueError(
                f"significance = {self.significance:g} is never reached with num_permutations = {self.num_permutations}: take "
                f"at least {int(1 / self.significance)} of them"
            )
        return self


@dataclass(frozen=True, slots=True)
class Observation:
    """What is known of one document or request. A test looks at what is there; a stream has it always or never."""

    inputs: Vector | None = None
    """Embedding of what is read or asked."""
    outputs: Vector | None = None
    """Embedding of what is wanted: the answer."""
    language: str | None = None
    """ISO 639 code."""
    error: float | None = None
    """Of the model, before it learned from this."""


@dataclass(frozen=True, slots=True)
class Drift:
    """A change, seen at the end of a window."""

    kind: DriftKind
    begin: int
    """The first observation, counted from 0, of the window in which it showed."""
    end: int
    """One behind the last observation that was looked at."""
    p_values: dict[str, float]
    """Of the tests of that window, by what they compare."""
    has_risen_error: bool
    """Whether the model's error rose with it."""


class DriftMonitor:
    """One stream. Not thread-safe."""

    def __init__(self, config: DriftConfig | None = None) -> None:
        self.config = config or DriftConfig()
        self.num_seen = 0
        self._permutations = draw_permutations(
            self.config.reference, self.config.window, count=self.config.num_permutations, seed=self.config.seed
        )
        self._reference: list[Observation] = []
        self._window: list[Observation] = []
        self._errors = _RisingError(self.config)
        self._error_alarm: int | None = None
        """Windows that have ended since the error rose; None: it has not."""

    def update(self, observation: Observation) -> Drift | None:
        """Take the next observation; a drift if one shows now. Raises ValueError for one without anything to compare, or whose
        error or embedding is not finite."""
        _check(observation)
        self.num_seen += 1
        if observation.error is not None and self._errors.update(observation.error) and self._error_alarm is None:
            self._error_alarm = 0
        if len(self._reference) < self.config.reference:
            self._reference.append(observation)
            return None
        self._window.append(observation)
        return self._judge() if len(self._window) == self.config.window else None

    def _judge(self) -> Drift | None:
        """At the end of a window. An error's rise waits for one whole window more: it often shows before its cause does."""
        window, self._window = self._window, []
        p_values = {
            name: p for name in ("language", "inputs", "outputs") if (p := self._p_value(name, window)) is not None
        }
        kinds: dict[str, DriftKind] = {"language": "language", "inputs": "domain", "outputs": "task"}
        kind = None
        if any(p <= self.config.significance for p in p_values.values()):  # a cause is told before what follows from it
            kind = next(kinds[name] for name, p in p_values.items() if p <= max(self.config.significance, SUSPICIOUS))
        if kind is None and self._error_alarm is not None:
            self._error_alarm += 1
            kind = "temporal" if self._error_alarm > 1 else None
        if kind is None:
            return None
        drift = Drift(
            kind, self.num_seen - len(window), self.num_seen, p_values, has_risen_error=self._error_alarm is not None
        )
        self._reference, self._error_alarm = [], None
        self._errors = _RisingError(self.config)
        return drift

    def _p_value(self, name: str, window: Sequence[Observation]) -> float | None:
        both = [getattr(one, name) for one in (*self._reference, *window)]
        if any(value is None for value in both):
            return None
        if name == "language":
            languages = np.asarray(both)
            kernel = (languages[:, None] == languages[None, :]).astype(np.float64)
        else:
            kernel = gaussian_kernel(np.stack(both))
        return mmd_p_value(kernel, self._permutations)

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed monitor needs, in types of JSON."""
        return {
            "version": STATE_VERSION, "num_seen": self.num_seen,
            "reference": [_as_json(one) for one in self._reference], "window": [_as_json(one) for one in self._window],
            "errors": self._errors.values, "error_alarm": self._error_alarm,
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """What `state_dict` gave. Raises ValueError for a state of another version."""
        if state.get("version") != STATE_VERSION:
            raise ValueError(
                f"a drift monitor's state has version {state.get('version')!r}, known here is {STATE_VERSION}: begin a new one"
            )
        self.num_seen, self._error_alarm = state["num_seen"], state["error_alarm"]
        self._reference = [_from_json(one) for one in state["reference"]]
        self._window = [_from_json(one) for one in state["window"]]
        self._errors = _RisingError(self.config, values=state["errors"])


class _RisingError:
    """ADWIN, whose alarms count when the error rose. Its state is the errors since it was built."""

    def __init__(self, config: DriftConfig, *, values: Sequence[float] = ()) -> None:
        self._config = config
        self._build(values)

    def update(self, error: float) -> bool:
        """Whether the mean of the errors has risen, as this one shows."""
        if len(self.values) == self._config.error_memory:
            self._build(self.values[self._config.error_memory // 2 :])
        before = self._adwin.estimation
        self._feed(error)
        return self._adwin.drift_detected and self._adwin.estimation > before

    def _build(self, values: Sequence[float]) -> None:
        self.values: list[float] = []
        self._adwin = ADWIN(delta=self._config.error_delta)
        for value in values:
            self._feed(value)

    def _feed(self, error: float) -> None:
        self.values.append(error)
        self._adwin.update(min(error, self._config.error_ceiling) / self._config.error_ceiling)


def gaussian_kernel(points: Float[np.ndarray, "points width"]) -> Float[np.ndarray, "points points"]:
    """exp(-|a - b|^2 / 2 s^2), with the median distance as s."""
    points = points.astype(np.float64)
    norms = (points**2).sum(1)
    squares = np.maximum(norms[:, None] + norms[None, :] - 2 * points @ points.T, 0.0)
    median = float(np.median(squares[np.triu_indices(len(points), 1)]))
    kernel: Float[np.ndarray, "points points"] = np.exp(-squares / (2 * median if median > 0 else 1.0))
    return kernel


def draw_permutations(num_first: int, num_others: int, *, count: int, seed: int) -> Float[np.ndarray, "orders points"]:
    """Weights w with w' K w = MMD^2, biased: 1 / n for the first points and -1 / m for the others. In the first row as they
    are, in `count` more permuted."""
    weights = np.concatenate([np.full(num_first, 1 / num_first), np.full(num_others, -1 / num_others)])
    drawn = np.random.default_rng(seed).permuted(np.broadcast_to(weights, (count, len(weights))), axis=1)
    return np.concatenate([weights[None], drawn])


def mmd_p_value(kernel: Float[np.ndarray, "points points"], permutations: Float[np.ndarray, "orders points"]) -> float:
    """Of the hypothesis that the first points and the others are draws of one distribution: the share of the orders, the true
    one among them, whose MMD^2 reaches that of the true one."""
    found = ((permutations @ kernel) * permutations).sum(1)
    return float((found >= found[0] * (1 - 1e-12)).mean())


def _check(observation: Observation) -> None:
    fields = (observation.inputs, observation.outputs, observation.language, observation.error)
    if all(field is None for field in fields):
        raise ValueError("an observation has nothing to compare: give inputs, outputs, language or error")
    if observation.error is not None and not np.isfinite(observation.error):
        raise ValueError(f"error = {observation.error} is not a number: leave the observation out")
    for name, vector in (("inputs", observation.inputs), ("outputs", observation.outputs)):
        if vector is not None and not np.isfinite(vector).all():
            raise ValueError(f"{name} has values that are no numbers: leave the observation out")


def _as_json(one: Observation) -> dict[str, Any]:
    return {
        "inputs": None if one.inputs is None else one.inputs.tolist(),
        "outputs": None if one.outputs is None else one.outputs.tolist(),
        "language": one.language, "error": one.error,
    }  # fmt: skip


def _from_json(one: Mapping[str, Any]) -> Observation:
    vectors = {name: None if one[name] is None else np.asarray(one[name]) for name in ("inputs", "outputs")}
    return Observation(language=one["language"], error=one["error"], **vectors)
