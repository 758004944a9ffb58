"""The order of training: permutations that are computed, shares that are exact, a stream whose state is small."""

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from train.data.mixture import Mixture, SequenceStream, draws_of, sources_of
from train.data.permutation import Permutation

SEEDS = st.integers(0, 2**63 - 1)
WEIGHTS = st.lists(st.floats(0.05, 20), min_size=1, max_size=6)


@pytest.mark.slow
@given(st.integers(1, 3000), SEEDS, st.integers(1, 200))
@settings(deadline=None, max_examples=150)
def test_every_place_has_its_own_number(size: int, seed: int, run: int) -> None:
    found = Permutation(size, seed, run=run)(np.arange(size))
    assert np.array_equal(np.sort(found), np.arange(size))


@given(st.integers(1, 2000), SEEDS, st.integers(2, 50))
@settings(deadline=None, max_examples=60)
def test_runs_of_neighbours_stay_together(size: int, seed: int, run: int) -> None:
    found = Permutation(size, seed, run=run)(np.arange(size))
    num_pieces = 1 + np.count_nonzero(np.diff(found) != 1)
    assert num_pieces <= -(-size // run)
    starts = found[np.flatnonzero(np.diff(found, prepend=-2) != 1)]
    assert np.all(starts % run == 0)


def test_a_permutation_needs_no_memory_for_a_data_set_of_any_size() -> None:
    size = 10**15
    places = np.arange(5000)
    found = Permutation(size, seed=3)(places)
    assert len(set(found.tolist())) == 5000
    assert stats.kstest(found / size, "uniform").pvalue > 1e-3


@pytest.mark.parametrize("size", [2, 3, 5, 8])
def test_over_seeds_each_order_is_as_likely_as_another(size: int) -> None:
    counts = np.zeros((size, size))
    for seed in range(3000):
        counts[np.arange(size), Permutation(size, seed)(np.arange(size))] += 1
    assert stats.chisquare(counts.ravel()).pvalue > 1e-3
    if size == 3:
        orders = Counter(tuple(Permutation(3, seed)(np.arange(3)).tolist()) for seed in range(3000))
        assert len(orders) == 6
        assert stats.chisquare(list(orders.values())).pvalue > 1e-3


@pytest.mark.parametrize("size", [50_000, 65_536])
def test_order_and_content_are_not_correlated(size: int) -> None:
    places = np.arange(size)
    for seed in range(3):
        found = Permutation(size, seed)(places)
        assert abs(stats.spearmanr(places, found).statistic) < 0.02
        assert abs(stats.spearmanr(found[:-1], found[1:]).statistic) < 0.02


def test_places_outside_and_sizes_of_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match=r"outside of 0 \.\. 9"):
        Permutation(10, 1)(np.array([10]))
    with pytest.raises(ValueError, match="size = 0"):
        Permutation(0, 1)


@given(WEIGHTS, SEEDS, st.integers(0, 10**6))
@settings(deadline=None, max_examples=60)
def test_after_any_number_of_blocks_each_source_was_taken_its_share_within_one(
    weights: list[float], seed: int, block: int
) -> None:
    mixture = Mixture(weights)
    assert sum(mixture.parts) == 1 << 30
    before = mixture.draws_before(block).tolist()
    num_places = block * mixture.block_size
    assert all(
        abs((taken << 30) - part * num_places) < 1 << 30 for taken, part in zip(before, mixture.parts, strict=True)
    )
    references = mixture.block(block, seed=seed)
    for source, first in enumerate(before):
        draws = draws_of(references[sources_of(references) == source])
        assert draws.tolist() == list(range(first, first + len(draws)))
    assert mixture.draws_before(block + 1).tolist() == [
        first + np.count_nonzero(sources_of(references) == source) for source, first in enumerate(before)
    ]


@given(WEIGHTS, st.floats(1e-6, 1e6))
def test_weights_have_no_unit(weights: list[float], unit: float) -> None:
    scaled = Mixture([weight * unit for weight in weights])
    assert np.allclose(scaled.parts, Mixture(weights).parts, atol=2)


