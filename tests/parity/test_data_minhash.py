"""MinHash beside datasketch, and the banded search beside brute force, on documents that every installation has."""

import random
import sysconfig
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from datasketch import MinHash
from scipy import sparse

from tests import source_items
from tests.document_tables import documents
from train.data.dedup import DedupConfig, Deduplicator
from train.data.dedup_edges import merge_edges
from train.data.minhash import MinHashConfig, hash_bands, permutations, shingles_of, sign

CONFIG = MinHashConfig()


def column(texts: list[str]) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(texts, pa.large_string())])


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Pieces of the standard library and of READMEs, and a copy of each with 0.2 to 10 % of the words replaced."""
    sources = [
        path.read_text("utf-8", "replace") for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    ]
    sources += source_items.readmes().values()
    pieces = [text[start : start + 3000] for text in sources for start in range(0, min(len(text), 60_000) - 2500, 3000)]
    generator = random.Random(0)
    generator.shuffle(pieces)
    pieces = pieces[:2000]
    copies = []
    for piece in pieces:
        words = piece.split(" ")
        for place in generator.sample(
            range(len(words)), max(1, int(len(words) * generator.choice((0.002, 0.01, 0.02, 0.03, 0.05, 0.1))))
        ):
            words[place] = f"other{generator.randrange(10_000)}"
        copies.append(" ".join(words))
    return pieces + copies


def undo_fmix32(value: np.ndarray) -> np.ndarray:
    """The inverse of MurmurHash3's finaliser, which datasketch applies before its permutations."""
    value = value ^ (value >> np.uint32(16))
    value = (value * np.uint32(0x7ED1B41D)).astype(np.uint32)
    value = value ^ (value >> np.uint32(13)) ^ (value >> np.uint32(26))
    value = (value * np.uint32(0xA5CB9243)).astype(np.uint32)
    return value ^ (value >> np.uint32(16))


def test_signatures_equal_those_of_datasketch_for_the_same_shingles_and_permutations(texts: list[str]) -> None:
    ours = sign(column(texts[:40]), CONFIG)
    for row, shingles in enumerate(shingles_of(column(texts[:40]), CONFIG)):
        inputs = undo_fmix32((shingles >> np.uint64(32)).astype(np.uint32))
        theirs = MinHash(
            num_perm=CONFIG.num_permutations, scheme="affine32", permutations=permutations(CONFIG), hashfunc=int
        )
        theirs.update_batch(inputs.tolist())
        assert theirs.hashvalues.tolist() == ours[row].tolist()


def all_pairs(texts: list[str], *, least: float) -> dict[tuple[int, int], float]:
    """Exact Jaccard similarities by one sparse product of the documents' shingle sets."""
    sets = shingles_of(column(texts), CONFIG)
    shingles, places = np.unique(np.concatenate(sets), return_inverse=True)
    sizes = np.array([len(one) for one in sets])
    rows = np.repeat(np.arange(len(sets)), sizes)
    matrix = sparse.csr_matrix((np.ones(len(places), np.int64), (rows, places)), (len(sets), len(shingles)))
    shared = sparse.triu(matrix @ matrix.T, k=1).tocoo()
    similarity = shared.data / (sizes[shared.row] + sizes[shared.col] - shared.data)
    keep = similarity >= least
    pairs = zip(shared.row[keep].tolist(), shared.col[keep].tolist(), strict=True)
    return dict(zip(pairs, similarity[keep].tolist(), strict=True))


def test_the_bands_find_as_many_pairs_as_theory_says(texts: list[str]) -> None:
    truth = all_pairs(texts, least=0.8)
    assert len(truth) > 400
    bands = hash_bands(sign(column(texts), CONFIG), CONFIG)
    found = sum(bool((bands[a] == bands[b]).any()) for a, b in truth)
    expected = np.array([CONFIG.candidate_probability(value) for value in truth.values()])
    spread = np.sqrt((expected * (1 - expected)).sum())
    assert abs(found - expected.sum()) <= 0.01 * len(truth) + spread


@pytest.mark.parametrize("shape", [(128, 16), (128, 32), (64, 16)])
def test_the_curve_of_the_bands_is_that_of_theory(texts: list[str], shape: tuple[int, int]) -> None:
    config = MinHashConfig(num_permutations=shape[0], num_bands=shape[1])
    truth = all_pairs(texts, least=0.3)
    bands = hash_bands(sign(column(texts), config), config)
    found = np.array([bool((bands[a] == bands[b]).any()) for a, b in truth])
    expected = np.array([config.candidate_probability(value) for value in truth.values()])
    spread = np.sqrt((expected * (1 - expected)).sum())
    assert abs(found.sum() - expected.sum()) <= 4 * spread + 0.01 * len(truth)


def test_verified_pairs_are_the_true_ones_that_share_a_band(texts: list[str]) -> None:
    deduplicator = Deduplicator(DedupConfig(verify_margin=1.0))
    units = [deduplicator.sign(documents(texts))]
    exact = deduplicator.find_exact(units)
    candidates = merge_edges([deduplicator.find_candidates(units, band, exact=exact) for band in range(16)])
    take: Callable[..., pa.ChunkedArray] = column(texts).take
    near = deduplicator.verify(units, candidates, take)
    truth = all_pairs(texts, least=0.8)
    pairs = set(zip(near.first.tolist(), near.second.tolist(), strict=True))
    assert pairs <= truth.keys()
    assert len(pairs) >= 0.98 * len(truth)
