"""One piece of text between white space into words, the way of spaCy's tokenizer.

In: a Piece: its characters with their bits (word_rules) and a running hash. Out: START, 1 where a word begins. Order, as in
spaCy: affixes from both ends until a special word or none is left; then a special word, a URL, or the infixes; last,
neighbours that together are a special word are joined (":" and ")" to ":)"; spaCy also looks across one blank, which only
keeps it from joining others). Each step moves on, so the time is linear in the piece.
Source: spacy/tokenizer.pyx and its URL pattern (spacy/lang/tokenizer_exceptions.py), without numeric hosts.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from train.data.byte_kernels import MULTIPLIER, hash_between, times
from train.data.jit import jit
from train.data.word_rules import (
    ALPHA,
    BEFORE_DOT,
    CURRENCY,
    DECIMAL,
    DIGIT,
    DOT,
    HOST,
    ICON,
    INFIX,
    JOIN_FIRST,
    JOIN_SECOND,
    LOWER,
    PREFIX,
    QUOTE,
    SUFFIX,
    UNIT_END,
    UPPER,
    WORD,
)

Ints = npt.NDArray[Any]
"""int64."""
Piece = Ints
"""One row per character, of the columns below. A single array, because compiled calls count references per array."""
CODE, BITS, OFFSET, HASH, START = range(5)
"""Code point, bits of word_rules, first byte, hash of the bytes before, and 1 where a word begins. OFFSET and HASH have one
row more, for the end."""
NUM_PIECE_COLUMNS = 5
Lookup = Ints
"""Known words in one array: keys (open addressing), entries, filter bits, the longest key, powers of MULTIPLIER."""
NUM_SLOTS, NUM_POWERS = 4096, 4096
ENTRIES, FILTER, MAX_CHARS, POWERS = NUM_SLOTS, 2 * NUM_SLOTS, 2 * NUM_SLOTS + 512, 2 * NUM_SLOTS + 513
RULE_MASK, JOIN_SHIFT, UNIT_SHIFT, STOP_SHIFT = 0xFFFF, 16, 32, 40
"""An entry: bits 0-15 where the parts of a special word begin, by character; bits 16-31 the same in the sequence that is
joined to it; a unit; from STOP_SHIFT on one more than its place among the stop words."""
SLOT_FACTOR = 0x56E8FEB86659FD93
"""Of a key's slot, mod 2^64."""


@jit
def power(lookup: Lookup, exponent: int) -> int:
    """MULTIPLIER to any power."""
    if exponent < NUM_POWERS:
        return int(lookup[POWERS + exponent])
    result, base = 1, MULTIPLIER
    while exponent:
        if exponent & 1:
            result = times(result, base)
        base = times(base, base)
        exponent >>= 1
    return result


@jit
def find_entry(lookup: Lookup, key: int) -> int:
    """The entry of the word with this hash, 0 if it is no known word."""
    spread = times(key, SLOT_FACTOR)
    bit = spread >> 49 & 0x7FFF
    if not lookup[FILTER + (bit >> 6)] >> (bit & 63) & 1:
        return 0
    slot = bit >> 3
    while lookup[slot]:
        if lookup[slot] == key:
            return int(lookup[ENTRIES + slot])
        slot = (slot + 1) & (NUM_SLOTS - 1)
    return 0


@jit
def entry_of(piece: Piece, lookup: Lookup, low: int, high: int) -> int:
    """The entry of characters low to high, 0 if they are no known word."""
    if high - low > lookup[MAX_CHARS] or high <= low:
        return 0
    num_bytes = piece[high, OFFSET] - piece[low, OFFSET]
    return find_entry(lookup, hash_between(piece[low, HASH], piece[high, HASH], lookup[POWERS + num_bytes]))


@jit
def mark_words(piece: Piece, lookup: Lookup, num: int, bits: int) -> None:
    """Fill START of the piece's first `num` characters, whose bits together are `bits`."""
    low, high = 0, num
    is_special = False
    while low < high:
        if entry_of(piece, lookup, low, high) & RULE_MASK:
            is_special = True
            break
        prefix = _prefix_length(piece, low, high)
        if prefix and entry_of(piece, lookup, low + prefix, high) & RULE_MASK:
            piece[low, START] = 1
            low += prefix
            is_special = True
            break
        suffix = _suffix_length(piece, lookup, low + prefix, high)
        if suffix and entry_of(piece, lookup, low, high - suffix) & RULE_MASK:
            high -= suffix
            piece[high, START] = 1
            is_special = True
            break
        if not prefix and not suffix:
            break
        piece[low, START] = 1
        low += prefix
        high -= suffix
        if suffix:
            piece[high, START] = 1
    if low < high:
        piece[low, START] = 1
        if is_special:
            _mark_parts(piece, low, entry_of(piece, lookup, low, high) & RULE_MASK)
        elif bits & INFIX and not (bits & DOT and _is_url(piece, low, high)):
            _mark_infixes(piece, low, high)
    if bits & JOIN_SECOND and num > 1:
        _join_specials(piece, lookup, num)


