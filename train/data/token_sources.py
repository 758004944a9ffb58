"""TokenSources: the shards of all sources as rows that can be read in any order.

In: folders of token shards, or lists of them. Out: how many sequences each source has, a fingerprint of what they hold, and
tokens. A folder's `manifest.json` says which shards it has and how many sequences are in each, so that none has to be opened
to begin; without it all `*.h5` of the folder are read for that. Local shards are mapped into memory. Others are read by
ranges, a run of neighbouring sequences at a time, which is kept for a while.
"""

import functools
import hashlib
import itertools
import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow.fs as pafs
from pydantic import BaseModel, ConfigDict, Field, model_validator

from train.data.address import address_of
from train.data.batch import TokenRows
from train.data.filesystem import resolve
from train.data.jit import jit
from train.data.storage import HDF5Storage, TokenReader
from train.data.stored_file import UnreadableFile, explain_reading
from train.data.token_shard import SHARD_SUFFIX, Tokens, TokenShard

Integers = npt.NDArray[np.int64]

MANIFEST_NAME = "manifest.json"
FORGET_ROWS = 4096
"""A row that is read maps up to 64 KB of its file (Linux' fault-around). After this many rows, at most 256 MB, all pages are
let go, so that resident memory does not grow to the size of the data; that takes a tenth of the rate."""


class SourceSpec(BaseModel):
    """A source of tokens and how much of the training it makes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    location: str | tuple[str, ...]
    """A folder of token shards, or the shards' paths; local or URIs."""
    weight: float = 1.0
    """Share of the sequences that training reads, relative to the other sources' weights; above 0."""
    name: str = ""
    """In statistics and errors; by default the folder's name."""
    of: tuple[str, ...] = ()
    """Only shards that the pipeline filled from these of its sources, by the folder's manifest; none: all shards."""
    held_out_every: int = Field(0, ge=0)
    """Each shard of this number, counted after `of`, is not read: it is held out. 0 reads all."""
    reads_held_out: bool = False
    """Read the shards that are held out, and no others."""

    @model_validator(mode="after")
    def _held_out_are_some(self) -> Self:
        if self.held_out_every == 1 or (self.reads_held_out and not self.held_out_every):
            raise ValueError(
                f"held_out_every = {self.held_out_every} with reads_held_out = {self.reads_held_out} leaves no shard to read: "
                "give 2 or more"
            )
        return self


@jit
def _find_rows(
    places: Integers,
    shards: tuple[Integers, npt.NDArray[np.uint64], Integers],
    sizes: tuple[int, int],
    out: tuple[Integers, npt.NDArray[np.uint64], Integers],
) -> bool:
    """Shard, address and number of tokens of each row; whether all these shards are mapped.

    `shards`: first place, address and tokens of each. `sizes`: tokens of a sequence, bytes of a token.
    """
    starts, bases, num_tokens = shards
    length, item_bytes = sizes
    is_all_mapped = True
    for i in range(places.size):
        low, high = 0, starts.size - 1
        while high - low > 1:
            middle = (low + high) // 2
            if places[i] < starts[middle]:
                high = middle
            else:
                low = middle
        first = (places[i] - starts[low]) * length
        out[0][i] = low
        out[1][i] = bases[low] + np.uint64(first * item_bytes)
        out[2][i] = min(num_tokens[low] - first, length + 1)
        is_all_mapped &= bases[low] != 0
    return is_all_mapped


@dataclass(frozen=True, slots=True)
class _ShardEntry:
    storage: HDF5Storage
    path: str
    label: str
    """What tells it from others of its source, wherever that lies."""
    num_sequences: int
    sha256: str = ""
    source: str = ""
    """Of the pipeline's run, as its manifest says."""
    header: TokenShard | None = None
    """Of a shard that was opened to count its sequences."""


@dataclass(frozen=True, slots=True)
class _Source:
    name: str
    shards: tuple[_ShardEntry, ...]


