"""CodeDataProcessor: which files of a repository become documents, with what metadata, and why the others do not."""

import io
import os
import subprocess
import sysconfig
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pyarrow.fs as pafs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.data.code_filters import CodeFilterConfig, content_reasons, path_reasons
from train.data.document import RawDocument, Rejected
from train.data.filesystem import resolve
from train.data.pii import SECRET_KINDS, mask_sensitive
from train.data.source_code import CodeConfig, CodeDataProcessor

STANDARD_LIBRARY = Path(sysconfig.get_paths()["stdlib"])
LOCAL = pafs.LocalFileSystem()
FILTERS = CodeFilterConfig()
MIT = """Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated files.
The copyright notice and this permission notice shall be included.
"""
FILES = {
    "LICENSE": MIT,
    "README.md": "# Title\n",
    "src/app.py": "import helper\n\n\ndef main() -> None:\n    helper.run()\n",
    "src/helper.py": "def run() -> None:\n    print('run')\n",
    "src/gpl.py": "# SPDX-License-Identifier: GPL-3.0-only\nprint(1)\n",
    "src/tool.pb.go": "package tool\n",
    "web/index.ts": "import { a } from './lib';\nconsole.log(a);\n",
    "web/lib.ts": "export const a: number = 1;\n",
    "vendor/lib/x.c": "int x;\n",
    "logo.png": "\x00\x01",
    "empty.py": "\n",
}
TAKEN = ["src/app.py", "src/helper.py", "web/index.ts", "web/lib.ts"]


def _write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def _read(
    path: Path | str, *, config: CodeConfig | None = None, filesystem: pafs.FileSystem = LOCAL
) -> tuple[list[RawDocument], dict[str, Rejected]]:
    items = list(CodeDataProcessor(config or CodeConfig()).read(filesystem, str(path), source_id="code"))
    documents = [item for item in items if isinstance(item, RawDocument)]
    return documents, {item.path: item for item in items if isinstance(item, Rejected)}


def _paths(documents: Sequence[RawDocument]) -> list[str]:
    return [document.metadata["path"] for document in documents]


def test_code_of_the_allowed_languages_and_licences_comes_by_path_with_its_metadata(tmp_path: Path) -> None:
    documents, rejected = _read(_write(tmp_path / "repo", FILES))
    assert _paths(documents) == TAKEN
    assert documents[0].content == FILES["src/app.py"].encode()
    assert documents[2].metadata == {
        "path": "web/index.ts",
        "kind": "code",
        "language": "typescript",
        "licence": "MIT",
        "licence_source": "file LICENSE",
        "repository": "repo",
    }
    assert {path: item.reason for path, item in rejected.items()} == {
        "repo/LICENSE": "language: other",
        "repo/README.md": "language: other",
        "repo/empty.py": "is empty",
        "repo/logo.png": "language: other",
        "repo/src/gpl.py": "licence: GPL-3.0-only (header) is not allowed",
        "repo/src/tool.pb.go": "generated.name = 1",
        "repo/vendor/lib/x.c": "vendored.folder = 0",
    }
    assert "code.allowed_licences" in rejected["repo/src/gpl.py"].fix


def test_a_git_repository_gives_its_tracked_files_only(tmp_path: Path) -> None:
    folder = _write(tmp_path / "repo", FILES)
    for command in (["init", "-q"], ["add", "LICENSE", "src/app.py", "web"]):
        subprocess.run(["git", "-C", str(folder), *command], check=True, capture_output=True)
    assert _paths(_read(folder)[0]) == ["src/app.py", "web/index.ts", "web/lib.ts"]


def test_an_archive_gives_the_documents_of_its_folder_under_its_name(tmp_path: Path) -> None:
    folder = _write(tmp_path / "repo", FILES)
    expected = {document.metadata["path"]: document.content for document in _read(folder)[0]}
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as zipped, tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tarred:
        for name in FILES:
            zipped.write(folder / name, f"repo-1.0/{name}")
            tarred.add(folder / name, f"repo-1.0/{name}")
    for name in ("a.zip", "a.tar.gz"):
        documents, rejected = _read(tmp_path / name)
        prefix = f"{name}!repo-1.0/"
        assert {document.metadata["path"].removeprefix(prefix): document.content for document in documents} == expected
        assert {document.metadata["repository"] for document in documents} == {"a"}
        assert {document.metadata["licence_source"] for document in documents} == {"file repo-1.0/LICENSE"}
        assert rejected[f"{prefix}src/gpl.py"].reason == "licence: GPL-3.0-only (header) is not allowed"
        assert len(documents) + len(rejected) == len(FILES)


