"""C4's rules: which lines of a text are dropped, and what is left.

In: UTF-8 of many documents. Out: the text of each without the dropped lines, and the counts that c4_rules judges. A line is
what str.splitlines gives, stripped; its words are pieces between white space; phrases are found in any case of ASCII letters.
Order and meaning follow datatrove 0.10.1's c4_filters.py, where a line that is dropped is no ground to drop the document.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from train.data.byte_kernels import (
    Bytes,
    Classes,
    count_byte,
    count_chars,
    decode,
    next_break,
    next_line_end,
    skip_black,
    skip_space,
    skip_space_back,
)
from train.data.jit import jit
from train.data.quality_kernels import CURLY_LINES, LOREM_LINES, SENTENCES
from train.data.quality_rules import C4Config
from train.data.word_kernels import Ints
from train.data.word_rules import DECIMAL
from train.data.words import NUM_SENTENCES, Scratch, WordTables, new_scratch, segment, word_tables

PHRASES = (
    "lorem ipsum", "javascript", "terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies",
    "use cookies",
)  # fmt: skip
_LOREM, _JAVASCRIPT, _POLICY, _CURLY, _CITATION, _ENDS = 1, 2, 4, 8, 16, 32
_PHRASE_BITS = np.array([_LOREM, _JAVASCRIPT, *[_POLICY] * 6])
_PHRASE_BYTES = np.frombuffer("".join(PHRASES).encode(), np.uint8)
_PHRASE_STARTS = np.cumsum([0, *map(len, PHRASES)])
_CITATIONS = np.frombuffer(b"[edit][citation needed]", np.uint8)
_EDIT_BYTES = 6


def _places_of(offset: int) -> npt.NDArray[np.uint8]:
    """By byte: one bit for each phrase that has it, in any case, at this offset."""
    places = np.zeros(256, np.uint8)
    for number, phrase in enumerate(PHRASES):
        places[[ord(phrase[offset]), ord(phrase[offset].upper())]] |= 1 << number
    return places


_FIRST, _SECOND, _THIRD = _places_of(0), _places_of(1), _places_of(2)


class EditedTexts(NamedTuple):
    """Document i is data[starts[i] : stops[i]]; `dropped` counts the lines that are gone, blank ones aside."""

    data: Bytes
    starts: Ints
    stops: Ints
    dropped: Ints


def edit_texts(data: Bytes, offsets: Ints, *, config: C4Config, statistics: npt.NDArray[np.float64]) -> EditedTexts:
    """Every document without the lines that C4 drops; fills C4's columns of `statistics`.

    Sentences are counted up to twice the least number: more make no difference.
    """
    num_documents = len(offsets) - 1
    edited = np.empty(int(offsets[-1] - offsets[0]) + num_documents, np.uint8)
    starts, stops, kept, dropped = (np.zeros(num_documents, np.int64) for _ in range(4))
    switches = (
        _LOREM * config.drop_lorem_ipsum | _JAVASCRIPT * config.drop_javascript | _POLICY * config.drop_policy
        | _CURLY * config.drop_curly_bracket | _CITATION * config.remove_citations | _ENDS * config.terminal_punctuation
    )  # fmt: skip
    tables = word_tables()
    most_chars = int(offsets[-1]) if config.max_word_chars is None else config.max_word_chars
    _edit_documents(
        data, offsets, tables.classes, switches, config.min_words_per_line or 0, most_chars, edited, starts, stops, kept,
        dropped, statistics,
    )  # fmt: skip
    edited.flags.writeable = False  # the type for which `segment` is compiled already
    enough = 2 * (config.min_sentences or 0)
    _count_sentences(edited, starts, stops, kept, enough, tables, new_scratch(0), statistics)
    return EditedTexts(edited, starts, stops, dropped)


@jit
def _edit_documents(  # noqa: PLR0917 - compiled code is called by position
    data: Bytes,
    offsets: Ints,
    classes: Classes,
    switches: int,
    least_words: int,
    most_chars: int,
    edited: Bytes,
    starts: Ints,
    stops: Ints,
    kept: Ints,
    dropped: Ints,
    statistics: npt.NDArray[np.float64],
) -> None:
    """Write the lines to keep of every document to `edited`, divided by new lines."""
    end = 0
    for document in range(len(offsets) - 1):
        index, stop = offsets[document], offsets[document + 1]
        starts[document] = end
        num_lorem = num_curly = 0
        while index < stop:
            line_stop, width = next_line_end(data, index, stop)
            first = skip_space(data, index, line_stop, classes)
            last = skip_space_back(data, first, line_stop, classes)
            index = line_stop + width
            num_words = _count_pieces(data, first, last, classes, least_words, most_chars)
            is_kept = num_words >= least_words
            if is_kept:
                begin = end + (kept[document] > 0)
                line_end = _copy_line(data, first, last, classes, switches & _CITATION, edited, begin)
                is_kept = not switches & _ENDS or _is_ended(edited, begin, line_end)
            if is_kept:
                found = _find_phrases(edited, begin, line_end) & switches
                if found & _LOREM:
                    num_lorem += 1
                elif found & _CURLY and not found & _JAVASCRIPT:
                    num_curly += 1
                is_kept = not found
            if is_kept:
                if kept[document]:
                    edited[end] = 10
                kept[document] += 1
                end = line_end
            else:
                dropped[document] += first < last
        stops[document] = end
        statistics[document, LOREM_LINES] = num_lorem
        statistics[document, CURLY_LINES] = num_curly


@jit
def _count_pieces(  # noqa: PLR0917 - compiled code is called by position
    data: Bytes, start: int, stop: int, classes: Classes, enough: int, most_chars: int
) -> int:
    """Pieces between white space, up to `enough`; -1 if one has more than `most_chars` characters."""
    num = 0
    is_long = stop - start > most_chars
    while start < stop and (is_long or num < enough):
        end = skip_black(data, start, stop, classes)
        if end - start > most_chars and count_chars(data, start, end) > most_chars:
            return -1
        num += 1
        start = skip_space(data, end, stop, classes)
    return num


@jit
def _copy_line(  # noqa: PLR0917 - compiled code is called by position
    data: Bytes, start: int, stop: int, classes: Classes, has_citations: int, edited: Bytes, end: int
) -> int:
    """Copy a line to `edited` from `end` on, perhaps without citations; returns where it ends there."""
    while start < stop:
        if has_citations and data[start] == 91:
            width = _citation_width(data, start, stop, classes)
            if width:
                start += width
                continue
        edited[end] = data[start]
        start += 1
        end += 1
    return end


@jit
def _citation_width(data: Bytes, start: int, stop: int, classes: Classes) -> int:
    """Bytes of the citation, such as [12], that begins at this bracket; 0 if none does."""
    index = start + 1
    while index < stop:
        code, width = decode(data, index, stop)
        if not classes[code] & DECIMAL:
            break
        index += width
    if index < stop and data[index] == 93:
        return index + 1 - start
    for first, last in ((0, _EDIT_BYTES), (_EDIT_BYTES, len(_CITATIONS))):
        width = last - first
        is_equal = stop - start >= width
        for offset in range(width if is_equal else 0):
            is_equal &= data[start + offset] == _CITATIONS[first + offset]
        if is_equal:
            return width
    return 0


@jit
def _find_phrases(data: Bytes, start: int, stop: int) -> int:
    """The bits of all phrases in a line, in any case, and of "{"."""
    found = _CURLY if count_byte(data, start, stop, 123) else 0
    for index in range(np.uintp(start), np.uintp(max(stop - 2, start))):
        places = _FIRST[data[index]] & _SECOND[data[index + np.uintp(1)]] & _THIRD[data[index + np.uintp(2)]]
        if places:
            for phrase in range(len(_PHRASE_BITS)):
                if places >> phrase & 1 and _has_phrase(data, int(index), stop, phrase):
                    found |= _PHRASE_BITS[phrase]
    return found


@jit
def _has_phrase(data: Bytes, start: int, stop: int, phrase: int) -> bool:
    first, last = _PHRASE_STARTS[phrase], _PHRASE_STARTS[phrase + 1]
    if stop - start < last - first:
        return False
    for offset in range(last - first):
        byte = data[start + offset] & 0xFF
        if 65 <= byte <= 90:
            byte |= 32
        if byte != _PHRASE_BYTES[first + offset]:
            return False
    return True


@jit
def _is_ended(data: Bytes, start: int, stop: int) -> bool:
    """Whether a line ends with . ? ! " or ', but not with three dots."""
    if stop == start:
        return False
    last = data[stop - 1]
    if last == 46:
        return not bool(stop - start > 2 and data[stop - 2] == 46 and data[stop - 3] == 46)
    return bool(last in (63, 33, 34, 39))


