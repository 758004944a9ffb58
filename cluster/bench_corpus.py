"""Documents for the benchmarks of the token pipeline: what every installation has, and a folder that the user may name.

In: AUTONOMOUS_BENCH_CORPUS, a folder whose text files are read besides (unpacked documentation packages, for example). Out:
texts in a fixed, mixed order, each once, so that no library's caches see a text twice.
"""

import importlib.metadata
import os
import random
import sysconfig
from collections.abc import Iterator
from pathlib import Path

VARIABLE = "AUTONOMOUS_BENCH_CORPUS"
SUFFIXES = (".py", ".rst", ".txt", ".md", ".adoc")
MAX_CHARS = 200_000


def read_texts(*, max_bytes: int, seed: int = 0) -> list[str]:
    """Texts of together at most `max_bytes` of UTF-8 (the first may be more)."""
    paths = sorted(_paths())
    random.Random(seed).shuffle(paths)
    texts: list[str] = []
    seen: set[int] = set()
    size_bytes = 0
    for path in paths:
        text = path.read_text("utf-8", "replace")[:MAX_CHARS]
        if len(text) < 200 or hash(text) in seen:
            continue
        size_bytes += len(text.encode())
        if size_bytes > max_bytes and texts:
            break
        seen.add(hash(text))
        texts.append(text)
    return texts


def describe_corpus(texts: list[str]) -> str:
    """For a claim's conditions."""
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    more = f" and {VARIABLE}" if os.environ.get(VARIABLE) else ""
    return f"{len(texts):,} documents, {megabytes:.1f} MB: the standard library, installed packages' texts{more}"


def _paths() -> Iterator[Path]:
    stdlib = Path(sysconfig.get_paths()["stdlib"])
    yield from (path for path in stdlib.rglob("*.py") if "site-packages" not in path.parts)
    for distribution in importlib.metadata.distributions():
        for file in distribution.files or ():
            if file.suffix in SUFFIXES or file.name == "METADATA":
                path = Path(str(distribution.locate_file(file)))
                if path.is_file():
                    yield path
    folder = os.environ.get(VARIABLE)
    if folder:
        yield from (path for path in Path(folder).rglob("*") if path.suffix in SUFFIXES and path.is_file())
