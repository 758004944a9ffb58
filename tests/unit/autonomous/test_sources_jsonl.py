"""A growing file of JSON Lines: by byte offset, over truncation and rotation, without a lost or torn line."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from autonomous.sources.batch import Cursor, ReadLimit, SourceBatch, SourceProblem
from autonomous.sources.jsonl import JsonlReader
from tests.streams import documents_of, source
from tests.unit.autonomous.ledger_life import quick_folder

LIMIT = ReadLimit(num_documents=3, num_bytes=1 << 20)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log.jsonl"


def reader(path: Path, **fields: Any) -> JsonlReader:
    return JsonlReader(source(kind="jsonl", path=str(path), **fields), max_document_bytes=2000)  # type: ignore[arg-type]


def write(path: Path, *texts: str, mode: str = "a") -> None:
    with path.open(mode) as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in texts)


def follow(path: Path, cursor: Cursor, **fields: Any) -> tuple[list[str], Cursor, list[SourceBatch]]:
    """Everything up to the end, by a new reader for every batch, as after crashes."""
    batches = []
    while True:
        batches.append(reader(path, **fields).read(cursor, LIMIT))
        cursor = json.loads(json.dumps(batches[-1].cursor))
        if batches[-1].is_exhausted:
            return [str(one.content, "utf-8") for one in documents_of(batches)], cursor, batches  # type: ignore[arg-type]


def test_only_what_was_appended_is_read(path: Path) -> None:
    assert follow(path, {})[0] == []  # it is not there yet
    write(path, "one", "two", "three", "four")
    texts, cursor, batches = follow(path, {})
    assert (texts, len(batches)) == (["one", "two", "three", "four"], 2)
    write(path, "five")
    texts, cursor, _ = follow(path, cursor)
    assert texts == ["five"]
    assert follow(path, cursor)[0] == []


def test_a_line_that_is_still_being_written_waits_for_its_end(path: Path) -> None:
    line = json.dumps({"text": "whole"})
    path.write_text(line[:9])
    texts, cursor, batches = follow(path, {})
    assert (texts, batches[0].refused) == ([], [])
    with path.open("a") as file:
        file.write(line[9:] + "\n")
    assert follow(path, cursor)[0] == ["whole"]


def test_a_renamed_file_is_read_to_its_end_before_the_one_in_its_place(path: Path) -> None:
    write(path, "one")
    _, cursor, _ = follow(path, {})
    write(path, "two")
    path.rename(path.with_name("log.jsonl.1"))
    write(path, "three")
    texts, cursor, batches = follow(path, cursor)
    assert texts == ["two", "three"]
    assert not any(batch.refused for batch in batches)
    assert follow(path, cursor)[0] == []


def test_two_rotations_between_two_looks_lose_nothing(path: Path) -> None:
    write(path, "one")
    _, cursor, _ = follow(path, {})
    write(path, "two")
    path.rename(path.with_name("log.jsonl.2"))
    write(path, "three")
    path.rename(path.with_name("log.jsonl.1"))
    for age, name in enumerate(("log.jsonl.1", "log.jsonl.2")):
        os.utime(path.with_name(name), (1000 - age, 1000 - age))
    (path.with_name("log.jsonl.1.gz")).write_bytes(b"not read")
    write(path, "four")
    assert follow(path, cursor)[0] == ["two", "three", "four"]


def test_a_copied_and_truncated_file_is_read_on_from_the_copy(path: Path) -> None:
    write(path, "one")
    _, cursor, _ = follow(path, {})
    write(path, "two")
    path.with_name("log.jsonl-20260131").write_bytes(path.read_bytes())
    write(path, "three is longer than all that stood here before", mode="w")
    assert follow(path, cursor)[0] == ["two", "three is longer than all that stood here before"]


def test_a_truncated_file_is_read_from_its_start_and_the_loss_is_told(path: Path) -> None:
    write(path, "one", "two", "three", "four")
    cursor = reader(path).read({}, LIMIT).cursor
    write(path, "five", mode="w")
    texts, _, batches = follow(path, cursor)
    assert texts == ["five"]
    (told,) = batches[0].refused
    assert "was cut off or replaced before 17 bytes behind byte 50 were read" in told.reason
    assert "rotate by renaming" in told.fix


def test_a_replaced_file_of_the_same_inode_and_size_is_noticed(path: Path) -> None:
    write(path, "one", "two")
    _, cursor, _ = follow(path, {})
    write(path, "six", "ten", mode="r+")
    assert follow(path, cursor)[0] == ["six", "ten"]


def test_bad_lines_are_refused_with_their_place_and_the_rest_is_read(path: Path) -> None:
    lines = [
        b'{"text": "good"}', b"{broken", b'["a", "list"]', b'{"other": 1}', b'{"text": 7}', b'{"text": "  "}', b"",
        b'{"text": "' + "Größe".encode("latin-1") + b'"}', b"[" * 5000, b'{"text": "' + b"x" * 9000 + b'"}',
        b'{"text": "last"}',
    ]  # fmt: skip
    path.write_bytes(b"\n".join(lines) + b"\n")
    texts, _, batches = [], {}, []
    cursor: Cursor = {}
    while not batches or not batches[-1].is_exhausted:
        batches.append(reader(path).read(cursor, LIMIT))
        cursor = batches[-1].cursor
    texts = [one.content for one in documents_of(batches)]
    assert texts == [b"good", "Größe".encode("latin-1"), b"last"]
    reasons = [one.reason for batch in batches for one in batch.refused]
    assert len(reasons) == 7
    assert "above 4 x max_document_bytes" in reasons[-1]
    assert len({one.offset for batch in batches for one in batch.refused}) == 7


def test_ids_are_those_of_the_records_or_of_their_texts(path: Path) -> None:
    path.write_text('{"text": "same", "key": "a"}\n{"text": "same", "key": "b"}\n')
    by_text = documents_of(follow(path, {})[2])
    assert by_text[0].id == by_text[1].id
    by_key = documents_of(follow(path, {}, id_field="key")[2])
    assert by_key[0].id != by_key[1].id
    path.write_text('{"text": "other", "key": "a"}\n')
    assert documents_of(follow(path, {}, id_field="key")[2])[0].id == by_key[0].id


def test_a_binary_file_or_a_folder_is_an_error_with_a_fix(path: Path, tmp_path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 10)
    with pytest.raises(SourceProblem, match=r"is binary.*give a JSON Lines file"):
        reader(path).read({}, LIMIT)
    with pytest.raises(SourceProblem, match="correct the path"):
        reader(tmp_path).read({}, LIMIT)
    with pytest.raises(ValidationError, match="is compressed"):
        source(kind="jsonl", path=str(path) + ".gz")
    with pytest.raises(ValidationError, match="is relative"):
        source(kind="jsonl", path="log.jsonl")


def test_a_huge_line_is_passed_over_without_being_held(path: Path) -> None:
    import tracemalloc

    with path.open("wb") as file:
        file.write(b'{"text": "')
        for _ in range(40):
            file.write(b"x" * (1 << 20))
        file.write(b'"}\n{"text": "after"}\n')
    tracemalloc.start()
    texts, _, batches = follow(path, {})
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert texts == ["after"]
    assert len(batches[0].refused) == 1
    assert most < 8 << 20


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(1, 4)),
        st.tuples(st.just("rotate"), st.just(0)),
        st.tuples(st.just("read"), st.integers(1, 3)),
        st.tuples(st.just("crash"), st.integers(1, 3)),
    ),
    max_size=30,
)


@pytest.fixture(scope="module")
def quick() -> Iterator[Path]:
    with quick_folder() as folder:
        yield folder


@settings(max_examples=60, deadline=None)
@given(actions=ACTIONS)
def test_whatever_is_written_rotated_and_read_in_any_order_every_line_is_read_in_order(
    quick: Path, actions: list[tuple[str, int]]
) -> None:
    for old in quick.glob("*"):
        old.unlink()
    path, cursor, written, taken = quick / "log.jsonl", dict[str, Any](), list[str](), list[str]()
    num_rotated = 0

    def read(limit: int, *, is_kept: bool) -> bool:
        nonlocal cursor
        batch = reader(path).read(cursor, ReadLimit(num_documents=limit))
        if is_kept:
            cursor = json.loads(json.dumps(batch.cursor))
            taken.extend(str(one.content, "utf-8") for one in batch.documents)  # type: ignore[arg-type]
        return batch.is_exhausted

    for action, number in actions:
        if action == "write":
            for _ in range(number):
                written.append(f"line {len(written)}")
                write(path, written[-1])
            os.utime(path, ns=(len(written) * 10**9, len(written) * 10**9))
        elif action == "rotate" and path.exists():
            num_rotated += 1
            path.rename(quick / f"log.jsonl-{num_rotated:04d}")
        elif action in ("read", "crash"):
            read(number, is_kept=action == "read")
    if not cursor and num_rotated:  # a source that was never read begins with the file of its name
        return
    while not read(3, is_kept=True):
        pass
    assert taken == [line for line in written if line in taken]
    assert len(set(taken)) == len(taken)
    assert written[written.index(taken[0]) :] == taken if taken else True
