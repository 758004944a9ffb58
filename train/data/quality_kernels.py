"""Statistics of web-text filters, counted over UTF-8 bytes: one row per document, one column per statistic.

In: the bytes of many documents. Out: a matrix whose columns quality_rules judges. Lengths are characters, words are those of
train.data.words, and lines and paragraphs are divided as each filter of datatrove 0.10.1 divides them, which differ. Repeats
are found by 64-bit hashes in an open-addressing table that all documents share (of top n-grams, 32 bits and a place in the
table). Source: datatrove's gopher_quality_filter.py, gopher_repetition_filter.py and fineweb_quality_filter.py.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from train.data.byte_kernels import (
    Bytes,
    Classes,
    count_byte,
    count_chars,
    count_pieces,
    count_triples,
    decode,
    hash_between,
    hash_bytes,
    last_character,
    next_break,
    next_line_end,
    skip_space,
    skip_space_back,
    times,
)
from train.data.jit import jit
from train.data.word_kernels import SLOT_FACTOR, Ints, Lookup, power
from train.data.word_rules import TERMINAL
from train.data.words import (
    BYTES,
    CHARACTERS,
    COUNT,
    HASH_BEFORE,
    LEVEL,
    NUM_EXTRA,
    NUM_LETTER_WORDS,
    NUM_PLAIN,
    NUM_STOP_WORDS,
    NUM_WORDS,
    PLAIN_CHARS,
    Scratch,
    WordTables,
    segment,
)

PLAIN_WORDS, MEAN_WORD_LENGTH, HASHES, ELLIPSES, BULLET_LINES, ELLIPSIS_LINES, LETTER_WORDS, STOP_WORDS = range(8)
"""Columns of Gopher's quality rules."""
IS_EMPTY, DUPLICATE_PARAGRAPHS, DUPLICATE_PARAGRAPH_CHARS, DUPLICATE_LINES, DUPLICATE_LINE_CHARS, TOP_2_GRAM = range(
    8, 14
)
DUPLICATE_5_GRAM = TOP_2_GRAM + 3
"""Columns of Gopher's repetition rules: three top n-grams, then six duplicate n-grams."""
NO_LINES, LINE_ENDS, SHORT_LINES, LINE_CHAR_REPEATS, NEW_LINES = range(DUPLICATE_5_GRAM + 6, DUPLICATE_5_GRAM + 11)
"""Columns of FineWeb's rules."""
LOREM_LINES, CURLY_LINES, SENTENCES = range(NEW_LINES + 1, NEW_LINES + 4)
"""Columns of C4's rules."""
NUM_COLUMNS = SENTENCES + 1

Row = npt.NDArray[Any]
"""float64: one document's statistics."""
_SECOND, _THIRD, _FOURTH = map(np.uint64, (0x2545F4914F6CDD1D, 0x369DEA0F31A53F85, 0x1D8E4E27C47D124F))
"""Odd multipliers of the lengths of an n-gram's words."""


class Measures(NamedTuple):
    """What to measure; and thresholds of FineWeb that let it do without words, infinite where a rule is off."""

    has_quality: bool
    has_repetition: bool
    has_fineweb: bool
    short_line_chars: int
    least_line_ends: float
    most_short_lines: float
    most_line_repeats: float
    most_new_lines: float


@jit
def measure_documents(  # noqa: PLR0917 - compiled code is called by position
    data: Bytes,
    offsets: Ints,
    tables: WordTables,
    scratch: Scratch,
    slots: Ints,
    measures: Measures,
    statistics: npt.NDArray[np.float64],
) -> None:
    """Fill the rows of `statistics`, one per document.

    The scratch has room for words if repetition is measured; `slots` for 4 entries per word or line, at least 16.
    """
    for document in range(len(offsets) - 1):
        start, stop = offsets[document], offsets[document + 1]
        row = statistics[document]
        has_words = measures.has_quality or measures.has_repetition
        num_words = segment(data, start, stop, tables, scratch, np.inf) if has_words else 0
        if measures.has_quality:
            _measure_quality(data, start, stop, tables.classes, scratch.totals, row)
        if measures.has_repetition:
            _measure_repetition(data, start, stop, tables, scratch.words, num_words, slots, row)
        if measures.has_fineweb:
            num_breaks, num_pieces = _measure_lines(data, start, stop, tables.classes, measures, slots, row)
            if not has_words:
                num_words = _least_words(
                    data, start, stop, tables, scratch, num_pieces, num_breaks / _few(row, measures)
                )
            row[NEW_LINES] = num_breaks / max(num_words, 1)