def test_a_cut_archive_gives_what_could_be_read_and_one_rejected_with_the_offset(tmp_path: Path) -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, text in FILES.items():
            info = tarfile.TarInfo(name)
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text.encode()))
    (tmp_path / "a.tar").write_bytes(file.getvalue()[: 9 * 512])
    documents, rejected = _read(tmp_path / "a.tar")
    assert _paths(documents) == ["a.tar!src/app.py", "a.tar!src/helper.py"][: len(documents)]
    assert documents
    assert rejected["a.tar"].offset == 9 * 512


def test_a_folder_of_another_file_system_gives_the_same_documents(tmp_path: Path) -> None:
    local, _ = _read(_write(tmp_path / "repo", FILES))
    filesystem, root = resolve("memory://bucket/repo")
    for name, text in FILES.items():
        filesystem.create_dir(f"{root}/{name}".rpartition("/")[0], recursive=True)
        with filesystem.open_output_stream(f"{root}/{name}") as file:
            file.write(text.encode())
    remote, rejected = _read(root, filesystem=filesystem)
    assert [(one.metadata, one.content) for one in remote] == [(one.metadata, one.content) for one in local]
    assert len(rejected) == len(FILES) - len(TAKEN)


def test_ids_depend_on_the_path_within_the_source_and_not_on_where_it_lies(tmp_path: Path) -> None:
    first = _read(_write(tmp_path / "x/repo", FILES))[0]
    second = _read(_write(tmp_path / "y/repo", FILES))[0]
    assert [document.id for document in first] == [document.id for document in second]
    _write(tmp_path / "z/one", FILES)
    _write(tmp_path / "z/two", FILES)
    below = pafs.SubTreeFileSystem(str(tmp_path / "z"), LOCAL)
    ids = [document.id for name in ("one", "two") for document in _read(name, filesystem=below)[0]]
    assert len(set(ids)) == 2 * len(TAKEN)
    root = pafs.SubTreeFileSystem(str(tmp_path / "x/repo"), LOCAL)
    assert _read("", filesystem=root)[0][0].metadata["repository"] == "repo"


@pytest.mark.parametrize("is_behind_subtree", [False, True])
def test_symbolic_links_lead_nowhere_outside(tmp_path: Path, is_behind_subtree: bool) -> None:
    (tmp_path / "secret.py").write_text("key = 1\n")
    folder = _write(tmp_path / "repo", FILES)
    (folder / "link.py").symlink_to(tmp_path / "secret.py")
    (folder / "COPYING").symlink_to(tmp_path / "secret.py")
    filesystem = pafs.SubTreeFileSystem(str(tmp_path), LOCAL) if is_behind_subtree else LOCAL
    documents, rejected = _read("repo" if is_behind_subtree else folder, filesystem=filesystem)
    assert _paths(documents) == TAKEN
    assert "symbolic link" in rejected["repo/link.py"].reason


