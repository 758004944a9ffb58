"""Which files of a repository import which, as far as their text tells.

In: path, language and text of each file. Out: for each file the files that it imports: Python modules, JavaScript and
TypeScript relative imports, C and C++ includes, Go packages, Java, Kotlin and Scala classes. What does not resolve to a file
of the repository is a library. Other languages have no edges.
Source: dependency parsing by regular expressions, DeepSeek-Coder (arXiv:2401.14196, 2.2).
"""

import posixpath
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

_PYTHON = re.compile(
    r"^[ \t]*(?:from[ \t]+(?P<dots>\.{0,20})(?P<module>[\w.]{0,200})[ \t]+import[ \t]+"
    r"(?P<names>\([^()]{0,8000}\)|[^\n#;]{1,2000})"
    r"|import[ \t]+(?P<modules>[^\n#;]{1,2000}))",
    re.MULTILINE,
)
_JAVASCRIPT = re.compile(
    r"(?:\bfrom|\bimport|\brequire[ \t]{0,4}\(|\bimport[ \t]{0,4}\()[ \t]{0,4}[\"'](\.{1,2}(?:/[^\"'\n]{0,300})?)[\"']"
)
_INCLUDE = re.compile(
    r"^[ \t]*#[ \t]*(?:include|import)[ \t]*(?P<quote>[<\"])(?P<path>[^>\"\n]{1,300})[>\"]", re.MULTILINE
)
_GO = re.compile(
    r"^import[ \t]*(?:\((?P<block>[^)]{0,20000})\)|(?:[\w.]+[ \t]+)?\"(?P<path>[^\"\n]{1,300})\")", re.MULTILINE
)
_GO_PATH = re.compile(r"\"([^\"\n]{1,300})\"")
_PACKAGE = re.compile(r"^[ \t]*package[ \t]+([\w.]{1,300})", re.MULTILINE)
_CLASS = re.compile(
    r"^[ \t]*import[ \t]+(?:static[ \t]+)?(?P<name>[\w.]{1,300}?)"
    r"(?:\.(?P<wild>\*|_)(?!\w)|\.\{(?P<several>[^}]{0,4000})\})?[ \t]*(?:;|$|as\b)",
    re.MULTILINE,
)
_SCRIPT_SUFFIXES = (".ts", ".tsx", ".d.ts", ".js", ".jsx", ".mts", ".cts", ".mjs", ".cjs")
_MAX_TAIL_PARTS = 10
_ROOT_FOLDERS = frozenset({"", "src", "lib", "python"})


class CodeFile(NamedTuple):
    """`path` is relative to the repository."""

    path: str
    language: str
    text: str


def find_imports(files: Sequence[CodeFile]) -> list[set[int]]:
    """For each file the positions of the files that it imports; a file is none of its own."""
    index = _Index(files)
    return [set(_FINDERS.get(file.language, _none)(file, index)) - {position} for position, file in enumerate(files)]


class _Index:
    """Files by path, by the ends of their paths, by folder, by package and by class."""

    def __init__(self, files: Sequence[CodeFile]) -> None:
        self.files = files
        self.by_path = {file.path: position for position, file in enumerate(files)}
        self._by_tail: dict[str, list[int]] = defaultdict(list)
        self.go_folders: dict[str, list[int]] = defaultdict(list)
        self._folders_by_tail: dict[str, set[str]] = defaultdict(set)
        self.by_package: dict[str, list[int]] = defaultdict(list)
        self.by_class: dict[str, int] = {}
        for position, file in enumerate(files):
            for tail in _tails(file.path):
                self._by_tail[tail].append(position)
            if file.language == "go":
                folder = posixpath.dirname(file.path)
                self.go_folders[folder].append(position)
                for tail in _tails(folder):
                    self._folders_by_tail[tail].add(folder)
            elif file.language in ("java", "kotlin", "scala"):
                package = match[1] if (match := _PACKAGE.search(file.text)) else ""
                stem = posixpath.basename(file.path).partition(".")[0]
                self.by_package[package].append(position)
                self.by_class.setdefault(f"{package}.{stem}", position)

    def find(self, tail: str, *, near: str) -> int | None:
        """The file whose path ends so; of several the one that shares most folders with `near`, then the shallowest."""
        candidates = self._by_tail.get(tail, ())
        return min(candidates, key=lambda position: _distance(self.files[position].path, near), default=None)

    def find_folder(self, tail: str, *, near: str) -> str | None:
        candidates = self._folders_by_tail.get(tail, ())
        return min(candidates, key=lambda folder: _distance(folder, near), default=None)


def _tails(path: str) -> Iterator[str]:
    """Ends of a path that begin at a folder or name: c.py, b/c.py, a/b/c.py."""
    parts = path.split("/")
    for start in range(max(0, len(parts) - _MAX_TAIL_PARTS), len(parts)):
        yield "/".join(parts[start:])


def _distance(path: str, near: str) -> tuple[int, int, str]:
    num_common = 0
    for one, other in zip(path.split("/"), near.split("/"), strict=False):
        if one != other:
            break
        num_common += 1
    return -num_common, path.count("/"), path


def _none(file: CodeFile, index: _Index) -> Iterator[int]:
    return iter(())


