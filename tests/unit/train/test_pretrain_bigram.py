"""The bigram baseline: closed forms on tiny vocabularies, and what holds for any stream."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from train.data.batch import TokenBatch, TokenRows, build_batch
from train.pretrain.bigram import BigramModel, Discounts, LowerKind, PairCounter, count_pairs

END = 0
A, B, C, D = 1, 2, 3, 4
NO_END = 1 << 15

rows_of_tokens = st.lists(st.lists(st.integers(0, 4), min_size=9, max_size=9), min_size=1, max_size=12)


def _batch(rows: list[list[int]], *, end_id: int = END) -> TokenBatch:
    array = np.array(rows, np.uint16)
    return build_batch(TokenRows.of(array, np.full(len(rows), array.shape[1])), end_of_document_id=end_id)


def _model(batch: TokenBatch, *, discounts: Discounts, lower: LowerKind, vocab_size: int = 5) -> BigramModel:
    return BigramModel(count_pairs([batch], vocab_size=vocab_size), discounts=discounts, lower=lower)


def _probability(model: BigramModel, previous: int, label: int) -> float:
    return float(model.probabilities(np.array([previous]), np.array([label]))[0])


def test_pairs_are_those_with_a_label_so_none_crosses_a_document() -> None:
    pairs = count_pairs([_batch([[A, B, END, A, B, END, END, C, D]])], vocab_size=5)
    found = dict(
        zip(zip(pairs.previous.tolist(), pairs.label.tolist(), strict=True), pairs.count.tolist(), strict=True)
    )
    assert found == {(A, B): 2, (B, END): 2, (C, D): 1}
    assert pairs.num_pairs == 5


def test_probabilities_are_the_formula_worked_by_hand() -> None:
    batch = _batch([[A, B, A, B, A, C, A, B, B, C, D]], end_id=NO_END)
    model = _model(batch, discounts=(0.5, 0.8, 1.1), lower="continuation")
    # After A: B 3 and C 1 of 4. Different tokens before A, B, C, D: 2, 2, 2, 1; END has the weight of one.
    backoff = (1.1 + 0.5) / 4
    assert _probability(model, A, B) == pytest.approx((3 - 1.1) / 4 + backoff * 2 / 8)
    assert _probability(model, A, C) == pytest.approx((1 - 0.5) / 4 + backoff * 2 / 8)
    assert _probability(model, A, D) == pytest.approx(backoff * 1 / 8)
    assert _probability(model, A, END) == pytest.approx(backoff * 1 / 8)
    # After B: A 2, B 1, C 1.
    assert _probability(model, B, A) == pytest.approx((2 - 0.8) / 4 + (0.8 + 0.5 + 0.5) / 4 * 2 / 8)
    # Nothing follows D, so all is left to the lower distribution.
    assert _probability(model, D, B) == pytest.approx(2 / 8)
    unigram = _model(batch, discounts=(0.5, 0.8, 1.1), lower="unigram")
    assert _probability(unigram, A, A) == pytest.approx(backoff * 3 / 11)


def test_the_losses_are_means_over_labels() -> None:
    train = _batch([[A, B, A, B, A, C, A, B, A]], end_id=NO_END)  # labels: A 4, B 3, C 1
    held_out = _batch([[A, B, A, C, D]], end_id=NO_END)
    model = _model(train, discounts=(0.5, 0.5, 0.5), lower="unigram", vocab_size=5)
    by_hand = [_probability(model, *pair) for pair in ((A, B), (B, A), (A, C), (C, D))]
    assert model.loss([held_out]) == pytest.approx(-sum(map(math.log, by_hand)) / 4)
    # END and D share the weight of one
    shares = [3 / 9, 4 / 9, 1 / 9, 0.5 / 9]
    assert model.unigram_loss([held_out]) == pytest.approx(-sum(map(math.log, shares)) / 4)


def test_a_model_without_discounts_has_the_conditional_entropy_as_loss_of_its_own_data() -> None:
    batch = _batch([[A, B, A, B, A, B, A, C, A]], end_id=NO_END)
    model = _model(batch, discounts=(0, 0, 0), lower="unigram")
    entropy = (
        -(3 / 4 * math.log(3 / 4) + 1 / 4 * math.log(1 / 4)) / 2
    )  # half of the labels follow A, the others are certain
    assert model.loss([batch]) == pytest.approx(entropy)
    assert model.loss([_batch([[C, D, C]], end_id=NO_END)]) == math.inf


@given(rows_of_tokens, st.tuples(st.floats(0, 1), st.floats(0, 2), st.floats(0, 3)), st.booleans())
@settings(deadline=None)
def test_probabilities_after_any_token_add_up_to_one(
    rows: list[list[int]], discounts: Discounts, is_continuation: bool
) -> None:
    model = _model(
        _batch(rows), discounts=discounts, lower="continuation" if is_continuation else "unigram", vocab_size=6
    )
    every = np.arange(6)
    for previous in range(6):
        found = model.probabilities(np.full(6, previous), every)
        assert found.min() >= 0
        assert found.sum() == pytest.approx(1)


@given(rows_of_tokens, st.integers(1, 40), st.sampled_from([5, 8192, 128_000]))
@settings(deadline=None)
def test_counts_are_those_of_a_counter_however_often_they_are_merged(
    rows: list[list[int]], pending_pairs: int, vocab_size: int
) -> None:
    top = vocab_size - 5
    counter = PairCounter(vocab_size=vocab_size, pending_pairs=pending_pairs)
    expected: Counter[tuple[int, int]] = Counter()
    for row in rows:
        batch = _batch([row])
        shifted = TokenBatch(
            batch.input_ids + top,
            np.where(batch.labels < 0, batch.labels, batch.labels + top),
            batch.document_ids,
            batch.position_ids,
            batch.num_loss_tokens,
        )
        counter.add(shifted)
        pairs = zip(batch.input_ids[0].tolist(), batch.labels[0].tolist(), strict=True)
        expected.update((previous + top, label + top) for previous, label in pairs if label >= 0)
    counts = counter.counts()
    found = zip(counts.previous.tolist(), counts.label.tolist(), counts.count.tolist(), strict=True)
    assert [(pair, times) for *pair, times in found] == [
        (list(pair), times) for pair, times in sorted(expected.items())
    ]


def _chain(num_batches: int, *, seed: int) -> tuple[list[TokenBatch], float]:
    """Batches of a Markov chain, and its entropy per token."""
    random = np.random.default_rng(seed)
    transitions = np.random.default_rng(1).dirichlet(np.full(20, 0.3), 20)
    state, tokens = 0, []
    for _ in range(num_batches * 4 * 65):
        state = random.choice(20, p=transitions[state])
        tokens.append(state)
    rows = np.array(tokens).reshape(num_batches, 4, 65)
    stationary = np.linalg.matrix_power(transitions, 200)[0]
    entropy = -(stationary @ (transitions * np.log(np.maximum(transitions, 1e-300))).sum(1))
    return [_batch(batch.tolist(), end_id=NO_END) for batch in rows], float(entropy)


def test_on_a_markov_chain_the_held_out_loss_comes_to_its_entropy_and_the_unigrams_does_not() -> None:
    train, entropy = _chain(200, seed=2)
    held_out, _ = _chain(60, seed=3)
    model = BigramModel.fit(train, vocab_size=20)
    assert entropy - 0.02 < model.loss(held_out) < entropy + 0.02
    assert model.unigram_loss(held_out) > entropy + 0.3


def test_fitted_discounts_are_the_best_for_the_batches_that_were_left_out() -> None:
    train, _ = _chain(20, seed=4)
    left_out, counted = train[::10], [batch for number, batch in enumerate(train) if number % 10]
    counts = count_pairs(counted, vocab_size=20)
    fitted = BigramModel.fit(train, vocab_size=20)

    def loss(discounts: Discounts, lower: LowerKind) -> float:
        return BigramModel(counts, discounts=discounts, lower=lower).loss(left_out)

    best = loss(fitted.discounts, fitted.lower)
    grid = [(x, y, z) for x in (0.1, 0.5, 0.9) for y in (0.2, 0.6, 1.0, 1.5) for z in (0.3, 1.0, 2.0)]
    others = [loss(discounts, lower) for discounts in grid for lower in ("continuation", "unigram")]
    assert best < min(others)
    assert max(others) - best > 0.005


def test_fit_counts_the_batches_that_it_chose_on_too() -> None:
    train, _ = _chain(20, seed=5)
    fitted = BigramModel.fit(train, vocab_size=20)
    whole = BigramModel(count_pairs(train, vocab_size=20), discounts=fitted.discounts, lower=fitted.lower)
    assert fitted.loss(train) == whole.loss(train)


def test_a_token_that_is_frequent_after_one_token_alone_is_left_to_continuation_counts() -> None:
    random = np.random.default_rng(6)
    batches = []
    for _ in range(40):
        row: list[int] = []
        while (
            len(row) < 120
        ):  # 1 is always followed by 2, which is nowhere else; 50 other tokens are rare and follow any
            row += [1, 2] if random.random() < 0.5 else [int(random.integers(3, 53))]
        batches.append(_batch([row[:120]], end_id=NO_END))
    assert BigramModel.fit(batches, vocab_size=53).lower == "continuation"


def test_errors_name_the_value_and_the_fix() -> None:
    one = _batch([[A, B, C, D]], end_id=NO_END)
    empty = _batch([[END, END, END]])
    with pytest.raises(ValueError, match="token 4, and vocab_size is 3"):
        count_pairs([one], vocab_size=3)
    with pytest.raises(ValueError, match="vocab_size = 0"):
        PairCounter(vocab_size=0)
    with pytest.raises(ValueError, match="batches has 1 with labels"):
        BigramModel.fit([one, empty], vocab_size=5)
    with pytest.raises(ValueError, match="counts of 2 must lie between 0 and 2"):
        BigramModel(count_pairs([one], vocab_size=5), discounts=(0.5, 2.5, 1.0), lower="unigram")
    with pytest.raises(ValueError, match="no labels"):
        BigramModel.fit([one, one], vocab_size=5).loss([empty])
