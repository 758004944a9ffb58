"""Gaps: planted ones are found and nothing in noise, in any order; thresholds hold what they promise."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import AgglomerativeClustering

from autonomous.feedback_config import FeedbackConfig
from autonomous.gaps import GapDetector, Judged, gap_id, group_by_cosine, is_refusal, least_confidence, reasons_of
from tests.unit.autonomous.feedback_life import NOW, WordEmbedder, judged

CONFIG = FeedbackConfig(gap_cosine=0.45)
PUMP = ["reset Torvik pump please", "Torvik pump reset steps", "reset the Torvik pump quickly", "Torvik pump reset"]
HARBOUR = ["Vellmar harbour master name", "master of Vellmar harbour", "Vellmar harbour master today"]
NOISE = ["weather tomorrow", "sourdough bread recipe", "prime number check", "haiku about autumn", "capital of Peru"]


def detector(config: FeedbackConfig = CONFIG) -> GapDetector:
    return GapDetector(config, embed=WordEmbedder().embed)


def bad(questions: Sequence[str]) -> list[Judged]:
    return [judged(question, down=1) for question in questions]


def test_planted_gaps_are_found_and_nothing_else() -> None:
    pump, harbour = detector().detect(bad([*PUMP, *NOISE, *HARBOUR]))
    assert set(pump.questions.values()) == set(PUMP)
    assert set(harbour.questions.values()) == set(HARBOUR)
    assert (pump.score, pump.kind, pump.newest_at) == (4.0, "down-voted", NOW)
    assert pump.question in PUMP


def test_noise_has_no_gaps_and_well_answered_groups_are_none() -> None:
    assert detector().detect(bad(NOISE)) == []
    assert detector().detect([judged(question) for question in PUMP]) == []
    assert detector().detect([judged(question, down=1, up=2) for question in PUMP]) == []
    assert detector().detect([]) == []


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_random_directions_have_no_gaps(seed: int) -> None:
    vectors = np.random.default_rng(seed).standard_normal((60, 384)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    assert max(map(len, group_by_cosine(vectors, cosine=0.5))) == 1


@settings(max_examples=25, deadline=None)
@given(st.permutations([*PUMP, *NOISE, *HARBOUR, PUMP[0].upper()]))
def test_the_order_of_requests_changes_nothing(questions: list[str]) -> None:
    assert detector().detect(bad(questions)) == detector().detect(bad(sorted(questions)))


def brute_average_linkage(vectors: np.ndarray, cosine: float) -> list[list[int]]:
    """The definition: join the two groups with the largest mean cosine until none reaches the cut."""
    similarity = vectors.astype(np.float64) @ vectors.astype(np.float64).T
    groups = [[row] for row in range(len(vectors))]
    while len(groups) > 1:
        mean, one, two = max(
            (similarity[np.ix_(a, b)].mean(), i, j) for (i, a), (j, b) in itertools.combinations(enumerate(groups), 2)
        )
        if mean < cosine:
            break
        groups[one] = sorted(groups[one] + groups.pop(two))
    return sorted(groups)


def some_vectors(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centers = rng.standard_normal((4, 16))
    vectors = centers[rng.integers(0, 4, 24)] + rng.uniform(0.2, 1.2) * rng.standard_normal((24, 16))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.3, 0.5, 0.7]))
def test_groups_are_those_of_average_linkage_by_its_definition(seed: int, cosine: float) -> None:
    vectors = some_vectors(seed)
    assert group_by_cosine(vectors, cosine=cosine) == brute_average_linkage(vectors, cosine)


@pytest.mark.parametrize("seed", range(8))
def test_groups_are_those_of_scikit_learn(seed: int) -> None:
    vectors = some_vectors(seed)
    labels = AgglomerativeClustering(
        n_clusters=None, distance_threshold=0.5, linkage="average", metric="cosine"
    ).fit_predict(vectors)
    expected = sorted(np.flatnonzero(labels == label).tolist() for label in set(labels.tolist()))
    assert group_by_cosine(vectors, cosine=0.5) == expected


def test_a_gap_is_named_by_its_medoid_whatever_its_spelling() -> None:
    assert gap_id("Torvik pump: reset?") == gap_id("torvik  PUMP reset")
    (gap,) = detector().detect(bad(PUMP))
    assert gap.id == gap_id(gap.question)


def test_a_known_gap_keeps_its_name_when_more_is_asked_and_the_medoid_moves() -> None:
    (before,) = detector().detect(bad(PUMP))
    valves = [
        f"Torvik pump reset valve {word}".strip() for word in ("", "north", "south", "east", "west", "inner", "outer")
    ]
    more = [*PUMP, *valves]
    (moved,) = detector().detect(bad(more))
    assert moved.id != before.id
    (kept,) = detector().detect(bad(more), known={before.id: before.question, "other": HARBOUR[0]})
    assert kept.id == before.id


def test_two_gaps_never_share_a_known_name() -> None:
    gaps = detector().detect(bad([*PUMP, *HARBOUR]), known={"both": "Torvik pump reset Vellmar harbour master"})
    assert len({gap.id for gap in gaps}) == 2


@pytest.mark.parametrize(
    ("request_", "reasons"),
    [
        (judged("q"), ()),
        (judged("q", down=1), ("down-voted",)),
        (judged("q", down=1, corrected=True), ("down-voted",)),
        (judged("q", down=1, corrected=True, sources=("e",)), ("contradicted",)),
        (judged("q", answer="I do not know."), ("refused",)),
        (judged("q", log_prob=-9.0, num_output_tokens=3), ("unsure",)),
        (judged("q", log_prob=-6.0, num_output_tokens=3), ()),
        (judged("q", is_retrieved=True), ("no passage",)),
        (judged("q", is_retrieved=True, cosine=0.4), ()),
        (judged("q", up=1, answer="", is_retrieved=True), ()),
    ],
)
def test_reasons_are_what_speaks_against_an_answer(request_: Judged, reasons: tuple[str, ...]) -> None:
    assert reasons_of(request_, least=-2.5) == reasons


@pytest.mark.parametrize(
    ("answer", "is_one"),
    [
        ("", True), ("I don't know.", True), ("The passages do not contain the answer.", True),
        ("I'm not sure about it.", True), ("Sorry, I cannot answer that.", True), ("I’m unable to say.", True),
        ("The gate is green.", False), ("You know the code: KX-4471.", False), ("The harbour has no lighthouse.", False),
        ("Paris. " + "It is a city. " * 30 + "I do not know more.", False),
    ],
)  # fmt: skip
def test_a_refusal_is_told_from_an_answer(answer: str, is_one: bool) -> None:
    assert is_refusal(answer) is is_one


def test_too_few_answers_give_no_threshold_of_confidence() -> None:
    few = [judged(f"q{n}", log_prob=-float(n), num_output_tokens=1) for n in range(49)]
    assert least_confidence(few, CONFIG) is None
    assert least_confidence([*few, judged("q")], CONFIG) is None
    assert least_confidence([*few, judged("q49", log_prob=-1.5, num_output_tokens=1)], CONFIG) is not None


def test_praised_answers_set_the_threshold_where_there_are_enough_and_bad_ones_never_do() -> None:
    plain = [judged(f"p{n}", log_prob=-5.0, num_output_tokens=1) for n in range(60)]
    wrong = [judged(f"w{n}", log_prob=-50.0, num_output_tokens=1, down=1) for n in range(60)]
    praised = [judged(f"g{n}", log_prob=-1.0, num_output_tokens=1, up=1) for n in range(60)]
    assert least_confidence([*plain, *wrong], CONFIG) == -5.0
    assert least_confidence([*plain, *wrong, *praised], CONFIG) == -1.0
    assert least_confidence([*plain, *praised[:49]], CONFIG) == -5.0


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-20, 0), min_size=50, max_size=120), st.sampled_from([0.02, 0.1, 0.3]))
def test_of_exchangeable_good_answers_no_more_than_the_share_fall_below_the_threshold(
    values: list[float], share: float
) -> None:
    """Leave each one out and ask whether it is called unsure: over all of them that is the promised share at most."""
    config = FeedbackConfig(unsure_share=share, min_calibration=10)
    known = [judged(f"q{n}", log_prob=value, num_output_tokens=1) for n, value in enumerate(values)]
    num_unsure = 0
    for place, value in enumerate(values):
        least = least_confidence(known[:place] + known[place + 1 :], config)
        num_unsure += least is not None and value < least
    assert num_unsure <= math.floor(share * len(values)) + 1e-9


def test_the_kind_of_a_gap_is_what_speaks_against_most_of_it() -> None:
    mixed = [
        judged(PUMP[0], down=1, corrected=True, sources=("e",)),
        judged(PUMP[1], down=1, corrected=True, sources=("e",)),
        judged(PUMP[2], down=1),
        judged(PUMP[3], answer="I do not know.", log_prob=-4.0, num_output_tokens=2),
    ]
    (gap,) = detector().detect(mixed)
    assert (gap.kind, gap.score, gap.mean_confidence) == ("contradicted", 3.5, -2.0)


def test_only_the_newest_are_grouped_where_there_are_too_many() -> None:
    config = FeedbackConfig(gap_cosine=0.45, max_clustered=10)
    old = [judged(f"{question} {n}", down=1, at=NOW - 1) for n in range(5) for question in HARBOUR]
    new = [judged(f"{question} {n}", down=1) for n in range(3) for question in PUMP]
    (gap,) = GapDetector(config, embed=WordEmbedder().embed).detect([*old, *new])
    assert gap.size == 10
    assert all("Torvik" in question for question in gap.questions.values())
