"""The jobs that write results: the tokenizer, then text, audit and tokens of each unit, then packed shards.

In: prepared documents and which of them are duplicates. Out: tokenizer/, text/part-*.parquet, audit/part-*.parquet,
tokens/documents/part-*.parquet (which tokens came from which document), tokens/shard-*.h5.
"""

import itertools
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from train.data.jobs_prepare import count_reasons
from train.data.line_dedup import LINES_DROPPED, drop_pieces, hash_pieces
from train.data.packing import (
    ShardPlan,
    assemble,
    best_fit_stream,
    describe_plan,
    join_documents,
    place_best_fit,
)
from train.data.report import QUALITY_BINS
from train.data.repository import pack_repository
from train.data.run import TOKENIZER_FOLDER, Run
from train.data.schema import DOCUMENT_SCHEMA, is_kept
from train.data.storage import HDF5Storage
from train.data.stored_file import FileSummary, open_hashed
from train.data.token_shard import TokenFormat
from train.data.tokenizer import Encoder, TokenColumn, save_tokenizer, train_tokenizer

REPOSITORY_BYTES = 128 << 20
"""Code of one unit that is ordered and joined at once; a larger repository is joined in parts."""
TOKEN_DOCUMENTS = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("source_id", pa.string(), nullable=False),
        pa.field("first_token", pa.int64(), nullable=False),
        pa.field("num_tokens", pa.int64(), nullable=False),
    ]
)
"""Of each document, or part of one, in the order of the unit's stream. `first_token` counts in it; end tokens count."""


def prepare_tokenizer(run: Run, index: int) -> None:
    """Train a tokenizer on documents that stay, or copy the one that is given; check that it can be used."""
    config = run.config.tokenizer
    with tempfile.TemporaryDirectory() as folder:
        source = config.folder
        if source is None:
            source = Path(folder)
            save_tokenizer(train_tokenizer(_sample(run), config=config.train), source, config=config.train)
        files = [
            _copy(run, path, f"{TOKENIZER_FOLDER}/{path.name}")
            for path in sorted(Path(source).iterdir())
            if path.is_file() and path.name in _TOKENIZER_FILES
        ]
    encoder = run.encoder
    facts = {"vocab_size": encoder.vocab_size, "trained": config.folder is None}
    run.folder.commit("tokenizer", index, facts=facts, files=files)


_TOKENIZER_FILES = frozenset(
    {
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "chat_template.jinja",
        "generation_config.json",
    }
)


def finish_unit(run: Run, index: int) -> None:
    """Text, audit and tokens of one unit."""
    facts: Counter[str] = Counter()
    columns: list[TokenColumn] = []
    names: list[pa.Table] = []
    folder = run.folder
    with (
        run.output.writer(folder.path(f"text/part-{index:06d}.parquet"), schema=DOCUMENT_SCHEMA) as text_file,
        run.output.writer(folder.path(f"audit/part-{index:06d}.parquet"), schema=DOCUMENT_SCHEMA) as audit_file,
    ):
        for table in run.work.read(run.path("audit", index, "parquet")):
            audit_file.write(table)
        for table in _joined(run, index, _kept(run, index, audit_file, facts), facts):
            text_file.write(table)
            _count_kept(table, facts)
            columns.append(run.encoder.encode_table(table))
            names.append(table.select(["id", "source_id"]))
    stream, rows = _arrange(run, _concatenate(columns, run.encoder.dtype))
    facts["tokens_out"], facts["stream"] = sum(len(one.tokens) + len(one) for one in columns), len(stream)
    path = folder.path(f"tokens/documents/part-{index:06d}.parquet")
    with run.output.writer(path, schema=TOKEN_DOCUMENTS) as documents_file:
        if names:
            found = pa.concat_tables(names).take(rows["document"])
            for name in ("first_token", "num_tokens"):
                found = found.append_column(name, pa.array(rows[name]))
            documents_file.write(found.cast(TOKEN_DOCUMENTS))
    token_file = folder.write_arrays(run.name("stream", index, "arrow"), {"tokens": stream})
    files = [text_file.summary, audit_file.summary, documents_file.summary, token_file]
    folder.commit("finish", index, facts=dict(facts), files=files)


def lay_out_shards(run: Run, index: int) -> None:
    """Which tokens go to which shard; follows from the lengths of the units' streams."""
    statistics = describe_plan(run.shard_plans, num_tokens=run.num_stream_tokens)
    facts = {
        "shards": statistics.num_shards,
        "sequences": statistics.num_sequences,
        "padding_tokens": statistics.num_fill + run.num_inner_fill,
        "dropped_tokens": statistics.num_dropped,
    }
    run.folder.commit("layout", index, facts=facts)


def num_shards(run: Run) -> int:
    """Jobs of the phase `pack`."""
    return len(run.shard_plans)


def pack_shard(run: Run, index: int) -> None:
    """One file of sequences."""
    plan: ShardPlan = run.shard_plans[index]
    token_format = token_format_of(run.encoder, sequence_length=run.config.packing.sequence_length)
    path = run.folder.path(f"tokens/shard-{index:06d}.h5")
    with HDF5Storage(run.folder.filesystem).writer(path, token_format=token_format) as writer:
        for tokens in assemble(plan, lambda unit: run.folder.read_arrays(run.name("stream", unit, "arrow"))["tokens"]):
            writer.write(tokens)
    run.folder.commit("pack", index, facts={"sequences": plan.num_sequences}, files=[writer.summary])


