"""Licences: read from texts, headers and metadata, combined by SPDX's rules, and the nearest statement wins."""

import email
import re
import sysconfig
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.data.licence import NONE, Licence, LicenceIndex, is_licence_evidence
from train.data.licence_text import find_licences, licence_of_header, licence_of_text
from train.data.package_metadata import declared_licence
from train.data.spdx import PERMISSIVE, PROPRIETARY, SOME_BSD, UNKNOWN, canonical, combine, is_allowed, licence_names

SITE_PACKAGES = Path(sysconfig.get_paths()["purelib"])
ALLOWED = frozenset(PERMISSIVE.split())

MIT = """MIT License

Copyright (c) 2026 A. Person

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated documentation
files (the "Software"), to deal in the Software without restriction, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies of the Software.
"""
BSD = """Redistribution and use in source and binary forms, with or without modification, are permitted provided that:
* Redistributions of source code must retain the above copyright notice.
* Redistributions in binary form must reproduce the above copyright notice.
"""
ENDORSE = (
    "* Neither the name of A nor of its contributors may be used to endorse or promote products derived from it.\n"
)
GPL_2 = "GNU GENERAL PUBLIC LICENSE\nVersion 2, June 1991\n\nEveryone is permitted to copy and distribute verbatim copies.\n"
APACHE = "Apache License\nVersion 2.0, January 2004\nhttp://www.apache.org/licenses/\n\nTERMS AND CONDITIONS\n"
APACHE_HEADER = (
    '# Licensed under the Apache License, Version 2.0 (the "License");\n# you may not use this file except in\n'
)
GPL_HEADER = """/* This program is free software; you can redistribute it and/or modify it under the terms of
 * the GNU General Public License as published by the Free Software Foundation; either
 * version 2 of the License, or (at your option) any later version. */
"""

EXPRESSIONS = [
    ("MIT", "MIT"),
    ("mit", "MIT"),
    ("MIT OR Apache-2.0", "Apache-2.0 OR MIT"),
    ("MIT/Apache-2.0", "Apache-2.0 OR MIT"),
    ("(MIT OR Apache-2.0) AND BSD-3-Clause", "(Apache-2.0 OR MIT) AND BSD-3-Clause"),
    ("MIT AND (ISC AND MIT)", "ISC AND MIT"),
    ("Apache-2.0 WITH LLVM-exception", "Apache-2.0 WITH LLVM-exception"),
    ("GPL-2.0+", "GPL-2.0-or-later"),
    ("GPL-2.0", "GPL-2.0-only"),
    ("AFL-3.0", "AFL-3.0"),
    ("The MIT License (MIT)", "MIT"),
    ("Apache License, Version 2.0", "Apache-2.0"),
    ("BSD 3-Clause License", "BSD-3-Clause"),
    ("BSD", SOME_BSD),
    ("GNU General Public License v3 (GPLv3)", "GPL-3.0-only"),
    ("GPLv3+", "GPL-3.0-or-later"),
    ("GNU Lesser General Public License v2 or later (LGPLv2+)", "LGPL-2.1-or-later"),
    ("Mozilla Public License 2.0 (MPL 2.0)", "MPL-2.0"),
    ("Python Software Foundation License", "PSF-2.0"),
    ("Other/Proprietary License", PROPRIETARY),
    ("see the file", None),
    ("MIT OR", None),
    ("MIT Apache-2.0", None),
    ("", None),
]


@pytest.mark.parametrize(("text", "expression"), EXPRESSIONS)
def test_expressions_and_usual_names_get_their_canonical_form(text: str, expression: str | None) -> None:
    assert canonical(text) == expression
    if expression is not None:
        assert canonical(expression) == expression


VERDICTS = [
    ("MIT", True),
    ("GPL-3.0-only", False),
    ("MIT OR GPL-3.0-only", True),
    ("MIT AND GPL-3.0-only", False),
    ("(GPL-2.0-only OR MIT) AND Apache-2.0", True),
    ("GPL-2.0-only OR (MIT AND LGPL-3.0-only)", False),
    ("Apache-2.0 WITH LLVM-exception", True),
    ("GPL-2.0-only WITH Classpath-exception-2.0", False),
    (UNKNOWN, False),
    ("LicenseRef-mine", False),
]


@pytest.mark.parametrize(("expression", "verdict"), VERDICTS)
def test_or_needs_one_allowed_side_and_needs_all(expression: str, verdict: bool) -> None:
    assert is_allowed(expression, allowed=ALLOWED) is verdict


def test_a_version_that_is_allowed_also_allows_or_later_but_not_the_reverse() -> None:
    assert is_allowed("GPL-2.0-or-later", allowed=frozenset({"GPL-2.0-only"}))
    assert not is_allowed("GPL-2.0-only", allowed=frozenset({"GPL-2.0-or-later"}))
    assert is_allowed("GPL-2.0-only WITH X", allowed=frozenset({"GPL-2.0-only WITH X"}))


