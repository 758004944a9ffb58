"""Tokenizer: texts train a byte-level BPE vocabulary; with one, an Encoder turns documents into token ids.

In: texts, or a table with a `text` column. Out: a Hugging Face folder (tokenizer.json and tokenizer_config.json), or a
TokenColumn: the ids of each document, without special tokens. Same texts and configuration, same bytes of tokenizer.json.
An Encoder runs the fastest library that gives the reference's ids on hard texts; see tokenizer_backends.py.
Source: byte-level BPE, Radford et al. 2019 (GPT-2); BPE training and reference encoding by `tokenizers`.
"""

import itertools
import json
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import tokenizers
from pydantic import BaseModel, ConfigDict, Field, model_validator
from tokenizers.pre_tokenizers import ByteLevel, Split

from train.data.jit import jit
from train.data.schema import text_bytes
from train.data.tokenizer_backends import (
    BACKENDS,
    BackendKind,
    Ids,
    ReferenceBackend,
    build_backend,
    has_newer_letters,
)
from train.data.tokenizer_file import PATTERNS, CannotExpress, TokenizerFile
from train.data.tokenizer_sample import hard_texts

logger = logging.getLogger(__name__)

END_OF_DOCUMENT = "<|endoftext|>"
MAX_SEGMENT_BYTES = 128 << 10
"""Longer documents are encoded in pieces: on a run of a million blanks tiktoken fails, and all are slower than linear."""
MAX_IDS = 1 << 32
"""What a stored token, 4 bytes at most, can tell apart."""
BATCH_BYTES = 8 << 20
"""Text that a backend is given at once."""


class TokenizerTrainConfig(BaseModel):
    """A vocabulary to be trained."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    vocab_size: int = Field(32768, ge=300, le=1 << 20)
    """Ids of the tokenizer, special tokens and the 256 bytes included. Up to 65,536 a stored token takes two bytes."""
    pattern: Literal["gpt2", "llama3", "qwen2"] = "qwen2"
    """How texts are split before merging. Digits: `gpt2` whole numbers, `llama3` up to three, `qwen2` each by itself."""
    special_tokens: tuple[str, ...] = (END_OF_DOCUMENT, "<|pad|>", "<|im_start|>", "<|im_end|>")
    """First ids, in this order. The first ends a document, the second pads."""
    min_frequency: int = Field(2, ge=1)
    """Least count of a pair that is merged."""
    max_token_bytes: int = Field(64, ge=2)
    """Longest token: keeps rulers such as "=====" out of the vocabulary."""
    max_bytes: int = Field(512 << 20, ge=1)
    """Text that is trained on; what comes after it is not read."""

    @model_validator(mode="after")
    def _special_tokens_are_usable(self) -> "TokenizerTrainConfig":
        tokens = self.special_tokens
        if len(tokens) < 2 or len(set(tokens)) < len(tokens) or not all(tokens):
            raise ValueError(
                f"special_tokens = {tokens}: give at least two different, non-empty texts; the first ends a document, the "
                "second pads"
            )
        if self.vocab_size < 256 + len(tokens):
            raise ValueError(
                f"vocab_size = {self.vocab_size} leaves no room for 256 bytes and {len(tokens)} special tokens: raise it"
            )
        return self


class TokenizerConfig(BaseModel):
    """The tokenizer of a run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: Path | None = None
    """Folder of a tokenizer that exists (tokenizer.json). None: one is trained on the run's documents."""
    backend: Literal["auto", "gigatoken", "tiktoken", "tokenizers"] = "auto"
    """Library that encodes. `auto`: the fastest one that can and gives equal ids; a named one fails if it cannot."""
    train: TokenizerTrainConfig = TokenizerTrainConfig()


