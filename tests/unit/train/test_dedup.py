"""Duplicates: every one is found that brute force finds, groups are connected components, and the order of work is nothing."""

import itertools
import random
from collections.abc import Sequence
from typing import Any

import networkx as nx
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.document_tables import documents
from train.data.dedup import DUPLICATE_OF, DedupConfig, Deduplicator, KeepPolicy, wilson_interval
from train.data.dedup_edges import (
    MAX_LEADERS,
    Edges,
    Numbers,
    SignedDocuments,
    find_candidates,
    find_exact,
    gather,
    merge_edges,
)
from train.data.minhash import MinHashConfig, estimate_jaccard, hash_texts, jaccard, shingles_of, sign

CONFIG = DedupConfig()
VOCABULARY = [f"word{number}" for number in range(3000)]


def edited(text: str, generator: random.Random, *, share: float) -> str:
    words = text.split()
    for place in generator.sample(range(len(words)), int(len(words) * share)):
        words[place] = generator.choice(VOCABULARY)
    return " ".join(words)


def corpus(seed: int, *, num_originals: int = 120) -> list[str]:
    """Originals of 60 to 400 words, and copies of a third of them with 0 to 8 % of the words replaced, mixed."""
    generator = random.Random(seed)
    originals = [" ".join(generator.choices(VOCABULARY, k=generator.randint(60, 400))) for _ in range(num_originals)]
    copies = [
        edited(text, generator, share=generator.choice([0, 0.005, 0.01, 0.02, 0.04, 0.08]))
        for text in originals[::3]
        for _ in range(generator.randint(1, 4))
    ]
    texts = originals + copies
    generator.shuffle(texts)
    return texts


def texts_column(texts: Sequence[str]) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(texts, pa.large_string())])


def true_pairs(texts: Sequence[str], *, threshold: float) -> dict[tuple[int, int], float]:
    sets = shingles_of(texts_column(texts), CONFIG.minhash)
    found = {(i, j): jaccard(sets[i], sets[j]) for i, j in itertools.combinations(range(len(texts)), 2)}
    return {pair: value for pair, value in found.items() if value >= threshold}


def outcome(tables: Sequence[pa.Table]) -> dict[str, tuple[str, str]]:
    """id -> (rule, id of the kept document)."""
    rows = [row for table in tables for row in table.to_pylist()]
    return {
        row["id"]: (row["reasons"][0]["rule"], dict(row["metadata"])[DUPLICATE_OF]) for row in rows if row["reasons"]
    }


@pytest.mark.slow
def test_groups_are_the_connected_components_of_the_true_pairs() -> None:
    texts = corpus(1, num_originals=80)
    graph = nx.Graph(true_pairs(texts, threshold=CONFIG.threshold).keys())
    expected = {}
    for group in nx.connected_components(graph):
        expected |= {f"{member:04d}": f"{min(group):04d}" for member in group if member != min(group)}
    found = {
        removed: kept for removed, (_, kept) in outcome(Deduplicator(CONFIG).deduplicate([documents(texts)])).items()
    }
    assert len(expected) > 30
    missed = expected.keys() - found.keys()
    assert len(missed) <= 0.02 * len(expected)  # theory misses .5 % of such pairs
    assert found.keys() <= expected.keys()  # verified by the texts: nothing is removed that has no twin
    assert sum(found[name] == expected[name] for name in found) >= 0.98 * len(found)


@given(st.integers(0, 10_000), st.lists(st.integers(0, 200), max_size=6))
@settings(max_examples=15, deadline=None)
def test_units_and_memory_change_nothing(seed: int, cuts: list[int]) -> None:
    texts = corpus(seed, num_originals=40)
    bounds = [0, *sorted(min(cut, len(texts)) for cut in cuts), len(texts)]
    tables = [documents(texts[a:b], first=a) for a, b in itertools.pairwise(bounds)]
    whole = Deduplicator(CONFIG).deduplicate([documents(texts)])
    small = CONFIG.model_copy(update={"memory_bytes": 2000})  # forces the way through temporary files
    assert outcome(Deduplicator(small).deduplicate(tables)) == outcome(whole)


def test_bands_may_be_worked_on_in_any_order() -> None:
    deduplicator = Deduplicator(CONFIG)
    units = [deduplicator.sign(documents(corpus(3)))]
    exact = deduplicator.find_exact(units)
    edges = [deduplicator.find_candidates(units, band, exact=exact) for band in range(16)]
    one, other = merge_edges(edges), merge_edges(edges[::-1])
    assert one.first.tolist() == other.first.tolist()
    assert one.second.tolist() == other.second.tolist()


