"""Personal data and secrets in texts: RE2 first and Python's `re` on the lines it flags, beside `re` alone on every line.

Both run the same patterns and checks, in this process, on one thread, in process CPU time; the hits must be equal.
"""

import time
from collections.abc import Iterable

import numpy as np

from cluster.bench import BenchContext, Claim, ratio_interval
from cluster.bench_corpus import describe_corpus, read_texts
from train.data.pii import Span, find_in_line, find_sensitive_all

OURS_BYTES, RE_BYTES = 16 << 20, 2 << 20
PLANTED = (
    "Write to ada.lovelace@mail.example.org today", "call +49 30 901820 or (212) 555-0147", "card 4111 1111 1111 1111",
    "IBAN DE89 3702 0044 0532 0130 00", "server 93.184.216.34 answers", "key AKIAIOSFODNN7EXAMPLE", "ssn 078-05-1120",
)  # fmt: skip
EVERY = 400
"""A planted line stands after so many lines of text."""


def run(context: BenchContext) -> Iterable[Claim]:
    """The claims of this file."""
    repeats = 3 if context.quick else 7
    texts = [_plant(text) for text in read_texts(max_bytes=OURS_BYTES)]
    some, size_bytes = [], 0
    for text in texts:
        some.append(text)
        size_bytes += len(text.encode())
        if size_bytes > RE_BYTES:
            break
    ours, theirs = [], []
    find_sensitive_all(texts[:2])
    for _ in range(repeats):
        start = time.process_time()
        find_sensitive_all(texts)
        ours.append((time.process_time() - start) / sum(len(text.encode()) for text in texts))
        start = time.process_time()
        by_re = [_by_re(text) for text in some]
        theirs.append((time.process_time() - start) / size_bytes)
    ratio = float(np.median(theirs) / np.median(ours))
    low, high = ratio_interval(ours, theirs, seed=0)
    rates = f"{1e-6 / float(np.median(ours)):.0f} and {1e-6 / float(np.median(theirs)):.1f} MB/s"
    where = f"process CPU time, {repeats} interleaved pairs; {rates}; 95 % interval {low:.1f}-{high:.1f}"
    yield Claim(
        "personal data vs Python's re",
        ">= 15x",
        round(ratio, 1),
        "x",
        ratio >= 15,
        f"{where}; {describe_corpus(texts)}",
    )
    found = find_sensitive_all(some, kinds=frozenset(span.kind for spans in by_re for span in spans))
    num_hits = sum(map(len, by_re))
    same = sum(len(set(a) & set(b)) for a, b in zip(found, by_re, strict=True))
    yield Claim(
        "personal data, hits equal to those of re", "100 %", round(100 * same / num_hits, 2), "%",
        same == num_hits == sum(map(len, found)), f"{num_hits} hits, planted and natural, in {size_bytes / 1e6:.1f} MB",
    )  # fmt: skip


def _plant(text: str) -> str:
    lines = text.split("\n")
    for place, number in enumerate(range(EVERY, len(lines), EVERY)):
        lines[number] += " " + PLANTED[place % len(PLANTED)]
    return "\n".join(lines)


def _by_re(text: str) -> list[Span]:
    spans: list[Span] = []
    start = 0
    for line in text.split("\n"):
        spans += find_in_line(f"{line}\n", offset=start)
        start += len(line) + 1
    return spans
