"""What a run of any size costs: core-hours, shuffle volume, index size, dollars, from rates measured on this machine.

In: rates in bytes per CPU second of one core, measured on source code that every installation has (pydoc makes pages of it).
Out: lines, each with its formula. Two figures cannot be measured without the data itself and are arguments: how many bytes of
HTML give one token, and how many tokens a document has.
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

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field

from train.data.clean import CleanConfig, DataCleaner
from train.data.dedup import DedupConfig, Deduplicator
from train.data.document import RawDocument
from train.data.language import LanguageConfig, detect_languages
from train.data.prepare import clean_documents
from train.data.quality import QualityConfig, score_table
from train.data.tokenizer import Encoder, TokenizerTrainConfig, save_tokenizer, train_tokenizer

SAMPLE_BYTES = 6 << 20
"""Text that is measured."""
VOCAB_SIZE = 8192
HTML_BYTES_PER_TOKEN = 90.0
"""Bytes of web pages that give one token: 60 MB of HTML per second gave .67 million tokens per second on 311 real pages."""
TOKENS_PER_DOCUMENT = 1000.0
ROW_BYTES = 24
"""A row of the band join: hash, and the number of its document (dedup_edges.ROW)."""


class Rates(BaseModel):
    """Per CPU second of one core; bytes are of HTML for `extract`, of text for the others."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    extract: float = Field(gt=0)
    language: float = Field(gt=0)
    quality: float = Field(gt=0)
    sign: float = Field(gt=0)
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
    extract = _rate(lambda: clean_documents(raw_pages, cleaner), size_bytes=_size(pages))
    table = clean_documents(_raw(texts, "text/plain"), cleaner)
    size_bytes = _size(table["text"].to_pylist())
    on_stage("language and quality")
    language = _rate(lambda: detect_languages(table, LanguageConfig()), size_bytes=size_bytes)
    quality = _rate(lambda: score_table(table, QualityConfig()), size_bytes=size_bytes)
    on_stage("signatures")
    deduplicator = Deduplicator(DedupConfig())
    sign = _rate(lambda: deduplicator.sign(table), size_bytes=size_bytes)
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
    store = _rate(lambda: _write(table, buffer), size_bytes=size_bytes)
    return Rates(
        extract=extract,
        language=language,
        quality=quality,
        sign=sign,
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
) -> Estimate:
    """Figures for a run over web pages that gives so many tokens."""
    html, text = tokens * html_bytes_per_token, tokens * rates.text_bytes_per_token
    documents = tokens / tokens_per_document
    lines = [
        _line("input", html, f"{tokens:.3g} tokens x {html_bytes_per_token:.0f} bytes of HTML per token (assumed)"),
        _line("text", text, f"{tokens:.3g} tokens x {rates.text_bytes_per_token:.2f} bytes per token (measured)"),
    ]
    stages = (
        ("extract and clean pages", html, rates.extract), ("language", text, rates.language), ("quality", text, rates.quality),
        ("signatures", text, rates.sign), ("tokenize", text, rates.tokenize), ("store", text, rates.store),
    )  # fmt: skip
    total = 0.0
    for name, size_bytes, rate in stages:
        hours = size_bytes / rate / 3600
        total += hours
        formula = f"{_bytes_text(size_bytes)} / {rate / 1e6:.1f} MB per core and second / 3600"
        lines.append(EstimateLine(name=name, value=hours, text=f"{hours:,.0f} core-hours", formula=formula))
    minhash = DedupConfig().minhash
    per_document = 4 * minhash.num_permutations + 16 * minhash.num_bands + 24 + 40
    shuffle = documents * minhash.num_bands * ROW_BYTES
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
        _line(
            "shuffle of the band join", shuffle,
            f"documents x {minhash.num_bands} bands x {ROW_BYTES} bytes; one band at a time is a {minhash.num_bands}th of it",
        ),
        _line("index", documents * per_document, f"documents x {per_document} bytes: signature, bands, hash, id"),
        _line("stored text", text * rates.stored_share, f"text x {rates.stored_share:.2f} (measured, ZSTD 3)"),
        _line("stored tokens", 2 * tokens, "tokens x 2 bytes (a vocabulary up to 65,536; else 4)"),
    ]  # fmt: skip
    return Estimate(tokens=tokens, cores=cores, rates=rates, lines=tuple(lines))


def _line(name: str, size_bytes: float, formula: str) -> EstimateLine:
    return EstimateLine(name=name, value=size_bytes, text=_bytes_text(size_bytes), formula=formula)


def _bytes_text(size_bytes: float) -> str:
    for unit in ("B", "KB", "MB", "GB", "TB"):
        if size_bytes < 1000:
            return f"{size_bytes:.3g} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:,.3g} PB"


def _rate(work: Callable[[], object], *, size_bytes: int) -> float:
    """Bytes per CPU second, the better of two runs after one that compiles."""
    work()
    times = []
    for _ in range(2):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return size_bytes / max(min(times), 1e-9)


def _write(table: pa.Table, buffer: io.BytesIO) -> None:
    buffer.seek(0)
    buffer.truncate()
    pq.write_table(table, buffer, compression="zstd", compression_level=3, row_group_size=1024)


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
