"""Facts that a language model reads out of episodes, beside those of sentence patterns, never in the way of a write.

Episodes wait in a queue in the rows of SemanticMemory. `run_once` takes some, asks the extractor, and stores what is
grounded: both ends of a fact have to stand in the text. What fails is tried again later, and after some attempts stays
in the queue as failed, with its error, until a person sends it back.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field

from memory.facts import fact_of
from memory.passages import split_sentences
from memory.semantic import SemanticMemory
from memory.store import no_guard
from memory.types import Claim, Episode, Guard, Trust

logger = logging.getLogger(__name__)

Extract = Callable[[Episode], Sequence[tuple[str, str, str]]]
"""(subject, relation, object) that a text states. May raise whatever the model's engine raises."""
ReadEpisodes = Callable[[Sequence[str]], Sequence[Episode]]


class EnrichmentConfig(BaseModel):
    """How stubbornly a text is read."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_attempts: int = Field(3, gt=0)
    """Then the text is failed."""
    retry_s: float = Field(60.0, ge=0)
    """Seconds between two attempts."""
    confidence: float = Field(0.5, gt=0, lt=1)
    """Of what is read; a sentence pattern has 1."""


@dataclass(frozen=True, slots=True)
class FailedEnrichment:
    """A text that could not be read."""

    episode_id: str
    num_attempts: int
    error: str


class EnrichmentQueue:
    """See the module."""

    def __init__(self, config: EnrichmentConfig, memory: SemanticMemory) -> None:
        self.config = config
        self._memory = memory
        self._database = memory.database
        self._clock = memory.clock

    def put(self, episode_ids: Iterable[str], *, guard: Guard = no_guard) -> None:
        """Let episodes be read; one that was queued once is not queued again."""
        now = self._clock()
        with self._database.write(guard=guard) as connection:
            connection.executemany(
                "INSERT INTO enrichment(episode_id, state, num_attempts, error, queued_at, tried_at)"
                " VALUES(:id, 'waiting', 0, '', :now, NULL) ON CONFLICT DO NOTHING",
                [{"id": key, "now": now} for key in episode_ids],
            )

    def run_once(
        self, extract: Extract, read_episodes: ReadEpisodes, *, limit: int = 8, guard: Guard = no_guard
    ) -> int:
        """Read the texts that have waited longest; how many were taken up. Raises only what `guard` raises."""
        with self._database.read() as connection:
            rows = connection.execute(
                "SELECT episode_id FROM enrichment WHERE state = 'waiting' AND (tried_at IS NULL OR tried_at <= :before)"
                f" ORDER BY queued_at, episode_id LIMIT {limit:d}",
                {"before": self._clock() - self.config.retry_s},
            ).fetchall()
        ids = [row[0] for row in rows]
        episodes = {episode.id: episode for episode in read_episodes(ids)} if ids else {}
        for key in ids:
            if key not in episodes:
                self._drop(key, guard=guard)  # erased or evicted meanwhile
                continue
            try:
                read = extract(episodes[key])
            except Exception as error:  # whatever the engine raises: it is the queue's to keep
                self._fail(key, error, guard=guard)
                continue
            with self._memory.stating:
                again = read_episodes([key])  # it may have been erased or held back while the model read it
                if again and again[0].trust >= Trust.STANDARD:
                    self._memory.add(self._claims(again[0], read), guard=guard)
                    self._set(key, "done", guard=guard)
                else:
                    self._drop(key, guard=guard)
        return len(ids)

    def forget(self, episode_ids: Sequence[str], *, guard: Guard = no_guard) -> None:
        """These are gone: they need not be read, nor is it of use that they were."""
        with self._database.write(guard=guard) as connection:
            connection.execute(
                f"DELETE FROM enrichment WHERE episode_id {self._database.one_of('ids')}",
                {"ids": self._database.many(list(episode_ids))},
            )

    def failed(self, *, limit: int = 100) -> list[FailedEnrichment]:
        """What could not be read, with the last error."""
        with self._database.read() as connection:
            rows = connection.execute(
                "SELECT episode_id, num_attempts, error FROM enrichment WHERE state = 'failed'"
                f" ORDER BY queued_at, episode_id LIMIT {limit:d}"
            ).fetchall()
        return [FailedEnrichment(*row) for row in rows]

    def retry_failed(self, *, guard: Guard = no_guard) -> int:
        """Send what failed back into the queue; how many."""
        with self._database.write(guard=guard) as connection:
            changed: int = connection.execute(
                "UPDATE enrichment SET state = 'waiting', num_attempts = 0, tried_at = NULL WHERE state = 'failed'"
            ).rowcount
        return changed

    def _claims(self, episode: Episode, triples: Sequence[tuple[str, str, str]]) -> list[Claim]:
        text = " ".join(episode.text.split()).casefold()
        found = []
        for subject, relation, object_ in triples:
            ends = [" ".join(end.split()) for end in (subject, object_)]
            if not relation.strip() or not all(end and end.casefold() in text for end in ends):
                logger.info("the model states what is not in the text of episode=%s", episode.id)
                continue
            said = next(
                (one for one in split_sentences(episode.text) if ends[1].casefold() in one.casefold()), episode.text
            )
            fact = fact_of(ends[0], " ".join(relation.split()), ends[1], sentence=said, episode_id=episode.id)
            found.append(
                Claim(fact, episode.source_id, episode.trust, episode.happened_at, confidence=self.config.confidence)
            )
        return found

    def _fail(self, key: str, error: Exception, *, guard: Guard) -> None:
        logger.warning("enrichment of episode=%s failed: %s", key, error)
        with self._database.write(guard=guard) as connection:
            connection.execute(
                "UPDATE enrichment SET num_attempts = num_attempts + 1, tried_at = :now, error = :error, state ="
                " CASE WHEN num_attempts + 1 >= :most THEN 'failed' ELSE 'waiting' END WHERE episode_id = :id",
                {
                    "id": key,
                    "now": self._clock(),
                    "error": f"{type(error).__name__}: {error}",
                    "most": self.config.max_attempts,
                },
            )

    def _set(self, key: str, state: str, *, guard: Guard) -> None:
        with self._database.write(guard=guard) as connection:
            connection.execute(
                "UPDATE enrichment SET state = :state WHERE episode_id = :id", {"id": key, "state": state}
            )

    def _drop(self, key: str, *, guard: Guard) -> None:
        with self._database.write(guard=guard) as connection:
            connection.execute("DELETE FROM enrichment WHERE episode_id = :id", {"id": key})
