"""Token shards whose sequences tell their numbers, and loaders over them."""

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from train.data.filesystem import resolve
from train.data.loader import LoaderConfig, StreamingDataLoader
from train.data.storage import HDF5Storage
from train.data.token_shard import TokenFormat
from train.data.token_sources import SourceSpec

LENGTH = 4
END = 99_999
FORMAT = TokenFormat(sequence_length=LENGTH, vocab_size=100_000, end_of_document_id=END, tokenizer_sha256="ab" * 32)


def write_numbered(location: str, counts: Sequence[int], *, first: int = 0, **changes: Any) -> str:
    """Shards of these many sequences: sequence i of the folder begins with token first + 4 i."""
    filesystem, folder = resolve(location)
    fields = {name: getattr(FORMAT, name) for name in FORMAT.__slots__} | changes
    for index, count in enumerate(counts):
        with HDF5Storage(filesystem).writer(f"{folder}/{index:02}.h5", token_format=TokenFormat(**fields)) as writer:
            writer.write(np.arange(first, first + count * LENGTH + 1))
        first += count * LENGTH
    return location


def load_numbered(
    *locations: str, weights: Sequence[float] = (1, 1), rank: int = 0, world_size: int = 1, **changes: Any
) -> StreamingDataLoader:
    config: dict[str, Any] = {
        "sequence_length": LENGTH, "global_batch_size": 6, "reservoir_size": 8, "prefetch_batches": 0
    }  # fmt: skip
    sources = [SourceSpec(location=one, weight=weight) for one, weight in zip(locations, weights, strict=False)]
    return StreamingDataLoader(sources, config=LoaderConfig(**(config | changes)), rank=rank, world_size=world_size)


def take(loader: StreamingDataLoader, count: int) -> npt.NDArray[np.int64]:
    """The numbers of the sequences of the next batches, [batch, row]."""
    found = []
    for _ in range(count):
        batch = next(loader)
        assert np.array_equal(batch.input_ids, batch.input_ids[:, :1] + np.arange(LENGTH))
        assert np.array_equal(batch.labels, batch.input_ids + 1)
        found.append(batch.input_ids[:, 0] // LENGTH)
    return np.array(found)


def loader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "data-loader"]
