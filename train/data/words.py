"""Text into words as datatrove's filters see them: those of spaCy's English tokenizer, from UTF-8, without an object per word.

In: bytes of one text. Out: how many words, and for each where it begins in the text without white space, as characters, bytes
and hash, so that the hash of any run of words is one multiplication away. Words of plain letters and digits take a short path;
the rest goes through word_kernels. Source: spaCy 3.8's tokenizer.pyx and sentencizer, through datatrove 0.10's utils/text.py.
"""

import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from train.data.byte_kernels import MULTIPLIER, Bytes, Classes, decode, hash_between, hash_further, skip_black
from train.data.jit import jit
from train.data.word_kernels import (
    BITS,
    CODE,
    ENTRIES,
    FILTER,
    HASH,
    JOIN_SHIFT,
    MAX_CHARS,
    NUM_PIECE_COLUMNS,
    NUM_POWERS,
    NUM_SLOTS,
    OFFSET,
    POWERS,
    RULE_MASK,
    SLOT_FACTOR,
    START,
    STOP_SHIFT,
    UNIT_SHIFT,
    Ints,
    Lookup,
    Piece,
    entry_of,
    find_entry,
    mark_words,
)
from train.data.word_rules import (
    BEFORE_DOT,
    DIGIT,
    JOIN_FIRST,
    JOIN_SECOND,
    LETTER,
    PREFIX,
    PUNCTUATION,
    SENTENCE_END,
    SPACE,
    SUFFIX,
    SYMBOL,
    UNIT_END,
    UNITS,
    UPPER,
    character_classes,
    special_words,
)

MAX_STOP_WORDS, MAX_STOP_CHARS = 200, 64
NUM_WORDS, NUM_PLAIN, PLAIN_CHARS, NUM_LETTER_WORDS, NUM_STOP_WORDS, NUM_SENTENCES, NUM_EXTRA, IS_ENDED, SEEN = range(9)
"""Places in `totals`: all words; those with more than punctuation, and their characters; those with a letter; different stop
words; sentences as spaCy's sentencizer divides them; words less pieces; the last two are for `segment` alone."""
CHARACTERS, BYTES, HASH_BEFORE, LEVEL, COUNT = range(5)
"""Columns of `words`: what stands before the word in the text without white space, and two for who counts repeats."""
NUM_WORD_COLUMNS = 5


class WordTables(NamedTuple):
    """What `segment` reads."""

    classes: Classes
    """Bits of word_rules, by code point."""
    lookup: Lookup
    """Special words, units and stop words."""


class Scratch(NamedTuple):
    """Memory that `segment` fills anew for every text."""

    piece: Piece
    words: Ints
    """One row per word, and one more for the end."""
    totals: Ints


@functools.lru_cache(maxsize=8)
def word_tables(stop_words: tuple[str, ...] = ()) -> WordTables:
    """Tables with these stop words; 5 MB that are kept for the life of the process.

    Raises ValueError for an empty or too long stop word, or too many.
    """
    wrong = [word for word in stop_words if not 0 < len(word) <= MAX_STOP_CHARS]
    if wrong or len(stop_words) > MAX_STOP_WORDS:
        raise ValueError(
            f"stop_words: {wrong or len(stop_words)}: give at most {MAX_STOP_WORDS} words of 1 to {MAX_STOP_CHARS} characters"
        )
    classes = character_classes().copy()
    entries: dict[str, int] = {}
    for unit in UNITS:
        entries[unit] = 1 << UNIT_SHIFT
        classes[ord(unit[-1])] |= UNIT_END
    patterns = _build_tables(classes, entries)
    for word, parts in special_words().items():
        entries[word] = entries.get(word, 0) | _start_bits(parts)
        sequence = split_words(word, patterns)  # without special words: what spaCy's matcher then looks for
        if len(sequence) > 1:
            entries[word] |= _start_bits(sequence) << JOIN_SHIFT
            classes[ord(sequence[0][0])] |= JOIN_FIRST
            classes[ord(sequence[1][0])] |= JOIN_SECOND
    for place, word in enumerate(dict.fromkeys(stop_words), start=1):
        entries[word] = entries.get(word, 0) | place << STOP_SHIFT
    return _build_tables(classes, entries)


def split_words(text: str, tables: WordTables) -> list[str]:
    """The words of a text, as strings."""
    data = np.frombuffer(text.encode(), np.uint8)
    scratch = new_scratch(len(data))
    num_words = segment(data, 0, len(data), tables, scratch, np.inf)
    joined = "".join(text.split())
    return [joined[start:stop] for start, stop in itertools.pairwise(scratch.words[: num_words + 1, CHARACTERS])]