@jit
def _few(row: Row, measures: Measures) -> float:
    """New lines per word up to which it does not matter how many words there are.

    Half of the limit, where a rule's margin is full; the limit itself if another rule is broken, for then the score is 0.
    """
    is_broken = (
        row[LINE_ENDS] < measures.least_line_ends
        or row[SHORT_LINES] > measures.most_short_lines
        or row[LINE_CHAR_REPEATS] > measures.most_line_repeats
    )
    return max(measures.most_new_lines * (1.0 if is_broken else 0.5), 1e-9)


@jit
def _least_words(  # noqa: PLR0917 - compiled code is called by position
    data: Bytes, start: int, stop: int, tables: WordTables, scratch: Scratch, num_pieces: int, enough: float
) -> int:
    """The number of words, or where that is less work a number from `enough` on that is not above it."""
    if num_pieces >= enough:
        return num_pieces
    num_words = segment(data, start, stop, tables, scratch, enough - num_pieces)
    num_extra = scratch.totals[NUM_EXTRA]
    return num_pieces + num_extra if num_extra >= enough - num_pieces else num_words


@jit
def _measure_repetition(  # noqa: PLR0917 - compiled code is called by position
    data: Bytes, start: int, stop: int, tables: WordTables, words: Ints, num_words: int, slots: Ints, row: Row
) -> None:
    num_chars = _measure_repeats(data, start, stop, tables.classes, slots, row)
    for n in range(2, min(num_words, 4) + 1):
        row[TOP_2_GRAM + n - 2] = _top_n_gram_chars(words, num_words, n, tables.lookup, slots) / num_chars
    most = _count_shared_runs(words, num_words) if num_words > 4 else 0
    for n in range(5, min(num_words, most + 3, 10) + 1):
        row[DUPLICATE_5_GRAM + n - 5] = _duplicate_n_gram_chars(words, num_words, n, tables.lookup, slots) / num_chars


@jit
def _measure_quality(  # noqa: PLR0917 - compiled code is called by position
    data: Bytes, start: int, stop: int, classes: Classes, totals: Ints, row: Row
) -> None:
    num_ellipses = count_triples(data, start, stop, (0xE2, 0x80, 0xA6))
    if count_triples(data, start, stop, (46, 46, 46)):
        num_ellipses += _count_dot_triples(data, start, stop)
    num_lines = num_bullets = num_cut = 0
    line = start
    while line < stop:
        end, width = next_line_end(data, line, stop)
        num_lines += 1
        num_bullets += _begins_with_bullet(data, line, end, classes)
        num_cut += _ends_with_ellipsis(data, line, end, classes)
        line = end + width
    num_words, num_plain = totals[NUM_WORDS], totals[NUM_PLAIN]
    row[PLAIN_WORDS] = num_plain
    row[MEAN_WORD_LENGTH] = totals[PLAIN_CHARS] / max(num_plain, 1)
    row[HASHES] = count_byte(data, start, stop, 35) / max(num_words, 1)
    row[ELLIPSES] = num_ellipses / max(num_words, 1)
    row[BULLET_LINES] = num_bullets / max(num_lines, 1)
    row[ELLIPSIS_LINES] = num_cut / max(num_lines, 1)
    row[LETTER_WORDS] = totals[NUM_LETTER_WORDS] / max(num_words, 1)
    row[STOP_WORDS] = totals[NUM_STOP_WORDS]


@jit
def _count_dot_triples(data: Bytes, start: int, stop: int) -> int:
    """Three dots, without overlap."""
    num = run = 0
    for index in range(start, stop):
        run = run + 1 if data[index] == 46 else 0
        if run == 3:
            num += 1
            run = 0
    return num


