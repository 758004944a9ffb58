"""Active learning: which answers people should look at next. Requests flow in, a labelling queue flows out.

Uncertainty sampling with diversity: of the answers that the model was least sure of those are taken that lie farthest from
each other and from what is labelled; a share is drawn from all, so that mistakes which the model is sure of are seen too.
Sources: least confidence, Lewis and Gale 1994 (arXiv:cmp-lg/9407020); k-center greedy, Sener and Savarese 2018
(arXiv:1708.00489).
"""

from collections.abc import Collection, Sequence

import numpy as np

from autonomous.gaps import Judged, Vectors

POOL = 4
"""Diverse answers are chosen from so many times as many, by uncertainty."""


def select_for_labelling(
    judged: Sequence[Judged],
    vectors_ND: Vectors,
    *,
    budget: int,
    explored_share: float,
    rng: np.random.Generator,
    waiting: Collection[str] = (),
) -> list[Judged]:
    """At most `budget` requests that nobody has voted on, in the order in which they should be looked at.

    Shapes: vectors_ND, unit rows, one per request. Of equal questions one is taken. Those of `waiting` (ids) are before
    people already: they count as labelled. Raises ValueError for other lengths.
    """
    if len(vectors_ND) != len(judged):
        raise ValueError(f"{len(judged)} requests have {len(vectors_ND)} vectors: give one for each")
    rated = [
        row for row, one in enumerate(judged) if one.votes.num_up or one.votes.num_down or one.request.id in waiting
    ]
    seen = {judged[row].request.question.casefold() for row in rated}
    free: list[int] = []
    for row, one in enumerate(judged):
        if row not in set(rated) and one.request.question.casefold() not in seen:
            seen.add(one.request.question.casefold())
            free.append(row)
    num_explored = min(len(free), round(budget * explored_share))
    ranked = sorted(free, key=lambda row: (_surety(judged[row]), judged[row].request.id))
    pool = ranked[: POOL * max(0, budget - num_explored)]
    chosen = k_center_greedy(vectors_ND, pool, centers=rated, budget=budget - num_explored)
    rest = [row for row in ranked if row not in set(chosen)]
    explored = rng.permutation(len(rest))[: budget - len(chosen)].tolist() if num_explored else []
    return [judged[row] for row in (*chosen, *(rest[place] for place in explored))]


def k_center_greedy(vectors_ND: Vectors, pool: Sequence[int], *, centers: Sequence[int], budget: int) -> list[int]:
    """Rows of the pool, each the farthest from all centers and from those before it; the first of the pool without centers.

    Its covering radius is at most twice the least possible (Gonzalez 1985).
    """
    if not pool or budget <= 0:
        return []
    pool_PD = vectors_ND[list(pool)]
    distance_P = np.full(len(pool), np.inf)
    for center in centers:
        distance_P = np.minimum(distance_P, np.linalg.norm(pool_PD - vectors_ND[center], axis=1))
    chosen: list[int] = []
    for _ in range(min(budget, len(pool))):
        place = int(np.argmax(distance_P))
        chosen.append(pool[place])
        distance_P = np.minimum(distance_P, np.linalg.norm(pool_PD - pool_PD[place], axis=1))
        distance_P[place] = -1.0
    return chosen


def _surety(judged: Judged) -> float:
    """Confidence, nats per token; what no engine tells comes last."""
    confidence = judged.request.confidence
    return np.inf if confidence is None else confidence
