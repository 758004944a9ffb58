"""Backends: texts to token ids by different libraries, all from one tokenizer.json, all with the same ids.

In: texts as Arrow strings. Out: flat ids and offsets, without special tokens. The reference is `tokenizers`; `gigatoken` and
`tiktoken` are faster and are told what the file says, or refuse it. Text that looks like a special token, such as a literal
"<|endoftext|>" in a document, is ordinary text to all: a document must not be able to end itself.
"""

import importlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import psutil
import pyarrow as pa

from train.data.jit import jit
from train.data.tokenizer_file import CHARACTERS, CannotExpress, TokenizerFile, to_bytes

BackendKind = Literal["gigatoken", "tiktoken", "tokenizers"]


class Ids(NamedTuple):
    """Ids of all texts, and text + 1 offsets into them."""

    tokens: npt.NDArray[np.uint32]
    offsets: npt.NDArray[np.int64]


class Backend(Protocol):
    """One library with one tokenizer."""

    def encode(self, texts: pa.LargeStringArray) -> Ids:
        """Ids of each text, without special tokens."""


class ReferenceBackend:
    """`tokenizers`: what the ids are by definition."""

    def __init__(self, file: TokenizerFile, *, num_threads: int) -> None:
        os.environ["TOKENIZERS_PARALLELISM"] = "true" if num_threads > 1 else "false"
        os.environ.setdefault("RAYON_NUM_THREADS", str(num_threads))  # the pool is built once per process
        self._tokenizer = file.reference()

    def encode(self, texts: pa.LargeStringArray) -> Ids:
        """Ids of each text. A few at a time: until they are read, encodings take a hundred bytes per byte of text."""
        found = []
        for group in _groups(texts.to_pylist(), max_chars=REFERENCE_CHARS):
            encodings = self._tokenizer.encode_batch_fast(group, add_special_tokens=False)
            found += [np.array(one.ids, np.uint32) for one in encodings]
        return _flatten(found)


REFERENCE_CHARS = 1 << 20


class GigatokenBackend:
    """`gigatoken`, 60 times as fast. Its caches grow with every new word, so that now and then it is made anew.

    Measured: one byte per byte of prose at first, then little; 8 to 30 bytes per byte of random words, without end.
    """

    def __init__(self, file: TokenizerFile, *, num_threads: int) -> None:
        data = json.loads(file.content)
        data["added_tokens"] = []
        vocabulary = data["model"]["vocab"]
        for text, token in file.byte_tokens.items():
            if token >= file.num_ids:
                vocabulary[CHARACTERS[text[0]]] = token
        self._json = json.dumps(data)
        self._is_parallel = num_threads > 1
        self._from_arrow = importlib.import_module("awkward").from_arrow  # what it loads is no growth
        self.num_renewals = -1
        self._num_bytes = self._resident_bytes = 0
        self._renew()

    def encode(self, texts: pa.LargeStringArray) -> Ids:
        """Ids of each text."""
        found = self._tokenizer.encode_batch(self._from_arrow(texts), parallel=self._is_parallel).layout
        ids = Ids(np.asarray(found.content.data, np.uint32), np.asarray(found.offsets.data, np.int64))
        self._num_bytes += texts.nbytes
        if self._num_bytes >= CHECK_BYTES:
            self._num_bytes = 0
            if _resident_bytes() - self._resident_bytes > MAX_CACHE_BYTES:
                self._renew()
        return ids

    def _renew(self) -> None:
        import gigatoken

        self._tokenizer: Any = None
        self._num_bytes = 0
        self.num_renewals += 1
        try:
            self._tokenizer = gigatoken.Tokenizer.from_json(self._json)
        except (RuntimeError, ValueError) as error:
            raise CannotExpress(str(error).partition("\n")[0]) from error
        self._resident_bytes = _resident_bytes()


CHECK_BYTES = 32 << 20
"""Text after which gigatoken's memory is looked at."""
MAX_CACHE_BYTES = 256 << 20
"""Growth of the process since gigatoken was made, above which it is made anew: .05 s of CPU time."""


class TiktokenBackend:
    """`tiktoken`, 5 to 9 times as fast, for splits that gigatoken does not know.

    It merges the pair whose union has the least rank, the reference the pair that is first in a list. These are the same if
    the list is in the order of ids and every token, alone, is merged to itself; both are checked. A union that the list
    reaches by another pair can then never be the least: its bytes would already have been merged the way the list says.
    """

    def __init__(self, file: TokenizerFile, *, num_threads: int) -> None:
        import tiktoken

        if file.pattern is None:
            raise CannotExpress("its normalizer or pre_tokenizer is none that can be written as one known pattern")
        _check_merge_order(file)
        self._num_threads = num_threads
        self._encoding = tiktoken.Encoding(
            file.path.name, pat_str=file.pattern, mergeable_ranks=file.byte_tokens, special_tokens={}
        )

    def encode(self, texts: pa.LargeStringArray) -> Ids:
        """Ids of each text."""
        strings = texts.to_pylist()
        if self._num_threads > 1:
            found = self._encoding.encode_ordinary_batch(strings, num_threads=self._num_threads)
            return _flatten([np.array(ids, np.uint32) for ids in found])
        return _flatten([np.array(self._encoding.encode_ordinary(text), np.uint32) for text in strings])