def new_scratch(num_words: int) -> Scratch:
    """Room for so many words, or for counting without keeping them. Memory is touched only where words are written."""
    return Scratch(
        np.empty((256, NUM_PIECE_COLUMNS), np.int64),
        np.empty((num_words + 1, NUM_WORD_COLUMNS), np.int64),
        np.zeros(SEEN + MAX_STOP_WORDS + 1, np.int64),
    )


@jit
def segment(  # noqa: PLR0912, PLR0915, PLR0917 - one loop for speed, and compiled code is called by position
    data: Bytes, start: int, stop: int, tables: WordTables, scratch: Scratch, most_extra: float
) -> int:
    """Count the words of data[start:stop] into the scratch's `totals`, and write them to its `words` if that has room for any.

    Returns their number. Stops early where there are `most_extra` more words than pieces between white space so far.
    """
    classes, lookup = tables
    piece, words, totals = scratch
    for column in range(len(totals)):
        totals[column] = 0
    keep_words = len(words) > 1
    num_pieces = num_chars = num_bytes = running = gap = int(np.int64(0))  # a literal would make numba compile twice
    index = start
    while index < stop and totals[NUM_WORDS] - num_pieces < most_extra:
        code, width = decode(data, index, stop)
        if classes[code] & SPACE:
            gap += 1 if gap or code != 32 or not num_pieces else 2  # the first blank is no word of spaCy's
            index += width
            continue
        if gap & 1 or gap > 2:
            _count_gap(totals)
        gap = 0
        num_pieces += 1

        # The short path: letters and digits, perhaps between two marks that split off.
        first, before = index, running
        lead = 1 if code < 128 and classes[code] & PREFIX else 0
        if lead:
            running = hash_further(running, code)
            index += 1
        core, core_hash, core_bits = index, running, 0
        while index < stop and classes[data[index]] & (LETTER | DIGIT) and data[index] < 128:
            core_bits |= classes[data[index]]
            running = hash_further(running, data[index] & 0xFF)
            index += 1
        tail, tail_hash = index, running
        if index < stop and data[index] < 128 and (classes[data[index]] & SUFFIX or data[index] == 46):
            running = hash_further(running, data[index] & 0xFF)
            index += 1
        is_simple = index == stop or (data[index] < 128 and classes[data[index]] & SPACE > 0)
        entry = 0
        if is_simple and core < tail:
            entry = _entry_between(lookup, core_hash, tail_hash, tail - core)
            is_simple = entry & RULE_MASK <= 1 and not (core_bits & DIGIT and classes[data[tail - 1]] & UNIT_END)
            if is_simple and (lead or tail < index):
                known = _entry_between(lookup, before, running, index - first)
                if lead and tail < index:
                    known |= _entry_between(lookup, before, tail_hash, tail - first)
                    known |= _entry_between(lookup, core_hash, running, index - core)
                is_simple = not known & RULE_MASK
                if tail < index and data[tail] == 46:
                    last = classes[data[tail - 1]]
                    is_simple &= last & BEFORE_DOT > 0 or (
                        tail - core > 1 and last & classes[data[tail - 2]] & UPPER > 0
                    )
        else:
            is_simple = is_simple and index == first + 1
        if is_simple:
            if lead:
                place = (num_chars, num_bytes, before)
                _put_word(words, totals, place, 1, (classes[code], classes[code]), 0, keep_words)
            if core < tail:
                place = (num_chars + core - first, num_bytes + core - first, core_hash)
                bits = (core_bits, core_bits & ~SENTENCE_END)
                _put_word(words, totals, place, tail - core, bits, entry, keep_words)
            if tail < index:
                place = (num_chars + tail - first, num_bytes + tail - first, tail_hash)
                bits = (classes[data[tail]], classes[data[tail]])
                _put_word(words, totals, place, 1, bits, 0, keep_words)
            num_chars += index - first
        else:
            index = skip_black(data, index, stop, classes)
            place = (num_chars, num_bytes, before)
            num, running = _put_piece(data, first, index, tables, piece, words, totals, place, keep_words)
            num_chars += num
        num_bytes += index - first
    if gap & 1 or gap > 2:
        _count_gap(totals)
    num_words = totals[NUM_WORDS]
    if keep_words:
        words[num_words, CHARACTERS] = num_chars
        words[num_words, BYTES] = num_bytes
        words[num_words, HASH_BEFORE] = running
    totals[NUM_SENTENCES] += 1
    totals[NUM_EXTRA] = num_words - num_pieces
    return int(num_words)