def _python(file: CodeFile, index: _Index) -> Iterator[int]:
    folder = posixpath.dirname(file.path)
    for match in _PYTHON.finditer(file.text):
        if match["modules"] is not None:
            for module in match["modules"].split(","):
                yield from _python_module(module.split(" as ")[0].strip().split("."), file, index)
            continue
        parts = [part for part in match["module"].split(".") if part]
        names = re.findall(r"(?:^|,)\s*(\w+)", re.sub(r"#[^\n]*|\bas\s+\w+", "", match["names"].strip("() \t\n")))
        if match["dots"]:
            base = folder
            for _ in match["dots"][1:]:
                base = posixpath.dirname(base)
            yield from _python_names("/".join(filter(None, (base, *parts))), names, index)
        else:
            found = [position for name in names for position in _python_module([*parts, name], file, index)]
            yield from found
            if len(found) < max(len(names), 1):
                yield from _python_module(parts, file, index)


def _python_names(base: str, names: list[str], index: _Index) -> Iterator[int]:
    """Names that are imported from a package at this path: modules of it, else the package or module itself."""
    is_whole = not names
    for name in names:
        found = _first(index.by_path, (f"{base}/{name}.py", f"{base}/{name}/__init__.py"), strip="/")
        is_whole = is_whole or found is None
        if found is not None:
            yield found
    if is_whole and (found := _first(index.by_path, (f"{base}.py", f"{base}/__init__.py"), strip="/")) is not None:
        yield found


def _python_module(parts: list[str], file: CodeFile, index: _Index) -> Iterator[int]:
    """An absolute module. A single name may be a library's: it must lie where Python would look for it."""
    if not parts or not all(parts):
        return
    tail = "/".join(parts)
    for candidate in (f"{tail}.py", f"{tail}/__init__.py"):
        found = index.find(candidate, near=file.path)
        if found is not None and (len(parts) > 1 or _is_importable(index.files[found].path, candidate, file, index)):
            yield found
            return


def _is_importable(path: str, candidate: str, file: CodeFile, index: _Index) -> bool:
    root = path.removesuffix(candidate).rstrip("/")
    folder = posixpath.dirname(file.path)
    is_above = root in ("", folder) or folder.startswith(f"{root}/") or posixpath.basename(root) in _ROOT_FOLDERS
    return is_above and posixpath.join(root, "__init__.py") not in index.by_path


def _javascript(file: CodeFile, index: _Index) -> Iterator[int]:
    folder = posixpath.dirname(file.path)
    for match in _JAVASCRIPT.finditer(file.text):
        path = posixpath.normpath(posixpath.join(folder, match[1]))
        stem = re.sub(r"\.[cm]?jsx?$", "", path)
        candidates = [path, *(base + suffix for base in (path, stem) for suffix in _SCRIPT_SUFFIXES)]
        candidates += [posixpath.join(path, f"index{suffix}") for suffix in _SCRIPT_SUFFIXES]
        if (found := _first(index.by_path, candidates)) is not None:
            yield found


def _c_family(file: CodeFile, index: _Index) -> Iterator[int]:
    folder = posixpath.dirname(file.path)
    for match in _INCLUDE.finditer(file.text):
        path = posixpath.normpath(match["path"])
        found = index.by_path.get(posixpath.normpath(posixpath.join(folder, path))) if match["quote"] == '"' else None
        if found is None and (match["quote"] == '"' or "/" in path) and not path.startswith(".."):
            found = index.find(path, near=file.path)
        if found is not None:
            yield found


def _go(file: CodeFile, index: _Index) -> Iterator[int]:
    """All files of each imported package. The module's own path is not known: the longest end that is a folder counts."""
    for match in _GO.finditer(file.text):
        for path in [match["path"]] if match["path"] else _GO_PATH.findall(match["block"]):
            parts = path.split("/")
            tails = ["/".join(parts[start:]) for start in range(len(parts))]
            if "." not in parts[0]:
                tails = [tail for tail in tails if "/" in tail]  # a single name would be the standard library's
            folder = next(
                (found for tail in tails if (found := index.find_folder(tail, near=file.path)) is not None), None
            )
            if folder is not None:
                yield from index.go_folders[folder]


def _jvm(file: CodeFile, index: _Index) -> Iterator[int]:
    for match in _CLASS.finditer(file.text):
        name = match["name"]
        if match["wild"]:
            yield from index.by_package.get(name, ())
        for one in re.findall(r"(\w+)", match["several"]) if match["several"] else [""]:
            parts = [*name.split("."), *filter(None, [one])]
            for end in range(len(parts), 1, -1):  # an import may name a member of a class
                if (found := index.by_class.get(".".join(parts[:end]))) is not None:
                    yield found
                    break


def _first(by_path: dict[str, int], candidates: Sequence[str], *, strip: str = "") -> int | None:
    return next(
        (by_path[path] for path in (one.lstrip(strip) if strip else one for one in candidates) if path in by_path), None
    )


_FINDERS: dict[str, Callable[[CodeFile, _Index], Iterator[int]]] = {
    "python": _python,
    "javascript": _javascript,
    "typescript": _javascript,
    "c": _c_family,
    "c++": _c_family,
    "go": _go,
    "java": _jvm,
    "kotlin": _jvm,
    "scala": _jvm,
}
