"""The pages of a book as one running text.

In: the lines of each page, as a PDF reader gives them. Out: one text without running headers, footers and page numbers, words
that a line end had divided put together, and (by choice) the lines of a paragraph joined. Own rules; nothing is learned:
a running line is one that repeats, numbers aside, or that counts up with the pages; a divided word is put together in the
spelling that the rest of the book uses.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence

EDGE_LINES = 3
"""Running lines are looked for among so many lines at the top and at the bottom of a page."""
MIN_REPEATS = 3
MAX_NUMBERED_LENGTH = 120
"""A longer line that happens to begin or end with the page's number is text."""
FULL_SHARE = 0.75
"""A line of at least this share of the usual width did not end by the author's will."""
MIN_WIDTH = 30
"""Characters. A book of shorter lines is verse, or a list."""
MAX_WORD = 64
FIRST_CJK = "\u2e80"
"""From here on scripts write no space between words."""

_LIGATURES = str.maketrans({"ﬀ": "ff", "ﬁ": "fi", "ﬂ": "fl", "ﬃ": "ffi", "ﬄ": "ffl", "ﬅ": "st", "ﬆ": "st"})
_NUMBER = re.compile(r"\d+")
_SMALL_NUMBER = re.compile(r"[0-9]{1,5}")
_ROMAN = re.compile(r"[ivxlc]{1,7}", re.IGNORECASE)
_WORD = re.compile(r"[^\W\d_]+(?:-[^\W\d_]+)*")
_HYPHENS = "-\u2010\u00ad"
_BULLET = re.compile(r"[•◦▪‣∗*–-]\s|\(?(?:\d{1,3}|[A-Za-z])[.)]\s")
_LEADERS = re.compile(r"(?:\.\s?){4,}")


def join_pages(pages: Sequence[str], *, repeated_share: float, join_lines: bool) -> str:
    """One text of all pages."""
    kept = drop_running_lines(pages, repeated_share=repeated_share)
    return "\n".join(_join_lines(kept, is_joined=join_lines)).translate(_LIGATURES)


def drop_running_lines(pages: Sequence[str], *, repeated_share: float) -> list[list[str]]:
    """The lines of each page that are not empty, but running headers and footers and page numbers.

    Odd and even pages are counted apart, because books print the title on one side and the chapter on the other.
    """
    split = [[line for line in map(str.strip, page.split("\n")) if line] for page in pages]
    counts: Counter[tuple[int, str, str]] = Counter()
    offsets: Counter[int] = Counter()
    for index, lines in enumerate(split):
        counts.update({(index % 2, side, _key(lines[at])) for at, side in _edges(len(lines))})
        offsets.update({number - index for line in {*lines[:1], *lines[-1:]} for number in _numbers(line)})
    shift, num_numbered = max(offsets.items(), key=lambda item: (item[1], -abs(item[0])), default=(0, 0))
    is_numbered = num_numbered >= max(MIN_REPEATS, repeated_share * len(split))
    kept = []
    for index, lines in enumerate(split):
        num_alike = (len(split) + 1 - index % 2) // 2
        least = max(MIN_REPEATS, repeated_share * num_alike)
        running = {at for at, side in _edges(len(lines)) if counts[index % 2, side, _key(lines[at])] >= least}
        if is_numbered:
            ends = {0, len(lines) - 1} if lines else set()
            running |= {at for at in ends if index + shift in _numbers(lines[at])}
        kept.append([line for at, line in enumerate(lines) if at not in running])
    return kept


def _edges(num_lines: int) -> Iterator[tuple[int, str]]:
    yield from ((at, "top") for at in range(min(EDGE_LINES, num_lines)))
    yield from ((at, "bottom") for at in range(max(num_lines - EDGE_LINES, 0), num_lines))


def _key(line: str) -> str:
    """The line with its numbers made equal."""
    return "0" if _ROMAN.fullmatch(line) else _NUMBER.sub("0", " ".join(line.split()).casefold())


def _numbers(line: str) -> set[int]:
    """The numbers that a short line begins or ends with."""
    tokens = line.split() if len(line) <= MAX_NUMBERED_LENGTH else []
    return {int(token) for token in (*tokens[:1], *tokens[-1:]) if _SMALL_NUMBER.fullmatch(token)}


def _join_lines(pages: Sequence[Sequence[str]], *, is_joined: bool) -> Iterator[str]:
    """Paragraphs, or with `is_joined` False lines, whose divided words are whole."""
    words = {word.lower() for lines in pages for line in lines for word in _WORD.findall(line)}
    lengths = sorted(len(line) for lines in pages for line in lines)
    width = lengths[int(0.9 * len(lengths))] if lengths else 0
    full_length = FULL_SHARE * max(width, MIN_WIDTH)
    parts: list[str] = []
    last_length = 0
    for lines in pages:
        for number, line in enumerate(lines):
            start, _, rest = line.partition(" ")
            whole = _mend(parts[-1], start, words=words) if parts else None
            is_full = is_joined and last_length >= full_length
            if whole is not None:
                parts[-1] = whole
                if not is_joined:
                    yield _join(parts)
                    parts.clear()
                parts += [rest] if rest else []
            elif parts and is_full and _goes_on(parts[-1], line, is_new_page=number == 0):
                parts.append(line)
            else:
                if parts:
                    yield _join(parts)
                parts = [line]
            last_length = len(line)
    if parts:
        yield _join(parts)


def _goes_on(last: str, line: str, *, is_new_page: bool) -> bool:
    """Whether a line goes on with the paragraph of the full line before it."""
    if _BULLET.match(line) or _LEADERS.search(last):
        return False
    return not (is_new_page and last.endswith((".", "!", "?", ":")))


def _join(parts: list[str]) -> str:
    if not any(part[:1] >= FIRST_CJK for part in parts):
        return " ".join(parts)
    text = parts[0]
    for part in parts[1:]:
        text += part if part[:1] >= FIRST_CJK and text[-1:] >= FIRST_CJK else f" {part}"
    return text


def _mend(last: str, start: str, *, words: set[str]) -> str | None:
    """The line that ends with a hyphen and the word that begins the next as one, or None if no word is divided there."""
    if not last.endswith(tuple(_HYPHENS)) or not start[:1].isalpha():
        return None
    stem, hyphen = last[:-1], last[-1]
    left = _trailing_letters(stem)
    match = _WORD.match(start)
    if not left or match is None:
        return None
    right = match[0].partition("-")[0]
    is_spelled_so = f"{left}-{right}".lower() in words and (left + right).lower() not in words
    if hyphen != "\u00ad" and (is_spelled_so or not right[0].islower()):
        return last + start
    return stem + start


def _trailing_letters(text: str) -> str:
    length = 0
    while length < min(len(text), MAX_WORD) and text[-length - 1].isalpha():
        length += 1
    return text[len(text) - length :]
