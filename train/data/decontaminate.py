"""Decontamination: which documents hold text of an evaluation set.

In: evaluation items, by the name of their set; document tables. Out: a file of hashes, and the tables with a reason
"decontamination.<set>" where a document shares word n-grams with a set; its value is how many, repeats counted.

Words are lower-cased and without punctuation (ngrams.py). An item with fewer words than an n-gram counts as a whole; one with
fewer than `min_item_words` is too common to count.
Sources: 13-grams after GPT-3 (arXiv:2005.14165, appendix C), which lower-cases, ignores punctuation and takes 8 to 13 words;
Llama 2 and 3 (arXiv:2307.09288, 2407.21783) use 10 and 8 tokens. GPT-3 cuts a document around a hit; here it goes as a whole.

Hashes have 64 bits and hits are not compared by text: a document of a thousand words meets one of ten million n-grams by
chance with probability 1000 * 10^7 / 2^64 = 5 * 10^-10.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.fs as pafs
from pydantic import BaseModel, ConfigDict, Field, model_validator

from train.data.document import BINARY_FIX, describe_binary
from train.data.filesystem import open_atomically, resolve
from train.data.lines import Damaged, open_bytes, read_lines
from train.data.ngrams import Wanted, count_wanted, hash_ngrams, hash_words, index_wanted
from train.data.records import find
from train.data.schema import text_bytes, with_reasons
from train.data.stored_file import UnreadableFile, explain_reading

CONTAMINATION_VERSION = 1
RULE = "decontamination"
MAX_ITEM_BYTES = 64 << 20


class DecontaminationConfig(BaseModel):
    """When a document counts as contaminated."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ngram_words: int = Field(13, ge=2, le=64)
    """Words in a row that a document must share with an item."""
    min_item_words: int = Field(8, ge=1)
    """Least words of an item that counts as a whole, where it has fewer than ngram_words."""
    min_matches: int = Field(1, ge=1)
    """Shared n-grams from which a document is dropped. Above 1, items of few words are missed."""

    @model_validator(mode="after")
    def _items_are_shorter(self) -> Self:
        if self.min_item_words > self.ngram_words:
            raise ValueError(
                f"min_item_words = {self.min_item_words} is above ngram_words = {self.ngram_words}: lower it; longer items "
                "are found by their n-grams"
            )
        return self


_COLUMNS = {"hash": np.uint64, "whole": np.uint64, "num_words": np.uint8, "set": np.uint16}
"""Of an n-gram: its hash, 0, ngram_words. Of a short item: the hash of its last min_item_words words, its own, its words."""


@dataclass(frozen=True)
class Contamination:
    """The n-grams of evaluation sets: rows of _COLUMNS, sorted, each once."""

    config: DecontaminationConfig
    set_names: tuple[str, ...]
    num_items: tuple[int, ...]
    """By set."""
    num_skipped: tuple[int, ...]
    """By set: items too short to count."""
    columns: Mapping[str, npt.NDArray[Any]]

    @classmethod
    def build(cls, named_texts: Mapping[str, Iterable[str]], config: DecontaminationConfig) -> Self:
        """From the items' texts by set. Neither the order of sets nor that of items matters."""
        names = tuple(sorted(named_texts))
        found: list[npt.NDArray[Any]] = []
        num_items, num_skipped = [0] * len(names), [0] * len(names)
        for number, name in enumerate(names):
            for text in named_texts[name]:
                rows = _rows_of(text, number, config)
                num_items[number] += 1
                num_skipped[number] += not len(rows)
                found.append(rows)
        rows = np.concatenate(found) if found else np.zeros(0, _ROW)
        rows = rows[np.lexsort([rows[name] for name in reversed(_COLUMNS)])]
        rows = rows[np.append(True, rows[1:] != rows[:-1])[: len(rows)]]
        columns = {name: rows[name].copy() for name in _COLUMNS}
        return cls(config, names, tuple(num_items), tuple(num_skipped), columns)

    def save(self, filesystem: pafs.FileSystem, path: str) -> None:
        """Write one file; the same bytes for the same sets."""
        about = {
            "version": CONTAMINATION_VERSION,
            "config": self.config.model_dump(),
            "set_names": self.set_names,
            "num_items": self.num_items,
            "num_skipped": self.num_skipped,
        }
        table = pa.table(dict(self.columns)).replace_schema_metadata({"contamination": json.dumps(about)})
        with open_atomically(filesystem, path) as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)

    @classmethod
    def load(cls, filesystem: pafs.FileSystem, path: str) -> Self:
        """Raises UnreadableFile for a missing or damaged file, or one of another version."""
        fix = "build it anew from the evaluation sets"
        with explain_reading(path, kind="hashes of evaluation sets", fix=fix), filesystem.open_input_file(path) as file:
            table = pa.ipc.open_file(file).read_all()
        try:
            about = json.loads((table.schema.metadata or {})[b"contamination"])
            version = about["version"]
        except (KeyError, ValueError) as error:
            raise UnreadableFile(f"{path} holds no hashes of evaluation sets: {fix}") from error
        if version != CONTAMINATION_VERSION:
            raise UnreadableFile(f"{path} has version {version}, this program reads {CONTAMINATION_VERSION}: {fix}")
        columns = {name: np.ascontiguousarray(table[name].to_numpy(), kind) for name, kind in _COLUMNS.items()}
        counts = (tuple(about["num_items"]), tuple(about["num_skipped"]))
        return cls(DecontaminationConfig(**about["config"]), tuple(about["set_names"]), *counts, columns)

    @cached_property
    def wanted(self) -> tuple[Wanted, Wanted]:
        """(n-grams, ends of short items)."""
        is_short = self.columns["num_words"] < self.config.ngram_words
        plain, short = (
            index_wanted(*(self.columns[name][rows] for name in _COLUMNS)) for rows in (~is_short, is_short)
        )
        return plain, short