class TokenSources:
    """All sources of a loader. For one thread at a time.

    The sequences of all shards of all sources stand in one row; a place in it is a sequence.
    Raises ValueError or UnreadableFile naming what is wrong: no shards, a missing or damaged one, another sequence length,
    sources of different tokenizers.
    """

    def __init__(
        self,
        specs: Sequence[SourceSpec],
        *,
        sequence_length: int,
        run: int = 1,
        cache_bytes: int = 1 << 28,
        max_open_shards: int = 256,
    ) -> None:
        """`run`: sequences that are read at once from what is not local."""
        self._length, self._run = sequence_length, run
        self._max_open_shards = max_open_shards
        self._sources = [_find_source(spec, index, sequence_length) for index, spec in enumerate(specs)]
        self.names = tuple(source.name for source in self._sources)
        twice = next((name for name in self.names if self.names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"sources: the name {twice!r} stands twice; give each its own name")
        self._shards = [shard for source in self._sources for shard in source.shards]
        self._is_all_local = all(isinstance(one.storage.filesystem, pafs.LocalFileSystem) for one in self._shards)
        self._starts = np.cumsum([0, *(shard.num_sequences for shard in self._shards)], dtype=np.int64)
        """First place of each shard, and behind it the number of all."""
        first_shards = list(itertools.accumulate((len(source.shards) for source in self._sources), initial=0))
        self.source_starts: Integers = self._starts[first_shards]
        """First place of each source, and behind it the number of all."""
        self.num_sequences = tuple(np.diff(self.source_starts).tolist())
        """Of each source."""
        self._num_tokens = np.zeros(len(self._shards), np.int64)
        self._addresses = np.zeros(len(self._shards), np.uint64)
        """Of the tokens of shards that are mapped; 0 for those that are not."""
        self._num_rows = 0
        self._headers: dict[int, TokenShard] = {}
        self._readers: OrderedDict[int, TokenReader] = OrderedDict()
        self._runs: OrderedDict[int, tuple[Tokens, Integers]] = OrderedDict()
        self._cache_bytes, self._cached_bytes = cache_bytes, 0
        for shard in first_shards[:-1]:
            self._header(shard)
        self.format = self._headers[0].format

    @functools.cached_property
    def fingerprint(self) -> list[dict[str, Any]]:
        """Per source, what a permutation of its sequences depends on; the same wherever the source lies."""
        return [
            {
                "name": source.name,
                "num_shards": len(source.shards),
                "num_sequences": sum(one.num_sequences for one in source.shards),
                "sha256": hashlib.sha256(
                    json.dumps([[one.label, one.num_sequences, one.sha256] for one in source.shards]).encode()
                ).hexdigest(),
            }
            for source in self._sources
        ]

    def read(self, places: Integers) -> TokenRows:
        """The sequences at these places; valid as long as the result is held."""
        addresses, num_valid = np.empty(len(places), np.uint64), np.empty(len(places), np.int64)
        if self._is_all_local:
            owners = self._map(places, addresses, num_valid)
        else:
            owners = [self._read_one(int(place), addresses[i:], num_valid[i:]) for i, place in enumerate(places)]
        return TokenRows(addresses, num_valid, self._length + 1, self.format.dtype, owners)

    def close(self) -> None:
        """Let go of all files; a later read opens them again."""
        for reader in self._readers.values():
            reader.close()
        self._readers.clear()
        self._addresses[:] = 0
        self._runs.clear()
        self._cached_bytes = 0

    def _map(self, places: Integers, addresses: npt.NDArray[np.uint64], num_valid: Integers) -> list[Any]:
        """Rows of local shards where they are mapped; what has to be held for that."""
        shards, owners = np.empty(len(places), np.int64), []
        known = (self._starts, self._addresses, self._num_tokens)
        sizes = (self._length, self.format.dtype.itemsize)
        is_crowded = len(self._shards) > self._max_open_shards  # then a shard may close the file of another
        if not _find_rows(places, known, sizes, (shards, addresses, num_valid)) or is_crowded:
            owners = [self._reader(shard).mapped for shard in np.unique(shards).tolist()]
            _find_rows(places, known, sizes, (shards, addresses, num_valid))
        self._num_rows += len(places)
        if self._num_rows > FORGET_ROWS:
            self._num_rows = 0
            for reader in self._readers.values():
                reader.forget()
        return owners

    def _read_one(self, place: int, address: npt.NDArray[np.uint64], num_valid: Integers) -> Tokens:
        """A row in the run of neighbours that it was read with; the run."""
        source = int(self.source_starts.searchsorted(place, side="right")) - 1
        first = int(self.source_starts[source])
        number, row = divmod(place - first, self._run)
        start = first + number * self._run
        rows, valid = self._runs.get(start) or self._read_run(start, int(self.source_starts[source + 1]))
        self._runs.move_to_end(start)
        address[0], num_valid[0] = address_of(rows) + row * rows.strides[0], valid[row]
        return rows

    def _read_run(self, start: int, source_stop: int) -> tuple[Tokens, Integers]:
        """Neighbouring sequences of a source, with one ranged read for those of a shard."""
        place, stop = start, min(start + self._run, source_stop)
        parts, num_valid = [], []
        while place < stop:
            shard = int(self._starts.searchsorted(place, side="right")) - 1
            count = min(stop, int(self._starts[shard + 1])) - place
            first = (place - int(self._starts[shard])) * self._length
            tokens = self._reader(shard).read(first, first + count * self._length + 1)
            parts.append(np.lib.stride_tricks.sliding_window_view(tokens, self._length + 1)[:: self._length])
            firsts = first + np.arange(count) * self._length
            num_valid.append(np.minimum(self._num_tokens[shard] - firsts, self._length + 1))
            place += count
        rows = np.concatenate(parts)
        self._runs[start] = rows, np.concatenate(num_valid)
        self._cached_bytes += rows.nbytes
        while self._cached_bytes > self._cache_bytes and len(self._runs) > 1:
            self._cached_bytes -= self._runs.popitem(last=False)[1][0].nbytes
        return self._runs[start]

    def _reader(self, shard: int) -> TokenReader:
        """The shard's reader; where not all can be open, the least recently used one is closed for it."""
        reader = self._readers.get(shard)
        if reader is None:
            header = self._header(shard)
            while len(self._readers) >= self._max_open_shards:
                self._readers.popitem(last=False)[1].close()
            reader = self._readers[shard] = self._shards[shard].storage.reader(header)
            self._addresses[shard] = 0 if reader.mapped is None else address_of(reader.mapped)
        elif len(self._shards) > self._max_open_shards:
            self._readers.move_to_end(shard)
        return reader

    def _header(self, shard: int) -> TokenShard:
        """Read once, and checked against what is known of the shard and of the first one of all."""
        header = self._headers.get(shard)
        if header is None:
            entry = self._shards[shard]
            header = entry.header or entry.storage.open(entry.path, sequence_length=self._length)
            if header.num_sequences != entry.num_sequences:
                raise UnreadableFile(
                    f"{entry.path} has {header.num_sequences} sequences, {MANIFEST_NAME} says {entry.num_sequences}: restore "
                    "the shard, or delete the manifest"
                )
            _check_same_format(header, self._headers.get(0, header))
            self._headers[shard] = header
            self._num_tokens[shard] = header.num_tokens
        return header


def _check_same_format(shard: TokenShard, first: TokenShard) -> None:
    ours: Mapping[str, Any] = asdict(shard.format)
    for name, value in asdict(first.format).items():
        if ours[name] != value:
            raise UnreadableFile(
                f"{shard.path} has {name} = {ours[name]}, {first.path} has {value}: tokens of different vocabularies do not "
                "mix; pack all sources with one tokenizer"
            )


def _find_source(spec: SourceSpec, index: int, sequence_length: int) -> _Source:
    """The shards of a source, in the order in which their sequences are counted."""
    where = f"sources[{index}].location = {spec.location!r}"
    if isinstance(spec.location, str):
        filesystem, folder = resolve(spec.location)
        default_name = folder.rstrip("/").rpartition("/")[2]
        storage = HDF5Storage(filesystem)
        shards = _listed_shards(storage, folder)
        if shards is None:
            shards = _found_shards(storage, folder, where, sequence_length)
    else:
        if not spec.location:
            raise ValueError(f"{where}: no shard; give their paths, or the folder that holds them")
        resolved = [resolve(path) for path in spec.location]
        if any(filesystem != resolved[0][0] for filesystem, _ in resolved):
            raise ValueError(f"{where}: shards on different file systems; make a source of those of each")
        default_name = f"source{index}"
        storage = HDF5Storage(resolved[0][0])
        shards = tuple(_describe(storage, path, path.rpartition("/")[2], sequence_length) for _, path in resolved)
    shards = _chosen(spec, shards, where=where)
    if not sum(shard.num_sequences for shard in shards):
        raise ValueError(
            f"{where}: no sequences in it ({len(shards)} token shards); give the folder that a run of the pipeline wrote its "
            f"shards (*{SHARD_SUFFIX}) to"
        )
    return _Source(spec.name or default_name, shards)


def _chosen(spec: SourceSpec, shards: tuple[_ShardEntry, ...], *, where: str) -> tuple[_ShardEntry, ...]:
    """Those that `of`, `held_out_every` and `reads_held_out` leave."""
    if spec.of:
        known = sorted({shard.source for shard in shards if shard.source})
        if unknown := [name for name in spec.of if name not in known]:
            raise ValueError(
                f"{where}: no shard of source {unknown[0]!r} in it; its {MANIFEST_NAME} names {', '.join(known) or 'none'}: "
                "give one of those in `of`, or run a pipeline of this version"
            )
        shards = tuple(shard for shard in shards if shard.source in spec.of)
    if not spec.held_out_every:
        return shards
    every = spec.held_out_every
    if len(shards) < every:
        raise ValueError(
            f"{where}: {len(shards)} shards, so none of number {every} to hold out; lower held_out_every, or pack fewer "
            "sequences into a shard"
        )
    return tuple(shard for place, shard in enumerate(shards) if (place % every == every - 1) == spec.reads_held_out)


def _found_shards(storage: HDF5Storage, folder: str, where: str, sequence_length: int) -> tuple[_ShardEntry, ...]:
    selector = pafs.FileSelector(folder, recursive=True)
    try:
        infos = storage.filesystem.get_file_info(selector)
    except OSError as error:
        raise ValueError(f"{where} is no folder that can be read ({error}); give the folder of token shards") from error
    paths = sorted(info.path for info in infos if info.is_file and info.path.endswith(SHARD_SUFFIX))
    return tuple(_describe(storage, path, path[len(folder) :].lstrip("/"), sequence_length) for path in paths)


def _describe(storage: HDF5Storage, path: str, label: str, sequence_length: int) -> _ShardEntry:
    header = storage.open(path, sequence_length=sequence_length)
    return _ShardEntry(storage, path, label, header.num_sequences, header=header)


def _listed_shards(storage: HDF5Storage, folder: str) -> tuple[_ShardEntry, ...] | None:
    """What the folder's manifest lists; None if it has none."""
    path = f"{folder}/{MANIFEST_NAME}"
    if not storage.filesystem.get_file_info(path).is_file:
        return None
    fix = "restore it, or delete it so that the shards are looked at"
    with explain_reading(path, kind="a manifest", fix=fix), storage.filesystem.open_input_file(path) as file:
        text = file.read()
    try:
        listed = [
            _ShardEntry(
                storage,
                f"{folder}/{one['path']}",
                one["path"],
                int(one["num_sequences"]),
                str(one["sha256"]),
                source=str(one.get("source", "")),
            )
            for one in json.loads(text)["token_shards"]
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise UnreadableFile(
            f"{path} lists no token_shards with path, num_sequences and sha256 ({error!r}): {fix}"
        ) from error
    infos = storage.filesystem.get_file_info([entry.path for entry in listed])
    missing = next((info.path for info in infos if not info.is_file), None)
    if missing is not None:
        raise UnreadableFile(
            f"{missing} does not exist, but {path} lists it: restore the shard, or run the pipeline again"
        )
    return tuple(listed)