def train_tokenizer(texts: Iterable[str], *, config: TokenizerTrainConfig) -> Any:
    """A `tokenizers.Tokenizer`. Raises ValueError if the texts are too few for the vocabulary."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    split = Split(tokenizers.Regex(PATTERNS[config.pattern]), "isolated")
    tokenizer.pre_tokenizer = (
        ByteLevel(add_prefix_space=False)
        if config.pattern == "gpt2"
        else tokenizers.pre_tokenizers.Sequence([split, ByteLevel(add_prefix_space=False, use_regex=False)])
    )
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        min_frequency=config.min_frequency,
        special_tokens=list(config.special_tokens),
        initial_alphabet=sorted(ByteLevel.alphabet()),
        max_token_length=config.max_token_bytes,
        show_progress=False,
    )
    tokenizer.train_from_iterator(_segments_of(texts, max_bytes=config.max_bytes), trainer)
    if tokenizer.get_vocab_size() < config.vocab_size:
        raise ValueError(
            f"tokenizer.train.vocab_size = {config.vocab_size}, but the texts have pairs for {tokenizer.get_vocab_size()} "
            "only: give more text, or lower vocab_size or min_frequency"
        )
    return tokenizer


def _segments_of(texts: Iterable[str], *, max_bytes: int) -> Iterator[str]:
    """Training counts words, so it may be given a text in pieces too."""
    num_bytes = 0
    for text in texts:
        data = text.encode("utf-8", "replace")
        bounds = [0, *cut_points(data, max_bytes=MAX_SEGMENT_BYTES)[0], len(data)]
        for start, stop in itertools.pairwise(bounds):
            yield data[start:stop].decode()
            num_bytes += stop - start
            if num_bytes >= max_bytes:
                return


def save_tokenizer(tokenizer: Any, folder: Path, *, config: TokenizerTrainConfig) -> Path:
    """Write the folder that transformers' AutoTokenizer loads; the path of its tokenizer.json."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    named = {"eos_token": config.special_tokens[0], "pad_token": config.special_tokens[1]}
    about = {
        "tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, "model_max_length": 1 << 30,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(about | named, indent=2) + "\n", encoding="utf-8")
    path = folder / "tokenizer.json"
    path.write_text(tokenizer.to_str(pretty=True) + "\n", encoding="utf-8")
    return path


@dataclass(frozen=True, slots=True)
class TokenColumn:
    """Ids of documents: document i is tokens[offsets[i] : offsets[i + 1]]."""

    tokens: npt.NDArray[Any]
    """uint16 where the vocabulary allows, else uint32."""
    offsets: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> npt.NDArray[Any]:
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]


class BackendMismatch(ValueError):
    """A fast library gives other ids than the reference: names the first text in which they differ."""