@pytest.mark.parametrize(("policy", "kept"), [("first", "0000"), ("longest", "0002"), ("best_quality", "0001")])
def test_the_policy_chooses_who_stays(policy: KeepPolicy, kept: str) -> None:
    base = " ".join(VOCABULARY[:300])
    texts = [base, base + " end", base + " more end"]
    marked = Deduplicator(DedupConfig(keep=policy)).deduplicate([documents(texts, quality=[0.2, 0.9, 0.3])])
    assert {name for _, name in outcome(marked).values()} == {kept}
    assert len(outcome(marked)) == 2


def test_exact_copies_are_told_from_near_ones_and_white_space_is_no_difference() -> None:
    base = " ".join(VOCABULARY[:200])
    marked = Deduplicator(CONFIG).deduplicate(
        [documents([base, base.replace(" ", "\n\n"), base + " and more", "other"])]
    )
    assert outcome(marked) == {"0001": ("duplicate.exact", "0000"), "0002": ("duplicate.near", "0000")}


def test_operators_and_case_make_texts_different_but_not_dissimilar() -> None:
    assert len(np.unique(hash_texts(texts_column(["a + b", "a - b", "A + b", "a+b"])), axis=0)) == 4
    one, other = sign(texts_column(["x = alpha + beta * gamma", "X = Alpha - Beta / Gamma"]), CONFIG.minhash)
    assert (one == other).all()


def test_nothing_and_documents_without_words_are_no_problem() -> None:
    assert Deduplicator(CONFIG).deduplicate([]) == []
    assert outcome(Deduplicator(CONFIG).deduplicate([documents([])])) == {}
    marked = Deduplicator(CONFIG).deduplicate([documents(["", "...", "!!! ???", "one word", ""])])
    assert outcome(marked)["0004"] == ("duplicate.exact", "0000")


def test_candidates_below_the_threshold_are_refused_by_the_texts() -> None:
    generator = random.Random(5)
    base = " ".join(generator.choices(VOCABULARY, k=300))
    texts = [base, *(edited(base, generator, share=0.06) for _ in range(40))]  # similarity about .55 to .6
    assert not any(0 in pair for pair in true_pairs(texts, threshold=0.8))
    deduplicator = Deduplicator(CONFIG)
    units = [deduplicator.sign(documents(texts))]
    believed = [find_candidates(units, band, least=0.0, threshold=0.8, skip=np.zeros(0, np.int64), memory_bytes=1 << 30,
                                signature_bytes=512) for band in range(16)]  # fmt: skip
    assert len(merge_edges(believed)) > 5  # the bands alone would join them
    assert outcome(deduplicator.deduplicate([documents(texts)])) == {}


def test_a_bucket_of_boilerplate_is_compared_with_its_leaders_only() -> None:
    deduplicator = Deduplicator(CONFIG)
    unit = deduplicator.sign(documents([f"one page of many {'!' * number}" for number in range(400)]))
    edges = deduplicator.find_candidates(
        [unit], 0, exact=Edges(*(np.zeros(0, t) for t in (np.int64, np.int64, np.float32)))
    )
    assert len(edges) == 399
    assert set(edges.first.tolist()) == {0}


