"""ExperienceReplay: a uniform, mergeable, resumable sample of a stream."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from train.continual.replay import ExperienceReplay, replay_key
from train.replay_share import num_replay


def build(ids: list[str], *, capacity: int, seed: int = 0) -> ExperienceReplay[str]:
    replay: ExperienceReplay[str] = ExperienceReplay(capacity, seed=seed)
    replay.add({item_id: item_id.upper() for item_id in ids})
    return replay


@pytest.mark.parametrize(("num_new", "ratio", "expected"), [(32, 0.2, 8), (8, 0.2, 2), (10, 0.5, 10), (7, 0.0, 0)])
def test_the_replay_share_is_of_the_mixed_batch(num_new: int, ratio: float, expected: int) -> None:
    assert num_replay(num_new, ratio) == expected
    if expected:
        assert expected / (num_new + expected) == ratio


def test_a_share_of_one_is_refused_because_no_number_of_old_items_reaches_it() -> None:
    with pytest.raises(ValueError, match=r"ratio is 1\.0"):
        num_replay(4, 1.0)


def test_every_position_of_a_stream_is_kept_equally_often() -> None:
    """Chi-square over 2,000 streams of 40 items into 10 places: with 39 degrees of freedom, p > 1e-3 is below 72.05."""
    num_streams, length, capacity = 2000, 40, 10
    kept = np.zeros(length)
    for seed in range(num_streams):
        replay = build([f"item {position}" for position in range(length)], capacity=capacity, seed=seed)
        for item_id in replay.items():
            kept[int(item_id.split()[1])] += 1
    expected = num_streams * capacity / length
    # without replacement the counts' variance is expected * (1 - capacity / length), not expected
    statistic = ((kept - expected) ** 2 / expected).sum() / (1 - capacity / length) * (length - 1) / length
    assert kept.sum() == num_streams * capacity
    assert statistic < 72.05


@settings(max_examples=60, deadline=None)
@given(ids=st.lists(st.text(max_size=8), unique=True, max_size=60), cut=st.integers(0, 60), capacity=st.integers(1, 20))
def test_two_shards_merge_into_exactly_what_one_stream_would_have_kept(ids: list[str], cut: int, capacity: int) -> None:
    merged = build(ids[:cut], capacity=capacity).merge(build(ids[cut:], capacity=capacity))
    assert merged.state() == build(ids, capacity=capacity).state()
    assert merged.state() == build(ids[::-1], capacity=capacity).state()


def test_merging_reservoirs_of_different_seeds_is_refused() -> None:
    with pytest.raises(ValueError, match="seed 0 and 1"):
        build(["a"], capacity=2).merge(build(["b"], capacity=2, seed=1))


@settings(max_examples=40, deadline=None)
@given(ids=st.lists(st.text(max_size=8), unique=True, max_size=40), cut=st.integers(0, 40))
def test_a_resumed_reservoir_goes_on_like_an_uninterrupted_one(ids: list[str], cut: int) -> None:
    saved = json.loads(json.dumps(build(ids[:cut], capacity=7).state()))
    resumed: ExperienceReplay[str] = ExperienceReplay.from_state(saved)
    resumed.add({item_id: item_id.upper() for item_id in ids[cut:]})
    assert resumed.state() == build(ids, capacity=7).state()


def test_a_state_of_another_version_is_refused_with_what_to_do() -> None:
    state = build(["a"], capacity=2).state() | {"version": 99}
    with pytest.raises(ValueError, match="version 99, this program reads 1: start the program that wrote it"):
        ExperienceReplay.from_state(state)


def test_an_item_offered_twice_is_kept_once() -> None:
    replay = build(["a", "b"], capacity=5)
    replay.add({"a": "other"})
    assert sorted(replay.items().values()) == ["A", "B"]


def test_a_sample_has_no_item_twice_and_is_the_same_for_the_same_generator() -> None:
    replay = build([f"{number}" for number in range(50)], capacity=30)
    first = replay.sample(30, np.random.default_rng(3))
    assert len(set(first)) == 30
    assert first == replay.sample(30, np.random.default_rng(3))
    with pytest.raises(ValueError, match="n is 31, the reservoir holds 30"):
        replay.sample(31, np.random.default_rng(3))


def test_forgotten_items_are_gone_and_do_not_make_room_for_smaller_keys() -> None:
    ids = [f"{number}" for number in range(20)]
    replay = build(ids, capacity=5)
    kept = list(replay.items())
    assert replay.forget({kept[0], kept[1], "never seen"}) == 2
    evicted = [item_id for item_id in ids if item_id not in kept]
    replay.add({item_id: item_id for item_id in evicted})
    assert list(replay.items()) == kept[2:]


def test_keys_are_uniform_and_do_not_depend_on_the_process() -> None:
    keys = np.array([replay_key(f"item {number}", seed=1) for number in range(4000)])
    assert replay_key("item 0", seed=0) == 0.06605119032869178
    assert ((keys >= 0) & (keys < 1)).all()
    counts = np.histogram(keys, bins=20, range=(0, 1))[0]
    assert ((counts - 200) ** 2 / 200).sum() < 43.8  # chi-square, 19 degrees of freedom, p > 1e-3
