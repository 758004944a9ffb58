"""The life of a version: its states, the transitions between them, and the pure check that the ledger asks.

In: a version's current state, the state the caller believes it is in, and the state it should go to. Out: the new
state, or an error that names both. Nothing here reads or writes; ledger.py executes. Stopped is an overlay of the whole
system (autonomous/safety/latch.py), not a state of a version.
"""

from enum import StrEnum

from autonomous.people import is_machine


class State(StrEnum):
    """Where a version stands. It has a run id up to CANDIDATE and is named by the hash of its bundle from then on."""

    DRAFT = "DRAFT"
    """A run is recorded, nothing has been trained."""
    TRAINING = "TRAINING"
    """The learner works. There are no weights to name yet."""
    FAILED = "FAILED"
    """The run crashed or was stopped before there was a bundle. Closed for ever: a version that never existed cannot be
    judged, so it is neither rejected nor quarantined, and its episodes are free for the next run. Without this state a
    crash would leave a run that looks busy."""
    CANDIDATE = "CANDIDATE"
    """An immutable bundle exists and has its name and adapter number."""
    EVALUATING = "EVALUATING"
    """Gates are measured. An inconclusive report leaves the version here, paused: for a person, or to be repeated."""
    GATED = "GATED"
    """All gates passed on this very bundle."""
    AWAITING_APPROVAL = "AWAITING_APPROVAL"
    """A person must agree."""
    SHADOW = "SHADOW"
    """Loaded beside production; answers nobody, or those who ask for V1."""
    CANARY = "CANARY"
    """Answers a share of the traffic."""
    PRODUCTION = "PRODUCTION"
    """V2: exactly one version at each instant."""
    SUPERSEDED = "SUPERSEDED"
    """Served before and kept warm: may return to PRODUCTION by rollback."""
    ARCHIVED = "ARCHIVED"
    """Served before and no longer loaded."""
    REJECTED = "REJECTED"
    """A gate or a person said no before it served."""
    ROLLED_BACK = "ROLLED_BACK"
    """Taken out of traffic."""
    QUARANTINED = "QUARANTINED"
    """V3: no traffic, no learning, read-only analysis. Its episodes are held back."""


TRANSITIONS: dict[State, frozenset[State]] = {
    State.DRAFT: frozenset({State.TRAINING, State.FAILED}),
    State.TRAINING: frozenset({State.CANDIDATE, State.FAILED}),
    State.FAILED: frozenset(),
    State.CANDIDATE: frozenset({State.EVALUATING}),
    State.EVALUATING: frozenset({State.GATED, State.REJECTED}),
    State.GATED: frozenset({State.AWAITING_APPROVAL, State.SHADOW, State.REJECTED}),
    State.AWAITING_APPROVAL: frozenset({State.SHADOW, State.REJECTED, State.EVALUATING}),  # again: its report expired
    State.SHADOW: frozenset({State.CANARY, State.PRODUCTION, State.ROLLED_BACK}),  # a policy may have no canary steps
    State.CANARY: frozenset({State.CANARY, State.PRODUCTION, State.ROLLED_BACK}),  # again: a larger share
    State.PRODUCTION: frozenset({State.SUPERSEDED, State.ROLLED_BACK}),
    State.SUPERSEDED: frozenset({State.PRODUCTION, State.ARCHIVED}),
    State.ARCHIVED: frozenset(),
    State.REJECTED: frozenset({State.QUARANTINED}),
    State.ROLLED_BACK: frozenset({State.QUARANTINED}),
    State.QUARANTINED: frozenset({State.CANDIDATE}),
}
"""Every legal step. What is not here is refused."""