def token_format_of(encoder: Encoder, *, sequence_length: int) -> TokenFormat:
    """The format of a run's shards. Raises ValueError if they cannot hold the encoder's ids."""
    return TokenFormat(
        sequence_length=sequence_length, vocab_size=encoder.vocab_size,
        end_of_document_id=encoder.end_of_document_id, tokenizer_sha256=encoder.file.sha256,
    )  # fmt: skip


def _kept(run: Run, index: int, audit_file: Any, facts: Counter[str]) -> Iterator[pa.Table]:
    """The documents of a unit that stay; the others go to the audit."""
    config = run.config.line_dedup
    has_pieces = config.pieces != "off"
    repeated = (
        run.folder.read_arrays(run.name("repeats", index, "arrow"))["piece"] if has_pieces else np.zeros(0, np.int64)
    )
    first = 0
    for table in run.read_marked(index):
        kept = table.filter(is_kept(table))
        dropped = [table.filter(pc.invert(is_kept(table)))]
        if has_pieces:
            num_pieces = len(hash_pieces(kept, config))
            low, high = np.searchsorted(repeated, [first, first + num_pieces])
            before = kept
            kept = drop_pieces(before, repeated[low:high] - first, config)
            first += num_pieces
            stays = is_kept(kept)
            dropped.append(kept.filter(pc.invert(stays)))
            kept = kept.filter(stays)
            _count_pieces(before.filter(stays), kept, facts)
        for part in dropped:
            audit_file.write(part)
            count_reasons(part, facts)
        yield kept


def _count_pieces(before: pa.Table, after: pa.Table, facts: Counter[str]) -> None:
    """Pieces and characters that documents lost which stay."""
    num_chars = [pc.sum(pc.utf8_length(table["text"])).as_py() or 0 for table in (before, after)]
    facts["piece_chars_dropped"] += num_chars[0] - num_chars[1]
    facts["pieces_dropped"] += sum(dict(counts).get(LINES_DROPPED, 0) for counts in after["counts"].to_pylist())


def _joined(run: Run, index: int, tables: Iterator[pa.Table], facts: Counter[str]) -> Iterator[pa.Table]:
    """Code: the files of a repository joined to documents. Everything else as it is."""
    order = run.config.packing.repository_order
    if run.source_of(index).kind != "code" or order == "off":
        yield from tables
        return
    waiting: list[pa.Table] = []
    for table in itertools.chain(tables, [None]):
        if waiting and (table is None or sum(one.nbytes for one in waiting) > REPOSITORY_BYTES):
            files = pa.concat_tables(waiting)
            packed = pack_repository(files, max_chars=run.config.code.max_chars, order=order)
            facts["documents_joined"] += len(files) - len(packed)
            yield packed
            waiting = []
        if table is not None:
            waiting.append(table)


def _count_kept(table: pa.Table, facts: Counter[str]) -> None:
    facts["documents_out"] += len(table)
    facts["chars_out"] += pc.sum(pc.utf8_length(table["text"])).as_py() or 0
    languages = table["language"].to_pylist()
    metadata = table["metadata"].to_pylist()
    for language, pairs in zip(languages, metadata, strict=True):
        facts[f"language:{language or dict(pairs).get('language', 'unknown')}"] += 1
    bins = np.minimum((table["quality"].to_numpy() * QUALITY_BINS).astype(np.int64), QUALITY_BINS - 1)
    for place, count in enumerate(np.bincount(bins, minlength=QUALITY_BINS).tolist()):
        facts[f"quality:{place}"] += count


def _concatenate(columns: list[TokenColumn], dtype: np.dtype[Any]) -> TokenColumn:
    lengths = np.concatenate([np.zeros(0, np.int64), *(np.diff(one.offsets) for one in columns)])
    tokens = np.concatenate([np.zeros(0, dtype), *(one.tokens for one in columns)])
    return TokenColumn(tokens, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))


def _arrange(run: Run, column: TokenColumn) -> tuple[npt.NDArray[Any], dict[str, npt.NDArray[np.int64]]]:
    """(the unit's stream, where its documents lie in it)."""
    end = run.encoder.end_of_document_id
    lengths = np.diff(column.offsets) + 1
    if run.config.packing.order == "input":
        first = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        rows = {"document": np.arange(len(lengths)), "first_token": first[:-1], "num_tokens": lengths}
        return join_documents(column, end_of_document_id=end), rows
    length = run.config.packing.sequence_length
    placed = np.array(place_best_fit(lengths.tolist(), sequence_length=length), np.int64).reshape(-1, 4)
    stream, _ = best_fit_stream(column, sequence_length=length, end_of_document_id=end)
    return stream, {"document": placed[:, 0], "first_token": placed[:, 3], "num_tokens": placed[:, 2] - placed[:, 1]}


def _sample(run: Run) -> Iterator[str]:
    """Texts of documents that stay, spread over the units by their size, up to the configured bytes in all."""
    most = run.config.tokenizer.train.max_bytes
    whole = sum(unit.size_bytes for unit in run.units) or 1
    for unit in run.units:
        share = most * unit.size_bytes / whole
        for table in run.read_marked(unit.index):
            for text in table.filter(is_kept(table))["text"].to_pylist():
                if share <= 0:
                    break
                share -= len(text.encode())
                yield text
            if share <= 0:
                break


def _copy(run: Run, path: Path, name: str) -> FileSummary:
    with open_hashed(run.folder.filesystem, run.folder.path(name)) as file:
        file.write(path.read_bytes())
    return file.summary(run.folder.path(name), num_items=1)
