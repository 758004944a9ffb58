"""Text to passages: whole paragraphs where they fit, else whole sentences, lines, or words.

In: clean text. Out: slices of it in order. No character but whitespace is lost and no word is cut, so that a passage
can be quoted as the source of an answer.
"""

import re
from collections.abc import Iterator

_PARAGRAPH = re.compile(r"(?:(?!\n[^\S\n]*\n).)+", re.DOTALL)
_LINE = re.compile(r"[^\n]+")
_WORD = re.compile(r"\S+")
_SENTENCE_END = re.compile(r"[.!?][\"'”’)\]*_`]*(?=\s+[\"'“‘(\[*_`]*[A-Z0-9])")
_ABBREVIATION = re.compile(
    r"(?:^|[\s(\[\"'])(?:e\.g|i\.e|etc|cf|vs|ca|approx|Dr|Mr|Mrs|Ms|Prof|St|Jr|Sr|No|Fig|Sec|Eq|Vol|Inc|Ltd|Co|[A-Z])$"
)
_HEADING_CHARS = 80

Span = tuple[int, int]


def split_passages(text: str, *, max_chars: int = 700) -> list[str]:
    """Passages of at most `max_chars` characters; only a single longer word makes a longer one.

    Short paragraphs share a passage; a heading stays with what follows it. Raises ValueError if max_chars < 1.
    """
    if max_chars < 1:
        raise ValueError(f"max_chars is {max_chars}: give at least 1")
    passages: list[Span] = []
    for start, end in _atoms(text, max_chars=max_chars):
        if passages and end - passages[-1][0] <= max_chars:
            passages[-1] = (passages[-1][0], end)
        else:
            passages.append((start, end))
    return [text[start:end] for start, end in passages]


def split_sentences(text: str) -> list[str]:
    """Sentences of one paragraph. Abbreviations and initials ("Dr.", "e.g.", "J.") do not end one."""
    return [text[start:end] for start, end in _sentences(text, 0, len(text))]


def _atoms(text: str, *, max_chars: int) -> Iterator[Span]:
    """The smallest units, in order: paragraphs that fit (a heading with its first one), pieces of those that do not."""
    heading: Span | None = None
    for match in _PARAGRAPH.finditer(text):
        span = _trim(text, *match.span())
        if span[0] == span[1]:
            continue
        if heading is not None:
            joined = (heading[0], span[1])
            if joined[1] - joined[0] <= max_chars:
                yield joined
                heading = None
                continue
            yield from _pieces(text, *heading, max_chars=max_chars)
            heading = None
        if _is_heading(text[span[0] : span[1]]):
            heading = span
        else:
            yield from _pieces(text, *span, max_chars=max_chars)
    if heading is not None:
        yield from _pieces(text, *heading, max_chars=max_chars)


def _pieces(text: str, start: int, end: int, *, max_chars: int) -> Iterator[Span]:
    """Cut a span that is too long: at sentences, then at lines, then at words."""
    if end - start <= max_chars:
        yield start, end
        return
    for sentence in _sentences(text, start, end):
        for line in _fitting(text, sentence, _LINE, max_chars=max_chars):
            yield from _fitting(text, line, _WORD, max_chars=max_chars)


def _fitting(text: str, span: Span, unit: re.Pattern[str], *, max_chars: int) -> Iterator[Span]:
    if span[1] - span[0] <= max_chars:
        yield span
        return
    for match in unit.finditer(text, *span):
        start, end = _trim(text, *match.span())
        if start < end:
            yield start, end


def _sentences(text: str, start: int, end: int) -> Iterator[Span]:
    begin = start
    for match in _SENTENCE_END.finditer(text, start, end):
        if match.end() >= end:
            break
        if text[match.start()] == "." and _ABBREVIATION.search(text, max(begin, match.start() - 12), match.start()):
            continue
        yield _trim(text, begin, match.end())
        begin = match.end()
    last = _trim(text, begin, end)
    if last[0] < last[1]:
        yield last


def _trim(text: str, start: int, end: int) -> Span:
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    return start, end


def _is_heading(paragraph: str) -> bool:
    lines = paragraph.splitlines()
    is_underlined = len(lines) == 2 and len(set(lines[1].strip())) == 1
    return len(paragraph) <= _HEADING_CHARS and (is_underlined or (len(lines) == 1 and paragraph[-1] not in ".!?:;,"))
