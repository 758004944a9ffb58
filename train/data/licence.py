"""LicenceIndex: under which licence each file of a repository stands.

In: the repository's licence files and package metadata, in any order; then a file's path and content. Out: an SPDX expression
and where it was found. The nearest statement wins: the file's own header, then licence files and metadata of its folder, of
the folder above, and so on to the root. Within a folder a licence text is stronger than metadata, metadata says how several
texts combine, and where the two contradict each other both must be allowed. What an installed Python package declares holds
for the files that its RECORD names.
"""

import re
from dataclasses import dataclass, field
from typing import NamedTuple

from train.data.licence_text import MAX_NAME_CHARS, licence_of_header, licence_of_text
from train.data.package_metadata import declared_licence, is_metadata
from train.data.spdx import SOME_BSD, UNKNOWN, combine, licence_names

MAX_EVIDENCE_BYTES = 4 << 20
"""Of a licence file, metadata file or RECORD no more is read."""

_MAIN = re.compile(
    r"(?:(?:mit|bsd|apache|gpl|lgpl|isc)[-_.])?(?:un)?licen[cs]es?(?P<suffix>[-_.][\w.-]{1,40})?|copying(?:[-_.][\w.-]{1,40})?",
    re.IGNORECASE,
)
_SECONDARY = re.compile(r"(?:notice|copyright)(?:\.(?:txt|md|rst))?", re.IGNORECASE)
_TEXT_SUFFIX = re.compile(
    r"txt|md|rst|markdown|text|mit|expat|isc|[al]?gpl.*|lesser|apache.*|asl.*|bsd.*|mpl.*|boost|zlib|psf|python|cc0|\d+",
    re.IGNORECASE,
)
_OF_OTHERS = re.compile(r"third|3rd|bundled|vendor|dependenc", re.IGNORECASE)
_LICENCE_FOLDERS = frozenset({"license", "licenses", "licence", "licences"})
_DIST_INFO = ".dist-info"
_FAMILY = re.compile(r"-(?:only|or-later)$")


class Licence(NamedTuple):
    """`source` is "header", "file LICENSE" (with its path), "package metadata", several of them, or "none"."""

    expression: str
    source: str


NONE = Licence(UNKNOWN, "none")


@dataclass(slots=True)
class _Evidence:
    """What one folder says. `texts`: (path, expression; UNKNOWN for a text that is not recognised)."""

    texts: list[tuple[str, str]] = field(default_factory=list)
    secondary: list[tuple[str, str]] = field(default_factory=list)
    declared: set[str] = field(default_factory=set)


def is_licence_evidence(path: str) -> bool:
    """Whether LicenceIndex.add has a use for this file."""
    folder, _, name = path.rpartition("/")
    return _role(path) != "" or is_metadata(name) or (name == "RECORD" and folder.endswith(_DIST_INFO))


class LicenceIndex:
    """Holds a few strings per licence and metadata file of one repository."""

    def __init__(self) -> None:
        self._folders: dict[str, _Evidence] = {}
        self._installed: dict[tuple[str, str], set[str]] = {}
        self._resolved: dict[str, Licence] = {}

    def add(self, path: str, content: bytes) -> None:
        """Take in one file for which `is_licence_evidence` holds; paths are relative to the repository."""
        self._resolved.clear()
        folder, _, name = path.rpartition("/")
        content = content[:MAX_EVIDENCE_BYTES]
        role = _role(path)
        if role:
            expression = licence_of_text(content.decode("utf-8-sig", "replace"))
            if expression is not None or (role == "main" and len(content) > MAX_NAME_CHARS):
                evidence = self._folder(_owner(folder))
                texts = evidence.texts if role == "main" else evidence.secondary
                texts.append((path, expression or UNKNOWN))
        elif name == "RECORD":
            parent = folder.rpartition("/")[0]
            for line in content.decode("utf-8", "replace").splitlines():
                top = line.partition(",")[0].strip('"').partition("/")[0]
                if not top.endswith(_DIST_INFO) and top not in ("..", ""):
                    self._installed.setdefault((parent, top), set()).add(folder)
        else:
            declared = declared_licence(name, content)
            if declared is not None:
                self._folder(folder).declared.add(declared)

    def of(self, path: str, content: bytes) -> Licence:
        """The licence of one file; NONE if neither it nor any folder above says one."""
        header = licence_of_header(content[: 64 << 10].decode("utf-8-sig", "replace"))
        if header is not None:
            return Licence(header, "header")
        parts = path.split("/")
        for depth in range(len(parts) - 1, -1, -1):
            folder = "/".join(parts[:depth])
            owners = sorted(self._installed.get((folder, parts[depth]), ()))
            found = [self._resolve(owner) for owner in owners] or [self._resolve(folder)]
            found = [licence for licence in found if licence != NONE]
            if found:
                return Licence(
                    combine((licence.expression for licence in found), operator="AND"),
                    ", ".join(dict.fromkeys(licence.source for licence in found)),
                )
        return NONE

    def _folder(self, folder: str) -> _Evidence:
        return self._folders.setdefault(folder, _Evidence())

    def _resolve(self, folder: str) -> Licence:
        if folder not in self._resolved:
            evidence = self._folders.get(folder)
            self._resolved[folder] = NONE if evidence is None else _decide(evidence)
        return self._resolved[folder]


