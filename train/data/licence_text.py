"""Which licences a text grants or names, by the phrases that only they have.

In: the text of a LICENSE file, or the leading comment of a source file. Out: SPDX identifiers. Texts are compared as plain
words: case, punctuation, line breaks and comment signs do not count. A text with a known limit of use added to it (such as
"Commons Clause") is also proprietary, whatever it is based on.
Source: the texts of the SPDX licence list; GNU notices, gnu.org/licenses/gpl-howto.
"""

import re
from typing import NamedTuple

from train.data.code_comment import leading_comment
from train.data.spdx import PROPRIETARY, PUBLIC_DOMAIN, canonical, combine

MAX_TEXT_CHARS = 512 << 10
"""More of a licence file is not read; the largest found, with all that it bundles, had 390,000 characters."""
MAX_NAME_CHARS = 200
"""A shorter file may hold nothing but a licence's name."""


class _Rule(NamedTuple):
    """The licence is there if every phrase of `needs` (patterns over plain words) is, and none of `lacks`."""

    name: str
    needs: tuple[str, ...]
    lacks: tuple[str, ...] = ()


_MIT = "permission is hereby granted free of charge to any person obtaining a copy of this (?:software|work) and"
_MIT_NOTICE = "copyright notice s? ?and this permission notice"
_NAME_OF_AUTHOR = "shall not be used in advertising or otherwise to promote"
_BSD = (
    "redistribution and use (?:of [a-z ]{1,60})?in source and binary forms (?:[a-z]{1,20} ){0,8}with or without modif"
)
_BSD_SOURCE = "redistributions of source code must retain"
_BSD_BINARY = "redistributions in binary form must reproduce"
_ENDORSE = "endorse or promote products"
_ADVERTISE = "advertising materials mentioning features or use of this software must display"
_ANY_FORM = "redistributions of any form whatsoever"
_NO_PATENT = "no express or implied licenses to any party s patent rights are granted"
_ISC = (
    "permission to use copy modify and (?:or )?distribute this software(?: and its documentation)? for any purpose "
    "with or without fee is hereby granted"
)
_HPND = "permission to use copy modify (?:and )?distribute (?:and sell )?this software and its documentation"
_HPND_FEE = "for any purpose (?:and )?(?:is hereby granted )?without (?:fee|royalty)"
_CMU = "by obtaining using and or copying this software and or its associated documentation"
_PSF = "(?:psf license agreement for python|python software foundation license version 2)"