NAMES = ("MIT", "ISC", "Zlib", "GPL-2.0-only", "MPL-2.0")
TREES = st.recursive(
    st.sampled_from(NAMES),
    lambda parts: st.tuples(st.sampled_from(["AND", "OR"]), st.lists(parts, min_size=2, max_size=3)),
)


@pytest.mark.slow
@given(TREES, st.frozensets(st.sampled_from(NAMES)))
def test_verdict_and_form_of_any_expression_agree_with_plain_logic(tree: object, allowed: frozenset[str]) -> None:
    def write(node: object) -> str:
        return node if isinstance(node, str) else "(" + f" {node[0]} ".join(map(write, node[1])) + ")"  # type: ignore[index]

    def judge(node: object) -> bool:
        if isinstance(node, str):
            return node in allowed
        return (all if node[0] == "AND" else any)(map(judge, node[1]))  # type: ignore[index]

    expression = canonical(write(tree))
    assert expression is not None
    assert is_allowed(expression, allowed=allowed) == judge(tree)
    assert canonical(expression) == expression
    assert licence_names(expression) == set(re.findall("|".join(NAMES), write(tree)))


@given(st.text(alphabet="()MIT ANDORWITH-2.0+/", max_size=80))
def test_no_text_breaks_the_reader_of_expressions(text: str) -> None:
    expression = canonical(text)
    assert expression is None or isinstance(is_allowed(expression, allowed=ALLOWED), bool)


