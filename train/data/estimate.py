"""What a run of any size costs: core-hours, shuffle volume, index size, dollars, from rates measured on this machine.

In: rates in bytes per CPU second of one core, measured on source code that every installation has (pydoc makes pages of it).
Out: lines, each with its formula. What cannot be measured without the data itself is an argument: how many bytes of HTML give
one token that stays, how many tokens a document has, and which shares of the text pass the rules and are no duplicates; the
report of a small run tells them.
"""

import hashlib
import io
import pydoc
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field

from train.data.clean import CleanConfig, DataCleaner
from train.data.dedup import DedupConfig, Deduplicator
from train.data.dedup_edges import SignedDocuments, sign_documents
from train.data.document import RawDocument
from train.data.language import LanguageConfig, detect_languages
from train.data.prepare import clean_documents
from train.data.quality import QualityConfig, score_table
from train.data.run import WORK_ROWS
from train.data.tokenizer import Encoder, TokenizerTrainConfig, save_tokenizer, train_tokenizer

SAMPLE_BYTES = 6 << 20
"""Text that is measured."""
VOCAB_SIZE = 8192
HTML_BYTES_PER_TOKEN = 90.0
"""Bytes of web pages that give one token: 60 MB of HTML per second gave .67 million tokens per second on 311 real pages."""
TOKENS_PER_DOCUMENT = 1000.0
PASSED_SHARE = 0.5
"""Share of the extracted text that passes language, quality and evaluation sets; 0.5 is a guess."""
UNIQUE_SHARE = 0.56
"""Share of what passed that no other document repeats: 20 of 36 trillion tokens of FineWeb (arXiv:2406.17557, section 3)."""
JOIN_DOCUMENTS = 100_000
"""Documents whose band is joined to be measured, through temporary files as in a large run."""
VERIFY_PAIRS = 512
ROW_BYTES = 24
"""A row of the band join: hash, and the number of its document (dedup_edges.ROW)."""


class Rates(BaseModel):
    """Per CPU second of one core: bytes of HTML (`extract`), documents (`join`), pairs (`verify`), else bytes of text."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    extract: float = Field(gt=0)
    language: float = Field(gt=0)
    quality: float = Field(gt=0)
    sign: float = Field(gt=0)
    join: float = Field(gt=0)
    """Documents of one band, sorted and matched."""
    verify: float = Field(gt=0)
    """Pairs, each with the row group of Parquet that has to be read for it."""
    tokenize: float = Field(gt=0)
    store: float = Field(gt=0)
    text_bytes_per_token: float = Field(gt=0)
    stored_share: float = Field(gt=0)
    """Bytes of compressed text per byte of text."""
    backend: str
    """Library that encoded."""


class EstimateLine(BaseModel):
    """One figure."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    value: float
    text: str
    formula: str


