"""A memory of facts for the tests of what may be learned: what documents say, in the order in which they came in."""

from collections.abc import Sequence
from pathlib import Path

from autonomous.safety.evidence import gather_evidence
from autonomous.safety.poison import Evidence, PoisonReport, judge_poison
from autonomous.safety.screen import Level
from memory.claims import claims_of
from memory.types import Episode
from tests.episodes import open_semantic


class BelievedWorld:
    """A SemanticMemory over documents; each is taken in a minute after the one before."""

    def __init__(self, folder: Path) -> None:
        self.now = 1000.0
        self.semantic = open_semantic(folder, clock=lambda: self.now)
        self.episodes: dict[str, Episode] = {}

    def take_in(self, *episodes: Episode, minutes: float = 1.0) -> None:
        for episode in episodes:
            self.now += 60 * minutes
            self.episodes[episode.id] = episode
            self.semantic.add(claims_of(episode))

    def read(self, ids: Sequence[str]) -> list[Episode]:
        return [self.episodes[key] for key in ids if key in self.episodes]

    def evidence(self, batch: Sequence[Episode]) -> Evidence:
        return gather_evidence(self.semantic, batch, read=self.read)

    def judge(self, *batch: Episode, level: Level = "high") -> PoisonReport:
        return judge_poison(batch, self.evidence(batch).beliefs, level=level)