def test_a_source_of_a_millionth_comes_once_in_a_million_places() -> None:
    mixture = Mixture([1, 1.1e-6])
    counts = np.bincount(sources_of(mixture.block(7, seed=1)))
    assert mixture.block_size == 1 << 20
    assert counts.tolist() == [mixture.block_size - 1, 1] or counts.tolist() == [mixture.block_size - 2, 2]


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_a_weight_that_is_no_share_is_refused_by_name(weight: float) -> None:
    with pytest.raises(ValueError, match=r"sources\[1\]\.weight = .*: give a number above 0, or leave the source out"):
        Mixture([1, weight])


def test_a_share_too_small_to_be_met_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"sources\[0\]\.weight = 1e-07 is below a millionth of all weights"):
        Mixture([1e-7, 1])


@given(WEIGHTS, SEEDS, st.integers(1, 700), st.integers(0, 2000))
@settings(deadline=None, max_examples=60)
def test_what_left_and_what_is_in_the_reservoir_is_what_entered(
    weights: list[float], seed: int, reservoir_size: int, count: int
) -> None:
    mixture = Mixture(weights)
    stream = SequenceStream(mixture, seed=seed, reservoir_size=reservoir_size)
    left = stream.take(count)
    rest = stream.copy()
    num_blocks = -(-(count + reservoir_size) // mixture.block_size)
    entered = np.concatenate([mixture.block(block, seed=seed) for block in range(num_blocks)])[: count + reservoir_size]
    held = Counter(entered.tolist()) - Counter(left.tolist())
    assert held.total() == reservoir_size
    assert stream.num_taken().tolist() == np.bincount(sources_of(left), minlength=len(weights)).tolist()
    assert np.array_equal(stream.take(50), rest.take(50))


@given(SEEDS, st.lists(st.integers(0, 500), max_size=5), st.integers(1, 300))
@settings(deadline=None, max_examples=60)
def test_a_stream_goes_on_from_its_state_as_if_never_stopped(seed: int, steps: list[int], reservoir_size: int) -> None:
    mixture = Mixture([3, 1])
    whole = SequenceStream(mixture, seed=seed, reservoir_size=reservoir_size)
    stopped = SequenceStream(mixture, seed=seed, reservoir_size=reservoir_size)
    for step in [*steps, 100]:
        state = json.loads(json.dumps(stopped.state_dict()))
        stopped = SequenceStream.restore(mixture, seed=seed, reservoir_size=reservoir_size, state=state)
        assert np.array_equal(stopped.take(step), whole.take(step))


def test_a_reservoir_moves_neighbours_of_the_stream_apart() -> None:
    stream = SequenceStream(Mixture([1]), seed=1, reservoir_size=1000)
    draws = draws_of(stream.take(20_000))
    assert np.median(np.abs(np.diff(draws))) > 500
    assert not np.array_equal(draws, np.sort(draws))
    assert draws_of(SequenceStream(Mixture([1]), seed=1, reservoir_size=1).take(100)).tolist() == list(range(100))


@pytest.mark.parametrize(
    "damage", [{"position": -1}, {"position": "7"}, {"reservoir": None}, {"reservoir": "AAAA"}, {"reservoir": "?"}]
)
def test_a_damaged_state_is_refused(damage: dict[str, object]) -> None:
    mixture = Mixture([1])
    state = SequenceStream(mixture, seed=1, reservoir_size=10).state_dict() | damage
    with pytest.raises(ValueError, match="take another state"):
        SequenceStream.restore(mixture, seed=1, reservoir_size=10, state=state)
    other = SequenceStream(mixture, seed=1, reservoir_size=11).state_dict()
    with pytest.raises(ValueError, match="not of 10 references"):
        SequenceStream.restore(mixture, seed=1, reservoir_size=10, state=other)
