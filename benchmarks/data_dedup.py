"""Texts to MinHash signatures, beside the libraries that do it.

Run as a script it measures one library in a process of its own, on one thread, in process CPU seconds per megabyte. All make
128 permutations of 5-word shingles of the same texts; the slower ones read fewer of them. Each reads its texts twice and the
second time counts: the first touches new memory and makes the UTF-8 form that Python then keeps. gaoya gives signatures only
by way of its index, so its time includes that. How many of the pairs are found is in tests/parity/test_data_minhash.py.
"""

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from cluster.bench import BenchContext, Claim
from cluster.bench_corpus import describe_corpus, read_texts
from cluster.bench_variants import child_main, run_variants, speed_up

TARGETS = {"gaoya": 3.0, "rensa": 8.0, "datasketch": 20.0, "datatrove": 100.0}
"""Least ratios of megabytes per CPU second."""
READ_BYTES = {"ours": 24 << 20, "gaoya": 12 << 20, "rensa": 6 << 20, "datasketch": 3 << 20, "datatrove": 400 << 10}
SHINGLE = 5
BATCH_DOCUMENTS = 256
"""Per call of ours, which reads Arrow columns; their making from Python strings is in its time."""
THREADS = {"RAYON_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def run(context: BenchContext) -> Iterable[Claim]:
    """The claims of this file."""
    rounds = 3 if context.quick else 5
    found = run_variants(
        Path(__file__),
        list(READ_BYTES),
        arguments={},
        rounds=rounds,
        environment=THREADS,
        num_threads=1,
        note=context.note,
    )
    for peer, least in TARGETS.items():
        speed = speed_up(found["ours"], found[peer])
        rates = ", ".join(f"{name} {1 / found[name].median_s:.2f} MB/s" for name in ("ours", peer))
        yield Claim(
            f"text to MinHash signature vs {peer}", f">= {least:.0f}x", round(speed.ratio, 2), "x", speed.ratio >= least,
            f"process CPU time, one thread, {rounds} rounds of processes in turns; {rates}; 95 % interval {speed.low:.2f}-"
            f"{speed.high:.2f}; {found['ours'].reports[0]['corpus']}",
        )  # fmt: skip


def measure(variant: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """CPU seconds per megabyte of text."""
    del arguments
    texts = read_texts(max_bytes=READ_BYTES[variant])
    work = VARIANTS[variant]
    work(texts)
    start = time.process_time()
    work(texts)
    seconds = time.process_time() - start
    return {"seconds": seconds / (sum(len(text.encode()) for text in texts) / 1e6), "corpus": describe_corpus(texts)}


def _ours(texts: list[str]) -> None:
    import pyarrow as pa

    from train.data.minhash import MinHashConfig, sign

    for start in range(0, len(texts), BATCH_DOCUMENTS):
        column = pa.array(texts[start : start + BATCH_DOCUMENTS], pa.large_string())
        sign(pa.chunked_array([column]), MinHashConfig())


def _gaoya(texts: list[str]) -> None:
    import gaoya

    index = gaoya.minhash.MinHashStringIndex(
        hash_size=32, jaccard_threshold=0.8, num_bands=16, band_size=8, num_hashes=128, analyzer="word", lowercase=True,
        ngram_range=(SHINGLE, SHINGLE),
    )  # fmt: skip
    for number, text in enumerate(texts):
        index.insert_document(number, text)


def _shingles(text: str) -> list[str]:
    words = text.lower().split()
    return [" ".join(words[start : start + SHINGLE]) for start in range(max(1, len(words) - SHINGLE + 1))]


def _rensa(texts: list[str]) -> None:
    from rensa import RMinHash

    for text in texts:
        signature = RMinHash(num_perm=128, seed=1)
        signature.update(_shingles(text))
        signature.digest()


def _datasketch(texts: list[str]) -> None:
    from datasketch import MinHash

    for text in texts:
        signature = MinHash(num_perm=128, seed=1)
        signature.update_batch([shingle.encode() for shingle in _shingles(text)])


def _datatrove(texts: list[str]) -> None:
    from datatrove.data import Document
    from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupSignature
    from datatrove.utils.hashing import HashConfig

    step = MinhashDedupSignature(
        output_folder="unused",
        config=MinhashConfig(
            n_grams=SHINGLE, num_buckets=16, hashes_per_bucket=8, hash_config=HashConfig(precision=64, hash_fc="sha1")
        ),
    )
    for number, text in enumerate(texts):
        step.get_signature(step.get_shingles(Document(text=text, id=str(number)).text))


VARIANTS: dict[str, Callable[[list[str]], None]] = {
    "ours": _ours,
    "gaoya": _gaoya,
    "rensa": _rensa,
    "datasketch": _datasketch,
    "datatrove": _datatrove,
}

if __name__ == "__main__":
    child_main(measure)