# fmt: off
_TEXTS = (
    _Rule("MIT", (_MIT, _MIT_NOTICE), (_NAME_OF_AUTHOR,)),
    _Rule("MIT-0", (_MIT,), (_MIT_NOTICE, _BSD_SOURCE)),
    _Rule("X11", (_MIT, _NAME_OF_AUTHOR)),
    _Rule("NCSA", (_MIT, "to deal with the software without", _BSD_SOURCE)),
    _Rule("JSON", ("software shall be used for good not evil",)),
    _Rule("BSD-4-Clause", (_BSD, _ADVERTISE)),
    _Rule("BSD-3-Clause-Clear", (_BSD, _NO_PATENT)),
    _Rule("BSD-3-Clause", (_BSD, _ENDORSE), (_ADVERTISE, _NO_PATENT, "apache software license version 1 1")),
    _Rule("BSD-2-Clause", (_BSD, _BSD_BINARY), (_ENDORSE, _ADVERTISE, _ANY_FORM)),
    _Rule("BSD-1-Clause", (_BSD, _BSD_SOURCE), (_ENDORSE, _BSD_BINARY, _ANY_FORM)),
    _Rule("OpenSSL", (_BSD, f"{_ANY_FORM} must retain the following acknowledg")),
    _Rule("ISC", (f"{_ISC} provided that",)),
    _Rule("0BSD", (f"{_ISC}(?! provided)",)),
    _Rule("HPND", (f"{_HPND} {_HPND_FEE}",), (_CMU,)),
    _Rule("MIT-CMU", (f"{_HPND} {_HPND_FEE}", _CMU)),
    _Rule("Apache-2.0", ("apache license version 2 0(?: january 2004)?(?: http www apache org licenses)? (?:terms|1 def)",)),
    _Rule("Apache-1.1", ("apache software license version 1 1",)),
    _Rule("MPL-2.0", ("mozilla public license version 2 0 1 definitions",)),
    _Rule("MPL-1.1", ("mozilla public license version 1 1 1 definitions",)),
    _Rule("GPL-2.0-only", ("gnu general public license version 2 june 1991",)),
    _Rule("GPL-3.0-only", ("gnu general public license version 3 29 june 2007",)),
    _Rule("LGPL-2.0-only", ("gnu library general public license version 2 june 1991",)),
    _Rule("LGPL-2.1-only", ("gnu lesser general public license version 2 1 february 1999",)),
    _Rule("LGPL-3.0-only", ("gnu lesser general public license version 3 29 june 2007",)),
    _Rule("AGPL-3.0-only", ("gnu affero general public license version 3 19 november 2007",)),
    _Rule("EPL-2.0", ("eclipse public license v 2 0 the accompanying program",)),
    _Rule("EPL-1.0", ("eclipse public license v 1 0 the accompanying program",)),
    _Rule("CDDL-1.0", ("common development and distribution license",)),
    _Rule("EUPL-1.2", ("european union public licence v 1 2",)),
    _Rule("Unlicense", ("this is free and unencumbered software released into the public domain",)),
    _Rule("CC0-1.0", ("(?:cc0 1 0 universal|creativecommons org publicdomain zero 1 0)",)),
    _Rule("Zlib", ("altered source versions must be plainly marked as such and must not be misrepresented",)),
    _Rule("BSL-1.0", ("boost software license version 1 0",)),
    _Rule("Python-2.0", (_PSF, "beopen")),
    _Rule("PSF-2.0", (_PSF,), ("beopen",)),
    _Rule("CNRI-Python", ("cnri (?:hereby )?grants licensee a non ?exclusive royalty free world ?wide license",), ("beopen",)),
    _Rule("WTFPL", ("do what the fuck you want to public license",)),
    _Rule("PostgreSQL", ("postgresql", "without a written agreement is hereby granted")),
    _Rule("Unicode-3.0", ("free of charge to any person obtaining a copy of (?:the unicode )?data files",)),
    _Rule("BlueOak-1.0.0", ("blue oak model license version 1 0 0",)),
    _Rule("blessing", ("disclaims copyright to this source code in place of a legal notice here is a blessing",)),
    _Rule("Artistic-2.0", ("the artistic license 2 0",)),
    _Rule("OFL-1.1", ("sil open font license version 1 1",)),
    _Rule("CC-BY-NC-4.0", ("(?:attribution noncommercial [a-z0-9 ]{0,40}public license|creativecommons org licenses by nc)",)),
    _Rule("CC-BY-SA-4.0", ("(?:attribution sharealike [a-z0-9 ]{0,40}public license|creativecommons org licenses by sa)",)),
    _Rule("CC-BY-4.0", ("(?:attribution 4 0 international|creativecommons org licenses by 4)",)),
    _Rule(PROPRIETARY, (
        "(?:commons clause|server side public license|business source license|elastic license 2"
        "|end user license agreement(?!s)|confidential and proprietary|proprietary and confidential"
        "|for (?:non commercial|noncommercial|academic|research)(?: [a-z]+){0,3} (?:use|purposes) only"
        "|license agreement for nvidia)",
    )),
)
_UNDER = "under (?:either )?(?:of )?(?:the )?(?:terms of )?(?:the )?"
_NOTICES = (
    _Rule("Apache-2.0", (f"(?:{_UNDER}apache(?: software)? license(?: version)? (?:v )?2|apache org licenses license 2 0)",)),
    _Rule("MIT", (f"(?:{_UNDER}(?:mit|expat) license|or (?:the )?mit license)",)),
    _Rule("MPL-2.0", ("terms of the mozilla public license (?:v|version) 2 0",)),
    _Rule("MPL-1.1", ("mozilla public license version 1 1(?! 1 definitions)",)),
    _Rule("EPL-2.0", ("terms of the eclipse public license (?:v|version )? ?2",)),
    _Rule("Python-2.0", ("licensed to (?:the )?psf under a contributor agreement",)),
    _Rule(PUBLIC_DOMAIN, (
        "(?:(?:placed|released|put|dedicated) (?:in|into|to)|is (?:hereby )?in) the public domain", ), (
        "unencumbered software released into", "cc0 1 0 universal")),
)
# fmt: on
"""What headers and NOTICE files say instead of a text."""
_GNU = re.compile(
    r"gnu (?P<kind>lesser |library |affero )?(?:general public licen[cs]e|[la]?gpl)(?: [la]?gpl)?"
    r"(?: as published by the free software foundation)?(?: inc)?(?: either)? (?:version |v ?)?(?P<version>2 1|2|3)(?: 0)?\b"
    r"(?P<later>(?: of the licen[cs]e)?(?: as published by the free software foundation)?"
    r" or (?:at your option )?(?:any )?later)?"
)
_GNU_OF_NO_VERSION = re.compile(
    r"(?:under|terms of|covered by) (?:the )?gnu (?:lesser |library |affero )?(?:general public|gpl)"
)
_GNU_KIND = {None: "GPL", "lesser ": "LGPL", "library ": "LGPL", "affero ": "AGPL"}
_NAMES_GNU_ITSELF = re.compile("MPL|EPL|GPL|EUPL|CDDL")
"""Licences whose own text names GNU licences without granting them."""
_CHOICE = re.compile(
    r"(?:dual|triple|multi|tri) licen[cs]ed|under (?:either|any one) of|either of (?:these|the following) licen"
    r"|choice of (?:either|one|any|the)|at your option\b(?! any later)"
    r"|alternatively (?:this|the) (?:software|file|program|content)"
)
_MENTIONS_LICENCE = re.compile(
    r"licen[cs]|permission|redistribut|spdx|cc0|public domain|altered source|blessing|proprietary|gpl", re.IGNORECASE
)
_SPDX_TAG = re.compile(r"SPDX-License-Identifier:[ \t]*([^\n\r*/<>\"']{1,300})")
_WORD = re.compile(r"[a-z0-9]+")
_ABSORBED = {"Python-2.0": {"HPND", "PSF-2.0", "CNRI-Python", "0BSD"}, "NCSA": {"MIT", "MIT-0", "BSD-3-Clause"}}
"""A licence whose text contains the texts of others."""

