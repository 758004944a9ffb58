import itertools

from hypothesis import given
from hypothesis import strategies as st

from memory.retrieval import MAX_QUERY_TERMS, fuse, query_terms

scores = st.dictionaries(st.integers(1, 20), st.floats(0, 1), max_size=10)


def test_stop_words_are_left_out_unless_the_question_has_no_other() -> None:
    assert query_terms("What is the access code of the Kestrel vault?") == ["access", "code", "kestrel", "vault"]
    assert query_terms("to be or not to be") == ["to", "be", "or", "not"]


def test_a_very_long_question_is_cut() -> None:
    assert len(query_terms(" ".join(f"word{i}" for i in range(1000)))) == MAX_QUERY_TERMS


@given(scores, scores)
def test_fusion_ranks_every_candidate_once_and_never_rewards_a_worse_passage(
    cosines: dict[int, float], bm25: dict[int, float]
) -> None:
    ranked = fuse(cosines, bm25=bm25, bound=1.0)
    position = {key: rank for rank, (key, _) in enumerate(ranked)}

    assert set(position) == cosines.keys() | bm25.keys()
    assert len(position) == len(ranked)
    for one, other in itertools.permutations(position, 2):
        is_better_by_both = cosines.get(one, 0) > cosines.get(other, 0) and bm25.get(one, 0) > bm25.get(other, 0)
        assert not is_better_by_both or position[one] < position[other]


@given(st.floats(0.4, 1), st.floats(0.1, 1), st.floats(0, 0.25))
def test_the_passage_that_alone_holds_all_words_is_first_even_if_another_is_twice_as_near(
    part: float, best_cosine: float, share: float
) -> None:
    bm25 = {1: 8.0, 2: 8.0 * share}
    assert fuse({1: part * best_cosine, 2: best_cosine}, bm25=bm25, bound=8.0)[0][0] == 1


def test_a_passage_that_shares_one_common_word_does_not_beat_the_nearest() -> None:
    assert [key for key, _ in fuse({1: 0.2, 2: 0.8}, bm25={1: 1.5}, bound=20.0)] == [2, 1]


def test_ties_go_to_the_higher_cosine_then_to_the_newer() -> None:
    assert [key for key, _ in fuse({1: -0.5, 2: -0.1, 3: -0.1}, bm25={}, bound=0.0)] == [3, 2, 1]


def test_salience_decides_between_near_equals_and_never_against_the_rare_words() -> None:
    assert fuse({1: 0.8, 2: 0.79}, bm25={1: 5.0, 2: 5.0}, bound=9.0, salience={1: 1.0, 2: 2.0})[0][0] == 2
    assert fuse({1: 0.5, 2: 0.9}, bm25={1: 9.0}, bound=9.0, salience={1: 1.0, 2: 1e9})[0][0] == 1
