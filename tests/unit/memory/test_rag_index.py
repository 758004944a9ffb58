from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memory import rag_index
from memory.rag_index import IndexConfig, IndexProblem, RAGIndex, Vectors, check_vectors, decode_vectors, encode_vector


def _unit(num: int, *, seed: int = 0) -> Vectors:
    rows = np.random.default_rng(seed).standard_normal((num, 16)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _index(ids: list[int]) -> RAGIndex:
    index = RAGIndex(16, identity="store minilm/16")
    index.add(ids, vectors=_unit(len(ids)))
    return index


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(1, 12)), max_size=30), st.sets(st.integers(1, 12)))
def test_search_equals_exact_search_over_what_was_added_and_not_removed(
    steps: list[tuple[bool, int]], only: set[int]
) -> None:
    index, model = RAGIndex(16, identity="x"), {}
    for number, (is_add, key) in enumerate(steps):
        if is_add:
            model[key] = _unit(1, seed=number)[0]
            index.add([key], vectors=model[key][None])
        else:
            index.remove([key])
            model.pop(key, None)
    query = _unit(1, seed=99)[0]
    exact = sorted(((float(v @ query), k) for k, v in model.items()), reverse=True)

    assert index.ids == set(model)
    found = index.search(query, k=5)
    assert list(found) == [key for _, key in exact[:5]]
    np.testing.assert_allclose(list(found.values()), [cosine for cosine, _ in exact[:5]], atol=1e-5)
    allowed = index.search(query, k=5, allowed=lambda seqs: np.isin(seqs, sorted(only)))
    assert list(allowed) == [key for _, key in exact if key in only][:5]
    index.purge()
    assert list(index.search(query, k=5)) == list(found)


def test_a_saved_index_loads_with_its_vectors_and_last_seq(tmp_path: Path) -> None:
    index = _index([3, 7, 5])
    index.save(tmp_path / "a.index")
    loaded = RAGIndex.load(tmp_path / "a.index", dimension=16, identity="store minilm/16")

    assert (loaded.ids, loaded.last_seq) == ({3, 5, 7}, 7)
    np.testing.assert_array_equal(loaded.vectors([3, 5, 7]), index.vectors([3, 5, 7]))
    loaded.remove([5])
    assert loaded.ids == {3, 7}


@pytest.mark.parametrize("damage", ["missing", "empty", "header", "cut", "flipped"])
def test_a_damaged_file_is_recognised_before_faiss_reads_it(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "a.index"
    _index([1, 2]).save(path)
    content = path.read_bytes()
    header, _, payload = content.partition(b"\n")
    damaged = {
        "empty": b"",
        "header": b"[]" + content,
        "cut": content[:-9],
        "flipped": header + b"\n" + bytes([payload[0] ^ 1]) + payload[1:],
    }
    path.unlink() if damage == "missing" else path.write_bytes(damaged[damage])

    with pytest.raises(IndexProblem, match="index file"):
        RAGIndex.load(path, dimension=16, identity="store minilm/16")


def test_an_index_of_another_store_is_not_taken(tmp_path: Path) -> None:
    _index([1]).save(tmp_path / "a.index")

    with pytest.raises(IndexProblem, match="belongs to"):
        RAGIndex.load(tmp_path / "a.index", dimension=16, identity="other")


def test_nan_and_wrong_dimension_are_rejected_with_a_clear_error() -> None:
    with pytest.raises(ValueError, match=r"shape \(1, 8\).*vectors of 16"):
        _index([1]).add([2], vectors=np.ones((1, 8), dtype=np.float32))
    with pytest.raises(ValueError, match="NaN, infinite or zero in row 1"):
        check_vectors(np.array([[1, 0], [np.nan, 0]], dtype=np.float32), dimension=2, source="minilm")


def test_a_stored_vector_decodes_to_the_same_direction() -> None:
    vectors = _unit(5)
    decoded = decode_vectors([encode_vector(vector) for vector in vectors], dimension=16)

    np.testing.assert_allclose((decoded * vectors).sum(1), 1, atol=1e-5)
    assert len(encode_vector(vectors[0])) == 32


def _clustered(num: int, *, seed: int) -> Vectors:
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).standard_normal((20, 16))
    rows = (centres[rng.integers(20, size=num)] + 0.4 * rng.standard_normal((num, 16))).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _recall(index: RAGIndex, model: dict[int, np.ndarray]) -> float:
    keys, rows = np.array(list(model)), np.stack(list(model.values()))
    queries = _clustered(50, seed=5)
    hits = [set(index.search(query, k=10)) & set(keys[np.argsort(-(rows @ query))[:10]].tolist()) for query in queries]
    return sum(map(len, hits)) / (10 * len(queries))


def test_a_large_index_becomes_an_inverted_file_that_keeps_its_recall_its_deletions_and_its_filters(
    tmp_path: Path,
) -> None:
    rows = _clustered(3000, seed=1)
    index = RAGIndex(16, identity="store minilm/16", config=IndexConfig(ivf_above=1000))
    index.add(list(range(1, 2501)), vectors=rows[:2500])
    assert index.is_exact
    assert index.train_if_due()
    assert not index.train_if_due()
    index.add(list(range(2501, 3001)), vectors=rows[2500:])
    model = dict(enumerate(rows, start=1))
    for key in range(1, 3001, 3):
        del model[key]
    index.remove(range(1, 3001, 3))

    for _ in range(2):
        assert (index.is_exact, index.ids) == (False, set(model))
        assert _recall(index, model) > 0.95
        found = index.search(rows[1], k=5, allowed=lambda seqs: seqs == 2000)
        assert found == pytest.approx({2000: float(rows[1999] @ rows[1])}, abs=1e-2)
        np.testing.assert_allclose(index.vectors([2, 2999]), rows[[1, 2998]], atol=1e-3)
        index.purge()
    index.save(tmp_path / "a.index")
    loaded = RAGIndex.load(tmp_path / "a.index", dimension=16, identity="store minilm/16")
    loaded.add([9001], vectors=_unit(1))
    assert list(loaded.search(_unit(1)[0], k=1)) == [9001]
    assert list(loaded.search(rows[1], k=9)) == list(index.search(rows[1], k=9))


def test_what_is_added_or_removed_while_it_trains_is_in_or_out_of_the_trained_index(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = _clustered(300, seed=1)
    index = RAGIndex(16, identity="x", config=IndexConfig(ivf_above=100))
    index.add(list(range(200)), vectors=rows[:200])
    train = rag_index._train

    def train_meanwhile(*args: object, **options: object) -> object:
        index.add(list(range(200, 300)), vectors=rows[200:])
        index.add([5], vectors=rows[:1])
        index.remove([7])
        return train(*args, **options)

    monkeypatch.setattr(rag_index, "_train", train_meanwhile)
    assert index.train_if_due()
    assert index.ids == set(range(300)) - {7}
    np.testing.assert_allclose(index.vectors([5, 250]), rows[[0, 250]], atol=1e-3)

    monkeypatch.setattr(
        rag_index, "_train", lambda rows, **options: (index.remove([9]), index.purge(), train(rows, **options))[2]
    )
    index._num_trained = 1
    assert not index.train_if_due()
    assert index.ids == set(range(300)) - {7, 9}


def test_a_failed_save_leaves_the_old_file_and_no_draft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.index"
    _index([1]).save(path)

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(rag_index.os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        _index([1, 2]).save(path)
    assert [file.name for file in tmp_path.iterdir()] == ["a.index"]
    assert RAGIndex.load(path, dimension=16, identity="store minilm/16").ids == {1}
