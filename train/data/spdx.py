"""SPDX licence expressions: read, combined, and judged against an allow-list.

In: what a package says of itself, as an expression ("MIT OR Apache-2.0"), an identifier in any case, or a usual name ("The
MIT License", a Python classifier). Out: a canonical expression, and whether an allow-list permits it: OR needs one side,
AND needs all, WITH adds a permission to its licence.
Source: SPDX specification 2.3, annex D (expressions) and its licence list (identifiers).
"""

import re
from collections.abc import Iterable

UNKNOWN = "unknown"
PROPRIETARY = "LicenseRef-proprietary"
PUBLIC_DOMAIN = "LicenseRef-public-domain"
SOME_BSD = "LicenseRef-BSD"
"""A BSD licence without a word on which: classifiers say no more. All of them permit use, change and distribution."""

PERMISSIVE = (
    "0BSD Apache-1.1 Apache-2.0 BlueOak-1.0.0 BSD-1-Clause BSD-2-Clause BSD-3-Clause BSD-3-Clause-Clear BSD-4-Clause BSL-1.0 "
    "CC0-1.0 CNRI-Python HPND ISC MIT MIT-0 MIT-CMU NCSA OpenSSL PostgreSQL PSF-2.0 Python-2.0 Unicode-3.0 Unlicense WTFPL "
    "X11 Zlib blessing LicenseRef-BSD LicenseRef-public-domain"
)
"""Licences without copyleft and without limits of use: the default allow-list, as The Stack keeps (arXiv:2211.15533, 4.1)."""

_OTHERS = (
    "AGPL-3.0-only AGPL-3.0-or-later Artistic-2.0 BUSL-1.1 CC-BY-4.0 CC-BY-NC-4.0 CC-BY-SA-4.0 CDDL-1.0 EPL-1.0 EPL-2.0 "
    "EUPL-1.2 GPL-1.0-or-later GPL-2.0-only GPL-2.0-or-later GPL-3.0-only GPL-3.0-or-later JSON LGPL-2.0-only "
    "LGPL-2.0-or-later LGPL-2.1-only LGPL-2.1-or-later LGPL-3.0-only LGPL-3.0-or-later MPL-1.1 MPL-2.0 MS-PL OFL-1.1 "
    "SSPL-1.0 Elastic-2.0 LicenseRef-proprietary"
)
_KNOWN = {name.lower(): name for name in f"{PERMISSIVE} {_OTHERS}".split()}

_EMPTY_WORDS = frozenset(
    "the license licence licenses licensed under version v software osi approved is a an this".split()
)


def _plain(name: str) -> str:
    """Words and numbers that tell licences apart: GPLv3, GPL v3 and GPL-3 are one."""
    words = re.findall(r"[a-z]+|\d+", re.sub(r"v(?=\d)", " ", name.lower()))
    return " ".join(word for word in words if word not in _EMPTY_WORDS)


