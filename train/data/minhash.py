"""MinHash: a fixed number of integers per document that say how much of its wording it shares with another.

In: a large_string column. Out: a signature per document (uint32 [docs, permutations]), whose share of equal places
estimates the Jaccard similarity of the documents' word 5-grams; a hash per band, equal for documents that agree in all rows
of the band; and a 128-bit hash of the exact text.

Words are runs of ASCII letters (lower-cased), digits, underscores and other UTF-8; a CJK code point is a word of its own.
ASCII, Latin-1, general, CJK and full-width punctuation separate. A document with fewer words than a shingle has one shingle.
Sources: Broder 1997 (resemblance), Leskovec, Rajaraman & Ullman, Mining of Massive Datasets, ch. 3 (banding: two documents of
similarity s share a band with probability 1 - (1 - s^rows)^bands); splitmix64 (Steele et al. 2014); FNV-1a.
"""

from typing import Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, model_validator

from train.data.jit import jit
from train.data.schema import text_bytes

Signatures = npt.NDArray[np.uint32]
"""[docs, permutations]."""


class MinHashConfig(BaseModel):
    """Shape of the signatures. All runs that share an index must have the same."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_permutations: int = Field(128, ge=8, le=1024)
    """Integers per signature; the estimate's standard error is at most 1 / (2 sqrt(num_permutations)), .044 for 128."""
    num_bands: int = Field(16, ge=1)
    """Bands of the locality-sensitive hash; with 16 bands of 8 rows a pair of similarity .8 is found at .947."""
    shingle_words: int = Field(5, ge=1, le=64)
    """Words per shingle."""
    seed: int = Field(1, ge=0)
    """Of the permutations."""

    @model_validator(mode="after")
    def _bands_divide(self) -> Self:
        if self.num_permutations % self.num_bands:
            raise ValueError(
                f"minhash.num_bands = {self.num_bands} does not divide minhash.num_permutations = {self.num_permutations}; "
                "choose for example 16 bands of 128 permutations, which makes bands of 8 rows"
            )
        return self

    @property
    def rows_per_band(self) -> int:
        """Signature places that a band compares."""
        return self.num_permutations // self.num_bands

    def candidate_probability(self, similarity: float) -> float:
        """Probability that two documents of this Jaccard similarity share a band."""
        return float(1.0 - (1.0 - similarity**self.rows_per_band) ** self.num_bands)


def permutations(config: MinHashConfig) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32]]:
    """(a, b) of the permutations x -> a x + b modulo 2^32; every a is odd, which makes it one."""
    generator = np.random.default_rng(config.seed)
    a = generator.integers(0, 1 << 32, config.num_permutations, dtype=np.uint64).astype(np.uint32) | np.uint32(1)
    b = generator.integers(0, 1 << 32, config.num_permutations, dtype=np.uint64).astype(np.uint32)
    return a, b


def sign(texts: pa.ChunkedArray, config: MinHashConfig) -> Signatures:
    """Signatures of the documents, one row each. A document without a word has the signature of the empty shingle."""
    data, offsets = text_bytes(texts)
    signatures = np.empty((len(offsets) - 1, config.num_permutations), np.uint32)
    _sign(data, offsets, config.shingle_words, permutations(config), signatures)
    return signatures


def shingles_of(texts: pa.ChunkedArray, config: MinHashConfig) -> list[npt.NDArray[np.uint64]]:
    """The sorted, distinct shingle hashes of each document: what signatures are estimates of."""
    data, offsets = text_bytes(texts)
    return [np.unique(_shingles(data[start:stop], config.shingle_words)) for start, stop in _spans(offsets)]


def hash_bands(signatures: Signatures, config: MinHashConfig) -> npt.NDArray[np.uint64]:
    """uint64 [docs, bands]. Two documents that differ in a band share its hash with probability 2^-64."""
    hashes = np.empty((len(signatures), config.num_bands), np.uint64)
    _hash_bands(signatures, config.rows_per_band, hashes)
    return hashes


def hash_texts(texts: pa.ChunkedArray) -> npt.NDArray[np.uint64]:
    """uint64 [docs, 2]: 128 bits of the exact text, in which every run of ASCII white space counts as one space."""
    data, offsets = text_bytes(texts)
    hashes = np.empty((len(offsets) - 1, 2), np.uint64)
    _hash_texts(data, offsets, hashes)
    return hashes