QUARANTINE_PATHS: dict[State, tuple[State, ...]] = {
    State.EVALUATING: (State.REJECTED, State.QUARANTINED),
    State.GATED: (State.REJECTED, State.QUARANTINED),
    State.AWAITING_APPROVAL: (State.REJECTED, State.QUARANTINED),
    State.SHADOW: (State.ROLLED_BACK, State.QUARANTINED),
    State.CANARY: (State.ROLLED_BACK, State.QUARANTINED),
    State.REJECTED: (State.QUARANTINED,),
    State.ROLLED_BACK: (State.QUARANTINED,),
}
"""The states on the way to V3. PRODUCTION is not here: it leaves by rollback, which also restores its predecessor."""

BAD_STATES = frozenset({State.FAILED, State.REJECTED, State.ROLLED_BACK, State.QUARANTINED})
"""Nothing may be trained on top of these."""
SERVED_STATES = frozenset({State.PRODUCTION, State.SUPERSEDED, State.ARCHIVED})
"""Passed all gates and served without a rollback: fit to be an ancestor of production."""

COMPOUND_TRANSITIONS: dict[tuple[State, State], str] = {
    (State.TRAINING, State.CANDIDATE): "fix_bundle",
    (State.SHADOW, State.CANARY): "set_canary",
    (State.CANARY, State.CANARY): "set_canary",
    (State.SHADOW, State.PRODUCTION): "promote",
    (State.CANARY, State.PRODUCTION): "promote",
    (State.PRODUCTION, State.SUPERSEDED): "promote",
    (State.PRODUCTION, State.ROLLED_BACK): "rollback",
    (State.SUPERSEDED, State.PRODUCTION): "rollback",
    (State.QUARANTINED, State.CANDIDATE): "release",
}
"""Steps that move a second version, write a bundle or ask who agrees in the same transaction: the ledger's method."""

PEOPLE_ONLY = frozenset({(State.AWAITING_APPROVAL, State.SHADOW), (State.QUARANTINED, State.CANDIDATE)})
"""Steps that the agent cannot take."""
EVIDENCE_NEEDED = frozenset({(State.QUARANTINED, State.CANDIDATE)})
"""Steps that need new evidence."""


class IllegalTransition(ValueError):
    """The state machine has no such step, or this caller may not take it."""


class StaleTransition(ValueError):
    """The version is not in the state that the caller expected: someone else moved it first."""

    def __init__(self, name: str, *, expected: str, actual: State) -> None:
        super().__init__(
            f"version {name} was expected in state {expected} but is {actual}: it was moved meanwhile. "
            "Read it again (GET /v1/versions) and decide on its present state."
        )
        self.name = name
        self.expected = expected
        self.actual = actual

    def __reduce__(self) -> tuple[object, ...]:  # an exception with keyword arguments does not unpickle by itself
        return _rebuild_stale, (self.name, self.expected, self.actual)


def _rebuild_stale(name: str, expected: str, actual: State) -> StaleTransition:
    return StaleTransition(name, expected=expected, actual=actual)


def decide_transition(
    current: State, *, expected: State, to: State, name: str, by: str, has_evidence: bool = False
) -> State:
    """The state after a step that one caller asks for; pure.

    Raises: StaleTransition if `current` is not `expected`; IllegalTransition for a step that is not in TRANSITIONS, for
    a step of PEOPLE_ONLY by a machine actor, and for a step of EVIDENCE_NEEDED without evidence.
    """
    if current is not expected:
        raise StaleTransition(name, expected=expected, actual=current)
    if to not in TRANSITIONS[current]:
        legal = ", ".join(sorted(TRANSITIONS[current])) or "no other state"
        raise IllegalTransition(f"version {name} cannot go from {current} to {to}: from {current} it may go to {legal}")
    step = (current, to)
    if step in PEOPLE_ONLY and is_machine(by):
        raise IllegalTransition(
            f"version {name} goes from {current} to {to} only by a person, not by {by!r}: give a person's name as by"
        )
    if step in EVIDENCE_NEEDED and not has_evidence:
        raise IllegalTransition(
            f"version {name} goes from {current} to {to} only with new evidence: say in evidence what has been found"
        )
    return to