def _role(path: str) -> str:
    """ "main" for a licence text, "secondary" for one that counts where nothing else is said, "" for other files."""
    folder, _, name = path.rpartition("/")
    parent = folder.rpartition("/")[2].lower()
    suffix = name.rpartition(".")[2] if "." in name else ""
    if _OF_OTHERS.search(name) or (_DIST_INFO in folder and _owner(folder).rpartition("/")[2] != _dist_info(folder)):
        return ""
    if parent in _LICENCE_FOLDERS and (not suffix or _TEXT_SUFFIX.fullmatch(suffix)):
        return "main" if _DIST_INFO in folder else "secondary"
    if _MAIN.fullmatch(name) and (not suffix or _TEXT_SUFFIX.fullmatch(suffix)):
        return "main"
    return "secondary" if _SECONDARY.fullmatch(name) else ""


def _owner(folder: str) -> str:
    """The folder that a text speaks for: LICENSES/MIT.txt speaks for what stands beside LICENSES."""
    parent, _, name = folder.rpartition("/")
    return parent if name.lower() in _LICENCE_FOLDERS else folder


def _dist_info(folder: str) -> str:
    return next((part for part in folder.split("/") if part.endswith(_DIST_INFO)), "")


def _decide(evidence: _Evidence) -> Licence:
    declared = combine(sorted(evidence.declared), operator="AND") if evidence.declared else None
    texts = evidence.texts
    known = [(path, expression) for path, expression in texts if expression != UNKNOWN]
    if not texts and declared is None:
        texts = known = evidence.secondary
    if not texts:
        return NONE if declared is None else Licence(declared, "package metadata")
    source = "file " + ", ".join(sorted(path for path, _ in known or texts))
    if not known:
        return Licence(UNKNOWN, source)
    is_choice = len(known) > 1 and all(_is_named_after(path, expression) for path, expression in known)
    text = combine((expression for _, expression in known), operator="OR" if is_choice else "AND")
    if declared is None:
        return Licence(text, source)
    in_text = _families(text)
    in_metadata = _families(declared, other=in_text)
    if in_text <= in_metadata and SOME_BSD not in licence_names(declared):
        return Licence(declared, "package metadata" if len(in_metadata) > 1 else source)
    if in_metadata <= in_text:
        return Licence(text, source)
    return Licence(combine((text, declared), operator="AND"), f"{source}, package metadata")


def _is_named_after(path: str, expression: str) -> bool:
    """LICENSE-MIT, LICENSE.APACHE2: files that are named after their licences are a choice, by custom."""
    match = _MAIN.fullmatch(path.rpartition("/")[2])
    suffix = re.sub(r"[^a-z]", "", (match["suffix"] or "").lower()) if match else ""
    return len(suffix) > 2 and re.sub(r"[^a-z]", "", expression.lower()).startswith(suffix[:3])


def _families(expression: str, *, other: frozenset[str] = frozenset()) -> frozenset[str]:
    """Licences by family: a text does not say "or later", "BSD" is any of the BSD licences that the other side names, and
    what is called the PSF licence is Python's whole stack of licences or its first."""
    names = {_FAMILY.sub("", name) for name in licence_names(expression)}
    if SOME_BSD in names and (exact := {name for name in other if name.startswith("BSD-")}):
        names = (names - {SOME_BSD}) | exact
    return frozenset("PSF-2.0" if name == "Python-2.0" else name for name in names)