@jit
def _put_piece(  # noqa: PLR0917 - compiled code is called by position
    data: Bytes,
    start: int,
    stop: int,
    tables: WordTables,
    piece: Piece,
    words: Ints,
    totals: Ints,
    place: tuple[int, int, int],
    keep_words: bool,
) -> tuple[int, int]:
    """Divide the piece data[start:stop] and count its words; returns (its characters, the running hash behind it)."""
    classes, lookup = tables
    if stop - start >= len(piece):
        piece = np.empty((stop - start + 1, NUM_PIECE_COLUMNS), np.int64)
    num_chars, num_bytes, running = place
    index, any_bits, num = start, 0, 0
    while index < stop:
        code, width = decode(data, index, stop)
        piece[num, CODE] = code
        piece[num, BITS] = classes[code]
        piece[num, OFFSET] = index - start
        piece[num, HASH] = running
        piece[num, START] = 0
        any_bits |= classes[code]
        if width == 1:
            running = hash_further(running, code)
        else:
            for offset in range(index, index + width):
                running = hash_further(running, data[offset] & 0xFF)
        index += width
        num += 1
    piece[num, OFFSET] = stop - start
    piece[num, HASH] = running
    mark_words(piece, lookup, num, any_bits)
    low = 0
    while low < num:
        any_bits = all_bits = piece[low, BITS]
        high = low + 1
        while high < num and not piece[high, START]:
            any_bits |= piece[high, BITS]
            all_bits &= piece[high, BITS]
            high += 1
        entry = entry_of(piece, lookup, low, high) if any_bits & LETTER else 0
        word = (num_chars + low, num_bytes + piece[low, OFFSET], piece[low, HASH])
        _put_word(words, totals, word, high - low, (any_bits, all_bits), entry, keep_words)
        low = high
    return num, running


@jit
def _entry_between(lookup: Lookup, before: int, after: int, num_bytes: int) -> int:
    """The entry of ASCII characters between two running hashes, 0 if they are no known word."""
    if num_bytes > lookup[MAX_CHARS]:
        return 0
    return find_entry(lookup, hash_between(before, after, lookup[POWERS + num_bytes]))


@jit
def _put_word(  # noqa: PLR0917 - compiled code is called by position
    words: Ints,
    totals: Ints,
    place: tuple[int, int, int],
    length: int,
    bits: tuple[int, int],
    entry: int,
    keep_words: bool,
) -> None:
    """Count one word, whose characters have the first `bits` together and the second in common."""
    any_bits, all_bits = bits
    if keep_words:
        row = totals[NUM_WORDS]
        words[row, CHARACTERS], words[row, BYTES], words[row, HASH_BEFORE] = place
    totals[NUM_WORDS] += 1
    if not all_bits & SYMBOL:
        totals[NUM_PLAIN] += 1
        totals[PLAIN_CHARS] += length
    if any_bits & LETTER:
        totals[NUM_LETTER_WORDS] += 1
    stop_word = entry >> STOP_SHIFT
    if stop_word and not totals[SEEN + stop_word]:
        totals[SEEN + stop_word] = 1
        totals[NUM_STOP_WORDS] += 1
    if length == 1 and all_bits & SENTENCE_END:
        totals[IS_ENDED] = 1
    elif not all_bits & PUNCTUATION:
        _count_gap(totals)


@jit
def _count_gap(totals: Ints) -> None:
    """What is no punctuation, a word or white space that spaCy makes one, begins a sentence after the end of one."""
    totals[NUM_SENTENCES] += totals[IS_ENDED]
    totals[IS_ENDED] = 0


def _start_bits(parts: Sequence[str]) -> int:
    """One bit for each character with which a part begins."""
    starts = itertools.accumulate((len(part) for part in parts[:-1]), initial=0)
    return sum(1 << start for start in starts)


def _build_tables(classes: Classes, words: Mapping[str, int]) -> WordTables:
    lookup = np.zeros(POWERS + NUM_POWERS, np.uint64)
    for word, entry in words.items():
        key = 0
        for byte in word.encode():
            key = (key * MULTIPLIER + byte + 1) % (1 << 64)
        bit = key * SLOT_FACTOR % (1 << 64) >> 49
        lookup[FILTER + (bit >> 6)] |= np.uint64(1 << (bit & 63))
        slot = bit >> 3
        while lookup[slot]:
            assert lookup[slot] != key, f"{word!r} has the hash of another word"
            slot = (slot + 1) % NUM_SLOTS
        lookup[slot], lookup[ENTRIES + slot] = key, entry
    lookup[MAX_CHARS] = max(map(len, words))
    lookup[POWERS:] = [pow(MULTIPLIER, exponent, 1 << 64) for exponent in range(NUM_POWERS)]
    return WordTables(classes.copy(), lookup.view(np.int64))
