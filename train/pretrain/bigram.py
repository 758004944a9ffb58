"""BigramModel: what a model must beat that knows the previous token alone; the baseline of a pre-training run.

In: a stream of TokenBatch; only positions with a label count, so no pair crosses a document's border and the loss is over the
same tokens as the model's. Out: losses in nats per token. Counts are sparse: sorted pairs, never vocabulary times vocabulary.

With c(v, w) the times that w follows v, and C(v) their sum over w,
    p(w | v) = max(c(v, w) - D[c(v, w)], 0) / C(v) + g(v) * lower(w),    g(v) = sum over w of D[c(v, w)] / C(v)
where D has a value each for counts of 1, of 2, and of 3 and more. `lower` is Kneser-Ney's share of the different tokens before
w ("continuation"), or w's share of all tokens ("unigram"); the better one is taken, with the discounts that are best for it,
on a part of the data that is not counted for this choice.
Sources: Ney, Essen and Kneser 1994; modified Kneser-Ney: Chen and Goodman 1999, section 3.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize

from train.data.batch import IGNORE, TokenBatch

TUNING_EVERY = 10
"""One batch of so many is left out of the counts while the discounts are chosen, and counted afterwards."""
PENDING_PAIRS = 1 << 22
"""Pairs that are collected before they are sorted."""

LowerKind = Literal["continuation", "unigram"]
KINDS: tuple[LowerKind, ...] = ("continuation", "unigram")
Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Discounts = tuple[float, float, float]
"""Of counts of 1, of 2, and of 3 and more."""


@dataclass(frozen=True, slots=True)
class PairCounts:
    """How often which token follows which. `previous` and `label` in order, each pair once."""

    previous: Integers
    label: Integers
    count: Integers
    vocab_size: int

    @property
    def num_pairs(self) -> int:
        """With repetitions: the tokens that have a loss."""
        return int(self.count.sum())

    def labels(self) -> Integers:
        """Times of each token of the vocabulary as a label."""
        return np.bincount(self.label, self.count, self.vocab_size).astype(np.int64)

    def keys(self) -> Integers:
        """One number for each pair, ascending."""
        return self.previous * self.vocab_size + self.label


class PairCounter:
    """Collects the pairs of batches; memory grows with the number of different pairs."""

    def __init__(self, *, vocab_size: int, pending_pairs: int = PENDING_PAIRS) -> None:
        if vocab_size < 1:
            raise ValueError(f"vocab_size = {vocab_size}: give the number of tokens of the tokenizer")
        self._vocab_size, self._pending_pairs = vocab_size, pending_pairs
        self._keys, self._counts = np.empty(0, np.int64), np.empty(0, np.int64)
        self._pending: list[Integers] = []
        self._num_pending = 0

    def add(self, batch: TokenBatch) -> None:
        """Count a batch. Raises ValueError for a token that the vocabulary does not have."""
        has_label = batch.labels != IGNORE
        previous, label = batch.input_ids[has_label], batch.labels[has_label]
        if not label.size:
            return
        least, most = min(previous.min(), label.min()), max(previous.max(), label.max())
        if least < 0 or most >= self._vocab_size:
            raise ValueError(
                f"a batch has token {least if least < 0 else most}, and vocab_size is {self._vocab_size}: give the vocabulary "
                "of the tokenizer that made the shards"
            )
        self._pending.append(previous * self._vocab_size + label)
        self._num_pending += label.size
        # Sorting again what is sorted costs more the more it is, so that has to be worth it.
        if self._num_pending >= max(self._pending_pairs, self._keys.size):
            self._merge()

    def counts(self) -> PairCounts:
        """Of all batches so far."""
        self._merge()
        return PairCounts(self._keys // self._vocab_size, self._keys % self._vocab_size, self._counts, self._vocab_size)

    def _merge(self) -> None:
        if not self._pending:
            return
        keys, counts = np.unique(np.concatenate(self._pending), return_counts=True)
        self._keys, self._counts = _merge_counts((self._keys, keys), (self._counts, counts.astype(np.int64)))
        self._pending, self._num_pending = [], 0


def _merge_counts(keys: tuple[Integers, Integers], counts: tuple[Integers, Integers]) -> tuple[Integers, Integers]:
    all_keys, all_counts = np.concatenate(keys), np.concatenate(counts)
    order = np.argsort(all_keys, kind="stable")  # two sorted runs: timsort merges them
    all_keys, all_counts = all_keys[order], all_counts[order]
    if not all_keys.size:
        return all_keys, all_counts
    starts = np.flatnonzero(np.concatenate(([True], all_keys[1:] != all_keys[:-1])))
    return all_keys[starts], np.add.reduceat(all_counts, starts)


def count_pairs(batches: Iterable[TokenBatch], *, vocab_size: int) -> PairCounts:
    """The pairs of a stream that ends."""
    counter = PairCounter(vocab_size=vocab_size)
    for batch in batches:
        counter.add(batch)
    return counter.counts()


def _shares(weights: Integers) -> Floats:
    """Shares of all tokens. Those without any share the weight of one, so that none is impossible."""
    is_unseen = weights == 0
    num_unseen = int(is_unseen.sum())
    filled: Floats = np.where(is_unseen, 1 / max(num_unseen, 1), weights)
    shares: Floats = filled / (weights.sum() + (num_unseen > 0))
    return shares


class BigramModel:
    """A smoothed bigram model. `fit` chooses its discounts; the constructor takes them."""

    def __init__(self, counts: PairCounts, *, discounts: Discounts, lower: LowerKind) -> None:
        """Raises ValueError for discounts that would take more than a count has."""
        for times, discount in enumerate(discounts, start=1):
            if not 0 <= discount <= times:
                raise ValueError(f"discounts = {discounts}: that of counts of {times} must lie between 0 and {times}")
        self.discounts, self.lower = discounts, lower
        self.vocab_size = counts.vocab_size
        self._keys, self._counts = counts.keys(), counts.count
        self._unigram = _shares(counts.labels())
        self._lower = self._unigram
        if lower == "continuation":
            self._lower = _shares(np.bincount(counts.label, minlength=counts.vocab_size))
        self._totals = np.bincount(counts.previous, counts.count, counts.vocab_size)
        taken = np.concatenate(([0.0], discounts))[np.minimum(counts.count, 3)]
        self._discounted = np.bincount(counts.previous, taken, counts.vocab_size)

    @classmethod
    def fit(cls, batches: Iterable[TokenBatch], *, vocab_size: int) -> Self:
        """Count a stream that ends, and choose the discounts and the lower distribution on every tenth batch of it.

        Raises ValueError if fewer than two batches have labels: nothing is left to choose on.
        """
        counted, tuning = PairCounter(vocab_size=vocab_size), PairCounter(vocab_size=vocab_size)
        num_batches = 0
        for batch in batches:
            if batch.num_loss_tokens:
                (counted if num_batches % TUNING_EVERY else tuning).add(batch)
                num_batches += 1
        if num_batches < 2:
            raise ValueError(
                f"batches has {num_batches} with labels, and the discounts are chosen on one that is not counted: give two "
                "or more"
            )
        part, left_out = counted.counts(), tuning.counts()
        fits = [(*_best_discounts(part, left_out, lower=lower), lower) for lower in KINDS]
        _, discounts, lower = min(fits)
        keys, count = _merge_counts((part.keys(), left_out.keys()), (part.count, left_out.count))
        whole = PairCounts(keys // vocab_size, keys % vocab_size, count, vocab_size)
        return cls(whole, discounts=discounts, lower=lower)

    def probabilities(self, previous: Integers, labels: Integers) -> Floats:
        """Of each label after the token before it. Both arrays have one dimension."""
        keys = previous * self.vocab_size + labels
        place = np.searchsorted(self._keys, keys)
        place[place == self._keys.size] = 0
        times = np.where(self._keys[place] == keys, self._counts[place], 0) if self._keys.size else np.zeros_like(keys)
        taken = np.concatenate(([0.0], self.discounts))[np.minimum(times, 3)]
        total = self._totals[previous]
        is_known = total > 0
        total = np.where(is_known, total, 1)
        backoff = np.where(is_known, self._discounted[previous] / total, 1)
        found: Floats = (times - taken) / total + backoff * self._lower[labels]
        return found

    def loss(self, batches: Iterable[TokenBatch]) -> float:
        """Nats per token of a stream that ends. Raises ValueError if it has no labels."""
        pairs = count_pairs(batches, vocab_size=self.vocab_size)
        return _mean_loss(self.probabilities(pairs.previous, pairs.label), pairs)

    def unigram_loss(self, batches: Iterable[TokenBatch]) -> float:
        """That of the shares of tokens alone, whatever stands before; as `loss`."""
        pairs = count_pairs(batches, vocab_size=self.vocab_size)
        return _mean_loss(self._unigram[pairs.label], pairs)


def _mean_loss(probabilities: Floats, pairs: PairCounts) -> float:
    if not pairs.num_pairs:
        raise ValueError(
            "batches has no labels, so there is no loss: give batches of documents with two tokens or more"
        )
    with np.errstate(divide="ignore"):
        return float(-np.log(probabilities) @ pairs.count / pairs.num_pairs)


def _best_discounts(counts: PairCounts, tuning: PairCounts, *, lower: LowerKind) -> tuple[float, Discounts]:
    """The least loss of `tuning`, and the discounts that give it."""

    def loss_of(values: Floats) -> float:
        first, second, third = (float(value) for value in values)
        model = BigramModel(counts, discounts=(first, second, third), lower=lower)
        return _mean_loss(model.probabilities(tuning.previous, tuning.label), tuning)

    # Away from 0, where a pair that was never seen is impossible.
    best = minimize(loss_of, (0.6, 1.0, 1.3), bounds=[(0.01, 1), (0.01, 2), (0.01, 3)], method="L-BFGS-B")
    first, second, third = (float(value) for value in best.x)
    return float(best.fun), (first, second, third)