BACKENDS: dict[BackendKind, Callable[..., Backend]] = {
    "gigatoken": GigatokenBackend,
    "tiktoken": TiktokenBackend,
    "tokenizers": ReferenceBackend,
}
"""Fastest first."""


def build_backend(kind: BackendKind, file: TokenizerFile, *, num_threads: int) -> Backend:
    """Raises CannotExpress if this library cannot give the tokenizer's ids, or is not installed."""
    try:
        return BACKENDS[kind](file, num_threads=num_threads)
    except ImportError as error:
        raise CannotExpress(f"it is not installed ({error})") from error


def has_newer_letters(data: npt.NDArray[np.uint8], bounds: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """By text: whether it has a letter or number of Unicode 17, which the libraries do not all take for one yet."""
    return _has_letters(data, bounds, _NEWER_LETTERS)


_NEWER_LETTERS = np.array(
    [
        (0x088F, 0x088F), (0x0C5C, 0x0C5C), (0x0CDC, 0x0CDC), (0xA7CE, 0xA7D4), (0xA7F1, 0xA7F1), (0x10940, 0x10959),
        (0x10EC5, 0x10EC7), (0x11DB0, 0x11DE9), (0x16EA0, 0x16ED3), (0x16FF2, 0x16FF6), (0x187F8, 0x187FF), (0x18D09, 0x18DF2),
        (0x1E6C0, 0x1E6FF), (0x2B73A, 0x2B73F), (0x2CEA2, 0x2CEAD), (0x323B0, 0x33479),
    ]
)  # fmt: skip
"""Blocks that hold all 4,657 code points in whose splits `gigatoken` 0.10, `tiktoken` 0.14 and `tokenizers` 0.23 differ, found
by comparing every code point; tests/parity/test_data_tokenizer.py does it again."""


@jit
def _has_letters(
    data: npt.NDArray[np.uint8], bounds: npt.NDArray[np.int64], blocks: npt.NDArray[np.int64]
) -> npt.NDArray[np.bool_]:
    found = np.zeros(len(bounds) - 1, np.bool_)
    for row in range(len(found)):
        stop = bounds[row + 1]
        for first in range(bounds[row], stop, 64):
            last = min(first + 64, stop)
            highest = np.uint8(0)
            for position in range(first, last):  # compiles to vector instructions
                highest = max(highest, data[position])
            if highest >= 0xE0:
                for position in range(first, last):
                    byte = data[position]
                    if byte in (0xE0, 0xEA, 0xF0):  # the first bytes of all blocks
                        found[row] |= _is_in(_code_point(data, position, stop), blocks)
    return found


@jit
def _code_point(data: npt.NDArray[np.uint8], position: int, stop: int) -> int:
    """Of a character of three or four bytes."""
    code = np.int64(data[position] & 0x0F)
    for index in range(position + 1, min(position + (3 if data[position] < 0xF0 else 4), stop)):
        code = (code << 6) | np.int64(data[index] & 0x3F)
    return int(code)


@jit
def _is_in(code: int, blocks: npt.NDArray[np.int64]) -> bool:
    is_inside = False
    for index in range(len(blocks)):
        is_inside |= blocks[index, 0] <= code <= blocks[index, 1]
    return is_inside


def _check_merge_order(file: TokenizerFile) -> None:
    tokens, model = file.byte_tokens, file.reference().model
    known = {bytes([byte]) for byte in range(256)}
    last = -1
    for merge in file.data["model"]["merges"]:
        left, right = map(to_bytes, merge.split(" ") if isinstance(merge, str) else merge)
        merged = left + right
        token = tokens.get(merged)
        if token is None or token < last or not known >= {left, right}:
            raise CannotExpress(f"its merges are not in the order of ids (see the merge that gives {merged!r})")
        last = token
        known.add(merged)
    for text, token in tokens.items():
        if text not in known:
            raise CannotExpress(f"no merge gives its token {text!r}")
        if token < file.num_ids and len(model.tokenize("".join(map(CHARACTERS.__getitem__, text)))) != 1:
            raise CannotExpress(f"its token {text!r} is not what its own bytes are merged to")


def _groups(texts: list[str], *, max_chars: int) -> Iterator[list[str]]:
    """Texts in their order, in groups of at most `max_chars`, or of a single one."""
    group: list[str] = []
    num_chars = 0
    for text in texts:
        if group and num_chars + len(text) > max_chars:
            yield group
            group, num_chars = [], 0
        group.append(text)
        num_chars += len(text)
    if group:
        yield group


def _flatten(found: Sequence[npt.NDArray[np.uint32]]) -> Ids:
    offsets = np.zeros(len(found) + 1, np.int64)
    np.cumsum([len(ids) for ids in found], out=offsets[1:])
    return Ids(np.concatenate([*found, np.zeros(0, np.uint32)]), offsets)


def _resident_bytes() -> int:
    return int(psutil.Process().memory_info().rss)
