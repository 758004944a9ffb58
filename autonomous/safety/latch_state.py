"""How the stop latch stands, and what a stop makes of that. Pure.

A stop has a category (pause, stop, kill; how hard it is) and a scope (the learner, all learning, everything), and is only ever
widened until a person resets it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

Mode = Literal["armed", "paused", "stopped", "killed"]
"""Each is harder than those before it."""
Scope = Literal["learner", "learning", "all"]
"""learner: optimizer steps and what they lead to. learning: everything that changes a model or its memory, and what the agent
does outside. all: answers too. Each holds those before it."""
MODES: tuple[Mode, ...] = get_args(Mode)
SCOPES: tuple[Scope, ...] = get_args(Scope)
WHAT: dict[Scope, str] = {"learner": "the learner", "learning": "learning", "all": "everything"}


@dataclass(frozen=True, slots=True)
class LatchState:
    """The latch as it stands. armed: side effects are permitted. `at` in seconds since the epoch (Unix)."""

    mode: Mode
    epoch: int
    """Rises with every change."""
    reason: str
    by: str
    at: float
    scope: Scope = "learning"
    epochs: Mapping[str, int] = field(default_factory=dict)
    """By scope: the epoch of the last change that concerned it. Empty means always `epoch`."""

    def forbids(self, within: Scope) -> bool:
        """Whether an action that a stop of this scope forbids is forbidden now."""
        return self.mode != "armed" and _holds(self.scope, within)

    def epoch_of(self, within: Scope) -> int:
        """The epoch under which such an action is permitted."""
        return self.epochs.get(within, self.epoch)


def _holds(scope: Scope, within: Scope) -> bool:
    return SCOPES.index(within) <= SCOPES.index(scope)


def epochs_after(before: LatchState, touched: Scope, epoch: int) -> dict[str, int]:
    """By scope, after a change that concerns one."""
    is_known = before.epoch > 0
    return {name: before.epoch_of(name) if is_known and not _holds(touched, name) else epoch for name in SCOPES}


def widened(before: LatchState, mode: Mode, scope: Scope) -> tuple[Mode, Scope]:
    """A stop is as hard and as wide as it and the one that holds are."""
    if before.mode == "armed":
        return mode, scope
    return max(before.mode, mode, key=MODES.index), max(before.scope, scope, key=SCOPES.index)


def joined(state: LatchState, stop: LatchState) -> LatchState:
    """As hard and as wide as a state and a stop beside it, under the state's epochs; the state itself if that is so."""
    mode, scope = widened(state, stop.mode, stop.scope)
    if (mode, scope) == (state.mode, state.scope):
        return state
    return replace(state, mode=mode, scope=scope, reason=stop.reason, by=stop.by, at=stop.at)
