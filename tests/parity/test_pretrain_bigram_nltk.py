"""The bigram baseline against nltk's models, where the definitions agree: one discount for all counts, no unseen token."""

import itertools

import numpy as np
import pytest
from nltk.lm import AbsoluteDiscountingInterpolated, KneserNeyInterpolated
from nltk.lm.api import LanguageModel

from train.data.batch import TokenRows, build_batch
from train.pretrain.bigram import BigramModel, LowerKind, count_pairs

VOCABULARY, DISCOUNT = 12, 0.6


def _peer(lower: LowerKind) -> LanguageModel:
    if lower == "continuation":
        return KneserNeyInterpolated(order=2, discount=DISCOUNT)
    return AbsoluteDiscountingInterpolated(order=2, discount=DISCOUNT)


@pytest.mark.parametrize("lower", ["continuation", "unigram"])
def test_every_probability_is_that_of_nltk(lower: LowerKind) -> None:
    random = np.random.default_rng(0)
    # Each token is a label, and a share of the pairs never occurs.
    row = np.concatenate([np.arange(VOCABULARY), random.geometric(0.3, 100).clip(max=VOCABULARY) - 1])
    batch = build_batch(TokenRows.of(row[None].astype(np.uint16), np.array([len(row)])), end_of_document_id=1 << 15)
    names = [str(token) for token in row.tolist()]
    pairs = list(itertools.pairwise(names))
    peer = _peer(lower)
    # Its unigrams are the labels; the row's first token is none.
    peer.fit([[*pairs, *((name,) for name in names[1:])]], vocabulary_text=names)
    ours = BigramModel(
        count_pairs([batch], vocab_size=VOCABULARY), discounts=(DISCOUNT, DISCOUNT, DISCOUNT), lower=lower
    )
    previous, label = (grid.ravel() for grid in np.meshgrid(np.arange(VOCABULARY), np.arange(VOCABULARY)))
    theirs = [peer.score(str(b), [str(a)]) for a, b in zip(previous.tolist(), label.tolist(), strict=True)]
    assert len(set(pairs)) < VOCABULARY**2 / 2
    np.testing.assert_allclose(ours.probabilities(previous, label), theirs, rtol=1e-12)
