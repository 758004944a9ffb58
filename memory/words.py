"""BM25 over the words of episodes, from parts that may lie in several stores.

A store tells its WordStatistics, statistics of several stores add up, and each store scores its episodes with the sum:
so the scores of shards are those of one store. The formula and its constants are those of SQLite's FTS5, whose scores
it equals: k1 1.2, b .75, a word of the title counts half.
Source: sqlite.org/fts5.html#the_bm25_function; Robertson and Zaragoza 2009, doi:10.1561/1500000019.
"""

import hashlib
import math
import re
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

K1, B = 1.2, 0.75
TITLE_WEIGHT = 0.5
LEAST_IDF = 1e-6
"""Of a word that more than half of the episodes hold."""
TOKENIZER = "porter unicode61 remove_diacritics 2"
_WORD = re.compile(r"[^\W_]+")
ARTICLE = re.compile(r"^(?:the|an?)\s+", re.IGNORECASE)
_ARTICLES = frozenset(("a", "an", "the", "An", "The"))
_PUNCTUATION = ".,;:!?\"'“”‘’()"


@dataclass(frozen=True, slots=True)
class WordStatistics:
    """Of a store, or of several together."""

    num_episodes: int = 0
    num_words: int = 0
    num_with: Mapping[str, int] = field(default_factory=dict)
    """Episodes that hold each term."""

    def __add__(self, other: "WordStatistics") -> "WordStatistics":
        both = Counter(self.num_with)
        both.update(other.num_with)
        return WordStatistics(self.num_episodes + other.num_episodes, self.num_words + other.num_words, dict(both))

    @property
    def mean_words(self) -> float:
        """Words of an episode."""
        return self.num_words / self.num_episodes if self.num_episodes else 1.0

    def idf(self, term: str) -> float:
        """Inverse document frequency as FTS5 has it."""
        num_with = self.num_with.get(term, 0)
        return max(LEAST_IDF, math.log((self.num_episodes - num_with + 0.5) / (num_with + 0.5)))

    def bound(self, terms: Iterable[str]) -> float:
        """What an episode that holds all the terms ever so often would score at most."""
        return (K1 + 1) * sum(self.idf(term) for term in terms)


def count_words(title: str, text: str) -> int:
    """Length of an episode for BM25."""
    return sum(1 for _ in _WORD.finditer(title)) + sum(1 for _ in _WORD.finditer(text))


def near_duplicate_key(text: str, *, tenant: str, trust: int) -> str:
    """Texts of one tenant and trust that say the same have the same key: 32 hex characters.

    The same words in the same order, but for case, spacing, articles, and the punctuation of sentences at their ends: signs
    and symbols count. A threshold on similar words or vectors would also merge "the code is KX-4471" with "the code is
    KX-4472".
    """
    words = [word.strip(_PUNCTUATION).casefold() for word in text.split() if word not in _ARTICLES]
    words = [word for word in words if word] or text.split()
    return hashlib.sha256("\x00".join([tenant, str(trust), *words]).encode("utf-8", "replace")).hexdigest()[:32]


def score_term(
    occurrences: NDArray[np.float64], num_words: NDArray[np.int32], *, term: str, statistics: WordStatistics
) -> NDArray[np.float64]:
    """One term's part in the score of each episode; `occurrences` are weighted, both arrays [n]."""
    length = 1 - B + B * num_words / statistics.mean_words
    score: NDArray[np.float64] = statistics.idf(term) * occurrences * (K1 + 1) / (occurrences + K1 * length)
    return score


def concept_key(name: str) -> str:
    """The node of a concept: its name without case, article and surplus space."""
    return ARTICLE.sub("", " ".join(name.split())).casefold()


class Tokenizer:
    """Words as the index holds them: SQLite's own tokenizer, asked through a table of one row in memory. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        self._connection.execute(f"CREATE VIRTUAL TABLE words USING fts5(text, content='', tokenize='{TOKENIZER}')")
        self._connection.execute("CREATE VIRTUAL TABLE terms USING fts5vocab(words, 'row')")

    def counts(self, text: str) -> dict[str, int]:
        """Each term of a text and how often it occurs."""
        with self._lock:
            self._connection.execute("INSERT INTO words(rowid, text) VALUES(1, ?)", (text,))
            rows = self._connection.execute("SELECT term, cnt FROM terms").fetchall()
            self._connection.execute("INSERT INTO words(words) VALUES('delete-all')")
        return dict(rows)

    def terms(self, words: Sequence[str]) -> list[str]:
        """The terms of a question's words, each once, in a fixed order."""
        return sorted(self.counts(" ".join(words)))