_ALIASES = {
    _plain(alias): name
    for name, aliases in {
        "MIT": "mit; mit expat; expat; x mit; mit mit",
        "Apache-2.0": "apache; apache 2; apache 2 0; asl 2 0; apache2; apache2 0",
        "BSD-2-Clause": "bsd 2 clause; 2 clause bsd; simplified bsd; freebsd; bsd 2",
        "BSD-3-Clause": "bsd 3 clause; 3 clause bsd; new bsd; modified bsd; revised bsd; bsd 3; bsd new",
        SOME_BSD: "bsd; bsd like; bsd style; bsd derived",
        "ISC": "isc; isc iscl",
        "MPL-2.0": "mpl; mpl 2; mpl 2 0; mozilla public 2 0; mozilla public 2 0 mpl 2 0",
        "PSF-2.0": "psf; psf 2 0; python foundation; psfl; python",
        "Zlib": "zlib; zlib libpng",
        "BSL-1.0": "boost 1 0; boost; boost 1 0 bsl 1 0",
        "Unlicense": "unlicense; unlicense unlicense",
        "CC0-1.0": "cc0; cc0 1 0; cc0 1 0 universal; cc0 1 0 universal cc0 1 0 public domain dedication",
        "HPND": "historical permission notice and disclaimer hpnd; hpnd",
        "MIT-CMU": "mit cmu; cmu mit cmu",
        "GPL-2.0-only": "gpl 2; gpl 2 0; gnu gpl 2; gnu general public 2; gnu general public 2 gpl 2",
        "GPL-2.0-or-later": "gpl 2 or later; gnu general public 2 or later gpl 2; gpl 2 or gpl 3",
        "GPL-3.0-only": "gpl 3; gpl 3 0; gnu gpl 3; gnu general public 3; gnu general public 3 gpl 3",
        "GPL-3.0-or-later": "gpl 3 or later; gnu general public 3 or later gpl 3",
        "GPL-1.0-or-later": "gpl; gnu gpl; gnu general public; gnu general public gpl",
        "LGPL-2.0-or-later": "lgpl; gnu lgpl; gnu library or lesser general public lgpl; gnu lesser general public",
        "LGPL-2.0-only": "lgpl 2; lgpl 2 0; gnu lesser general public 2 lgpl 2",
        "LGPL-2.1-only": "lgpl 2 1; gnu lesser general public 2 1",
        "LGPL-2.1-or-later": "lgpl 2 1 or later; gnu lesser general public 2 or later lgpl 2",
        "LGPL-3.0-only": "lgpl 3; lgpl 3 0; gnu lesser general public 3; gnu lesser general public 3 lgpl 3",
        "LGPL-3.0-or-later": "lgpl 3 or later; gnu lesser general public 3 or later lgpl 3",
        "AGPL-3.0-only": "agpl; agpl 3; agpl 3 0; gnu affero general public 3; gnu affero general public 3 agpl 3",
        "AGPL-3.0-or-later": "agpl 3 or later; gnu affero general public 3 or later agpl 3",
        "EPL-2.0": "epl 2 0; eclipse public 2 0; eclipse public 2 0 epl 2 0",
        PUBLIC_DOMAIN: "public domain; publicdomain",
        PROPRIETARY: "other proprietary; proprietary; unlicensed; commercial; all rights reserved; nvidia proprietary; "
        "closed; private",
    }.items()
    for alias in aliases.split("; ")
}  # fmt: skip
_LEGACY_GNU = re.compile(r"((?:A|L)?GPL-\d\.\d)(\+?)$", re.IGNORECASE)
_TOKEN = re.compile(r"[()]|[A-Za-z0-9.+:-]+|\S")
_MAX_CHARS = 2000

Expression = tuple[str, list["Expression"]]
"""(name, []) for a licence, ("AND" or "OR", parts) for a combination."""


class BadExpression(ValueError):
    """Not an SPDX expression."""


def canonical(text: str) -> str | None:
    """The SPDX expression that a declaration means, or None if it is neither an expression nor a name known here.

    Identifiers of the licence list that are not known here stay as they are: no allow-list has them unless a person wrote so.
    """
    text = text.strip()
    if not text or len(text) > _MAX_CHARS:
        return None
    try:
        expression = _parse(text.replace("/", " OR ") if re.fullmatch(r"[\w.+-]+(?:\s?/\s?[\w.+-]+)+", text) else text)
    except BadExpression:
        expression = None
    if expression is not None and all(_is_known(name) for name in _names(expression)):
        return _write(expression)
    alias = _ALIASES.get(_plain(text))
    if alias is None and expression is not None and all(_is_known(name) or "-" in name for name in _names(expression)):
        return _write(expression)
    return re.sub("-only$", "-or-later", alias) if alias and text.rstrip(")").endswith("+") else alias


def combine(expressions: Iterable[str], *, operator: str) -> str:
    """One canonical expression of several, each part once, in a fixed order. UNKNOWN if there is none."""
    parts = [_parse(expression) for expression in expressions]
    return _write((operator, parts)) if parts else UNKNOWN


