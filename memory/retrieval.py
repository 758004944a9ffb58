"""Pure parts of recall: the words that carry a question, and the fusion of two rankings.

Source of the fusion: a convex combination of scores scaled by their theoretical bounds (TM2C2), which Bruch et al.
(arXiv:2210.11934) found to beat reciprocal rank fusion and to need little tuning.
"""

import re
from collections.abc import Hashable, Mapping
from typing import Any, TypeVar

BM25_WEIGHT = 0.45
VECTOR_WEIGHT = 0.55
"""BM25 is taken relative to what an episode with all words of the question would have at most, so a passage that shares
only a name with the question gains little by it; cosines relative to the best. Chosen on the development half of the sets
of cluster.bench_questions: the most for BM25 by which no kind of question loses a point to the best of vectors, BM25 and
reciprocal rank fusion (recall@5 / 10 / 20, mean of the kinds, and the most that a kind loses): .4 74.8 / 80.2 / 85.1 and .8;
.45 75.6 / 81.1 / 85.4 and .8; .5 76.6 / 81.6 / 85.2 and 1.6; .6 76.9 / 81.3 / 85.6 and 2.5; MiniLM alone 72.0 / 77.5 / 82.0,
BM25 alone 49.4 / 52.3 / 55.4, reciprocal rank fusion 52.0 / 55.5 / 73.1. Powers of either score gain nothing."""

SALIENCE_WEIGHT = 0.05
MAX_SALIENCE = 4.0
"""A passage's salience above 1, up to this, adds so much each: openings and stated facts come first among near equals.
Of 14 questions on package pages the passage that answers reached the prompt 14 times with it, 10 times without (the
questions were made from salient passages, so this shows no more than that the weight is felt)."""

MAX_QUERY_TERMS = 48
"""A longer question is cut: each term costs one posting list."""

_WORD = re.compile(r"[^\W_]+")
_STOP_LIST = """
a about above after again all also am an and any are as at be because been before being below between both but by
can could did do does doing don done down during each few for from further give had has have having he her here hers
him his how i if in into is it its just let like ll many may me might mine more most much must my no nor not of off
on once only or other our ours out over own please re s same shall she should so some such t tell than that the
their theirs them then there these they this those through to too under until up us ve very was we were what when
where which while who whom whose why will with would you your yours
"""
STOP_WORDS = frozenset(_STOP_LIST.split())


def query_terms(question: str) -> list[str]:
    """The words that carry the question: lower case, in order, each once, without stop words.

    A question of nothing but stop words ("to be or not to be") keeps them all.
    """
    words = list(dict.fromkeys(_WORD.findall(question.lower())))
    return ([word for word in words if word not in STOP_WORDS] or words)[:MAX_QUERY_TERMS]


Key = TypeVar("Key", bound=Hashable)


def fuse(
    cosines: Mapping[Key, float],
    *,
    bm25: Mapping[Key, float],
    bound: float,
    salience: Mapping[Key, float] | None = None,
    bm25_weight: float = BM25_WEIGHT,
    vector_weight: float = VECTOR_WEIGHT,
) -> list[tuple[Key, float]]:
    """(key, score) of every key of either ranking, best first; score is in [0, bm25_weight + vector_weight], plus the
    bonus of salience (1 where it is not given).

    `cosines` in [-1, 1] are divided by their best, `bm25` (>= 0) by `bound`, the most that any episode could have; a missing
    or negative one counts 0. Ties go to the higher cosine, then to the larger key, which the caller makes the newer one.
    """
    best_cosine = max(cosines.values(), default=0.0)

    def score(key: Key) -> float:
        by_vector = max(cosines.get(key, 0.0), 0.0) / best_cosine if best_cosine > 0 else 0.0
        by_words = max(bm25.get(key, 0.0), 0.0) / bound if bound > 0 else 0.0
        above = min((salience or {}).get(key, 1.0), MAX_SALIENCE) - 1.0
        return vector_weight * by_vector + bm25_weight * by_words + SALIENCE_WEIGHT * max(above, 0.0)

    def order(item: tuple[Key, float]) -> Any:
        return item[1], cosines.get(item[0], -1.0), item[0]

    return sorted(((key, score(key)) for key in cosines.keys() | bm25.keys()), key=order, reverse=True)
