"""Recall over one store of episodes or several: each names its best, all are ranked together.

A query's words and vector flow in, hits flow out. Words are scored with the statistics of all stores together, and what
is compared is the same whichever store an episode lies in, so several stores find what one would.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from memory.embed import Embedder
from memory.episode_rows import embedded_text
from memory.rag_index import Vectors, check_vectors
from memory.retrieval import fuse, query_terms
from memory.types import Episode, EpisodeFilter, RecallHit
from memory.words import Tokenizer, WordStatistics

ANY_EPISODE = EpisodeFilter()
OVERSAMPLE, MIN_CANDIDATES = 4, 50
"""Candidates per ranker and wanted hit, and at least: fusion reorders them, a cosine bound drops some."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Candidate:
    """An episode that a ranker found. `bm25` is 0 where it holds none of the words, `cosine` None while its vector waits."""

    episode: Episode
    bm25: float
    cosine: float | None
    times_seen: int


class RecallStore(Protocol):
    """What recall needs of a store."""

    def word_statistics(self, terms: Sequence[str]) -> WordStatistics:
        """Of this store, for these terms."""

    def candidates(
        self,
        terms: Sequence[str],
        vector: NDArray[np.float32],
        *,
        statistics: WordStatistics,
        limit: int,
        where: EpisodeFilter,
    ) -> list[Candidate]:
        """The `limit` best of each ranker."""


class MapStores(Protocol):
    """As `map`, in whatever threads."""

    def __call__(self, call: Callable[[RecallStore], T], stores: Sequence[RecallStore], /) -> Iterable[T]: ...


class Recall:
    """Turns queries into words and vectors, asks the stores, ranks what they name. Thread-safe."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self._tokenizer = Tokenizer()

    def over(
        self,
        stores: Sequence[RecallStore],
        query: str,
        *,
        k: int,
        min_cosine: float,
        where: EpisodeFilter,
        map_stores: MapStores = map,
    ) -> list[RecallHit]:
        """The k best episodes of all stores; an empty query finds nothing. See EpisodicMemory.recall."""
        if k < 1:
            raise ValueError(f"k is {k}: ask for at least 1 passage")
        terms = self.terms(query)
        if not terms:
            return []
        vector = self.embed([query])[0]
        limit = max(MIN_CANDIDATES, OVERSAMPLE * k)
        statistics = sum(map_stores(lambda store: store.word_statistics(terms), stores), WordStatistics())
        found = map_stores(
            lambda store: store.candidates(terms, vector, statistics=statistics, limit=limit, where=where), stores
        )

        def cosines(episodes: Sequence[Episode]) -> list[float]:
            vectors = self.embed([embedded_text(episode.title, episode.text) for episode in episodes])
            near: list[float] = np.clip(vectors @ vector, -1.0, 1.0).tolist()
            return near

        candidates = [one for ones in found for one in ones]
        bound = statistics.bound(terms)
        return rank(candidates, k=k, limit=limit, bound=bound, min_cosine=min_cosine, cosines=cosines)

    def terms(self, query: str) -> list[str]:
        """The words that carry a query, as the indexes hold them."""
        return self._tokenizer.terms(query_terms(query))

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Unit vectors. Raises ValueError for what the embedder must not give."""
        vectors = self._embedder.embed(texts)
        return check_vectors(vectors, dimension=self._embedder.dimension, source=self._embedder.name)


def rank(
    candidates: Sequence[Candidate],
    *,
    k: int,
    limit: int,
    bound: float,
    min_cosine: float,
    cosines: Callable[[Sequence[Episode]], Sequence[float]],
) -> list[RecallHit]:
    """The k best of the candidates.

    Only the `limit` best by either ranker take part, so that several stores give what one would. Of those whose vector
    waits the k best by words get their cosine from `cosines`. `bound` is the most that BM25 could be. Ties go to the higher
    cosine, then to the newer.
    """
    waiting = sorted((one for one in candidates if one.cosine is None), key=lambda one: (-one.bm25, one.episode.id))[:k]
    known = [one for one in candidates if one.cosine is not None]
    if waiting:
        near = cosines([one.episode for one in waiting])
        known += [replace(one, cosine=cosine) for one, cosine in zip(waiting, near, strict=True)]
    found = {(one.episode.happened_at, one.episode.id): one for one in _leading(known, limit=limit)}
    near_enough = {key: one.cosine for key, one in found.items() if one.cosine is not None and one.cosine >= min_cosine}
    ranked = fuse(
        near_enough,
        bm25={key: found[key].bm25 for key in near_enough},
        bound=bound,
        salience={key: found[key].episode.salience for key in near_enough},
    )
    return [RecallHit(found[key].episode, score, near_enough[key], found[key].times_seen) for key, score in ranked[:k]]


def _leading(candidates: list[Candidate], *, limit: int) -> list[Candidate]:
    if len(candidates) <= limit:
        return candidates
    least_bm25 = sorted((one.bm25 for one in candidates), reverse=True)[limit - 1]
    least_cosine = sorted((one.cosine or 0.0 for one in candidates), reverse=True)[limit - 1]
    return [
        one for one in candidates if (one.bm25 > 0 and one.bm25 >= least_bm25) or (one.cosine or 0.0) >= least_cosine
    ]
