"""Web archives to packed tokens, end to end on one core, beside a chain of the fastest peers; Ray beside one process; memory.

Run as a script it measures one chain in a process of its own, on one thread, in process CPU seconds, after a run over a small
archive that compiles and warms. Ours is the whole run with all that it writes; the peers' is fastwarc, trafilatura (fast),
datasketch and `tokenizers`, which judge nothing and write text and tokens to one Parquet file. Real pages are those of
AUTONOMOUS_HTML_PAGES (cluster/bench_html_pages.py); dense ones are the HTML of AUTONOMOUS_BENCH_CORPUS, or pydoc's.
"""

import io
import os
import random
import resource
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from cluster.bench import BenchContext, Claim, cpu_time_s
from cluster.bench_corpus import VARIABLE as CORPUS_VARIABLE
from cluster.bench_html_pages import FOLDER_VARIABLE, load_pages, pydoc_pages
from cluster.bench_variants import VariantResult, child_main, run_variants, speed_up

DENSE_BYTES, WARM_PAGES = 60 << 20, 12
TARGETS = {"real": 50.0, "dense": 15.0}
"""Least megabytes of HTML per CPU second."""
THREADS = {"RAYON_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
COPIES = {"real": 8, "dense": 1}
"""Variants of each page, with other words: few pages are labelled, and a run has costs that do not grow."""
GROWTH = 10
CONFIG = """
output = "out"
[[sources]]
name = "crawl"
kind = "web"
location = "{warc}"
unit_bytes = 16000000
[tokenizer]
folder = "{tokenizer}"
"""


def run(context: BenchContext) -> Iterable[Claim]:
    """The claims of this file."""
    rounds = 1 if context.quick else 3
    tokenizer = _train_tokenizer(context.folder)
    for kind, pages, source in _collections():
        warc = context.folder / f"{kind}.warc.gz"
        size_bytes = _write_warc(warc, pages, copies=COPIES[kind])
        arguments = _arguments(context, warc, tokenizer, warm=pages[:WARM_PAGES])
        context.note(f"{kind}: {len(pages)} pages, {size_bytes / 1e6:.1f} MB")
        found = run_variants(
            Path(__file__), ["ours", "peers"], arguments=arguments, rounds=rounds, environment=THREADS, num_threads=1,
            note=context.note,
        )  # fmt: skip
        variants = f" in {COPIES[kind]} variants" if COPIES[kind] > 1 else ""
        corpus = f"{len(pages):,} pages{variants}, {size_bytes / 1e6:.0f} MB of HTML: {source}"
        where = f"one core, process CPU time, {rounds} rounds; {corpus}"
        yield from _speed_claims(kind, found, size_bytes, where)
    yield _memory_claim(context, tokenizer)
    yield _ray_claim(context, tokenizer)


def _speed_claims(kind: str, found: dict[str, VariantResult], size_bytes: int, where: str) -> Iterator[Claim]:
    rates = {name: size_bytes / 1e6 / one.median_s for name, one in found.items()}
    least = TARGETS[kind]
    ours = found["ours"].reports[0]
    detail = f"{where}; {ours['documents']:.0f} documents and {ours['tokens']:,.0f} tokens out"
    yield Claim(
        f"end to end, {kind} pages",
        f">= {least:.0f} MB/s",
        round(rates["ours"], 1),
        "MB/s",
        rates["ours"] >= least,
        detail,
    )
    speed = speed_up(found["ours"], found["peers"])
    yield Claim(
        f"end to end, {kind} pages, vs fastwarc + trafilatura + datasketch + tokenizers", ">= 4x", round(speed.ratio, 1), "x",
        speed.ratio >= 4, f"{where}; {rates['ours']:.1f} and {rates['peers']:.1f} MB/s",
    )  # fmt: skip


def _memory_claim(context: BenchContext, tokenizer: Path) -> Claim:
    pages = _dense_pages(DENSE_BYTES // 10)
    peaks = []
    for copies in (1, GROWTH):
        warc = context.folder / f"memory-{copies}.warc.gz"
        _write_warc(warc, pages, copies=copies)
        found = run_variants(
            Path(__file__),
            ["ours"],
            arguments=_arguments(context, warc, tokenizer, warm=pages[:WARM_PAGES]),
            rounds=1,
            environment=THREADS,
            num_threads=1,
        )
        peaks.append(found["ours"].reports[0]["peak_bytes"])
    ratio = peaks[1] / peaks[0]
    return Claim(
        f"peak memory on {GROWTH}x the data", "<= 1.2x", round(ratio, 2), "x", ratio <= 1.2,
        f"resident set {peaks[0] / 1e6:.0f} and {peaks[1] / 1e6:.0f} MB; {len(pages)} pages, and {GROWTH} variants of each",
    )  # fmt: skip


def _arguments(context: BenchContext, warc: Path, tokenizer: Path, *, warm: Sequence[bytes]) -> dict[str, str]:
    small = warc.with_name(f"small-{warc.name}")
    _write_warc(small, warm)
    paths = {"warc": warc, "small": small, "tokenizer": tokenizer, "folder": context.folder}
    return {name: str(path) for name, path in paths.items()}


def _ray_claim(context: BenchContext, tokenizer: Path) -> Claim:
    """CPU time of the process tree, warm, in turns."""
    import ray

    from train.data.pipeline import DataPipeline

    warc = context.folder / "ray.warc.gz"
    size_bytes = _write_warc(warc, _dense_pages(DENSE_BYTES // 2))
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    times: dict[str, list[float]] = {"local": [], "ray": []}
    try:
        for turn in range(2 if context.quick else 4):
            for driver in ("local", "ray"):
                config = _config(context.folder / f"ray-{driver}-{turn}", warc, tokenizer)
                start = cpu_time_s()
                DataPipeline(config, driver=driver, num_workers=1).run()  # type: ignore[arg-type]
                if turn:  # the first warms
                    times[driver].append(cpu_time_s() - start)
    finally:
        ray.shutdown()
    local, on_ray = (sorted(times[name])[len(times[name]) // 2] for name in ("local", "ray"))
    detail = f"{local:.1f} and {on_ray:.1f} s for {size_bytes / 1e6:.0f} MB of HTML"
    return Claim(
        "Ray tasks vs one process, CPU time of the process tree", "<= 1.3x", round(on_ray / local, 2), "x",
        on_ray / local <= 1.3, f"warm, {len(times['ray'])} pairs; {detail}",
    )  # fmt: skip


def _collections() -> Iterator[tuple[str, list[bytes], str]]:
    folder = os.environ.get(FOLDER_VARIABLE)
    if folder:
        yield "real", [page.content for page in load_pages(Path(folder))], f"labelled pages of {FOLDER_VARIABLE}"
    name = CORPUS_VARIABLE if os.environ.get(CORPUS_VARIABLE) else "pydoc's pages"
    yield "dense", _dense_pages(DENSE_BYTES), name


def _dense_pages(max_bytes: int) -> list[bytes]:
    folder = os.environ.get(CORPUS_VARIABLE)
    if folder:
        paths = sorted(path for path in Path(folder).rglob("*.html") if path.is_file())
        random.Random(0).shuffle(paths)
        every: Iterable[bytes] = (path.read_bytes() for path in paths)
    else:
        every = (page.encode() for page in pydoc_pages())
    pages, size_bytes = [], 0
    for page in every:
        pages.append(page)
        size_bytes += len(page)
        if size_bytes >= max_bytes:
            break
    return pages


def _write_warc(path: Path, pages: Sequence[bytes], *, copies: int = 1) -> int:
    """Bytes of HTML. Every further copy has other words, so that it is no duplicate."""
    from warcio.statusandheaders import StatusAndHeaders
    from warcio.warcwriter import WARCWriter

    size_bytes = 0
    headers = StatusAndHeaders("200 OK", [("Content-Type", "text/html; charset=utf-8")], protocol="HTTP/1.1")
    with open(path, "wb") as file:
        writer = WARCWriter(file, gzip=True)
        for copy in range(copies):
            for number, page in enumerate(pages):
                content = page.replace(b" the ", f" the{copy} ".encode()) if copy else page
                size_bytes += len(content)
                url = f"https://example.org/{copy}/{number}"
                record = writer.create_warc_record(url, "response", payload=io.BytesIO(content), http_headers=headers)
                writer.write_record(record)
    return size_bytes


def _train_tokenizer(folder: Path) -> Path:
    from cluster.bench_corpus import read_texts
    from train.data.tokenizer import TokenizerTrainConfig, save_tokenizer, train_tokenizer

    config = TokenizerTrainConfig(vocab_size=16384)
    save_tokenizer(
        train_tokenizer(read_texts(max_bytes=6 << 20, seed=1), config=config), folder / "tokenizer", config=config
    )
    return folder / "tokenizer"


def measure(variant: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """CPU seconds of one chain over the archive, and what came out."""
    warc, small, tokenizer, folder = (Path(arguments[name]) for name in ("warc", "small", "tokenizer", "folder"))
    work = VARIANTS[variant]
    work(small, tokenizer, folder / f"{variant}-{os.getpid()}-small")
    start = time.process_time()
    facts = work(warc, tokenizer, folder / f"{variant}-{os.getpid()}")
    seconds = time.process_time() - start
    return {"seconds": seconds, "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, **facts}


def _config(output: Path, warc: Path, tokenizer: Path) -> Any:
    from train.data.config import load_pipeline_config

    path = output.with_suffix(".toml")
    path.write_text(CONFIG.format(warc=warc, tokenizer=tokenizer))
    return load_pipeline_config(path, overrides={"output": str(output)})


def _ours(warc: Path, tokenizer: Path, output: Path) -> dict[str, float]:
    from train.data.pipeline import DataPipeline

    report = DataPipeline(_config(output, warc, tokenizer)).run()
    return {"documents": report.documents_out, "tokens": report.tokens_out}


def _peers(warc: Path, tokenizer: Path, output: Path) -> dict[str, float]:
    import pyarrow as pa
    import pyarrow.parquet as pq
    import tokenizers
    import trafilatura
    from datasketch import MinHash
    from fastwarc.warc import ArchiveIterator, WarcRecordType

    encoder = tokenizers.Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    texts, signatures = [], []
    with open(warc, "rb") as file:
        for record in ArchiveIterator(file, record_types=WarcRecordType.response):
            text = trafilatura.extract(record.reader.read(), fast=True) or ""
            words = text.lower().split()
            signature = MinHash(num_perm=128, seed=1)
            signature.update_batch([" ".join(words[i : i + 5]).encode() for i in range(max(1, len(words) - 4))])
            texts.append(text)
            signatures.append(signature.hashvalues)
    ids = [one.ids for one in encoder.encode_batch(texts)]
    pq.write_table(pa.table({"text": texts, "ids": ids}), output.with_suffix(".parquet"), compression="zstd")
    return {"documents": len(texts), "tokens": sum(map(len, ids))}


VARIANTS: dict[str, Callable[[Path, Path, Path], dict[str, float]]] = {"ours": _ours, "peers": _peers}

if __name__ == "__main__":
    child_main(measure)