class Estimate(BaseModel):
    """All figures."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tokens: float
    cores: int
    rates: Rates
    lines: tuple[EstimateLine, ...]


def measure_rates(*, on_stage: Callable[[str], None] = lambda _: None) -> Rates:
    """About a minute on one core, compiling included."""
    texts = _sample_texts()
    pages = _sample_pages()
    cleaner = DataCleaner(CleanConfig())
    raw_pages = _raw(pages, "text/html")
    on_stage("extraction and cleaning")
    extract = _rate(lambda: clean_documents(raw_pages, cleaner), amount=_size(pages))
    table = clean_documents(_raw(texts, "text/plain"), cleaner)
    size_bytes = _size(table["text"].to_pylist())
    on_stage("language and quality")
    language = _rate(lambda: detect_languages(table, LanguageConfig()), amount=size_bytes)
    quality = _rate(lambda: score_table(table, QualityConfig()), amount=size_bytes)
    on_stage("signatures")
    deduplicator = Deduplicator(DedupConfig())
    sign = _rate(lambda: deduplicator.sign(table), amount=size_bytes)
    on_stage("joining and verifying")
    join, verify = _measure_join(), _measure_verify(table, deduplicator)
    on_stage("tokenizing")
    with tempfile.TemporaryDirectory() as folder:
        config = TokenizerTrainConfig(vocab_size=VOCAB_SIZE)
        half = table.slice(0, len(table) // 2)
        save_tokenizer(train_tokenizer(half["text"].to_pylist(), config=config), Path(folder), config=config)
        encoder = Encoder.open(Path(folder))
        rest = table.slice(len(half))  # texts that its caches have not seen
        start = time.process_time()
        num_tokens = len(encoder.encode_table(rest).tokens)
        seconds = time.process_time() - start
    rest_bytes = _size(rest["text"].to_pylist())
    on_stage("storing")
    buffer = io.BytesIO()
    store = _rate(lambda: _write(table, buffer), amount=size_bytes)
    return Rates(
        extract=extract,
        language=language,
        quality=quality,
        sign=sign,
        join=join,
        verify=verify,
        tokenize=rest_bytes / seconds,
        store=store,
        text_bytes_per_token=rest_bytes / num_tokens,
        stored_share=len(buffer.getvalue()) / size_bytes,
        backend=encoder.kind,
    )


def estimate_run(
    rates: Rates,
    *,
    tokens: float,
    cores: int,
    usd_per_core_hour: float,
    html_bytes_per_token: float = HTML_BYTES_PER_TOKEN,
    tokens_per_document: float = TOKENS_PER_DOCUMENT,
    passed_share: float = PASSED_SHARE,
    unique_share: float = UNIQUE_SHARE,
) -> Estimate:
    """Figures for a run over web pages that gives so many tokens. Shares are of text, and taken for those of documents too."""
    html, text = tokens * html_bytes_per_token, tokens * rates.text_bytes_per_token
    passed, extracted = text / unique_share, text / unique_share / passed_share
    documents = tokens / tokens_per_document
    signed = documents / unique_share
    num_bands = DedupConfig().minhash.num_bands
    lines = [
        _line("input", html, f"{tokens:.3g} tokens x {html_bytes_per_token:.0f} bytes of HTML per token (assumed)"),
        _line("text", text, f"{tokens:.3g} tokens x {rates.text_bytes_per_token:.2f} bytes per token (measured)"),
        _line("text that passes the rules", passed, f"text / {unique_share:.2f} (assumed share without duplicates)"),
        _line("extracted text", extracted, f"text that passes / {passed_share:.2f} (assumed share that passes)"),
    ]
    stages = (
        ("extract and clean pages", html, rates.extract, "of pages"), ("language", extracted, rates.language, "extracted"),
        ("quality", extracted, rates.quality, "extracted"), ("signatures", passed, rates.sign, "that pass"),
        ("tokenize", text, rates.tokenize, "that stay"), ("store", 2 * extracted, rates.store, "extracted, written twice"),
    )  # fmt: skip
    hours = [
        _hours(
            name,
            size_bytes / rate,
            f"{_bytes_text(size_bytes)} {what} / {rate / 1e6:.1f} MB per core and second / 3600",
        )
        for name, size_bytes, rate, what in stages
    ]
    num_joins, num_pairs = signed * (num_bands + 1), signed - documents
    hours += [
        _hours(
            "join the bands", num_joins / rates.join,
            f"{signed:.3g} documents x ({num_bands} bands + the hash) / {rates.join:,.0f} per core and second / 3600",
        ),
        _hours(
            "verify the pairs", num_pairs / rates.verify,
            f"{num_pairs:.3g} pairs, at most one for each duplicate / {rates.verify:,.0f} per core and second / 3600",
        ),
    ]  # fmt: skip
    lines += hours
    total = sum(line.value for line in hours)
    minhash = DedupConfig().minhash
    per_document = 4 * minhash.num_permutations + 16 * minhash.num_bands + 24 + 40
    shuffle = signed * minhash.num_bands * ROW_BYTES
    lines += [
        EstimateLine(name="all stages", value=total, text=f"{total:,.0f} core-hours", formula="sum of the stages"),
        EstimateLine(
            name="time", value=total / cores, text=f"{total / cores:,.1f} hours", formula=f"core-hours / {cores:,} cores"
        ),
        EstimateLine(
            name="price", value=total * usd_per_core_hour, text=f"{total * usd_per_core_hour:,.0f} USD",
            formula=f"core-hours x {usd_per_core_hour} USD",
        ),
        EstimateLine(
            name="documents", value=documents, text=f"{documents:.3g}", formula=f"tokens / {tokens_per_document:.0f} (assumed)"
        ),
        EstimateLine(
            name="documents that pass", value=signed, text=f"{signed:.3g}", formula=f"documents / {unique_share:.2f} (assumed)"
        ),
        _line(
            "shuffle of the band join", shuffle,
            f"documents that pass x {num_bands} bands x {ROW_BYTES} bytes; one band at a time is a {num_bands}th of it",
        ),
        _line("index", documents * per_document, f"documents x {per_document} bytes: signature, bands, hash, id"),
        _line("stored text", text * rates.stored_share, f"text x {rates.stored_share:.2f} (measured, ZSTD 3)"),
        _line(
            "stored audit", (extracted - text) * rates.stored_share,
            f"(extracted text - text) x {rates.stored_share:.2f} (measured)",
        ),
        _line("stored tokens", 2 * tokens, "tokens x 2 bytes (a vocabulary up to 65,536; else 4)"),
    ]  # fmt: skip
    return Estimate(tokens=tokens, cores=cores, rates=rates, lines=tuple(lines))


def _line(name: str, size_bytes: float, formula: str) -> EstimateLine:
    return EstimateLine(name=name, value=size_bytes, text=_bytes_text(size_bytes), formula=formula)


def _hours(name: str, seconds: float, formula: str) -> EstimateLine:
    return EstimateLine(name=name, value=seconds / 3600, text=f"{seconds / 3600:,.0f} core-hours", formula=formula)


def _bytes_text(size_bytes: float) -> str:
    for unit in ("B", "KB", "MB", "GB", "TB"):
        if size_bytes < 1000:
            return f"{size_bytes:.3g} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:,.3g} PB"


def _rate(work: Callable[[], object], *, amount: int) -> float:
    """Amount per CPU second, the better of two runs after one that compiles."""
    work()
    times = []
    for _ in range(2):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return amount / max(min(times), 1e-9)


def _measure_join() -> float:
    """Documents per CPU second of one band's join, of which the share of duplicates that is assumed shares a bucket."""
    generator = np.random.default_rng(0)
    minhash = DedupConfig().minhash
    originals = generator.integers(0, int(JOIN_DOCUMENTS * UNIQUE_SHARE), JOIN_DOCUMENTS)
    values = generator.integers(0, 1 << 32, (JOIN_DOCUMENTS, minhash.num_permutations), np.uint32)
    none = np.zeros(JOIN_DOCUMENTS, np.int64)
    exact = np.stack([np.arange(JOIN_DOCUMENTS)] * 2, axis=1).astype(np.uint64)
    unit = SignedDocuments(values[originals], [originals.astype(np.uint64)], exact, none, none.astype(np.float32))
    deduplicator = Deduplicator(DedupConfig(memory_bytes=1 << 20))
    nothing = deduplicator.find_exact([unit])
    return _rate(lambda: deduplicator.find_candidates([unit], 0, exact=nothing), amount=JOIN_DOCUMENTS)


