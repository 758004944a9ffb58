"""Packed tokens in random order to batches of 16 x 2,049: our loader and our HDF5 shards beside grain, litdata and h5py.

Run as a script it measures one variant in a process of its own, on one thread, in CPU seconds per batch of the process and its
children. All read the same tokens, which the page cache holds, as int64. Ours gives inputs, labels, document numbers and
positions; the others give rows, which someone still has to mask. grain is measured in the fastest way that was found, which is
without threads. litdata in three: items that are numpy arrays, by its bare iterator (the fastest); its TokensLoader behind its
StreamingDataLoader, in this process; and the same with one worker process, as its documentation has it, beside our prefetching
thread. litdata permutes chunks, and windows of 256 within them, not all sequences.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from cluster.bench import BenchContext, Claim
from cluster.bench_corpus import describe_corpus, read_texts
from cluster.bench_variants import VariantResult, child_main, run_variants, speed_up
from train.data.batch import TokenBatch
from train.data.loader import LoaderConfig, StreamingDataLoader
from train.data.storage import HDF5Storage
from train.data.token_shard import TokenFormat
from train.data.token_sources import SourceSpec

LENGTH, ROWS = 2048, 16
END, VOCABULARY = 256, 50_000
NUM_SHARDS = 8
DOCUMENT_TOKENS = 1000
NUM_WARM, NUM_TIMED = 50, 800
LOADER_TARGETS = (
    ("ours", "grain", 3.0),
    ("ours", "litdata, bare items", 10.0),
    ("ours", "litdata, tokens", 10.0),
    ("ours, prefetched", "litdata, tokens, one worker", 10.0),
)
HDF5_TARGET = 8.0
MAX_CORRELATION = 0.02
THREADS = {"RAYON_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "LITDATA_DISABLE_VERSION_CHECK": "1"}


def run(context: BenchContext) -> Iterable[Claim]:
    """The claims of this file."""
    rounds = 3 if context.quick else 5
    context.note("packing tokens")
    corpus = _write_all(context.folder, num_sequences=20_000 if context.quick else 50_000)
    found = run_variants(
        Path(__file__), list(VARIANTS), arguments={"folder": str(context.folder)}, rounds=rounds, environment=THREADS,
        num_threads=1, note=context.note,
    )  # fmt: skip
    conditions = f"CPU time, one thread, {rounds} rounds of processes in turns, page cache warm; {corpus}"
    for ours, peer, least in LOADER_TARGETS:
        yield _claim(f"loader vs {peer}", found[ours], found[peer], least=least, conditions=conditions)
    yield _claim(
        "HDF5 shards vs h5py sorted fancy reads", found["hdf5"], found["h5py"], least=HDF5_TARGET, conditions=conditions
    )
    for name, variant, base in (
        ("loader with a prefetching thread, of the rate without", "ours, prefetched", "ours"),
        ("loader with documents masked, of the rate for rows of one document", "ours", "ours, no masks"),
        ("loader, of the rate of bare rows without labels, masks, state", "ours", "hdf5"),
    ):
        share = found[base].median_s / found[variant].median_s * 100
        rates = _rates(found[variant], found[base])
        yield Claim(name, "reported", round(share, 1), "%", None, f"{rates}; {conditions}")
    yield _correlation_claim(context.folder)


def _claim(name: str, ours: VariantResult, theirs: VariantResult, *, least: float, conditions: str) -> Claim:
    speed = speed_up(ours, theirs)
    return Claim(
        name, f">= {least:.0f}x", round(speed.ratio, 2), "x", speed.ratio >= least,
        f"{_rates(ours, theirs)}; 95 % interval {speed.low:.2f}-{speed.high:.2f}; {conditions}",
    )  # fmt: skip


def _rates(*results: VariantResult) -> str:
    return ", ".join(f"{one.name} {ROWS * LENGTH / one.median_s / 1e6:.0f} Mtok/s" for one in results)


def _correlation_claim(folder: Path) -> Claim:
    """Spearman's: between ranks, which the numbers of the sequences of one pass are themselves."""
    count, length = 50_000, 4
    fields = TokenFormat(
        length, vocab_size=count * length + 1, end_of_document_id=count * length, tokenizer_sha256="none"
    )
    with HDF5Storage().writer(str(folder / "numbered" / "a.h5"), token_format=fields) as writer:
        writer.write(np.arange(count * length + 1))
    correlations = []
    for seed in range(5):
        config = LoaderConfig(sequence_length=length, global_batch_size=500, seed=seed)
        with StreamingDataLoader([SourceSpec(location=str(folder / "numbered"))], config=config) as loader:
            order = np.concatenate([next(loader).input_ids[:, 0] // length for _ in range(count // 500)])
        correlations.append(abs(float(np.corrcoef(np.arange(count), order)[0, 1])))
    worst = max(correlations)
    return Claim(
        "rank correlation of order and data", f"< {MAX_CORRELATION}", round(worst, 4), "", worst < MAX_CORRELATION,
        f"the largest of {len(correlations)} seeds, one pass of {count:,} sequences",
    )  # fmt: skip


def _write_all(folder: Path, *, num_sequences: int) -> str:
    """The same tokens for all: shards of ours, a flat file, a two-dimensional data set, litdata's chunks. Describes them."""
    import h5py

    texts = read_texts(max_bytes=num_sequences * LENGTH)
    data = np.frombuffer("".join(texts).encode(), np.uint8).astype(np.uint16)
    data[DOCUMENT_TOKENS - 1 :: DOCUMENT_TOKENS] = END
    tokens = np.resize(data, num_sequences * LENGTH + 1)
    tokens.tofile(folder / "flat.bin")
    fields = TokenFormat(LENGTH, vocab_size=VOCABULARY, end_of_document_id=END, tokenizer_sha256="bytes")
    for name, count in (("shards", NUM_SHARDS), ("whole", 1)):
        size = num_sequences // count * LENGTH
        for index in range(count):
            with HDF5Storage().writer(str(folder / name / f"{index:02}.h5"), token_format=fields) as writer:
                writer.write(tokens[index * size : (index + 1) * size + 1])
    rows = np.lib.stride_tricks.sliding_window_view(tokens, LENGTH + 1)[::LENGTH]
    with h5py.File(folder / "rows.h5", "w") as file:
        file["tokens"] = rows
    _write_litdata(folder, rows)
    size = len(tokens) / 1e6
    return f"{size:.0f}M tokens, bytes cut into documents of {DOCUMENT_TOKENS}; {describe_corpus(texts)}"


def _write_litdata(folder: Path, rows: Any) -> None:
    os.environ |= THREADS
    from litdata.streaming import Cache
    from litdata.streaming.item_loader import TokensLoader

    for name, items, loader in (("tokens", 500, TokensLoader(LENGTH + 1)), ("items", 1, None)):
        (folder / name).mkdir()
        cache = Cache(str(folder / name), item_loader=loader, chunk_bytes="32MB")
        for index in range(len(rows) // items):
            cache[index] = rows[index * items : (index + 1) * items].ravel()
        cache.done()
        cache.merge()


def measure(variant: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """CPU seconds per batch."""
    batches = VARIANTS[variant](Path(arguments["folder"]))
    for _ in range(NUM_WARM):
        batch = next(batches)
    start = _cpu_s()
    for _ in range(NUM_TIMED):
        batch = next(batches)
    seconds = _cpu_s() - start
    array = batch.input_ids if isinstance(batch, TokenBatch) else np.asarray(batch)
    assert array.shape[0] == ROWS
    assert array.dtype == np.int64
    return {"seconds": seconds / NUM_TIMED}


def _cpu_s() -> float:
    """Of this process, to the microsecond, and its children, to a clock tick."""
    children = (child.cpu_times() for child in psutil.Process().children(recursive=True))
    return time.process_time() + sum(times.user + times.system for times in children)


def _ours(folder: Path, **changes: Any) -> Iterator[Any]:
    fields: dict[str, Any] = {"sequence_length": LENGTH, "global_batch_size": ROWS, "prefetch_batches": 0}
    config = LoaderConfig(**(fields | changes))
    return StreamingDataLoader([SourceSpec(location=str(folder / "shards"))], config=config)


def _order(folder: Path) -> Iterator[Any]:
    """Numbers of the sequences of each batch, uniformly random."""
    count = (folder / "flat.bin").stat().st_size // 2 // LENGTH
    return iter(np.random.default_rng(0).permutation(count)[: count // ROWS * ROWS].reshape(-1, ROWS))


def _hdf5(folder: Path) -> Iterator[Any]:
    storage = HDF5Storage()
    reader = storage.reader(storage.open(str(folder / "whole" / "00.h5")))
    return (reader.read_sequences(numbers) for numbers in _order(folder))


def _h5py(folder: Path) -> Iterator[Any]:
    import h5py

    rows = h5py.File(folder / "rows.h5")["tokens"]
    return (rows[np.sort(numbers)].astype(np.int64) for numbers in _order(folder))


def _grain(folder: Path) -> Iterator[Any]:
    import grain

    tokens = np.asarray(np.memmap(folder / "flat.bin", "<u2", "r"))

    class Rows:
        def __len__(self) -> int:
            return len(tokens) // LENGTH

        def __getitem__(self, index: Any) -> Any:
            return tokens[index * LENGTH : index * LENGTH + LENGTH + 1]

    rows = grain.MapDataset.source(Rows()).shuffle(seed=0).batch(ROWS).map(lambda batch: batch.astype(np.int64))
    return iter(rows.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)))


def _litdata_items(folder: Path) -> Iterator[Any]:
    from litdata import StreamingDataset

    dataset = StreamingDataset(str(folder / "items"), shuffle=True, seed=0)
    rows = iter(dataset)
    return (_stack([next(rows) for _ in range(ROWS)]) for _ in range(len(dataset) // ROWS))


def _litdata_tokens(folder: Path, *, num_workers: int = 0) -> Iterator[Any]:
    from litdata import StreamingDataLoader as LitDataLoader
    from litdata import StreamingDataset
    from litdata.streaming.item_loader import TokensLoader

    dataset = StreamingDataset(str(folder / "tokens"), item_loader=TokensLoader(LENGTH + 1), shuffle=True, seed=0)
    return iter(LitDataLoader(dataset, batch_size=ROWS, num_workers=num_workers, collate_fn=_stack))


def _stack(rows: list[Any]) -> Any:
    return np.stack(rows).astype(np.int64)


VARIANTS: dict[str, Callable[[Path], Iterator[Any]]] = {
    "ours": _ours,
    "ours, prefetched": lambda folder: _ours(folder, prefetch_batches=2),
    "ours, no masks": lambda folder: _ours(folder, mask_documents=False, predict_across_documents=True),
    "hdf5": _hdf5,
    "h5py": _h5py,
    "grain": _grain,
    "litdata, bare items": _litdata_items,
    "litdata, tokens": _litdata_tokens,
    "litdata, tokens, one worker": lambda folder: _litdata_tokens(folder, num_workers=1),
}

if __name__ == "__main__":
    child_main(measure)