_Compiled = tuple[str, tuple[re.Pattern[str], ...], tuple[re.Pattern[str], ...]]


def _compile(rules: tuple[_Rule, ...]) -> tuple[_Compiled, ...]:
    return tuple((rule.name, tuple(map(re.compile, rule.needs)), tuple(map(re.compile, rule.lacks))) for rule in rules)


_TEXT_RULES, _NOTICE_RULES = _compile(_TEXTS), _compile(_NOTICES)


def find_licences(text: str) -> list[str]:
    """Identifiers of all licences whose text or notice is there, sorted."""
    words = _words(text)
    found = _matches(words, rules=_TEXT_RULES)
    if not any(_NAMES_GNU_ITSELF.search(name) for name in found):
        found |= _gnu_notices(words)
    found |= _matches(words, rules=_NOTICE_RULES)
    if not found and _GNU_OF_NO_VERSION.search(words):
        found.add("GPL-1.0-or-later")
    for name, absorbed in _ABSORBED.items():
        if name in found:
            found -= absorbed
    return sorted(found)


def licence_of_text(text: str) -> str | None:
    """One expression for a licence text: a choice where the text offers one, else all that it names; None: no licence."""
    names = find_licences(text)
    if not names:
        return canonical(text) if len(text) < MAX_NAME_CHARS else None
    is_choice = PROPRIETARY not in names and _CHOICE.search(_words(text[:4096])) is not None
    return combine(names, operator="OR" if is_choice else "AND")


def licence_of_header(text: str) -> str | None:
    """The expression that a source file's leading comment declares, or None if it declares none."""
    head = leading_comment(text)
    if not _MENTIONS_LICENCE.search(head):
        return None
    tags = {tag[1].strip() for tag in _SPDX_TAG.finditer(head)}
    if tags:
        return combine(map(_declared, tags), operator="AND")
    return licence_of_text(head) if find_licences(head) else None


def _declared(tag: str) -> str:
    return canonical(tag) or f"LicenseRef-{'-'.join(re.findall('[A-Za-z0-9.]+', tag)) or 'empty'}"


def _words(text: str) -> str:
    return " ".join(_WORD.findall(text[:MAX_TEXT_CHARS].lower()))


def _matches(words: str, *, rules: tuple[_Compiled, ...]) -> set[str]:
    return {
        name
        for name, needs, lacks in rules
        if all(need.search(words) for need in needs) and not any(lack.search(words) for lack in lacks)
    }


def _gnu_notices(words: str) -> set[str]:
    found = set()
    for match in _GNU.finditer(words):
        version = match["version"].replace(" ", ".")
        version = version if "." in version else f"{version}.0"
        found.add(f"{_GNU_KIND[match['kind']]}-{version}-{'or-later' if match['later'] else 'only'}")
    return found