@jit
def _begins_with_bullet(data: Bytes, start: int, stop: int, classes: Classes) -> bool:
    first = skip_space(data, start, stop, classes)
    if first == stop:
        return False
    code, _ = decode(data, first, stop)
    return code in (45, 0x2022)


@jit
def _ends_with_ellipsis(data: Bytes, start: int, stop: int, classes: Classes) -> bool:
    end = skip_space_back(data, start, stop, classes)
    if end - start < 3:
        return False
    a, b, c = data[end - 3], data[end - 2], data[end - 1]
    return bool((a == 46 and b == 46 and c == 46) or (a == 0xE2 and b == 0x80 and c == 0xA6))


@jit
def _is_repeat(slots: Ints, mask: int, key: int) -> bool:
    """Whether the key is in the table already; puts it there."""
    slot = times(key, SLOT_FACTOR) >> 20 & mask
    key |= key == 0
    while slots[slot]:
        if slots[slot] == key:
            return True
        slot = (slot + 1) & mask
    slots[slot] = key
    return False


@jit
def _clear(slots: Ints, num_keys: int) -> int:
    """Empty a table for so many keys, at most half full, in the scratch; returns its mask."""
    size = 8
    while size < 2 * num_keys:
        size *= 2
    for slot in range(size):
        slots[slot] = 0
    return size - 1


@jit
def _measure_repeats(  # noqa: PLR0917 - compiled code is called by position
    data: Bytes, start: int, stop: int, classes: Classes, slots: Ints, row: Row
) -> int:
    """Repeated paragraphs of the stripped text and lines of the whole; returns the text's characters, at least 1."""
    num_chars = max(count_chars(data, start, stop), 1)
    row[IS_EMPTY] = start == stop
    first = skip_space(data, start, stop, classes)
    last = skip_space_back(data, first, stop, classes)
    num, num_repeats, chars = _repeated_parts(data, first, last, 2, slots)
    row[DUPLICATE_PARAGRAPHS] = num_repeats / num
    row[DUPLICATE_PARAGRAPH_CHARS] = chars / num_chars
    num, num_repeats, chars = _repeated_parts(data, start, stop, 1, slots)
    row[DUPLICATE_LINES] = num_repeats / num
    row[DUPLICATE_LINE_CHARS] = chars / num_chars
    return num_chars