def test_a_bucket_beyond_the_memory_is_matched_in_parts_with_the_same_edges(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every document shares the bucket; most are leaders, some copies of them, more than MAX_LEADERS in all."""
    generator = random.Random(4)
    texts = corpus(4, num_originals=60) + [f"one page of many {'!' * number}" for number in range(50)]
    generator.shuffle(texts)
    unit = Deduplicator(CONFIG).sign(documents(texts))
    bands = [np.zeros(len(unit), np.uint64), np.arange(len(unit), dtype=np.uint64) // 7]
    units = [SignedDocuments(unit.signatures, bands, unit.exact, unit.length, unit.quality)]
    num_loaded = []

    def counted(units: Sequence[SignedDocuments], wanted: Numbers, *rest: Any) -> Any:
        num_loaded.append(len(wanted))
        return gather(units, wanted, *rest)

    monkeypatch.setattr("train.data.dedup_edges.gather", counted)
    for band in (0, 1):
        found = []
        for memory_bytes in (1 << 30, 100 * 512, 20 * 512):
            num_loaded.clear()
            edges = find_candidates(units, band, least=0.5, threshold=0.8, skip=np.zeros(0, np.int64),
                                    memory_bytes=memory_bytes, signature_bytes=512)  # fmt: skip
            assert max(num_loaded) <= memory_bytes // 1024 + MAX_LEADERS
            found.append((edges.first.tolist(), edges.second.tolist(), edges.similarity.tolist(), edges.num_capped))
        assert len(found[0][0]) > 20
        assert found[1:] == found[:1] * 2
        assert (found[0][3] > 0) == (band == 0)


def test_estimates_of_precision_and_recall_match_the_truth() -> None:
    texts = corpus(11, num_originals=80)
    deduplicator = Deduplicator(CONFIG)
    units = [deduplicator.sign(documents(texts))]
    exact = deduplicator.find_exact(units)
    candidates = merge_edges([deduplicator.find_candidates(units, band, exact=exact) for band in range(16)])
    column = texts_column(texts)
    near = deduplicator.verify(units, candidates, column.take)
    duplicates = deduplicator.decide(units, exact, near)
    estimate = deduplicator.estimate(units, duplicates, near, column.take)
    truth = true_pairs(texts, threshold=CONFIG.threshold)
    removed = list(zip(duplicates.kept.tolist(), duplicates.document.tolist(), strict=True))
    is_right = [tuple(sorted(pair)) in truth for pair in removed]
    assert estimate.precision is not None
    assert estimate.recall is not None
    assert estimate.precision_low <= sum(is_right) / len(is_right) <= estimate.precision_high  # type: ignore[operator]
    assert 0.97 <= estimate.recall <= 1.0


def test_texts_are_compared_in_parts_that_fit_the_memory_with_the_same_result() -> None:
    texts = [text * times for text, times in zip(corpus(12, num_originals=60), itertools.cycle([1, 40]), strict=False)]
    column = texts_column(texts)
    first, second = (np.array(side) for side in zip(*itertools.combinations(range(0, len(texts), 3), 2), strict=True))
    found, num_chars = [], []

    def read(wanted: Numbers) -> pa.ChunkedArray:
        num_chars[-1].append(sum(len(texts[number]) for number in wanted))
        return column.take(wanted)

    for memory_bytes in (1 << 30, 1 << 20):
        deduplicator = Deduplicator(DedupConfig(memory_bytes=memory_bytes))
        num_chars.append([])
        found.append(deduplicator.compare_texts([deduplicator.sign(documents(texts))], first, second, read).tolist())
    assert found[0] == found[1]
    assert max(num_chars[0]) > 1 << 16
    assert max(num_chars[1]) <= max(1 << 16, 2 * max(map(len, texts)))


def test_wilson_agrees_with_a_published_value() -> None:
    low, high = wilson_interval(0.0, 10)  # Brown, Cai & DasGupta 2001: [0, .2775]
    assert low == 0.0
    assert high == pytest.approx(0.2775, abs=1e-3)


def test_estimates_have_the_error_of_theory() -> None:
    texts = corpus(7, num_originals=60)
    column = texts_column(texts)
    signatures = sign(column, CONFIG.minhash)
    truth = true_pairs(texts, threshold=0.2)
    pairs = np.array(list(truth))
    errors = estimate_jaccard(signatures[pairs[:, 0]], signatures[pairs[:, 1]]) - np.array(list(truth.values()))
    expected = np.sqrt(np.mean([value * (1 - value) / 128 for value in truth.values()]))
    assert np.sqrt(np.mean(errors**2)) == pytest.approx(expected, rel=0.5)
    assert abs(errors.mean()) < 3 * expected / np.sqrt(len(errors)) + 0.01


def test_chinese_text_is_cut_into_characters() -> None:
    one, other = shingles_of(texts_column(["今天天气很好我们去公园", "今天天气很好，我们去公园。"]), CONFIG.minhash)
    assert len(one) == 7
    assert (one == other).all()  # punctuation separates, whatever its alphabet


@pytest.mark.parametrize("mark", ["“{}”", "« {} »", "‘{}’", "{}…", "— {}"])
def test_typographic_marks_are_no_part_of_words(mark: str) -> None:
    plain, marked = shingles_of(
        texts_column(["one two three four five", mark.format("one two three four five")]), CONFIG.minhash
    )
    assert plain.tolist() == marked.tolist()


def test_a_shape_that_does_not_divide_is_refused_with_a_sentence() -> None:
    with pytest.raises(ValueError, match=r"num_bands = 7 does not divide .* = 128; choose"):
        MinHashConfig(num_bands=7)


def test_exact_pairs_join_each_copy_to_the_first() -> None:
    unit = Deduplicator(CONFIG).sign(documents(["a", "b", "a", "a", "b"]))
    edges = find_exact([unit], memory_bytes=1 << 20)
    assert list(zip(edges.first.tolist(), edges.second.tolist(), strict=True)) == [(0, 2), (0, 3), (1, 4)]


def test_texts_in_scripts_between_the_symbols_are_not_all_alike() -> None:
    generator = random.Random(2)
    for first, last in ((0x2D30, 0x2D65), (0x2C30, 0x2C5F), (0x2801, 0x28FF)):  # Tifinagh, Glagolitic, Braille
        letters = [chr(code) for code in range(first, last)]
        words = ["".join(generator.choices(letters, k=6)) for _ in range(2000)]
        texts = [" ".join(generator.choices(words, k=200)) for _ in range(6)]
        assert outcome(Deduplicator(CONFIG).deduplicate([documents(texts)])) == {}


def test_texts_without_words_are_duplicates_of_equal_ones_only() -> None:
    found = outcome(Deduplicator(CONFIG).deduplicate([documents(["!!!", "+++ ***", "!!!", "…"])]))
    assert found == {"0002": ("duplicate.exact", "0000")}
