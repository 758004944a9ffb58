"""Memories of any size for the measurements of the stores: passages with the word frequencies of text, and vectors.

Words are drawn from a vocabulary of 50,000 by Zipf's law, 60 to a passage; vectors lie in 500 clusters, so that they have
neighbours as embeddings do. Both derive from a seed, whatever the size.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from memory.facts import fact_of
from memory.rag_index import Vectors
from memory.types import Claim, Episode, Trust

VOCABULARY = 50_000
WORDS_PER_PASSAGE = 60
CLUSTERS = 500
SPREAD = 0.7
"""Of a vector around its centre, in units of the centre's length."""
NUM_SOURCES, NUM_LANGUAGES = 20, 4


@dataclass
class ClusterEmbedder:
    """Vectors by the number that a text begins with; any other text is a query near one of them."""

    dimension: int = 384
    name: str = "clusters"

    def __post_init__(self) -> None:
        self._centres = np.random.default_rng(0).standard_normal((CLUSTERS, self.dimension)).astype(np.float32)

    def embed(self, texts: Sequence[str]) -> Vectors:
        """See Embedder."""
        rows = np.empty((len(texts), self.dimension), dtype=np.float32)
        for place, text in enumerate(texts):
            number = int(text.split(maxsplit=1)[0])
            rng = np.random.default_rng([1, number])
            rows[place] = self._centres[number % CLUSTERS] + SPREAD * rng.standard_normal(self.dimension)
        unit: Vectors = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        return unit


def passages(num: int, *, first: int = 0) -> Iterator[Episode]:
    """Episodes number `first` to `first + num - 1`."""
    ranks = 1 / np.arange(1, VOCABULARY + 1)
    edges = np.cumsum(ranks / ranks.sum())
    for number in range(first, first + num):
        rng = np.random.default_rng([2, number])
        words = np.searchsorted(edges, rng.random(WORDS_PER_PASSAGE))
        yield Episode(
            id=f"e{number}",
            document_id=f"d{number // 10}",
            source_id=f"s{number % NUM_SOURCES}",
            title="",
            text=f"{number} " + " ".join(f"w{word}x" for word in words),
            position=number % 10,
            happened_at=float(number),
            trust=Trust.STANDARD,
            metadata={"language": f"l{number % NUM_LANGUAGES}"},
        )


def queries(num: int, *, size: int) -> list[str]:
    """Questions of six words of a passage, without the 50 commonest, that are near the passage's cluster."""
    found = []
    for number in np.random.default_rng(3).integers(size, size=num).tolist():
        (episode,) = passages(1, first=number)
        words = [word for word in dict.fromkeys(episode.text.split()[1:]) if int(word[1:-1]) >= 50]
        chosen = np.random.default_rng([4, number]).permutation(len(words))[:6]
        found.append(f"{number + size * CLUSTERS} " + " ".join(words[place] for place in chosen))
    return found


def facts(num: int, *, first: int = 0) -> Iterator[Claim]:
    """Claims about concepts of three words each, each concept in five facts."""
    for number in range(first, first + num):
        rng = np.random.default_rng([5, number])
        words = np.minimum(rng.zipf(1.2, size=3), VOCABULARY)
        subject = f"part {number // 5} of w{words[0]}x"
        object_ = f"w{words[1]}x w{words[2]}x {number}"
        fact = fact_of(subject, "is", object_, sentence=f"{subject} is {object_}.", episode_id=f"e{number}")
        yield Claim(fact, f"s{number % NUM_SOURCES}", Trust.STANDARD, float(number))