@jit
def _mark_parts(piece: Piece, low: int, mask: int) -> None:
    while mask:
        piece[low, START] = mask & 1
        mask >>= 1
        low += 1


@jit
def _prefix_length(piece: Piece, low: int, high: int) -> int:
    if piece[low, BITS] & PREFIX:
        return 1
    first = piece[low, CODE]
    if first == 43:  # + before anything but a digit
        return 0 if low + 1 < high and piece[low + 1, BITS] & DIGIT else 1
    if first == 46:  # two or more dots
        end = low + 1
        while end < high and piece[end, CODE] == 46:
            end += 1
        return end - low if end - low > 1 else 0
    if first in (65, 67) and low + 1 < high and piece[low + 1, CODE] == 36:  # A$, C$
        return 2
    if first == 85 and low + 2 < high and piece[low + 1, CODE] == 83 and piece[low + 2, CODE] == 36:  # US$
        return 3
    return 0


@jit
def _suffix_length(  # noqa: PLR0911, PLR0912 - spaCy's alternatives
    piece: Piece, lookup: Lookup, low: int, high: int
) -> int:
    if high <= low:
        return 0
    last, bits = piece[high - 1, CODE], piece[high - 1, BITS]
    before = high - 2
    has_before = before >= low
    if last == 46:
        start = high - 1
        while start > low and piece[start - 1, CODE] == 46:
            start -= 1
        if high - start > 1:
            return high - start
        if not has_before:
            return 0
        if piece[before, BITS] & BEFORE_DOT:
            return 1
        if before > low:
            is_degree = piece[before - 1, CODE] == 176 and piece[before, CODE] in (67, 70, 75)
            if is_degree or (piece[before, BITS] & UPPER and piece[before - 1, BITS] & UPPER):
                return 1
        return 0
    if bits & SUFFIX:
        return 2 if last == 0x2026 and has_before and piece[before, CODE] == 0x2026 else 1
    if last in (115, 83) and has_before and piece[before, CODE] in (39, 0x2019):
        return 2  # 's
    if last == 43 and has_before and piece[before, BITS] & DIGIT:
        return 1
    if bits & CURRENCY:
        return _currency_length(piece, low, high)
    if bits & UNIT_END:
        start = before
        while start >= low and start > high - 10 and not piece[start, BITS] & DIGIT:
            start -= 1
        if start >= low and piece[start, BITS] & DIGIT and entry_of(piece, lookup, start + 1, high) >> UNIT_SHIFT & 1:
            return high - start - 1
    return 0


@jit
def _currency_length(piece: Piece, low: int, high: int) -> int:
    """A currency sign after a digit; the dollar also as US$, C$ and A$."""
    start = high - 1
    if piece[start, CODE] == 36 and start > low:
        if piece[start - 1, CODE] == 65 or piece[start - 1, CODE] == 67:
            start -= 1
        elif start - 1 > low and piece[start - 1, CODE] == 83 and piece[start - 2, CODE] == 85:
            start -= 2
    return high - start if start > low and piece[start - 1, BITS] & DIGIT else 0


@jit
def _mark_infixes(piece: Piece, low: int, high: int) -> None:
    index = low + 1
    if piece[low, CODE] == 46:
        while index < high and piece[index, CODE] == 46:
            index += 1
    while index < high:
        length = _infix_length(piece, index, high) if piece[index, BITS] & INFIX else 0
        if length:
            piece[index, START] = 1
            index += length
            if index < high:
                piece[index, START] = 1
        else:
            index += 1


@jit
def _infix_length(  # noqa: PLR0911 - spaCy's alternatives
    piece: Piece, index: int, high: int
) -> int:
    """Of the infix that begins here, behind the first character; 0 if none does."""
    this, before = piece[index, CODE], piece[index - 1, BITS]
    if piece[index, BITS] & ICON or this == 0x2026:
        return 1
    after = piece[index + 1, BITS] if index + 1 < high else 0
    if this == 46:
        end = index + 1
        while end < high and piece[end, CODE] == 46:
            end += 1
        if end - index > 1:
            return end - index
        return 1 if before & (LOWER | QUOTE) and after & (UPPER | QUOTE) else 0
    if this == 44:
        return 1 if before & ALPHA and after & ALPHA else 0
    is_number = after & DIGIT or (index + 1 < high and piece[index + 1, CODE] == 45)
    if is_number and before & DIGIT and this in (43, 45, 42, 94):
        return 1
    if not before & (ALPHA | DIGIT):
        return 0
    if this in (58, 60, 62, 61, 47):
        return 1 if after & ALPHA else 0
    if this in (45, 0x2014):  # up to three hyphens or two dashes before a letter
        end = index + 1
        while end < high and end - index < (3 if this == 45 else 2) and piece[end, CODE] == this:
            end += 1
        return end - index if end < high and piece[end, BITS] & ALPHA else 0
    if this in (0x2013, 126):
        return 1 if after & ALPHA else 0
    return 0


