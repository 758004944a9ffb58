"""Which language a file is in: by name, by content where names are shared, and never a guess for other languages."""

import os
import sysconfig
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.data.code_comment import leading_comment, path_comment
from train.data.code_language import LANGUAGES, OTHER, detect_language, is_never_code, language_of_name

SITE_PACKAGES = Path(sysconfig.get_paths()["purelib"])
STANDARD_LIBRARY = Path(sysconfig.get_paths()["stdlib"])
PYGMENTS_EXAMPLES = os.environ.get("AUTONOMOUS_PYGMENTS_EXAMPLES", "")

SAMPLES = {
    "python": ("tool.py", "def main() -> None:\n    print('hi')\n"),
    "javascript": ("app.js", "export const add = (a, b) => a + b;\n"),
    "typescript": ("app.ts", "export function add(a: number, b: number): number { return a + b; }\n"),
    "java": ("Main.java", "package a;\npublic class Main { public static void main(String[] a) {} }\n"),
    "c": ("main.c", "#include <stdio.h>\nint main(void) { puts(\"hi\"); return 0; }\n"),
    "c++": ("main.cpp", "#include <iostream>\nint main() { std::cout << 1; }\n"),
    "c#": ("Main.cs", "using System;\nnamespace A { class B { } }\n"),
    "go": ("main.go", "package main\n\nfunc main() {}\n"),
    "rust": ("main.rs", "fn main() { println!(\"hi\"); }\n"),
    "ruby": ("main.rb", "def hi\n  puts 1\nend\n"),
    "php": ("index.php", "<html><?php echo 1; ?></html>\n"),
    "swift": ("main.swift", "let a = 1\nprint(a)\n"),
    "kotlin": ("Main.kt", "fun main() { println(1) }\n"),
    "scala": ("Main.scala", "object Main extends App\n"),
    "shell": ("run.sh", "#!/bin/sh\necho hi\n"),
    "sql": ("schema.sql", "-- tables\nCREATE TABLE a (b INTEGER);\n"),
    "lua": ("main.lua", "local a = 1\nprint(a)\n"),
    "r": ("model.R", "x <- c(1, 2)\nprint(x)\n"),
}  # fmt: skip


def test_there_are_eighteen_languages_and_a_sample_of_each() -> None:
    assert len(LANGUAGES) == 18
    assert set(SAMPLES) == set(LANGUAGES)


@pytest.mark.parametrize("language", sorted(SAMPLES))
def test_each_language_is_told_by_its_suffix_in_any_case_and_folder(language: str) -> None:
    name, text = SAMPLES[language]
    assert detect_language(f"deep/er/{name}", text.encode()) == language
    assert detect_language(name.replace(".cpp", ".CPP").replace(".py", ".PY"), text.encode()) == language
    assert language_of_name(name) in (language, None)


