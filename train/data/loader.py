"""StreamingDataLoader: packed tokens in random order, as batches for one rank, from any point on.

In: sources of token shards with weights. Out: TokenBatch after TokenBatch without end. Batch g of all ranks together is the
next `global_batch_size` sequences of one global stream (mixture.py), and rank r has the r-th part of it. So the batches are
the same for any number of ranks, and a state that was saved with one number of them goes on with another, bit for bit. The
state is that of what was consumed, not of what was read ahead: a position and a reservoir, whatever the size of the data.

Order: each source in a permutation of its own (permutation.py), another one in each pass over it; a reservoir mixes on top.
"""

import queue
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from train.data.batch import BatchStats, TokenBatch, build_batch
from train.data.jit import jit
from train.data.mixture import DRAW_BITS, Mixture, SequenceStream
from train.data.permutation import derive_key, permuted_in_runs
from train.data.token_sources import SourceSpec, TokenSources

Integers = npt.NDArray[np.int64]

STATE_VERSION = 1
_PASS = np.uint64(3)
_DRAW_MASK = (1 << DRAW_BITS) - 1


class StateMismatch(ValueError):
    """A saved state that is not of this loader's stream: names what differs."""


class LoaderConfig(BaseModel):
    """The stream, and how it is read. The first five fields decide the order; a state fits only if they are equal, but for
    `global_batch_size`, which may change."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sequence_length: int = Field(ge=1)
    """Tokens of a sequence; that of the shards."""
    global_batch_size: int = Field(ge=1)
    """Sequences of a batch, over all ranks."""
    seed: int = Field(0, ge=0, lt=1 << 63)
    """Of the order."""
    reservoir_size: int = Field(4096, ge=1, le=1 << 22)
    """References that are mixed on top of the permutation; 1 for none. 8 bytes each."""
    block_sequences: int = Field(1, ge=1)
    """Neighbouring sequences that the permutation keeps together and that are read at once; above 1 for storage where a read
    is slow. The reservoir should then be many times larger."""
    prefetch_batches: int = Field(2, ge=0)
    """Batches that a thread of its own makes ready; 0 for no thread."""
    cache_bytes: int = Field(1 << 28, ge=0)
    """Tokens kept of blocks that were read from other than local files, bytes."""
    mask_documents: bool = True
    """Documents of a row do not see each other, and positions start again at each; otherwise a row is one document."""
    predict_across_documents: bool = False
    """An end token has to predict the first token of the next document, which nothing foretells."""


@jit
def _locate(
    references: Integers,
    part: tuple[int, int],
    source_starts: Integers,
    order: tuple[int, np.uint64],
    num_taken: Integers,
) -> Integers:
    """The places of references[part[0] : part[1]] in the row of all sources; counts all of them in `num_taken`, per source.

    Draw d of a source of n sequences is the (d mod n)-th of pass d // n, in the order of that pass. `order`: run and seed.
    """
    run, seed = order
    for reference in references:
        num_taken[reference >> DRAW_BITS] += 1
    places = np.empty(part[1] - part[0], np.int64)
    for i in range(places.size):
        source, draw = references[part[0] + i] >> DRAW_BITS, references[part[0] + i] & _DRAW_MASK
        size = source_starts[source + 1] - source_starts[source]
        key = derive_key(derive_key(derive_key(seed, _PASS), np.uint64(source)), np.uint64(draw // size))
        sequence = permuted_in_runs(np.uint64(draw % size), np.uint64(size), np.uint64(run), key)
        places[i] = source_starts[source] + np.int64(sequence)
    return places


class _BatchMaker:
    """Makes one rank's batches, in order. Knows no loader, so that a thread that runs it keeps none alive."""

    def __init__(
        self, sources: TokenSources, config: LoaderConfig, stream: SequenceStream, *, part: tuple[int, int]
    ) -> None:
        self._sources, self._config, self._stream, self._part = sources, config, stream, part
        self._num_taken = stream.num_taken()
        self._order = (config.block_sequences, np.uint64(config.seed))

    def __call__(self) -> TokenBatch:
        references = self._stream.take(self._config.global_batch_size)
        places = _locate(references, self._part, self._sources.source_starts, self._order, self._num_taken)
        return build_batch(
            self._sources.read(places),
            end_of_document_id=self._sources.format.end_of_document_id,
            mask_documents=self._config.mask_documents,
            predict_across_documents=self._config.predict_across_documents,
            stats=BatchStats(
                self._stream.position, self._sources.names, self._sources.num_sequences, tuple(self._num_taken.tolist())
            ),
        )


class _Prefetcher:
    """A thread that keeps up to `depth` results of `make` ready. It ends when this object is closed or forgotten."""

    def __init__(self, make: Callable[[], TokenBatch], *, depth: int) -> None:
        self._results: queue.SimpleQueue[TokenBatch | BaseException] = queue.SimpleQueue()
        self._free: queue.SimpleQueue[None] = queue.SimpleQueue()
        for _ in range(depth):
            self._free.put(None)
        is_over = threading.Event()
        thread = threading.Thread(
            target=_keep_ready, args=(make, self._results, self._free, is_over), name="data-loader", daemon=True
        )
        self.close = weakref.finalize(self, _end_thread, thread, self._free, is_over)
        thread.start()

    def get(self) -> TokenBatch:
        """The next result. Raises what `make` raised; that was then its last call."""
        result = self._results.get()
        self._free.put(None)
        if isinstance(result, BaseException):
            raise result
        return result


