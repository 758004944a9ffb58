"""Code search: lines and definitions in configured folders and in the stored passages.

In: a text, a regular expression or a symbol's name. Out: lines with path and number. Folders are walked with descriptors
(`os.fwalk`) and files opened without following links, so nothing outside of the roots is read whatever is renamed meanwhile; a
path that a caller names is only compared with those that were found. A regular expression has a time limit (the `regex`
package asks its clock while it backtracks), a symbol is found in Python's own syntax tree.
"""

import ast
import fnmatch
import os
import re
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import regex
from pydantic import Field

from autonomous.tools.config import CodeConfig
from autonomous.tools.tool import (
    Arguments,
    Citation,
    Retrieve,
    ToolArguments,
    ToolError,
    ToolResult,
    parse_arguments,
    schema_of,
    shown,
)
from memory.types import Episode, EpisodeFilter, Guard

LINE_CHARS = 200
MAX_DEPTH = 50
"""Folders within folders."""
LEAST_S = 0.01
TIME_UP = "The search was ended when its time was up (knowledge.code.seconds): ask for something simpler."
_BINARY_CHARS = 8000
_SKIPPED = frozenset(("__pycache__", "node_modules"))


class CodeSearchArguments(ToolArguments):
    """Of the search."""

    query: str = Field(min_length=1, max_length=200)
    """A text, a regular expression, or the name of a function or class."""
    kind: Literal["literal", "regex", "symbol"] = "literal"
    """literal: lines with this text; regex: lines that match; symbol: where a Python function or class of this name (also
    Class.method) is defined."""
    path: str | None = Field(None, min_length=1, max_length=500)
    """Files whose path, as results show it, matches this pattern, for instance *.py or project/src/*."""


@dataclass(frozen=True, slots=True)
class Text:
    """A file, whose path begins with its root's name, or a stored passage (source/title)."""

    path: str
    text: str
    episode: Episode | None = None

    def cite(self, line: int) -> Citation:
        """A line of it."""
        if self.episode is not None:
            return Citation(self.episode.title, self.episode.id, self.episode.source_id)
        return Citation(self.path, f"{self.path}:{line}")


Find = Callable[[Text], Iterator[tuple[int, str]]]
"""Text -> (line number from 1, line) of what is found in it."""


class _Enough(Exception):
    """The search ends here: says why."""