def test_nothing_of_a_repository_is_executed(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    command = f"import pathlib; pathlib.Path({str(mark)!r}).touch()\n"
    folder = _write(tmp_path / "repo", {"LICENSE": MIT, "setup.py": command, "conftest.py": command, "a.gemspec": "x"})
    subprocess.run(["git", "-C", str(folder), "init", "-q"], check=True)
    hook = folder / ".git" / "hook.sh"
    hook.write_text(f"#!/bin/sh\ntouch {mark}\n")
    hook.chmod(0o755)
    with (folder / ".git" / "config").open("a") as file:
        file.write(f"[core]\n\tfsmonitor = {hook}\n\thooksPath = {folder / '.git'}\n")
    subprocess.run(["git", "-C", str(folder), "-c", "core.fsmonitor=false", "add", "."], check=True)
    assert len(_read(folder)[0]) == 3
    assert not mark.exists()


def test_unknown_licences_are_refused_unless_the_configuration_says_otherwise(tmp_path: Path) -> None:
    folder = _write(tmp_path / "repo", {"a.py": "x = 1\n"})
    documents, rejected = _read(folder)
    assert not documents
    assert "code.allow_unknown_licence" in rejected["repo/a.py"].fix
    (document,) = _read(folder, config=CodeConfig(allow_unknown_licence=True))[0]
    assert (document.metadata["licence"], document.metadata["licence_source"]) == ("unknown", "none")


def test_languages_and_licences_are_chosen_by_the_configuration(tmp_path: Path) -> None:
    folder = _write(tmp_path / "repo", FILES)
    documents, rejected = _read(folder, config=CodeConfig(languages=("python",), allowed_licences=("GPL-3.0-only",)))
    assert _paths(documents) == ["src/gpl.py"]
    assert rejected["repo/web/lib.ts"].reason == "language: typescript is not in code.languages"
    with pytest.raises(ValueError, match="'cobol'"):
        CodeConfig(languages=("cobol",))


def test_a_missing_path_is_an_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        CodeDataProcessor(CodeConfig()).read(LOCAL, str(tmp_path / "no"), source_id="code")


def test_headers_without_marks_take_the_language_of_the_repository(tmp_path: Path) -> None:
    files = {"LICENSE": MIT, "a.cpp": "int x;\n", "a.h": "#pragma once\n#define A 1\n"}
    assert {one.metadata["language"] for one in _read(_write(tmp_path / "r", files))[0]} == {"c++"}


PATH_RULES = [
    ("src/vendor/x.c", "vendored.folder"),
    ("Third_Party/x.c", "vendored.folder"),
    ("node_modules/a/b.js", "vendored.folder"),
    ("a/dist/b.js", "vendored.folder"),
    ("jquery.min.js", "generated.name"),
    ("a_pb2.py", "generated.name"),
    ("a.pb.go", "generated.name"),
    ("Form.Designer.cs", "generated.name"),
    ("package-lock.json", "generated.name"),
    ("Cargo.lock", None),
    ("vendor.c", None),
    ("src/distance/x.c", None),
    ("admin.js", None),
]


@pytest.mark.parametrize(("path", "rule"), PATH_RULES)
def test_vendored_and_generated_files_are_told_by_their_path(path: str, rule: str | None) -> None:
    expected = {"Cargo.lock": "generated.name"}.get(path, rule)
    assert [reason["rule"] for reason in path_reasons(path, config=FILTERS)] == ([expected] if expected else [])


LINES = "".join(f"total_{number} = compute(total, {number})  # note\n" for number in range(60))
CONTENT_RULES = [
    ("// Code generated by protoc-gen-go. DO NOT EDIT.\npackage a\n", {"generated.mark"}),
    ("/* @generated by a tool */\nint a;\n", {"generated.mark"}),
    ("# This file was automatically generated by SWIG\nx = 1\n", {"generated.mark"}),
    ("# Copyright 2026 A. Person\n#\n# DO NOT EDIT\nx = 1\n", {"generated.mark"}),
    ('"""Docs are automatically generated from what users write; do not edit the list below."""\nx = 1\n', set()),
    ("x = '''@generated'''\n# DO NOT EDIT\n", set()),
    (LINES, set()),
    ("x=1;" * 2000, {"minified.max_line_length", "minified.mean_line_length", "minified.space_share"}),
    (LINES + "text = '" + "word " * 30 + "'\n", set()),
    (LINES + "text = '" + "word " * 250 + "'\n", {"minified.max_line_length"}),
    ("\n".join(f"0x{n % 256:02x}, 0x{7 * n % 256:02x}, 0x{n // 3 % 256:02x}, 0x5a," for n in range(300)),
     {"data_like.encoded_share", "data_like.encoded_run"}),
    ("\n".join(f"{n * 7919 % 100003}, {n * 104729 % 100003}, {n}," for n in range(300)),
     {"data_like.letter_share", "data_like.digit_share"}),
    (LINES + "key = '" + "Zm9vYmFyMTIz" * 400 + "'\n",
     {"data_like.encoded_share", "data_like.encoded_run", "minified.max_line_length"}),
    ("x\n" * 100_001, {"too_large.lines"}),
]  # fmt: skip


@pytest.mark.parametrize(("text", "rules"), CONTENT_RULES)
def test_generated_minified_and_data_like_files_are_told_by_content(text: str, rules: set[str]) -> None:
    found = {reason["rule"] for reason in content_reasons(text, config=FILTERS)}
    assert found >= rules
    assert bool(found) == bool(rules)


def test_of_the_standard_library_only_generated_files_are_dropped() -> None:
    files = sorted(STANDARD_LIBRARY.glob("*.py")) + sorted(STANDARD_LIBRARY.glob("[a-e]*/*.py"))
    reasons = {file.name: content_reasons(file.read_text("utf-8", "replace"), config=FILTERS) for file in files}
    dropped = {name: found for name, found in reasons.items() if found}
    assert len(files) > 300
    assert {"keyword.py", "token.py", "stringprep.py"} <= set(dropped)
    assert len(dropped) <= 5
    assert {reason["rule"] for found in dropped.values() for reason in found} == {"generated.mark"}


@given(st.text(max_size=300))
def test_any_text_is_judged(text: str) -> None:
    for reason in content_reasons(text, config=CodeFilterConfig(min_judged_bytes=1)):
        assert reason["rule"].partition(".")[0] in {"generated", "minified", "data_like", "too_large"}


SECRETS = [
    "https://hooks.slack.com/services/T" + "0AB1CD2EF/B0GH3IJ4KL/" + "aB3dE5fG7hI9jK1lM3nO5pQ7",
    "https://discord.com/api/webhooks/"
    + "123456789012345678/"
    + "aB3dE5fG7hI9jK1lM3nO5pQ7rS9tU1vW3xY5zA7bC9dE1fG3hI5jK7lM9nO1pQ3rS5tU",
    "AccountName=x;AccountKey="
    + "aB3dE5fG7hI9jK1lM3nO5pQ7rS9tU1vW3xY5zA7bC9dE1fG3hI5jK7lM9nO1pQ3rS5tU7vW9xY1zA3bC5dE7fG"
    + "==;",
    "GOCSPX-" + "aB3dE5fG7hI9jK1lM3nO5pQ7rS9t",
    "SG." + "aB3dE5fG7hI9jK1lM3nO5p" + "." + "aB3dE5fG7hI9jK1lM3nO5pQ7rS9tU1vW3xY5zA7bC9d",
    "token: 123456789:AA" + "b3dE5fG7hI9jK1lM3nO5pQ7rS9tU1vW3x",
    "dop_v1_" + "0123456789abcdef" * 4,
    "shpat_" + "0123456789abcdef" * 2,
    "dapi" + "0123456789abcdef" * 2,
    "glsa_" + "aB3dE5fG7hI9jK1lM3nO5pQ7rS9tU1vW" + "_0123abcd",
    "AGE-SECRET-KEY-1" + "QPZRY9X8GF2TVDW0S3JN54KHCE6MUA7L" + "QPZRY9X8GF2TVDW0S3JN54KHCE",
]


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("padding", ["", "word " * 800])
def test_tokens_of_services_are_masked_in_short_and_in_long_texts(secret: str, padding: str) -> None:
    text, counts = mask_sensitive(f"{padding}\nx = '{secret}'\n", kinds=SECRET_KINDS)
    assert counts == {"TOKEN": 1}
    assert secret.rpartition("/")[2][-12:] not in text


def test_the_private_key_of_a_service_account_is_masked_in_its_json() -> None:
    body = "MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7\\n" * 3
    key = f"-----BEGIN PRIVATE KEY-----\\n{body}-----END PRIVATE KEY-----\\n"
    text = f'{{"type": "service_account", "private_key": "{key}"}}'
    masked, counts = mask_sensitive(text, kinds=SECRET_KINDS)
    assert counts == {"PRIVATE_KEY": 1}
    assert "MIIE" not in masked


def test_the_standard_library_has_no_token() -> None:
    for file in sorted(STANDARD_LIBRARY.glob("*.py")):
        assert mask_sensitive(file.read_text("utf-8", "replace"), kinds=frozenset({"TOKEN"}))[1] == {}, file


def test_placeholders_and_look_alikes_of_tokens_are_kept() -> None:
    for text in (
        "https://hooks.slack.com/services/XXX/YYY/ZZZ", "AccountKey=<your key>", "dapi" + "0" * 32, "key-value", "SG.x.y",
        "sha: 0123456789abcdef0123456789abcdef", "monkey-" + "0123456789abcdef" * 2, "10:AA", "shpat_xxx",
    ):  # fmt: skip
        assert mask_sensitive(text, kinds=frozenset({"TOKEN"}))[1] == {}, text


def test_the_working_directory_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = _write(tmp_path / "repo", FILES)
    monkeypatch.chdir(folder)
    assert os.getcwd() == str(folder)
    assert _paths(_read(folder)[0]) == TAKEN
