"""How an adapter on disk is named between the ledger, the learner and the engine."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AdapterRef:
    """A version's adapter: `name` is the version id, `folder` holds the PEFT files.

    `number` comes from the version ledger, once per version, and is never reused: an engine silently keeps the old
    weights of a number that it knows.
    """

    name: str
    number: int
    folder: str