def _measure_verify(table: pa.Table, deduplicator: Deduplicator) -> float:
    """Pairs of documents of usual length per CPU second; one of each pair lies in a row group of its own."""
    num_chars = int(TOKENS_PER_DOCUMENT * 4)
    pieces = [text[at : at + num_chars] for text in table["text"].to_pylist() for at in range(0, len(text), num_chars)]
    texts = pa.table({"text": pa.array(pieces, pa.large_string())})
    buffer = io.BytesIO()
    _write(texts, buffer, rows_per_group=WORK_ROWS)
    groups = pq.ParquetFile(buffer)
    first = np.arange(VERIFY_PAIRS) % len(pieces)
    second = (first + len(pieces) // 2) % len(pieces)
    units = [sign_documents(texts["text"], deduplicator.config.minhash, quality=np.zeros(len(pieces), np.float32))]

    def verify() -> None:
        for row in second.tolist():
            groups.read_row_group(row // WORK_ROWS, columns=["text"], use_threads=False)
        deduplicator.compare_texts(units, first, second, texts["text"].take)

    return _rate(verify, amount=VERIFY_PAIRS)


def _write(table: pa.Table, buffer: io.BytesIO, *, rows_per_group: int = 1024) -> None:
    buffer.seek(0)
    buffer.truncate()
    pq.write_table(table, buffer, compression="zstd", compression_level=3, row_group_size=rows_per_group)


def _sample_texts() -> list[str]:
    texts: list[str] = []
    size_bytes = 0
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py")):
        if "site-packages" in path.parts:
            continue
        text = path.read_text("utf-8", "replace")
        texts.append(text)
        size_bytes += len(text.encode())
        if size_bytes > SAMPLE_BYTES:
            break
    return texts


def _sample_pages() -> list[str]:
    modules = [module for name, module in sorted(sys.modules.items()) if "." not in name and not name.startswith("_")]
    pages = []
    for module in modules:
        if isinstance(module, ModuleType) and getattr(module, "__file__", None):
            try:
                pages.append(pydoc.html.page(pydoc.describe(module), pydoc.html.document(module)))
            except Exception:  # pydoc imports and calls what it describes; one module less is no loss
                continue
        if _size(pages) > SAMPLE_BYTES:
            break
    return pages


def _raw(texts: Sequence[str], media_type: str) -> list[RawDocument]:
    names = [hashlib.md5(text.encode()).hexdigest() for text in texts]
    return [RawDocument(name, "sample", "", text, media_type, 0.0, {}) for name, text in zip(names, texts, strict=True)]


def _size(texts: Sequence[str]) -> int:
    return sum(len(text.encode()) for text in texts)
