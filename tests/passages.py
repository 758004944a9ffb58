"""A MemoryPort over a list, for tests of the loop."""

from collections.abc import Collection, Mapping, Sequence

from autonomous.holds import Hold, HoldState
from autonomous.safety.poison import Evidence
from memory.types import Episode, episode_id


class Passages:
    """MemoryPort over a list."""

    def __init__(self, *texts: str) -> None:
        self.episodes: list[Episode] = []
        self.suspected: list[str] = []
        self.holds: dict[str, Hold] = {}
        self.add(*texts)

    def add(self, *texts: str, metadata: Mapping[str, str] | None = None) -> None:
        for text in texts:
            key = episode_id(text, 0, text)
            self.episodes.append(
                Episode(
                    id=key,
                    document_id=key,
                    source_id="test",
                    title="note",
                    text=text,
                    position=0,
                    happened_at=0.0,
                    metadata=metadata or {},
                )
            )

    def freshest(self, limit: int, offset: int) -> list[tuple[int, Episode]]:
        numbered = list(enumerate(self.episodes, 1))[::-1]
        return numbered[offset : offset + limit]

    def get(self, ids: Sequence[str]) -> list[Episode]:
        known = {episode.id: episode for episode in self.episodes}
        return [known[key] for key in ids if key in known]

    def suspect(self, ids: Sequence[str]) -> list[str]:
        self.suspected.extend(ids)
        return list(ids)

    def contradicted(self, episodes: Sequence[Episode]) -> Evidence:
        return Evidence()

    def hold_states(self, episodes: Sequence[Episode]) -> dict[str, HoldState]:
        return {episode.id: "held" for episode in episodes if episode.id in self.holds}

    def hold(self, holds: Sequence[Hold]) -> None:
        self.holds |= {hold.episode_id: hold for hold in holds}

    def num_learnable(self, besides: Collection[str]) -> int:
        return len({episode.id for episode in self.episodes} - set(besides) - set(self.holds))

    def held(self, limit: int) -> list[Hold]:
        return list(self.holds.values())[:limit]