class Encoder:
    """Documents to ids. One per process; it holds the backend's caches, nothing else."""

    def __init__(
        self, file: TokenizerFile, *, kind: BackendKind, end_of_document: str | None = None, num_threads: int = 1
    ) -> None:
        """Takes the backend as it is; `open` checks it. Raises CannotExpress, or ValueError for a lacking end token."""
        if file.num_ids > MAX_IDS:
            raise ValueError(
                f"tokenizer {file.path} has ids up to {file.num_ids - 1:,}, above {MAX_IDS - 1:,}, the largest that 4 bytes "
                "hold: give one whose vocabulary is numbered from 0"
            )
        self.file, self.kind = file, kind
        self.vocab_size = file.num_ids
        self.dtype = np.dtype("<u2" if file.num_ids <= 1 << 16 else "<u4")
        self._reference = ReferenceBackend(file, num_threads=num_threads)
        self.end_of_document_id = _end_id(file, end_of_document)
        is_reference = kind == "tokenizers"
        self._backend = self._reference if is_reference else build_backend(kind, file, num_threads=num_threads)
        self._byte_lengths = None if is_reference else file.byte_lengths

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        backend: Literal["auto"] | BackendKind = "auto",
        sample: Sequence[str] = (),
        end_of_document: str | None = None,
        num_threads: int = 1,
    ) -> "Encoder":
        """From a folder or a tokenizer.json, after the backend gave the reference's ids on hard texts and on `sample`.

        `auto` falls back to the next library with a warning. `end_of_document` is the token that ends documents, by default
        <|endoftext|>, or the folder's eos_token if there is none.
        Raises: ValueError for a file that is no tokenizer; CannotExpress or BackendMismatch for a backend that was named.
        """
        file = TokenizerFile.read(path)
        for kind in BACKENDS if backend == "auto" else (backend,):
            try:
                encoder = cls(file, kind=kind, end_of_document=end_of_document, num_threads=num_threads)
                encoder.check([*hard_texts(), *file.added, *sample])
            except (CannotExpress, BackendMismatch) as error:
                if backend != "auto":
                    raise type(error)(
                        f'tokenizer.backend = {kind!r} cannot be used for {file.path}: {error}; use "auto" or "tokenizers"'
                    ) from error
                logger.warning("tokenizer backend %s is not used for %s: %s", kind, file.path, error)
            else:
                return encoder
        raise AssertionError("the reference equals itself")

    def encode_table(self, table: pa.Table) -> TokenColumn:
        """Ids of the rows' `text`, without special tokens; a null has none."""
        return self.encode(table["text"])

    def encode(self, texts: pa.ChunkedArray) -> TokenColumn:
        """Ids of each text of a large_string column.

        They are the reference's for the whole text unless the text has 128 KiB without a place where it is always split;
        such a run is cut, with a warning.
        """
        data, starts = text_bytes(texts)
        bounds, firsts = self._segment(data, starts)
        tokens, lengths = [np.zeros(0, self.dtype)], [np.zeros(1, np.int64)]
        for first, last in _batches(bounds, BATCH_BYTES):
            found = self._encode_segments(data, bounds[first : last + 1])
            tokens.append(found.tokens.astype(self.dtype))
            lengths.append(np.diff(found.offsets))
        return TokenColumn(np.concatenate(tokens), np.cumsum(np.concatenate(lengths))[firsts])

    def check(self, texts: Sequence[str]) -> None:
        """Raises BackendMismatch if the ids of a text are not the reference's."""
        expected = self._reference.encode(pa.array(texts, pa.large_string()))
        found = self.encode(pa.chunked_array([pa.array(texts, pa.large_string())]))
        for index, text in enumerate(texts):
            ours = found[index].tolist()
            theirs = expected.tokens[expected.offsets[index] : expected.offsets[index + 1]].tolist()
            if ours != theirs:
                place = next(n for n, (a, b) in enumerate(itertools.zip_longest(ours, theirs)) if a != b)
                raise BackendMismatch(
                    f"text {index} of the self-check, {text[:80]!r}, has {ours[place : place + 3]} as tokens from {place} on, "
                    f"and {theirs[place : place + 3]} by `tokenizers`"
                )

    def _segment(self, data: Any, starts: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """(bounds of the segments, for each document and behind the last the number of its first segment)."""
        long = np.flatnonzero(np.diff(starts) > MAX_SEGMENT_BYTES)
        if not len(long) or self.file.pattern is None:
            return starts, np.arange(len(starts))
        cuts, num_forced = [], 0
        for row in long.tolist():
            if any(added.encode() in data[starts[row] : starts[row + 1]].tobytes() for added in self.file.plain_added):
                continue  # such a token may take the blanks behind it, which a cut would take away
            found, forced = cut_points(data[starts[row] : starts[row + 1]], max_bytes=MAX_SEGMENT_BYTES)
            cuts.append(np.asarray(found, np.int64) + starts[row])
            num_forced += forced
        if num_forced:
            logger.warning(
                "%d runs of %d bytes without a place to split were cut, tokens there may differ from an uncut text's",
                num_forced, MAX_SEGMENT_BYTES,
            )  # fmt: skip
        inner = np.concatenate(cuts or [starts[:0]])
        num_before = np.searchsorted(inner, starts)  # no cut is at a document's start
        return np.sort(np.concatenate([starts, inner])), np.arange(len(starts)) + num_before

    def _encode_segments(self, data: npt.NDArray[np.uint8], bounds: npt.NDArray[np.int64]) -> Ids:
        texts = _as_strings(data, bounds)
        found = self._backend.encode(texts)
        if self._byte_lengths is None:
            return found
        is_odd = _count_bytes(found.tokens, found.offsets, self._byte_lengths) != np.diff(bounds)
        is_odd |= has_newer_letters(data, bounds)
        for added in self.file.plain_added:
            is_odd |= pc.match_substring(texts, added).to_numpy(zero_copy_only=False)
        rows = np.flatnonzero(is_odd)
        return _replace(found, rows, self._reference.encode(texts.take(rows))) if len(rows) else found


def cut_points(data: Any, *, max_bytes: int) -> tuple[list[int], int]:
    """Offsets that cut UTF-8 into pieces of at most `max_bytes`, and how many of them had to be forced.

    A cut that is not forced changes no id: every known pattern splits there, whatever stands before and behind.
    """
    cuts: list[int] = []
    num_forced = start = 0
    while len(data) - start > max_bytes:
        last = start + max_bytes
        place = _last_split(data, max(start, last - _NEAR_BYTES), last) or _last_split(data, start, last)
        if not place:
            num_forced += 1
            place = last
            while data[place] & 0xC0 == 0x80:
                place -= 1
        cuts.append(place)
        start = place
    return cuts, num_forced


_SPLIT = re.compile(
    rb"[A-Za-z0-9](?=[ \n\t])|[!-~](?= )|[A-Za-z](?=[0-9])"
    rb"|(?:\xe4[\xb8-\xbf]|[\xe5-\xe9][\x80-\xbf])[\x80-\xbf](?=[ \n]|\xe3\x80[\x81\x82]|\xef\xbc\x8c)"
)
"""Between a letter or digit and a blank, any ASCII sign and a space, a letter and a digit, a Chinese character and a comma or
stop. Not between a sign and a new line, which Llama's pattern takes as one."""
_NEAR_BYTES = 512


def _last_split(data: Any, start: int, last: int) -> int:
    """The last place to split in (start, last], 0 if there is none."""
    ends = [match.end() for match in _SPLIT.finditer(data, start, last + 3)]
    return max((end for end in ends if start < end <= last), default=0)


def _batches(bounds: npt.NDArray[np.int64], max_bytes: int) -> Iterator[tuple[int, int]]:
    """Ranges of segments of at most `max_bytes`, or of a single one."""
    first, num_segments = 0, len(bounds) - 1
    while first < num_segments:
        last = int(np.searchsorted(bounds, bounds[first] + max_bytes, side="right")) - 1
        last = min(max(last, first + 1), num_segments)
        yield first, last
        first = last


@jit
def _count_bytes(
    tokens: npt.NDArray[np.uint32], offsets: npt.NDArray[np.int64], byte_lengths: npt.NDArray[np.uint16]
) -> npt.NDArray[np.int64]:
    """Bytes that the ids of each text stand for."""
    counts = np.zeros(len(offsets) - 1, np.int64)
    for row in range(len(counts)):
        total = 0
        for index in range(offsets[row], offsets[row + 1]):
            total += byte_lengths[tokens[index]]
        counts[row] = total
    return counts


def _as_strings(data: npt.NDArray[np.uint8], bounds: npt.NDArray[np.int64]) -> Any:
    offsets = pa.py_buffer(np.ascontiguousarray(bounds, np.int64))
    return pa.LargeStringArray.from_buffers(len(bounds) - 1, offsets, pa.py_buffer(data))


def _replace(ids: Ids, rows: npt.NDArray[np.int64], new: Ids) -> Ids:
    """The ids with those of some rows replaced."""
    pieces = [ids.tokens[start:stop] for start, stop in itertools.pairwise(ids.offsets)]
    for index, row in enumerate(rows.tolist()):
        pieces[row] = new.tokens[new.offsets[index] : new.offsets[index + 1]]
    lengths = np.array([len(piece) for piece in pieces], np.int64)
    return Ids(np.concatenate(pieces), np.concatenate([[0], np.cumsum(lengths)]))


def _end_id(file: TokenizerFile, name: str | None) -> int:
    ids = file.added
    config_path = file.path.parent / "tokenizer_config.json"
    wanted = name or (END_OF_DOCUMENT if END_OF_DOCUMENT in ids else None)
    if wanted is None and config_path.exists():
        token = json.loads(config_path.read_text("utf-8")).get("eos_token")
        wanted = token.get("content") if isinstance(token, dict) else token
    if wanted not in ids:
        known = ", ".join(list(ids)[:10]) or "none"
        raise ValueError(
            f"tokenizer {file.path} has no token {wanted or END_OF_DOCUMENT!r} to end documents with; its added "
            f"tokens are {known}: name one of them as end_of_document"
        )
    return ids[wanted]