_ROW = np.dtype(list(_COLUMNS.items()))


def mark_contaminated(table: pa.Table, contamination: Contamination, config: DecontaminationConfig) -> pa.Table:
    """The table with a reason for each row and set that share at least `config.min_matches` n-grams.

    Raises ValueError if the sets were hashed with another ngram_words or min_item_words.
    """
    for field in ("ngram_words", "min_item_words"):
        hashed, wanted = getattr(contamination.config, field), getattr(config, field)
        if hashed != wanted:
            raise ValueError(
                f"decontamination.{field} = {wanted}, but the evaluation sets were hashed with {hashed}: build them anew"
            )
    counts = count_matches(table["text"], contamination)
    if not np.any(counts >= config.min_matches):
        return table
    rules = [f"{RULE}.{name}" for name in contamination.set_names]
    reasons = [
        [
            {"rule": rule, "value": float(count)}
            for rule, count in zip(rules, row, strict=True)
            if count >= config.min_matches
        ]
        for row in counts.tolist()
    ]
    return with_reasons(table, reasons)


def count_matches(texts: pa.ChunkedArray, contamination: Contamination) -> npt.NDArray[np.int64]:
    """Int[docs, sets]: n-grams of each text, repeats counted, that are in each set."""
    data, offsets = text_bytes(texts)
    counts = np.zeros((len(offsets) - 1, len(contamination.set_names)), np.int64)
    sizes = (contamination.config.ngram_words, contamination.config.min_item_words)
    count_wanted(data, offsets, sizes, contamination.wanted, counts)
    return counts


def _rows_of(text: str, number: int, config: DecontaminationConfig) -> npt.NDArray[Any]:
    """The rows of an item of set `number`; none if it is too short."""
    words = hash_words(np.frombuffer(text.encode("utf-8", "replace"), np.uint8))
    size, least = config.ngram_words, config.min_item_words
    if len(words) < least:
        return np.zeros(0, _ROW)
    is_short = len(words) < size
    rows = np.zeros(1 if is_short else len(words) - size + 1, _ROW)
    rows["hash"] = hash_ngrams(words[-least:], least) if is_short else hash_ngrams(words, size)
    rows["whole"] = hash_ngrams(words, len(words)) if is_short else 0
    rows["num_words"] = min(len(words), size)
    rows["set"] = number
    return rows


def read_items(location: str, *, fields: Sequence[str] = ("text",)) -> Iterator[str]:
    """The texts of an evaluation set: of each line of JSONL (.jsonl, perhaps .gz or .zst) the `fields`, which hold a string
    or a list of strings and may have dots (answer.text); of any other file each line that is not blank.

    Raises UnreadableFile that names the file, and the line where it is one line's fault.
    """
    filesystem, path = resolve(location)
    is_jsonl = any(part in (".jsonl", ".json", ".ndjson") for part in _suffixes(path))
    fix = "give the evaluation set as JSONL, or as text with one item per line"
    with explain_reading(location, kind="an evaluation set", fix=fix), open_bytes(filesystem, path) as file:
        for number, line in enumerate(read_lines(file, max_bytes=MAX_ITEM_BYTES), start=1):
            if isinstance(line, Damaged):
                raise UnreadableFile(f"{location}, behind line {number - 1}: {line}; {fix}")
            place = f"{location}, line {number}"
            if line.data is None:
                raise UnreadableFile(f"{place} has {line.size_bytes:,} bytes, above {MAX_ITEM_BYTES:,}: {fix}")
            binary = describe_binary(line.data) if number == 1 else None
            if binary is not None:
                raise UnreadableFile(f"{location} {binary}: {BINARY_FIX}")
            if line.data.strip():
                try:
                    text = line.data.decode("utf-8-sig")
                except UnicodeDecodeError as error:
                    raise UnreadableFile(f"{place} is not UTF-8 ({error.reason}): {fix}") from error
                yield from _fields_of(text, fields, place=place) if is_jsonl else [text]


def _suffixes(path: str) -> list[str]:
    return [f".{part.lower()}" for part in path.rpartition("/")[2].split(".")[1:]]


def _fields_of(line: str, fields: Sequence[str], *, place: str) -> Iterator[str]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UnreadableFile(f"{place} is no JSON ({error}): write one JSON object per line") from error
    if not isinstance(record, dict):
        raise UnreadableFile(f"{place} is a JSON {type(record).__name__}: write one JSON object per line")
    for name in fields:
        value = find(record, name)
        texts = value if isinstance(value, list) else [value]
        if not all(isinstance(text, str) for text in texts):
            there = ", ".join(sorted(record)[:20]) or "none"
            raise UnreadableFile(
                f"{place} has no text in the field {name!r} but {type(value).__name__} (its fields: {there}): name fields "
                "that hold a string or a list of strings"
            )
        yield from texts