def estimate_jaccard(first: Signatures, second: Signatures) -> npt.NDArray[np.float64]:
    """Estimated similarity of the documents of equal rows."""
    return np.asarray(np.mean(first == second, axis=1, dtype=np.float64))


def jaccard(first: npt.NDArray[np.uint64], second: npt.NDArray[np.uint64]) -> float:
    """Exact similarity of two sorted sets of shingle hashes."""
    shared = len(np.intersect1d(first, second, assume_unique=True))
    return shared / (len(first) + len(second) - shared)


def _spans(offsets: npt.NDArray[np.int64]) -> list[tuple[int, int]]:
    return list(zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True))


def _byte_table() -> npt.NDArray[np.uint8]:
    """Of the first byte of a character: 0 separates, else the byte that goes into the word's hash."""
    table = np.zeros(256, np.uint8)
    for byte in range(256):
        character = chr(byte)
        if byte >= 0x80 or character.isalnum() or character == "_":
            table[byte] = ord(character.lower()) if byte < 0x80 else byte
    return table


_BYTES = _byte_table()
_FNV_START, _FNV_PRIME = np.uint64(0xCBF29CE484222325), np.uint64(0x100000001B3)
_STEP = np.uint64(0x9E3779B97F4A7C15)
_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_POLYNOMIAL = np.uint64(0xD1342543DE82EF95)
_TEXT_1, _TEXT_2 = np.uint64(0xA0761D6478BD642F), np.uint64(0xE7037ED1A0B428DB)


@jit
def mix(value: np.uint64) -> np.uint64:
    """splitmix64's finaliser, a bijection."""
    value = (value ^ (value >> np.uint64(30))) * _MIX_1
    value = (value ^ (value >> np.uint64(27))) * _MIX_2
    return value ^ (value >> np.uint64(31))


@jit
def _is_symbol(data: npt.NDArray[np.uint8], position: int, stop: int) -> bool:
    """Whether the character that begins here, beyond ASCII, separates: U+0080 to U+00BF without letters, punctuation and
    symbols of U+2000 to U+2E7F (between them lie Braille, Glagolitic, Coptic, Tifinagh), U+3000 to U+303F, full width."""
    first = int(data[position])
    second = int(data[position + 1]) if position + 1 < stop else 0
    third = int(data[position + 2]) if position + 2 < stop else 0
    if first == 0xC2:
        return second not in (0xAA, 0xB5, 0xBA)
    if first == 0xEF and second == 0xBC:
        return third < 0x90 or 0x9A <= third <= 0xA0 or third >= 0xBB
    if first == 0xEF and second == 0xBD:
        return third == 0x80 or 0x9B <= third <= 0xA5
    if first == 0xE2:
        code = 0x2000 | (second & 0x3F) << 6 | (third & 0x3F)
        is_sign = code < 0x2070 or 0x20A0 <= code < 0x2100 or 0x2E00 <= code < 0x2E80
        return is_sign or (0x2190 <= code < 0x2C00 and not 0x2800 <= code < 0x2900)
    return first == 0xE3 and second == 0x80


@jit
def _words_into(data: npt.NDArray[np.uint8], start: int, stop: int, words: npt.NDArray[np.uint64]) -> int:
    """Write the hashes of the document's words; returns how many.

    ASCII takes no branch at the end of a word: every byte writes, and only an end counts.
    """
    value = _FNV_START
    num_words, is_inside, resume = 0, 0, 0
    for position in range(start, stop):
        byte = data[position]
        if byte < 0x80:
            code = _BYTES[byte]
            is_end = int(code == 0)
            words[num_words] = value
            num_words += is_inside & is_end
            value = _FNV_START if is_end else (value ^ np.uint64(code)) * _FNV_PRIME
            is_inside = 1 - is_end
        elif position >= resume:
            resume = position + (1 if byte < 0xC0 else 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4)
            is_symbol = _is_symbol(data, position, stop)
            is_cjk = 0xE3 <= byte <= 0xE9
            if is_inside and (is_symbol or is_cjk):
                words[num_words] = value
                num_words += 1
                value, is_inside = _FNV_START, 0
            if is_symbol:
                continue
            for index in range(position, min(resume, stop)):
                value = (value ^ np.uint64(data[index])) * _FNV_PRIME
            is_inside = 1
            if is_cjk:
                words[num_words] = value
                num_words += 1
                value, is_inside = _FNV_START, 0
    words[num_words] = value
    return num_words + is_inside


