"""LearningMemory: what of MemoryPort the stores of one process answer."""

from collections.abc import Collection, Sequence

from autonomous.holds import Hold, HoldRegister, HoldState, left_out_of
from autonomous.safety.evidence import Believed, gather_evidence
from autonomous.safety.poison import Evidence
from memory.protocols import Episodes
from memory.types import Episode


class LearningMemory:
    """Episodes, facts and holds. Facts have to be stated by whoever follows the stream, before a batch is judged."""

    def __init__(self, *, episodes: Episodes, facts: Believed, holds: HoldRegister) -> None:
        self._episodes = episodes
        self._facts = facts
        self._holds = holds

    def freshest(self, limit: int, offset: int) -> list[tuple[int, Episode]]:
        """See MemoryPort."""
        return self._episodes.freshest(limit=limit, offset=offset)

    def get(self, ids: Sequence[str]) -> list[Episode]:
        """See MemoryPort."""
        return self._episodes.get(ids)

    def contradicted(self, episodes: Sequence[Episode]) -> Evidence:
        """See MemoryPort."""
        return gather_evidence(self._facts, episodes, read=self._episodes.get)

    def hold_states(self, episodes: Sequence[Episode]) -> dict[str, HoldState]:
        """See MemoryPort."""
        return self._holds.states(episodes)

    def hold(self, holds: Sequence[Hold]) -> None:
        """See MemoryPort."""
        self._holds.hold(holds)

    def num_learnable(self, besides: Collection[str]) -> int:
        """See MemoryPort."""
        return self._episodes.num_learnable(left_out_of(besides, self._holds.held_below()))

    def held(self, limit: int) -> list[Hold]:
        """See MemoryPort."""
        return self._holds.held(limit=limit)