class CodeSearch:
    """See the module. `retrieve` finds stored passages; None: folders alone."""

    name = "code_search"
    description = "Finds lines of code by text or regular expression, and where a Python function or class is defined."
    parameters = schema_of(CodeSearchArguments)

    def __init__(
        self, config: CodeConfig, *, retrieve: Retrieve | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._config = config
        self._retrieve = retrieve
        self._clock = clock

    def call(self, arguments: Arguments, *, timeout_s: float, guard: Guard) -> ToolResult:
        """See Tool. A search whose time is up gives what it found until then."""
        asked = parse_arguments(CodeSearchArguments, arguments)
        deadline = self._clock() + min(timeout_s, self._config.seconds)
        find = self._finder(asked, deadline)
        lines: list[str] = []
        citations: dict[Citation, None] = {}
        problem = ""
        num_files = 0
        try:
            for one in self._texts(asked, deadline, guard):
                num_files += 1
                for number, line in find(one):
                    lines.append(f"{one.path}:{number}: {line.strip()[:LINE_CHARS]}")
                    citations[one.cite(number)] = None
                    if len(lines) == self._config.num_results:
                        raise _Enough(f"There may be more: the first {len(lines)} are given.")
        except _Enough as reason:
            problem = str(reason)
        text = "\n".join([*(lines or ["Nothing was found."]), *([problem] if problem else [])])
        details = {"num_matches": len(lines), "num_files": num_files, "is_complete": not problem}
        return ToolResult(text, tuple(citations), is_empty=not lines, details=details)

    def _texts(self, asked: CodeSearchArguments, deadline: float, guard: Guard) -> Iterator[Text]:
        """Files of the roots, then stored passages. Raises _Enough."""
        num_files = 0
        for root in self._config.roots:
            for path, read in _files(root, max_bytes=self._config.max_file_bytes):
                guard()
                num_files += 1
                if num_files > self._config.num_files:
                    raise _Enough(f"The first {self._config.num_files} files were searched (knowledge.code.num_files).")
                if self._clock() > deadline:
                    raise _Enough(TIME_UP)
                if _fits(path, asked.path) and (text := read()) is not None:
                    yield Text(path, text)
        if self._retrieve is not None:
            guard()
            hits = self._retrieve(asked.query, k=self._config.num_passages, min_cosine=-1.0, where=EpisodeFilter())
            passages = (
                Text(f"{hit.episode.source_id}/{hit.episode.title}", hit.episode.text, hit.episode) for hit in hits
            )
            yield from (one for one in passages if _fits(one.path, asked.path))

    def _finder(self, asked: CodeSearchArguments, deadline: float) -> Find:
        if asked.kind == "symbol":
            return lambda one: _definitions(asked.query, one)
        if asked.kind == "literal":
            return lambda one: ((number, line) for number, line in _numbered(one.text) if asked.query in line)
        try:
            pattern = regex.compile(asked.query)
        except (regex.error, RecursionError, OverflowError, MemoryError) as error:
            raise ToolError(
                f"query = {shown(asked.query)} is no regular expression ({error}); correct it", "query"
            ) from error

        def matching(one: Text) -> Iterator[tuple[int, str]]:
            for number, line in _numbered(one.text):
                try:
                    if pattern.search(line, timeout=max(deadline - self._clock(), LEAST_S)):
                        yield number, line
                except TimeoutError as error:
                    raise _Enough(TIME_UP) from error
                if self._clock() > deadline:
                    raise _Enough(TIME_UP)

        return matching


def _numbered(text: str) -> Iterator[tuple[int, str]]:
    return enumerate(text.splitlines(), start=1)


def _fits(path: str, pattern: str | None) -> bool:
    return pattern is None or fnmatch.fnmatchcase(path, pattern)


def _files(root: Path, *, max_bytes: int) -> Iterator[tuple[str, Callable[[], str | None]]]:
    """(root's name/relative path, how it is read) of the files below a root, in order, without hidden ones."""
    top = root.resolve()
    for folder, folders, names, descriptor in os.fwalk(top, follow_symlinks=False):
        inner = Path(folder).relative_to(top)
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in _SKIPPED)
        if len(inner.parts) >= MAX_DEPTH:
            folders.clear()
        for name in sorted(name for name in names if not name.startswith(".")):
            yield str(root.name / inner / name), partial(_read, name, descriptor, max_bytes)


def _read(name: str, folder: int, max_bytes: int) -> str | None:
    """A regular text file that is no link; None for anything else."""
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except OSError:
        return None
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size > max_bytes:
            return None
        try:
            raw = file.read(max_bytes)
        except OSError:
            return None
    return None if b"\x00" in raw[:_BINARY_CHARS] else raw.decode("utf-8", "replace")


def _definitions(symbol: str, one: Text) -> Iterator[tuple[int, str]]:
    """Where functions, classes and names of a module or class are bound under `symbol`, or a dotted end of it.

    A passage is rarely a whole module: there the lines that begin a definition are looked at.
    """
    wanted = symbol.removesuffix("()").split(".")
    if wanted[-1] not in one.text:
        return
    if one.episode is not None:
        begins = re.compile(rf"\s*(?:async\s+)?(?:def|class)\s+{re.escape(wanted[-1])}\b")
        yield from ((number, line) for number, line in _numbered(one.text) if begins.match(line))
        return
    if not one.path.endswith(".py"):
        return
    try:
        tree = ast.parse(one.text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    lines = one.text.split("\n")  # as the parser counts them
    for number, name in _bound(tree):
        if name.split(".")[-len(wanted) :] == wanted and number <= len(lines):
            yield number, lines[number - 1]


def _bound(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of what a module defines, in order; a stack instead of recursion."""
    waiting: list[tuple[ast.stmt, str]] = [(node, "") for node in reversed(tree.body)]
    while waiting:
        node, outer = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.lineno, outer + node.name
            waiting += [(one, f"{outer}{node.name}.") for one in reversed(node.body)]
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from ((node.lineno, outer + target.id) for target in targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.If | ast.Try | ast.With):
            inner = [*node.body, *getattr(node, "orelse", []), *getattr(node, "finalbody", [])]
            waiting += [(one, outer) for one in reversed(inner)]