@jit
def _shingles_into(data: npt.NDArray[np.uint8], start: int, stop: int, size: int, out: npt.NDArray[np.uint64]) -> int:
    """Write the document's shingle hashes, in order and with repeats; returns how many. `out` has a place per byte and one."""
    num_words = _words_into(data, start, stop, out)
    oldest = np.uint64(1)
    for _ in range(size):
        oldest *= _POLYNOMIAL
    value = np.uint64(0)
    for index in range(num_words):
        out[index] = mix(out[index])
    ring = out[: min(size, num_words)].copy()
    for index in range(len(ring)):
        value = value * _POLYNOMIAL + ring[index]
    if num_words <= size:
        out[0] = mix(value + _STEP)
        return 1
    slot = 0
    for index in range(size, num_words):
        word = out[index]
        out[index - size] = mix(value + _STEP)
        value = value * _POLYNOMIAL + word - ring[slot] * oldest
        ring[slot] = word
        slot = 0 if slot + 1 == size else slot + 1
    out[num_words - size] = mix(value + _STEP)
    return num_words - size + 1


@jit
def _shingles(data: npt.NDArray[np.uint8], size: int) -> npt.NDArray[np.uint64]:
    out = np.empty(len(data) + 1, np.uint64)
    return out[: _shingles_into(data, 0, len(data), size, out)].copy()


@jit
def _sign(
    data: npt.NDArray[np.uint8],
    offsets: npt.NDArray[np.int64],
    size: int,
    factors: tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32]],
    signatures: npt.NDArray[np.uint32],
) -> None:
    a, b = factors
    longest = 0
    for row in range(len(offsets) - 1):
        longest = max(longest, offsets[row + 1] - offsets[row])
    scratch = np.empty(longest + 1, np.uint64)
    for row in range(len(offsets) - 1):
        num_shingles = _shingles_into(data, offsets[row], offsets[row + 1], size, scratch)
        signature = signatures[row]
        signature[:] = np.uint32(0xFFFFFFFF)
        whole = num_shingles - num_shingles % 4
        for index in range(0, whole, 4):  # four at once: a, b and the signature are loaded a quarter as often
            x_0, x_1 = np.uint32(scratch[index] >> np.uint64(32)), np.uint32(scratch[index + 1] >> np.uint64(32))
            x_2, x_3 = np.uint32(scratch[index + 2] >> np.uint64(32)), np.uint32(scratch[index + 3] >> np.uint64(32))
            for place in range(len(a)):
                low = min(np.uint32(a[place] * x_0 + b[place]), np.uint32(a[place] * x_1 + b[place]))
                high = min(np.uint32(a[place] * x_2 + b[place]), np.uint32(a[place] * x_3 + b[place]))
                signature[place] = min(signature[place], low, high)
        for index in range(whole, num_shingles):
            x = np.uint32(scratch[index] >> np.uint64(32))
            for place in range(len(a)):
                signature[place] = min(signature[place], np.uint32(a[place] * x + b[place]))


@jit
def _hash_bands(signatures: npt.NDArray[np.uint32], rows: int, hashes: npt.NDArray[np.uint64]) -> None:
    for document in range(len(signatures)):
        for band in range(hashes.shape[1]):
            value = np.uint64(band + 1)
            for place in range(band * rows, (band + 1) * rows):
                value = mix(value + _STEP ^ np.uint64(signatures[document, place]))
            hashes[document, band] = value


@jit
def _hash_texts(data: npt.NDArray[np.uint8], offsets: npt.NDArray[np.int64], hashes: npt.NDArray[np.uint64]) -> None:
    for document in range(len(offsets) - 1):
        first, second = _TEXT_1, _TEXT_2
        num_chars = 0
        is_space = False
        for position in range(offsets[document], offsets[document + 1]):
            byte = data[position]
            if byte == 32 or 9 <= byte <= 13:
                is_space = num_chars > 0
                continue
            if is_space:
                first = (first ^ np.uint64(32)) * _FNV_PRIME
                second = second * _POLYNOMIAL + np.uint64(33)
                is_space = False
            first = (first ^ np.uint64(byte)) * _FNV_PRIME
            second = second * _POLYNOMIAL + np.uint64(byte) + np.uint64(1)
            num_chars += 1
        hashes[document, 0] = mix(first)
        hashes[document, 1] = mix(second)
