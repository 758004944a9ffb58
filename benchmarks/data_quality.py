"""The quality filters beside datatrove's: time per filter on the same documents, and how often the verdicts agree.

Run as a script it measures one side, in process CPU seconds on one thread, all filters one after the other on documents that
the process has not seen: datatrove's cache of the last five texts then helps nobody. Ours judges whole tables and records all
reasons; datatrove stops at the first. FineWeb's filter of datatrove is cheap where it can stop before it counts words, so its
ratio depends on how many documents get that far: the conditions say how many it kept.
"""

import ast
import importlib.metadata
import os
import random
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cluster.bench import BenchContext, Claim
from cluster.bench_corpus import VARIABLE
from cluster.bench_variants import VariantResult, child_main, run_variants, speed_up

FILTERS = ("gopher_quality", "gopher_repetition", "fineweb", "c4")
LEAST_SPEED_UP, LEAST_AGREEMENT = 50.0, 0.99
NUM_JUDGED, PIECE_CHARS, MAX_CHARS, BATCH = 2_000, 1_200, 40_000, 512
TEXT_SUFFIXES = (".rst", ".md", ".txt", ".adoc")
THREADS = {"NUMBA_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def run(context: BenchContext) -> Iterator[Claim]:
    """The claims of this file."""
    arguments, rounds = {"max_bytes": 1_000_000 if context.quick else 3_000_000}, 3 if context.quick else 5
    found = run_variants(
        Path(__file__), ["ours", "datatrove"], arguments=arguments, rounds=rounds, environment=THREADS, num_threads=1,
        note=context.note,
    )  # fmt: skip
    reports = found["datatrove"].reports[0]
    for name in FILTERS:
        ours, theirs = (
            VariantResult(side.name, tuple(report[name] for report in side.reports), side.reports)
            for side in found.values()
        )
        speed = speed_up(ours, theirs)
        yield Claim(
            f"{name} vs datatrove", f">= {LEAST_SPEED_UP:.0f}x", round(speed.ratio, 1), "x", speed.ratio >= LEAST_SPEED_UP,
            f"process CPU time, one thread, {rounds} rounds of processes in turns; ours {1 / ours.median_s:.1f} MB/s, "
            f"datatrove {1 / theirs.median_s:.2f} MB/s; 95 % interval {speed.low:.0f}-{speed.high:.0f}; {reports['corpus']}, "
            f"of which datatrove kept {reports['kept'][name]}",
        )  # fmt: skip
    context.note(f"verdicts of {NUM_JUDGED:,} documents")
    agreement = run_variants(
        Path(__file__), ["agreement"], arguments=arguments, rounds=1, environment=THREADS, num_threads=1
    )["agreement"].reports[0]
    for name in FILTERS:
        share = agreement[name] / agreement["judged"]
        yield Claim(
            f"{name}: verdicts equal to datatrove's", f">= {LEAST_AGREEMENT:.0%}", round(share * 100, 2), "%",
            share >= LEAST_AGREEMENT,
            f"{agreement['judged']:,} pieces of {agreement['corpus']}, {agreement['dropped'][name]:,} dropped by datatrove",
        )  # fmt: skip


def measure(variant: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """By filter, CPU seconds per megabyte; of "agreement" the number of equal verdicts."""
    if variant == "agreement":
        return _agreement(_documents(max_bytes=2 * NUM_JUDGED * PIECE_CHARS))
    texts = _documents(max_bytes=arguments["max_bytes"])
    prepare = SIDES[variant]
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    report: dict[str, Any] = {"corpus": _describe(texts), "kept": {}}
    for name in FILTERS:
        prepare(name, ["A first text, so that all is compiled and loaded. " * 9])()
        judge = prepare(name, texts)
        start = time.process_time()
        verdicts = judge()
        report[name] = (time.process_time() - start) / megabytes
        report["kept"][name] = sum(verdicts)
    return report | {"seconds": sum(report[name] for name in FILTERS)}


def _ours(name: str, texts: list[str]) -> Callable[[], list[bool]]:
    import pyarrow as pa

    from train.data.quality import QualityConfig, score_table
    from train.data.schema import DOCUMENT_SCHEMA, is_kept

    off = {one: {"enabled": False} for one in ("language", *FILTERS)}
    config = QualityConfig.model_validate(off | {name: {}})
    defaults: dict[str, Any] = {
        "id": "d", "source_id": "s", "title": "", "happened_at": 0.0, "metadata": [], "counts": [], "language": "en",
        "language_score": 1.0, "quality": 0.0, "reasons": [],
    }  # fmt: skip
    tables = []
    for start in range(0, len(texts), BATCH):
        batch = texts[start : start + BATCH]
        columns = {key: [value] * len(batch) for key, value in defaults.items()} | {"text": batch}
        tables.append(pa.table({key: columns[key] for key in DOCUMENT_SCHEMA.names}, schema=DOCUMENT_SCHEMA))
    return lambda: [kept for table in tables for kept in is_kept(score_table(table, config)).to_pylist()]


def _datatrove(name: str, texts: list[str]) -> Callable[[], list[bool]]:
    from datatrove.data import Document
    from datatrove.pipeline import filters

    peer = {
        "gopher_quality": filters.GopherQualityFilter, "gopher_repetition": filters.GopherRepetitionFilter,
        "fineweb": filters.FineWebQualityFilter, "c4": lambda: filters.C4QualityFilter(filter_no_terminal_punct=False),
    }[name]()  # fmt: skip
    documents = [Document(text=text, id="d") for text in texts]
    return lambda: [peer.filter(document) is True for document in documents]


SIDES: dict[str, Callable[[str, list[str]], Callable[[], list[bool]]]] = {"ours": _ours, "datatrove": _datatrove}


def _agreement(texts: list[str]) -> dict[str, Any]:
    """Verdicts on short pieces: datatrove's filters need ten milliseconds each."""
    pieces = [text[start : start + PIECE_CHARS] for text in texts for start in range(0, len(text), PIECE_CHARS)]
    pieces = random.Random(1).sample(pieces, min(NUM_JUDGED, len(pieces)))
    report: dict[str, Any] = {"seconds": 0.0, "judged": len(pieces), "corpus": _describe(texts), "dropped": {}}
    for name in FILTERS:
        theirs = _datatrove(name, pieces)()
        report[name] = sum(ours == their for ours, their in zip(_ours(name, pieces)(), theirs, strict=True))
        report["dropped"][name] = len(pieces) - sum(theirs)
    return report


def _documents(*, max_bytes: int) -> list[str]:
    """Running text of many kinds, in a fixed order: what web-text filters are for, not source code."""
    paths = sorted(_paths())
    random.Random(0).shuffle(paths)
    texts: dict[str, None] = {}
    size_bytes = 0
    for path in paths:
        for text in _texts_of(path):
            if len(text) >= 200 and text not in texts:
                texts[text] = None
                size_bytes += len(text.encode())
        if size_bytes >= max_bytes:
            break
    return list(texts)


def _paths() -> Iterator[Path]:
    yield from Path(sysconfig.get_paths()["stdlib"]).glob("*.py")
    for distribution in importlib.metadata.distributions():
        files = [
            file
            for file in distribution.files or ()
            if file.suffix in (".py", *TEXT_SUFFIXES) or file.name == "METADATA"
        ]
        sources = [file for file in files if file.suffix == ".py"]
        for file in [
            *(file for file in files if file.suffix != ".py"),
            *sorted(sources, key=str)[:: max(1, len(sources) // 20)],
        ]:
            path = Path(str(distribution.locate_file(file)))
            if path.is_file():
                yield path
    if VARIABLE in os.environ:
        yield from (
            path for path in Path(os.environ[VARIABLE]).rglob("*") if path.suffix in TEXT_SUFFIXES and path.is_file()
        )


def _texts_of(path: Path) -> Iterator[str]:
    """A text file as it is; of a source file its docstrings, joined."""
    text = path.read_text("utf-8", "replace")
    if path.suffix != ".py":
        yield text[:MAX_CHARS]
        return
    try:
        nodes = list(ast.walk(ast.parse(text)))
    except (SyntaxError, ValueError):
        return
    documented = [node for node in nodes if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)]
    yield "\n\n".join(filter(None, map(ast.get_docstring, documented)))[:MAX_CHARS]


def _describe(texts: list[str]) -> str:
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    more = f" and {VARIABLE}" if VARIABLE in os.environ else ""
    return (
        f"{len(texts):,} documents, {megabytes:.1f} MB: docstrings, READMEs and text files of installed packages{more}"
    )


if __name__ == "__main__":
    child_main(measure)