@jit
def _repeated_parts(data: Bytes, start: int, stop: int, least: int, slots: Ints) -> tuple[int, int, int]:
    """(parts, repeated parts, their characters), parts being divided by `least` or more new lines."""
    mask = _clear(slots, count_byte(data, start, stop, 10) // least + 1)
    num = num_repeats = repeated_chars = 0
    index = start
    while True:
        index = end = next_break(data, index, stop)
        while index < stop and data[index] == 10:
            index += 1
        if end < stop and index - end < least:
            continue
        num += 1
        if _is_repeat(slots, mask, hash_bytes(data, start, end)):
            num_repeats += 1
            repeated_chars += count_chars(data, start, end)
        if end == stop:
            return num, num_repeats, repeated_chars
        start = index


@jit
def _top_n_gram_chars(words: Ints, num_words: int, n: int, lookup: Lookup, slots: Ints) -> int:
    """Characters, one blank between words, of all occurrences of the most frequent n-gram; of equals the first one's.

    LEVEL of a place becomes n where the n-gram that begins there occurs again. It can only where the (n - 1)-grams at both its
    ends do, so that after 2-grams few places are looked at. The table holds 32 bits of a key, and the first place.
    """
    num = 0
    for place in range(num_words - n + 1):
        if n == 2:
            words[place, LEVEL] = 1
        num += words[place, LEVEL] >= n - 1
    words[num_words - 1, LEVEL] = 1
    mask = _clear(slots, num)
    most, best = 1, 0
    for place in range(num_words - n + 1):
        if words[place, LEVEL] < n - 1 or words[place + 1, LEVEL] < n - 1 - (n == 2):
            continue
        key = times(_n_gram_key(words, place, n, lookup), SLOT_FACTOR)
        slot, mark = key >> 20 & mask, key & ~0xFFFFFFFF | place + 1
        while slots[slot] and (slots[slot] ^ mark) >> 32:
            slot = (slot + 1) & mask
        if not slots[slot]:
            slots[slot] = mark
            words[place, COUNT] = 1
            continue
        first = (slots[slot] & 0xFFFFFFFF) - 1
        words[place, LEVEL] = words[first, LEVEL] = n
        words[first, COUNT] += 1
        count = words[first, COUNT]
        if count > most or (count == most and first < best):
            most, best = count, first
    return int(most * (words[best + n, CHARACTERS] - words[best, CHARACTERS] + n - 1))


@jit
def _count_shared_runs(words: Ints, num_words: int) -> int:
    """COUNT becomes the number of places in a row, from here on, whose 4-gram occurs again; returns the greatest."""
    run = most = 0
    for place in range(num_words - 1, -1, -1):
        run = run + 1 if words[place, LEVEL] >= 4 else 0
        words[place, COUNT] = run
        most = max(most, run)
    return most


@jit
def _n_gram_key(words: Ints, place: int, n: int, lookup: Lookup) -> int:
    """Hash of n words, 2 to 4, and of where each begins."""
    start = words[place, BYTES]
    key = np.uint64(_run_key(words, place, n, lookup)) + np.uint64(words[place + 1, BYTES] - start) * _SECOND
    if n > 2:
        key += np.uint64(words[place + 2, BYTES] - start) * _THIRD
    if n > 3:
        key += np.uint64(words[place + 3, BYTES] - start) * _FOURTH
    return int(np.int64(key))


@jit
def _run_key(words: Ints, place: int, n: int, lookup: Lookup) -> int:
    """Hash of n words written together."""
    scale = power(lookup, words[place + n, BYTES] - words[place, BYTES])
    return hash_between(words[place, HASH_BEFORE], words[place + n, HASH_BEFORE], scale)


@jit
def _duplicate_n_gram_chars(words: Ints, num_words: int, n: int, lookup: Lookup, slots: Ints) -> int:
    """Characters of n-grams that came before; the scan goes on behind such a one, and one word on otherwise.

    Only an n-gram whose 4-grams all occur again can.
    """
    num = 0
    for place in range(num_words - n + 1):
        num += words[place, COUNT] >= n - 3
    mask = _clear(slots, num)
    place = chars = 0
    while place <= num_words - n:
        if words[place, COUNT] >= n - 3 and _is_repeat(slots, mask, _run_key(words, place, n, lookup)):
            chars += words[place + n, CHARACTERS] - words[place, CHARACTERS]
            place += n
        else:
            place += 1
    return chars


@jit
def _measure_lines(  # noqa: PLR0917 - compiled code is called by position
    data: Bytes, start: int, stop: int, classes: Classes, measures: Measures, slots: Ints, row: Row
) -> tuple[int, int]:
    """FineWeb's columns but NEW_LINES; returns (new lines, pieces between ASCII white space)."""
    num_breaks = count_byte(data, start, stop, 10)
    mask = _clear(slots, num_breaks + 1)
    num_lines = num_ends = num_short = repeated_chars = 0
    line = start
    while line < stop:
        index = next_break(data, line, stop)
        if skip_space(data, line, index, classes) < index:
            chars = count_chars(data, line, index)
            num_lines += 1
            code, _ = decode(data, last_character(data, line, index), index)
            num_ends += classes[code] & TERMINAL > 0
            num_short += chars <= measures.short_line_chars
            repeated_chars += chars if _is_repeat(slots, mask, hash_bytes(data, line, index)) else 0
        line = index + 1
    row[NO_LINES] = num_lines == 0
    row[LINE_ENDS] = num_ends / max(num_lines, 1)
    row[SHORT_LINES] = num_short / max(num_lines, 1)
    row[LINE_CHAR_REPEATS] = repeated_chars / max(count_chars(data, start, stop) - num_breaks, 1)
    return num_breaks, count_pieces(data, start, stop)
