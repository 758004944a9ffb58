"""Comments at the head of a source file: read (licence notices, marks of generators), and written (the file's path).

In: the text of a file in any language. Out: its leading comment without the comment signs, or a comment that names a path.
"""

import re
from collections.abc import Iterator

from train.data.code_language import LANGUAGES

MAX_HEAD_CHARS = 32_768
"""No licence notice is longer; the longest licence text in use, the GPL's, has 35,000 characters."""

_BLOCKS = (
    ("/*", "*/"),
    ('"""', '"""'),
    ("'''", "'''"),
    ("<!--", "-->"),
    ("--[[", "]]"),
    ("--[=[", "]=]"),
    ("=begin", "=end"),
)
_LINE = re.compile(r"(?://+|#+|--+|;+|%+|\*+|!+|dnl\b|rem\b)", re.IGNORECASE)
_SKIPPED = re.compile(
    r"#(?:!|ifndef\b|ifdef\b|if\b|define\b|include\b|pragma\b|import\b|undef\b|endif\b|else\b|nullable\b)"
    r"|<\?(?:php|xml)\b[^\n]*|package\s+[\w.]+;?$|(?:\"use \w+\"|'use \w+');?$"
)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


def leading_comment(text: str) -> str:
    """The comments before the first line of code, one comment line a line. A module's docstring counts as one."""
    return "\n".join(_comment_lines(text[:MAX_HEAD_CHARS]))


def path_comment(path: str, *, language: str) -> str:
    """One line that names the file in the language's own comment syntax, such as "# package/module.py"."""
    name = _CONTROL.sub(" ", path).replace("*/", "* /").replace("?>", "? >")
    return LANGUAGES[language].comment.format(name)


def _comment_lines(head: str) -> Iterator[str]:
    close = ""
    for line in head.split("\n"):
        rest = line.strip("\ufeff \t\r")
        if not close:
            if rest.startswith("<?php") and "/*" in rest:
                rest = rest[rest.index("/*") :]
            opened = next((pair for pair in _BLOCKS if rest.lstrip("rRuUbB").startswith(pair[0])), None)
            if opened is None:
                if not rest or _SKIPPED.match(rest):
                    continue
                sign = _LINE.match(rest)
                if sign is None:
                    return
                yield rest[sign.end() :].strip()
                continue
            close = opened[1]
            rest = rest[rest.index(opened[0]) + len(opened[0]) :]
        body, closed, after = rest.partition(close)
        yield body.strip("*/ \t")
        if closed:
            close = ""
            if after.strip("*/ \t;"):
                return