def _keep_ready(
    make: Callable[[], TokenBatch],
    results: "queue.SimpleQueue[TokenBatch | BaseException]",
    free: "queue.SimpleQueue[None]",
    is_over: threading.Event,
) -> None:
    while True:
        free.get()
        if is_over.is_set():
            return
        try:
            results.put(make())
        except BaseException as error:  # the consumer's to handle, whatever it is
            results.put(error)
            return


def _end_thread(thread: threading.Thread, free: "queue.SimpleQueue[None]", is_over: threading.Event) -> None:
    is_over.set()
    free.put(None)
    if thread is not threading.current_thread():
        thread.join()


class StreamingDataLoader:
    """An endless iterator of the batches of one rank. For one thread; close it, or use it in a `with` block.

    After an error of reading, the next call tries the same batch again.
    """

    def __init__(
        self, sources: Sequence[SourceSpec], *, config: LoaderConfig, rank: int = 0, world_size: int = 1
    ) -> None:
        """At the beginning of the stream. Raises ValueError or UnreadableFile for sources that cannot be read."""
        if not 0 <= rank < world_size:
            raise ValueError(f"rank = {rank} with world_size = {world_size}: ranks go from 0 to world_size - 1")
        if config.global_batch_size % world_size:
            raise ValueError(
                f"global_batch_size = {config.global_batch_size} cannot be divided among world_size = {world_size} ranks: "
                f"choose a multiple of {world_size}"
            )
        self.config = config
        self._mixture = Mixture([source.weight for source in sources])
        self._sources = TokenSources(
            sources,
            sequence_length=config.sequence_length,
            run=config.block_sequences,
            cache_bytes=config.cache_bytes,
        )
        size = config.global_batch_size // world_size
        self._part = (rank * size, (rank + 1) * size)
        self._consumed = SequenceStream(self._mixture, seed=config.seed, reservoir_size=config.reservoir_size)
        self._num_behind = 0
        """Batches that were consumed and that `_consumed` has not gone past yet; it does so when the state is asked for."""
        self._maker: _BatchMaker | None = None
        self._prefetcher: _Prefetcher | None = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> TokenBatch:
        """The next batch of this rank. Raises what reading raised, naming the file."""
        if self._maker is None:
            self._maker = _BatchMaker(self._sources, self.config, self._synced().copy(), part=self._part)
            if self.config.prefetch_batches:
                self._prefetcher = _Prefetcher(self._maker, depth=self.config.prefetch_batches)
        try:
            batch = self._maker() if self._prefetcher is None else self._prefetcher.get()
        except BaseException:
            self.close()
            raise
        self._num_behind += 1
        return batch

    @property
    def vocab_size(self) -> int:
        """Of the tokenizer that made the shards."""
        return self._sources.format.vocab_size

    @property
    def tokenizer_sha256(self) -> str:
        """Of its file."""
        return self._sources.format.tokenizer_sha256

    def skip(self, num_batches: int) -> None:
        """Go on as if so many batches had been given out."""
        self.close()
        self._num_behind += num_batches

    def state_dict(self) -> dict[str, Any]:
        """For JSON: what `load_state_dict` needs to go on behind the last batch that was given out, on any number of ranks."""
        return self._identity() | self._synced().state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where the loader stood that gave this state. Raises StateMismatch naming what differs from this loader."""
        _check_identity(state, self._identity())
        stream = SequenceStream.restore(
            self._mixture, seed=self.config.seed, reservoir_size=self.config.reservoir_size, state=state
        )
        self.close()
        self._consumed, self._num_behind = stream, 0

    def close(self) -> None:
        """End the thread and let go of the files. The loader can go on: the next batch is the one after the last consumed."""
        if self._prefetcher is not None:
            self._prefetcher.close()
        self._prefetcher = self._maker = None
        self._sources.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _synced(self) -> SequenceStream:
        self._consumed.skip(self._num_behind * self.config.global_batch_size)
        self._num_behind = 0
        return self._consumed

    def _identity(self) -> dict[str, Any]:
        """What decides the order. A share is in 2^-30."""
        sources = zip(self._sources.fingerprint, self._mixture.parts, strict=True)
        return {
            "version": STATE_VERSION,
            "seed": self.config.seed,
            "sequence_length": self.config.sequence_length,
            "reservoir_size": self.config.reservoir_size,
            "block_sequences": self.config.block_sequences,
            "tokenizer_sha256": self.tokenizer_sha256,
            "sources": [source | {"share": share} for source, share in sources],
        }


def _check_identity(state: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    for name, ours in identity.items():
        saved = state.get(name)
        if name != "sources" and saved != ours:
            raise StateMismatch(
                f"the state has {name} = {saved!r}, this loader {ours!r}: load it with the same {name}, or begin without a "
                "state"
            )
    sources = identity["sources"]
    saved_sources: Any = state.get("sources")
    is_list = isinstance(saved_sources, list) and all(isinstance(saved, Mapping) for saved in saved_sources)
    if not is_list or len(saved_sources) != len(sources):
        names = ", ".join(source["name"] for source in sources)
        raise StateMismatch(
            f"the state has sources = {saved_sources!r}, this loader reads {names}: give the same sources"
        )
    for saved, source in zip(saved_sources, sources, strict=True):
        for name, ours in source.items():
            if saved.get(name) != ours:
                raise StateMismatch(
                    f"source {source['name']!r} had {name} = {saved.get(name)!r} when the state was saved and has {ours!r}: "
                    "restore it and the order of the sources, or begin without a state"
                )
