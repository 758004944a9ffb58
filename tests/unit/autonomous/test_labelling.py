"""The labelling queue: unsure answers first, far apart, a share at random, none twice."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autonomous.gaps import Judged
from autonomous.labelling import k_center_greedy, select_for_labelling
from tests.unit.autonomous.feedback_life import WordEmbedder, judged


def unit(rows: list[list[float]]) -> np.ndarray:
    vectors = np.array(rows, dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def sure(question: str, confidence: float, **votes: int) -> Judged:
    return judged(question, log_prob=confidence, num_output_tokens=1, **votes)  # type: ignore[arg-type]


def chosen(requests: list[Judged], budget: int, *, explored: float = 0.0, seed: int = 0) -> list[str]:
    vectors = WordEmbedder().embed([one.request.question for one in requests])
    picked = select_for_labelling(
        requests, vectors, budget=budget, explored_share=explored, rng=np.random.default_rng(seed)
    )
    return [one.request.question for one in picked]


def test_the_least_sure_answer_comes_first_and_unknown_confidence_last() -> None:
    requests = [
        sure("apple orchard", -1.0),
        sure("violin maker", -5.0),
        judged("copper kettle"),
        sure("northern light", -3.0),
    ]
    assert chosen(requests, 1) == ["violin maker"]
    assert set(chosen(requests, 4)) == {"apple orchard", "violin maker", "copper kettle", "northern light"}


def test_a_second_wording_gives_way_to_another_subject() -> None:
    requests = [sure("violin maker Cremona", -5.0), sure("violin maker Cremona now", -4.9), sure("copper kettle", -4.0)]
    assert chosen(requests, 2) == ["violin maker Cremona", "copper kettle"]


def test_what_people_voted_on_is_not_asked_again_and_pushes_its_neighbours_back() -> None:
    requests = [
        sure("violin maker Cremona", -9.0, down=1),
        sure("violin maker Cremona old", -5.0),
        sure("copper kettle", -4.0),
    ]
    assert chosen(requests, 1) == ["copper kettle"]
    assert "violin maker Cremona" not in chosen(requests, 3)
    again = [sure("copper kettle", -9.0, up=1), sure("Copper kettle", -5.0), sure("violin maker", -1.0)]
    assert chosen(again, 3) == ["violin maker"]


def test_a_share_is_drawn_from_all_so_that_confident_mistakes_are_seen() -> None:
    requests = [sure(f"subject{n:02d} word{n:02d}", -float(n)) for n in range(40)]
    surest = {f"subject{n:02d} word{n:02d}" for n in range(20)}
    drawn = [set(chosen(requests, 5, explored=0.4, seed=seed)) & surest for seed in range(20)]
    assert any(drawn)
    assert not any(set(chosen(requests, 5, seed=seed)) & surest for seed in range(20))
    assert chosen(requests, 5, explored=0.4, seed=3) == chosen(requests, 5, explored=0.4, seed=3)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 12), st.floats(0, 1))
def test_the_budget_is_kept_filled_and_nothing_comes_twice(seed: int, budget: int, explored: float) -> None:
    rng = np.random.default_rng(seed)
    requests = [sure(f"subject{n} number{n}", float(rng.normal()), up=int(rng.random() < 0.3)) for n in range(9)]
    num_free = sum(one.votes.num_up == 0 for one in requests)
    picked = chosen(requests, budget, explored=explored, seed=seed)
    assert len(picked) == len(set(picked)) == min(budget, num_free)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 3))
def test_greedy_centers_cover_within_twice_the_least_possible_radius(seed: int, budget: int) -> None:
    vectors = unit(np.random.default_rng(seed).standard_normal((8, 3)).tolist())

    def radius(centers: tuple[int, ...]) -> float:
        distances = np.linalg.norm(vectors[:, None] - vectors[list(centers)][None], axis=2)
        return float(distances.min(axis=1).max())

    best = min(radius(centers) for centers in itertools.combinations(range(8), budget))
    greedy = k_center_greedy(vectors, range(8), centers=[], budget=budget)
    assert len(set(greedy)) == budget
    assert radius(tuple(greedy)) <= 2 * best + 1e-5


def test_vectors_of_another_number_are_refused() -> None:
    with pytest.raises(ValueError, match="1 requests have 2 vectors"):
        select_for_labelling(
            [judged("q")], unit([[1.0], [1.0]]), budget=1, explored_share=0, rng=np.random.default_rng(0)
        )