def licence_names(expression: str) -> frozenset[str]:
    """The licences of a canonical expression, exceptions left out."""
    return frozenset(name.partition(" WITH ")[0] for name in _names(_parse(expression)))


def is_allowed(expression: str, *, allowed: frozenset[str]) -> bool:
    """Whether one who may use code under the allowed licences may use code under this expression."""
    return _judge(_parse(expression), allowed=allowed)


def _judge(expression: Expression, *, allowed: frozenset[str]) -> bool:
    name, parts = expression
    if parts:
        verdicts = (_judge(part, allowed=allowed) for part in parts)
        return any(verdicts) if name == "OR" else all(verdicts)
    licence = name.partition(" WITH ")[0]
    return bool({name, licence, licence.replace("-or-later", "-only")} & allowed)


def _parse(text: str) -> Expression:
    """OR binds weakest, then AND, then WITH; operators in any case."""
    tokens = _TOKEN.findall(text[:_MAX_CHARS])
    position = 0

    def peek() -> str:
        return tokens[position].upper() if position < len(tokens) else ""

    def read(operator: str, *, depth: int) -> Expression:
        nonlocal position
        parts = [read("AND", depth=depth) if operator == "OR" else read_licence(depth=depth)]
        while peek() == operator:
            position += 1
            parts.append(read("AND", depth=depth) if operator == "OR" else read_licence(depth=depth))
        return (operator, parts) if len(parts) > 1 else parts[0]

    def read_licence(*, depth: int) -> Expression:
        nonlocal position
        token = peek()
        if token == "(" and depth < 20:
            position += 1
            inside = read("OR", depth=depth + 1)
            if peek() != ")":
                raise BadExpression(f"licence expression {text!r} lacks a closing bracket")
            position += 1
            return inside
        if not re.fullmatch(r"[A-Z0-9.+:-]+", token) or token in ("AND", "OR", "WITH"):
            raise BadExpression(f"licence expression {text!r} has {token or 'its end'!r} where a licence should be")
        name = _canonical_name(tokens[position])
        position += 1
        if peek() == "WITH" and position + 1 < len(tokens):
            name = f"{name} WITH {tokens[position + 1]}"
            position += 2
        return name, []

    expression = read("OR", depth=0)
    if position < len(tokens):
        raise BadExpression(f"licence expression {text!r} has {tokens[position]!r} after its end")
    return expression


def _canonical_name(name: str) -> str:
    """As the licence list writes it; GPL-2.0 and GPL-2.0+ in their newer, explicit form."""
    legacy = _LEGACY_GNU.fullmatch(name)
    if legacy:
        name = f"{legacy[1]}-{'or-later' if legacy[2] else 'only'}"
    return _KNOWN.get(name.lower(), _KNOWN.get(name.lower().rstrip("+"), name))


def _is_known(name: str) -> bool:
    licence = name.partition(" WITH ")[0]
    return licence.lower() in _KNOWN or licence.startswith("LicenseRef-")


def _names(expression: Expression) -> list[str]:
    name, parts = expression
    return [inner for part in parts for inner in _names(part)] if parts else [name]


def _write(expression: Expression) -> str:
    """Parts sorted, each once; a part with the same operator is dissolved, one with the other gets brackets."""
    return _join(_simplify(expression))


def _simplify(expression: Expression) -> Expression:
    operator, parts = expression
    found = {}
    for part in map(_simplify, parts):  # first: what is left of an OR may be an AND
        for inner in part[1] if part[1] and part[0] == operator else [part]:
            found[_join(inner)] = inner
    ordered = [found[text] for text in sorted(found)]
    return ordered[0] if len(ordered) == 1 else (operator, ordered)


def _join(expression: Expression) -> str:
    operator, parts = expression
    return f" {operator} ".join(f"({_join(part)})" if part[1] else part[0] for part in parts) or operator