TEXTS = [
    (MIT, "MIT"),
    (MIT.replace("\n\nThe above copyright notice and this permission notice", "\n\nX"), "MIT-0"),
    (BSD, "BSD-2-Clause"),
    (BSD + ENDORSE, "BSD-3-Clause"),
    (BSD + ENDORSE + "All advertising materials mentioning features or use of this software must display this.",
     "BSD-4-Clause"),
    (APACHE, "Apache-2.0"),
    (GPL_2, "GPL-2.0-only"),
    ("GNU LESSER GENERAL PUBLIC LICENSE Version 2.1, February 1999", "LGPL-2.1-only"),
    ("GNU LESSER GENERAL PUBLIC LICENSE\n Version 3, 29 June 2007\n version 3 of the GNU General Public License",
     "LGPL-3.0-only"),
    ("GNU AFFERO GENERAL PUBLIC LICENSE Version 3, 19 November 2007", "AGPL-3.0-only"),
    ("Permission to use, copy, modify, and/or distribute this software for any purpose with or without fee is hereby granted, "
     "provided that the above copyright notice and this permission notice appear in all copies.", "ISC"),
    ("Permission to use, copy, modify, and/or distribute this software for any purpose with or without fee is hereby granted.",
     "0BSD"),
    ("Mozilla Public License Version 2.0\n==\n1. Definitions\nthe GNU General Public License, Version 2.0", "MPL-2.0"),
    ("This is free and unencumbered software released into the public domain.", "Unlicense"),
    ("CC0 1.0 Universal", "CC0-1.0"),
    ("2. Altered source versions must be plainly marked as such, and must not be misrepresented", "Zlib"),
    ("Boost Software License - Version 1.0 - August 17th, 2003", "BSL-1.0"),
    ("Eclipse Public License - v 2.0\nTHE ACCOMPANYING PROGRAM IS PROVIDED", "EPL-2.0"),
    ("PYTHON SOFTWARE FOUNDATION LICENSE VERSION 2\n1. This", "PSF-2.0"),
    ("PYTHON SOFTWARE FOUNDATION LICENSE VERSION 2\n1. This\nBEOPEN.COM LICENSE", "Python-2.0"),
    (MIT + "\nCommons Clause License Condition v1.0", f"{PROPRIETARY} AND MIT"),
    (MIT + BSD, "BSD-2-Clause AND MIT"),
    ("This project is dual licensed.\n" + MIT + APACHE, "Apache-2.0 OR MIT"),
    ("MIT", "MIT"),
    ("All rights reserved. Ask us." * 20, None),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expression"), TEXTS)
def test_texts_are_told_by_the_phrases_that_only_they_have(text: str, expression: str | None) -> None:
    wanted = None if expression is None else combine(expression.split(" AND "), operator="AND")
    assert licence_of_text(text) == wanted
    commented = "/*\n" + "".join(f" * {line}\n" for line in text.upper().splitlines()) + " */\nint x;\n"
    if expression not in (None, "MIT"):
        assert licence_of_header(commented) == wanted


HEADERS = [
    ("// SPDX-License-Identifier: MIT OR Apache-2.0\nint a;\n", "Apache-2.0 OR MIT"),
    ("/* SPDX-License-Identifier: GPL-2.0+ */\n", "GPL-2.0-or-later"),
    ("# SPDX-License-Identifier: Made Up\n", "LicenseRef-Made-Up"),
    ("# SPDX-License-Identifier: MIT\n# SPDX-License-Identifier: ISC\n", "ISC AND MIT"),
    (APACHE_HEADER, "Apache-2.0"),
    (GPL_HEADER, "GPL-2.0-or-later"),
    (GPL_HEADER.replace("General", "Lesser General").replace("version 2 ", "version 2.1 "), "LGPL-2.1-or-later"),
    ("// Distributed under the terms of the GNU General Public License.\n", "GPL-1.0-or-later"),
    ("// Licensed to the .NET Foundation. It licenses this file to you under the MIT license.\n", "MIT"),
    ("// Licensed under the Apache License, Version 2.0 or the MIT license, at your option.\n", "Apache-2.0 OR MIT"),
    ("// This Source Code Form is subject to the terms of the Mozilla Public\n// License, v. 2.0.\n", "MPL-2.0"),
    ("// Use of this source code is governed by a BSD-style license that can be found in the LICENSE file.\n", None),
    ("# Copyright 2026. All rights reserved.\n", None),
    ("import x\n# SPDX-License-Identifier: MIT\n", None),
    ("text = 'Licensed under the Apache License, Version 2.0'\n", None),
]


@pytest.mark.parametrize(("text", "expression"), HEADERS)
def test_a_header_counts_only_in_the_leading_comment(text: str, expression: str | None) -> None:
    assert licence_of_header(text) == expression


METADATA = [
    ("METADATA", "Metadata-Version: 2.4\nName: a\nLicense-Expression: MIT OR Apache-2.0\n\nGPL\n", "Apache-2.0 OR MIT"),
    (
        "METADATA",
        "Name: a\nLicense: BSD-3-Clause\nClassifier: License :: OSI Approved :: BSD License\n\n",
        "BSD-3-Clause",
    ),
    ("PKG-INFO", "Name: a\nClassifier: License :: OSI Approved :: MIT License\n", "MIT"),
    ("PKG-INFO", "Name: a\nClassifier: License :: OSI Approved\n", None),
    ("pyproject.toml", '[project]\nname = "a"\nlicense = "ISC"\n', "ISC"),
    ("pyproject.toml", '[project]\nlicense = { text = "MIT License" }\n', "MIT"),
    ("pyproject.toml", '[tool.poetry]\nlicense = "Zlib"\n', "Zlib"),
    ("pyproject.toml", "not toml [", None),
    ("Cargo.toml", '[package]\nlicense = "MIT/Apache-2.0"\n', "Apache-2.0 OR MIT"),
    ("Cargo.toml", '[workspace.package]\nlicense = "MPL-2.0"\n', "MPL-2.0"),
    ("setup.cfg", "[metadata]\nlicense = MIT\n", "MIT"),
    ("package.json", '{"license": "MIT"}', "MIT"),
    ("package.json", '{"licenses": [{"type": "MIT"}, {"type": "GPL-2.0"}]}', "GPL-2.0-only OR MIT"),
    ("package.json", '{"license": "UNLICENSED"}', PROPRIETARY),
    ("package.json", '{"license": "SEE LICENSE IN x"}', None),
    ("package.json", "[" * 100_000, None),
    ("composer.json", '{"license": ["MIT"]}', "MIT"),
    ("DESCRIPTION", "Package: a\nLicense: MIT + file LICENSE\n", "MIT"),
    ("DESCRIPTION", "Package: a\nLicense: GPL (>= 2)\n", "GPL-2.0-or-later"),
    ("a.gemspec", "Gem::Specification.new do |spec|\n  spec.licenses = ['MIT', \"Ruby\"]\nend\n", None),
    ("a.gemspec", "Gem::Specification.new do |s|\n  s.license = 'MIT'\nend\n", "MIT"),
]


@pytest.mark.parametrize(("name", "content", "expression"), METADATA)
def test_package_metadata_declares_a_licence(name: str, content: str, expression: str | None) -> None:
    assert is_licence_evidence(f"a/{name}")
    assert declared_licence(name, content.encode()) == expression


def _index(files: dict[str, str]) -> LicenceIndex:
    index = LicenceIndex()
    for path, text in files.items():
        assert is_licence_evidence(path), path
        index.add(path, text.encode())
    return index


def test_the_nearest_statement_wins_header_before_folder_before_root() -> None:
    index = _index({"LICENSE": MIT, "libs/a/COPYING": GPL_2})
    assert index.of("x.py", b"x = 1") == Licence("MIT", "file LICENSE")
    assert index.of("libs/b/x.py", b"x = 1") == Licence("MIT", "file LICENSE")
    assert index.of("libs/a/deep/x.c", b"int x;") == Licence("GPL-2.0-only", "file libs/a/COPYING")
    assert index.of("libs/a/deep/x.py", APACHE_HEADER.encode()) == Licence("Apache-2.0", "header")
    assert _index({"a/LICENSE": MIT}).of("b/x.py", b"") == NONE


COMBINATIONS = [
    ({"LICENSE-MIT": MIT, "LICENSE-APACHE": APACHE}, "Apache-2.0 OR MIT"),
    ({"LICENSE": MIT, "LICENSE.bsd": BSD}, "BSD-2-Clause AND MIT"),
    ({"LICENSE-MIT": MIT, "LICENSE-APACHE": APACHE, "Cargo.toml": '[package]\nlicense = "MIT AND Apache-2.0"'},
     "Apache-2.0 AND MIT"),
    ({"LICENSE": MIT, "COPYING": APACHE, "package.json": '{"license": "MIT OR Apache-2.0"}'}, "Apache-2.0 OR MIT"),
    ({"LICENSE": GPL_2, "package.json": '{"license": "GPL-2.0-or-later"}'}, "GPL-2.0-or-later"),
    ({"LICENSE": BSD + ENDORSE, "setup.cfg": "[metadata]\nlicense = BSD"}, "BSD-3-Clause"),
    ({"LICENSE": GPL_2, "package.json": '{"license": "ISC"}'}, "GPL-2.0-only AND ISC"),
    ({"LICENSE": MIT + GPL_2, "package.json": '{"license": "MIT"}'}, "GPL-2.0-only AND MIT"),
    ({"LICENSE": "Ask our lawyers first, then again. " * 20, "package.json": '{"license": "ISC"}'}, UNKNOWN),
    ({"LICENSE": MIT, "NOTICE": APACHE_HEADER}, "MIT"),
    ({"NOTICE": APACHE_HEADER}, "Apache-2.0"),
    ({"LICENSES/MIT.txt": MIT}, "MIT"),
    ({"package.json": '{"license": "MIT"}'}, "MIT"),
]  # fmt: skip


@pytest.mark.parametrize(("files", "expression"), COMBINATIONS)
def test_texts_and_metadata_of_one_folder_are_combined_with_care(files: dict[str, str], expression: str) -> None:
    assert _index(files).of("src/x.py", b"x = 1").expression == expression


def test_what_an_installed_package_declares_holds_for_the_files_that_it_recorded() -> None:
    index = _index(
        {
            "lib/a-1.dist-info/METADATA": "Name: a\nLicense-Expression: MIT\n\n",
            "lib/a-1.dist-info/RECORD": "a/__init__.py,sha256=x,1\nshared/a.py,,\na-1.dist-info/METADATA,,\n../../bin/a,,\n",
            "lib/b-1.dist-info/licenses/COPYING": GPL_2,
            "lib/b-1.dist-info/RECORD": "b.py,,\nshared/b.py,,\n",
        }
    )
    assert index.of("lib/a/deep/x.py", b"") == Licence("MIT", "package metadata")
    assert index.of("lib/b.py", b"").expression == "GPL-2.0-only"
    assert index.of("lib/shared/a.py", b"").expression == "GPL-2.0-only AND MIT"
    assert index.of("lib/c.py", b"") == NONE


@pytest.mark.parametrize(
    "name", ["license.py", "licence_text.py", "LICENSE.json", "THIRD_PARTY_LICENSES", "LICENSE-3RD-PARTY.txt"]
)
def test_source_files_and_lists_of_other_peoples_licences_are_no_licence_files(name: str) -> None:
    assert not is_licence_evidence(f"a/{name}")


def test_licence_texts_of_installed_packages_agree_with_what_the_packages_declare() -> None:
    verdicts: Counter[str] = Counter()
    for folder in sorted(SITE_PACKAGES.glob("*.dist-info")):
        declared = email.message_from_bytes((folder / "METADATA").read_bytes()).get("License-Expression")
        texts = [text for text in [*folder.glob("licenses/LICEN[CS]E*"), *folder.glob("LICEN[CS]E*")] if text.is_file()]
        if declared is None or not texts:
            continue
        wanted = {_family(name) for name in licence_names(canonical(str(declared)) or UNKNOWN)}
        found = {_family(name) for text in texts for name in find_licences(text.read_text("utf-8", "replace"))}
        verdicts["equal" if found == wanted else "more" if found > wanted else "other"] += 1
    assert verdicts.total() >= 80
    assert verdicts["equal"] >= 0.8 * verdicts.total(), verdicts
    assert verdicts["other"] <= 0.05 * verdicts.total(), verdicts


def _family(name: str) -> str:
    """Texts do not say "or later", and Python's licence is called by its first part."""
    return "PSF-2.0" if name == "Python-2.0" else re.sub("-(only|or-later)$", "", name)