SHARED_NAMES = [
    ("a.h", "#ifndef A_H\n#define A_H\ntypedef struct { int x; } point;\nint f(point *p);\n#endif\n", "c"),
    ("a.h", "/* class of a */\nint class_of(void *);\n", "c"),
    ("a.h", '#ifdef __cplusplus\nextern "C" {\n#endif\nint f(void);\n#ifdef __cplusplus\n}\n#endif\n', "c"),
    ("a.h", "#pragma once\nnamespace a {\nclass B { public: B(); };\n}\n", "c++"),
    ("a.h", "#include <vector>\nstd::vector<int> f();\n", "c++"),
    ("a.h", "template <typename T>\nT f(T t);\n", "c++"),
    ("a.h", "struct B : public A { };\n", "c++"),
    ("a.h", "#ifdef __cplusplus\nnamespace a { class B; }\n#endif\n", "c++"),
    ("a.h", "#import <Foundation/Foundation.h>\n@interface A : NSObject\n@end\n", OTHER),
    ("a.h", "typedef NS_ENUM(NSInteger, Kind) { KindA };\n", OTHER),
    ("vector", "// -*- C++ -*-\n#include <bits/c++config.h>\n", "c++"),
    ("a.ts", '<?xml version="1.0"?>\n<!DOCTYPE TS>\n<TS version="2.1"></TS>\n', OTHER),
    ("a.ts", "<TS version='2.1'><context/></TS>\n", OTHER),
    ("a.ts", ("G" + "\x07" * 187) * 4, OTHER),
    ("a.ts", "interface A { b: string }\n", "typescript"),
    ("a.tsx", "export const A = () => <b>hi</b>;\n", "typescript"),
    ("a.r", "REBOL [Title: \"x\"]\nprint 1\n", OTHER),
    ("a.r", "Red []\nprint 1\n", OTHER),
    ("a.r", "x <- function(a) a + 1\n", "r"),
    ("a.cs", "!Object methodsFor: 'x'!\nfoo ^1! !\n", OTHER),
    ("a.cs", "class A { int b; }\n", "c#"),
    ("a.sql", "just some words about a query\n", OTHER),
    ("a.sql", "SELECT a FROM b;\n", "sql"),
    ("a.inc", "<?php\nfunction f() {}\n", "php"),
    ("a.inc", "#define N 1\nstatic const int table[] = { 1, 2 };\n", "c"),
    ("a.inc", "procedure Foo;\nbegin\nend;\n", OTHER),
    ("a.inc", "%macro foo 1\n  mov eax, 1\n%endmacro\n", OTHER),
    ("a.php", "<html><body>no code</body></html>\n", OTHER),
    ("a.php", "<?hh\nfunction f(): int { return 1; }\n", OTHER),
    ("a.rs", "#pragma version(1)\n#pragma rs java_package_name(a)\n", OTHER),
    ("a.sc", "object A { def b = 1 }\n", "scala"),
    ("a.sc", "SynthDef(\\a, { |freq| Out.ar(0, SinOsc.ar(freq)) }).add;\n", OTHER),
    ("a.pl", "use strict;\nprint 1;\n", OTHER),
    ("a.m", "function y = f(x)\n  y = x;\nend\n", OTHER),
    ("a.mm", "@implementation A\n@end\n", OTHER),
    ("a.pyx", "cdef int f(): return 1\n", OTHER),
    ("a.luau", "local x: number = 1\n", OTHER),
    ("README.md", "# Title\n", OTHER),
    ("data.json", "{}", OTHER),
    ("run", "#!/usr/bin/env python3.11\nprint(1)\n", "python"),
    ("run", "#!/usr/bin/env -S A=1 node --harmony\n1\n", "javascript"),
    ("run", "#!/usr/local/bin/bash -e\necho\n", "shell"),
    ("run", "#!/usr/bin/perl -w\nprint 1;\n", OTHER),
    ("run", "no marks at all\n", OTHER),
    ("run.sh", "#!/usr/bin/env ruby\nputs 1\n", "ruby"),
    ("tool.cgi", "#!/usr/bin/php\n<?php echo 1;\n", "php"),
    ("script", "# vim: set ft=lua :\nprint(1)\n", "lua"),
    ("script", "# -*- mode: ruby; coding: utf-8 -*-\nputs 1\n", "ruby"),
    ("script", "# -*- coding: utf-8 -*-\nwords\n", OTHER),
    ("Rakefile", "task :a\n", "ruby"),
    ("SConstruct", "Program('a.c')\n", "python"),
    (".bashrc", "alias a=b\n", "shell"),
    ("A.C", "class B { public: int c; };\n", "c++"),
    ("OLD.C", "int f(void) { return 1; }\n", "c"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text", "language"), SHARED_NAMES)
def test_a_shared_or_missing_suffix_is_decided_by_content(name: str, text: str, language: str) -> None:
    assert detect_language(name, text.encode("latin-1")) == language


def test_a_header_of_macros_alone_takes_the_language_of_its_repository() -> None:
    text = b"#pragma once\n#define A 1\n"
    assert detect_language("a.h", text) == "c"
    assert detect_language("a.h", text, header_language="c++") == "c++"
    assert detect_language("a.h", b"int f(void);\n", header_language="c++") == "c"


def test_byte_order_marks_and_utf16_do_not_hide_a_shebang() -> None:
    assert detect_language("run", "\ufeff#!/bin/sh\n".encode()) == "shell"
    assert detect_language("run", "#!/bin/sh\n".encode("utf-16")) == "shell"


def test_every_file_of_the_standard_library_is_python() -> None:
    files = sorted(STANDARD_LIBRARY.glob("*.py")) + sorted(STANDARD_LIBRARY.glob("asyncio/*.py"))
    assert len(files) > 150
    assert {detect_language(file.name, file.read_bytes()) for file in files} == {"python"}


def test_headers_of_installed_packages_are_told_apart() -> None:
    c_headers = sorted((SITE_PACKAGES / "numpy").rglob("numpy/*.h"))
    assert len(c_headers) > 15
    assert {detect_language(file.name, file.read_bytes()) for file in c_headers} == {"c"}
    cpp_headers = sorted((SITE_PACKAGES / "pyarrow/include/arrow").rglob("*.h"))
    with_namespace = [file for file in cpp_headers if "\nnamespace arrow" in file.read_text()]
    assert len(with_namespace) > 50
    assert {detect_language(file.name, file.read_bytes()) for file in with_namespace} == {"c++"}


@given(
    st.sampled_from(["a.h", "a.ts", "a", "a.sql", "a.r", "a.inc", "a.php", "x.py", "a.sc", "a.cs"]),
    st.binary(max_size=600),
)
def test_any_bytes_get_a_known_answer(name: str, content: bytes) -> None:
    assert detect_language(name, content) in {*LANGUAGES, OTHER}


@given(st.text(alphabet="#/*\"'<>=:;{}()@ \n\tabifdefcplusplus_", max_size=400))
def test_repeated_comment_quote_and_directive_signs_get_an_answer(text: str) -> None:
    for name in ("a.h", "a.sql", "a.sc", "a.r", "a"):
        assert detect_language(name, (text * 50).encode()) in {*LANGUAGES, OTHER}


def test_pictures_and_archives_need_not_be_read_but_files_without_a_suffix_do() -> None:
    assert is_never_code("a/b.PNG")
    assert is_never_code("x.tar.gz")
    assert not is_never_code("bin/map")
    assert not is_never_code("a.cgi")


HEADS = [
    ("/*\n * One\n * two\n */\nint a; /* no */\n", "One two"),
    ("// a\n// b\n\npackage x;\n// c\nimport y;\n// d\n", "a b c"),
    ("#!/bin/sh\n# a\n# b\necho\n# c\n", "a b"),
    ('#!/usr/bin/env python\n# a\n"""Doc\nstring."""\nx = 1\n# no\n', "a Doc string."),
    ("#ifndef A\n#define A\n/* b */\n#include <c>\nint d;\n", "b"),
    ("<?php\n/**\n * a\n */\necho;\n", "a"),
    ("<?php /* a */ ?>\n", "a"),
    ("--[[ a\nb ]]\nlocal c\n", "a b"),
    ("-- a\nSELECT 1;\n", "a"),
    ("x = 1\n# no\n", ""),
    ("/* a */ int b;\n// no\n", "a"),
    ("'use strict';\n// a\nvar b;\n", "a"),
]


@pytest.mark.parametrize(("text", "comment"), HEADS)
def test_the_leading_comment_ends_where_code_begins(text: str, comment: str) -> None:
    assert " ".join(leading_comment(text).split()) == comment


@pytest.mark.parametrize("language", sorted(LANGUAGES))
def test_a_path_comment_is_one_comment_line_whatever_the_path(language: str) -> None:
    comment = path_comment("a/b */ ?> c\nd\u2028e.x", language=language)
    assert comment.splitlines() == [comment]
    assert "*/ ?> c" not in comment
    assert "a/b" in leading_comment(comment) or language == "php"


def test_a_php_path_comment_is_no_output() -> None:
    assert path_comment("a/b.php", language="php") == "<?php /* a/b.php */ ?>"


TRUTH = {
    "python": "python", "js": "javascript", "jsx": "javascript", "ts": "typescript", "tsx": "typescript", "java": "java",
    "c": "c", "cpp": "c++", "csharp": "c#", "go": "go", "rust": "rust", "rb": "ruby", "php": "php", "html+php": "php",
    "swift": "swift", "kotlin": "kotlin", "scala": "scala", "bash": "shell", "postgresql": "sql", "tsql": "sql", "lua": "lua",
    "splus": "r",
}  # fmt: skip


@pytest.mark.skipif(not PYGMENTS_EXAMPLES, reason="set AUTONOMOUS_PYGMENTS_EXAMPLES to tests/examplefiles of Pygments")
def test_the_examples_of_pygments_lexers_are_told_apart() -> None:
    root = Path(PYGMENTS_EXAMPLES)
    files = [file for file in sorted(root.glob("*/**/*")) if file.is_file() and file.suffix != ".output"]
    assert len(files) > 600
    wrong = [
        (file.name, truth, found)
        for file in files
        if (truth := TRUTH.get(file.relative_to(root).parts[0], OTHER))
        != (found := detect_language(file.name, file.read_bytes()))
    ]
    assert len(wrong) <= len(files) // 100, wrong