@jit
def _count_sentences(  # noqa: PLR0917 - compiled code is called by position
    edited: Bytes,
    starts: Ints,
    stops: Ints,
    kept: Ints,
    enough: int,
    tables: WordTables,
    scratch: Scratch,
    statistics: npt.NDArray[np.float64],
) -> None:
    """Sentences of the kept lines, up to `enough`; then strip the whole."""
    for document in range(len(starts)):
        num = 0
        line, stop = starts[document], stops[document]
        for _ in range(kept[document]):
            if num >= enough:
                break
            end = next_break(edited, line, stop)
            segment(edited, line, end, tables, scratch, np.inf)
            num += scratch.totals[NUM_SENTENCES]
            line = end + 1
        statistics[document, SENTENCES] = min(num, enough)
        starts[document] = skip_space(edited, starts[document], stop, tables.classes)
        stops[document] = skip_space_back(edited, starts[document], stop, tables.classes)


@jit
def gather_texts(  # noqa: PLR0917 - compiled code is called by position
    data: Bytes, offsets: Ints, edited: EditedTexts, is_edited: npt.NDArray[np.bool_], out: Bytes, ends: Ints
) -> None:
    """Write each document, edited or as it was, to `out`; ends[i + 1] is where document i ends."""
    end = ends[0]
    for document in range(len(offsets) - 1):
        source, start, stop = data, offsets[document], offsets[document + 1]
        if is_edited[document]:
            source, start, stop = edited.data, edited.starts[document], edited.stops[document]
        for index in range(start, stop):
            out[end] = source[index]
            end += 1
        ends[document + 1] = end