@jit
def _is_url(piece: Piece, low: int, high: int) -> bool:
    """Whether the piece is a host name, with scheme, user, port or path: "train.data" is one too."""
    if _is_host(piece, low, high):
        return True
    scheme = low
    while scheme < high and (piece[scheme, BITS] & WORD or piece[scheme, CODE] in (43, 45, 46)):
        scheme += 1
    is_scheme = scheme - low > 1 and scheme + 3 < high and piece[scheme, CODE] == 58
    is_scheme = is_scheme and piece[scheme + 1, CODE] == 47 and piece[scheme + 2, CODE] == 47
    if is_scheme and _is_host(piece, scheme + 3, high):
        return True
    for index in range(low + 1, high - 1):  # noqa: SIM110 - numba has no generators
        if piece[index, CODE] == 64 and _is_host(piece, index + 1, high):
            return True
    return False


@jit
def _is_host(piece: Piece, low: int, high: int) -> bool:
    """Labels of 1 to 64 characters, a last one of 2 to 63 lower-case letters, then perhaps a port and a path, and the end."""
    index, label, num_labels = low, low, 0
    is_lower = True
    while index < high:
        this = piece[index, CODE]
        if this == 46:
            if index == label or index - label > 64 or piece[index - 1, CODE] == 95 or piece[index - 1, CODE] == 45:
                return False
            label, num_labels, is_lower = index + 1, num_labels + 1, True
        elif piece[index, BITS] & HOST or (this in (95, 45) and index > label):
            is_lower &= piece[index, BITS] & LOWER > 0
        else:
            break
        index += 1
    if not num_labels or not is_lower or not 2 <= index - label <= 63:
        return False
    if index < high and piece[index, CODE] == 58:
        port = index + 1
        while port < high and piece[port, BITS] & DECIMAL:
            port += 1
        if not 2 <= port - index - 1 <= 5:
            return False
        index = port
    return index == high or piece[index, CODE] == 47 or piece[index, CODE] == 63 or piece[index, CODE] == 35


@jit
def _join_specials(piece: Piece, lookup: Lookup, num: int) -> None:
    """Join neighbours that spaCy finds again as a special word: most words first, then from left to right."""
    most = 0
    for low in range(num):
        if piece[low, START] and piece[low, BITS] & JOIN_FIRST:
            most = max(most, _longest_join(piece, lookup, low, num, 64))
    if not most:
        return
    is_seen, ends = np.zeros(num, np.bool_), np.zeros(num, np.int64)
    for num_words in range(most, 1, -1):
        for low in range(num):
            if not piece[low, START] or not piece[low, BITS] & JOIN_FIRST:
                continue
            high = _join_end(piece, lookup, low, num, num_words)
            if high:
                if not is_seen[low] and not is_seen[high - 1]:
                    ends[low] = high
                for index in range(low, high):  # as spaCy does, also by a word that is not joined
                    is_seen[index] = True
    for low in range(num):
        if ends[low]:
            for index in range(low, ends[low]):
                piece[index, START] = 0
            _mark_parts(piece, low, entry_of(piece, lookup, low, ends[low]) & RULE_MASK)


@jit
def _longest_join(piece: Piece, lookup: Lookup, low: int, num: int, most: int) -> int:
    """Most words, from `low` on, that are to be joined; 0 if none are."""
    second = low + 1
    while second < num and not piece[second, START]:
        second += 1
    if second == num or not piece[second, BITS] & JOIN_SECOND:
        return 0
    longest, num_words = 0, 1
    mask = 1 | 1 << (second - low) if second - low < JOIN_SHIFT else 0
    high = second + 1
    while mask and high <= num and high - low <= min(lookup[MAX_CHARS], JOIN_SHIFT):
        if high == num or piece[high, START]:
            num_words += 1
            if num_words > most:
                break
            if entry_of(piece, lookup, low, high) >> JOIN_SHIFT & RULE_MASK == mask:
                longest = num_words
            if high < num and high - low < JOIN_SHIFT:
                mask |= 1 << (high - low)
        high += 1
    return longest


@jit
def _join_end(piece: Piece, lookup: Lookup, low: int, num: int, num_words: int) -> int:
    """End of the special word of exactly so many words that begins here; 0 if there is none."""
    if _longest_join(piece, lookup, low, num, num_words) != num_words:
        return 0
    high = low + 1
    for _ in range(num_words):
        while high < num and not piece[high, START]:
            high += 1
        high += 1
    return high - 1
