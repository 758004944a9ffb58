"""What an episode costs as the store grows to 1,000,000, and as ten times its capacity goes through it.

Synthetic passages and vectors of 384 (cluster.bench_episodes), one thread, at 10,000, 100,000 and 1,000,000 (--quick: 5,000
and 20,000, and a smaller capacity); without the embedder's own time. The index is exact to 100,000 and an inverted file
above. What grows with the store has to grow no more than in proportion.
"""

import itertools
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil

from cluster.bench import BenchContext, Claim

BATCH = 500
MAINTENANCES = 200
"""Calls of `maintain` in which all has to be done that the store's host does in the background."""
NUM_QUERIES = 100
K = 20
MAX_BYTES_GROWTH, MAX_CHURN_GROWTH = 1.2, 1.2
LONG_AGO_S = 10 * 86_400.0


@dataclass(frozen=True)
class Size:
    """A store of so many episodes."""

    num_episodes: int
    writes_per_s: float
    recall_ms: tuple[float, float]
    """Median and 95th percentile."""
    disk_bytes: float
    """Of an episode, as the memory's:"""
    memory_bytes: float
    open_s: float


def run(context: BenchContext) -> Iterable[Claim]:
    """The claims of this file."""
    sizes = [5_000, 20_000] if context.quick else [10_000, 100_000, 1_000_000]
    found = list(_grow(context, sizes))
    for one in found:
        yield Claim(
            f"{one.num_episodes:,} episodes: recall of {K}, p95", "reported", round(one.recall_ms[1], 1), "ms", None,
            f"median {one.recall_ms[0]:.1f} ms; {one.writes_per_s:.0f} durable writes/s into it; opened in {one.open_s:.1f} s",
        )  # fmt: skip
        yield Claim(
            f"{one.num_episodes:,} episodes: bytes of one", "reported", round(one.disk_bytes), "B", None,
            f"on disk; {one.memory_bytes:.0f} B of memory",
        )  # fmt: skip
    first, last = found[0], found[-1]
    growth, times = last.num_episodes / first.num_episodes, last.recall_ms[1] / first.recall_ms[1]
    yield Claim(
        "recall p95, largest over smallest", f"<= {growth:.0f}x", round(times, 1), "x", times <= growth,
        f"{growth:.0f} times as many episodes",
    )  # fmt: skip
    ratio = last.disk_bytes / first.disk_bytes
    yield Claim(
        "bytes of an episode, largest over smallest", f"<= {MAX_BYTES_GROWTH}x", round(ratio, 2), "x",
        ratio <= MAX_BYTES_GROWTH, "on disk: database with text, words and float16 vectors, and the vector index's file",
    )  # fmt: skip
    yield from _churn(context, capacity=1_000 if context.quick else 10_000)


def _grow(context: BenchContext, sizes: list[int]) -> Iterable[Size]:
    from cluster.bench_episodes import ClusterEmbedder, passages
    from memory.episode_backends import EpisodicConfig
    from memory.episodic import EpisodicMemory

    embedder, folder = ClusterEmbedder(), context.folder / "grows"
    config = EpisodicConfig(folder=folder, capacity=2 * sizes[-1])
    rows, num_episodes = passages(sizes[-1]), 0
    for size in sizes:
        context.note(f"writing up to {size:,} episodes")
        memory = EpisodicMemory.open(config, embedder=embedder)
        written_s: list[float] = []
        while num_episodes < size:
            batch = list(itertools.islice(rows, BATCH))
            start = time.perf_counter()
            memory.append(batch)
            written_s.append(time.perf_counter() - start)
            num_episodes += len(batch)
        while memory.index_pending(max_episodes=BATCH):
            pass
        _maintain(memory)
        memory.close()
        del memory
        before = psutil.Process().memory_info().rss
        start = time.perf_counter()
        memory = EpisodicMemory.open(config, embedder=embedder)
        open_s = time.perf_counter() - start
        used = psutil.Process().memory_info().rss - before
        recall_ms = _recall_ms(memory, size)
        disk = memory.health().size_bytes / size
        memory.close()
        del memory
        rate = BATCH / float(np.median(written_s[-100:]))
        yield Size(size, rate, recall_ms, disk, max(0.0, used / size), open_s)
    shutil.rmtree(folder)


def _maintain(memory: Any) -> None:
    """What the store's host does when nothing waits."""
    for _ in range(MAINTENANCES):
        memory.maintain()


def _recall_ms(memory: Any, size: int) -> tuple[float, float]:
    from cluster.bench_episodes import queries

    times = []
    for question in queries(NUM_QUERIES, size=size):
        start = time.perf_counter()
        memory.recall(question, k=K)
        times.append(1e3 * (time.perf_counter() - start))
    return float(np.median(times)), float(np.percentile(times, 95))


def _churn(context: BenchContext, *, capacity: int) -> Iterable[Claim]:
    """Ten times the capacity comes in; a day passes with each capacity, and then a consolidation's tidying."""
    from cluster.bench_episodes import ClusterEmbedder, passages
    from memory.episode_backends import EpisodicConfig
    from memory.episodic import EpisodicMemory

    clock = [0.0]
    config = EpisodicConfig(folder=context.folder / "churns", capacity=capacity)
    memory = EpisodicMemory.open(config, embedder=ClusterEmbedder(), clock=lambda: clock[0])
    rows = passages(10 * capacity)
    seen: list[tuple[float, float]] = []
    for number in range(10):
        context.note(f"turning over: {number + 1} of 10 times {capacity:,}")
        for _ in range(capacity // BATCH):
            memory.append(list(itertools.islice(rows, BATCH)))
            while memory.index_pending(max_episodes=BATCH):
                pass
        clock[0] += LONG_AGO_S
        _maintain(memory)
        while gone := memory.departed(before=clock[0] - 1.5 * LONG_AGO_S, limit=10_000):
            memory.forget_departed(gone, erased_before=0.0)
        memory.save_index()
        seen.append((memory.health().size_bytes, _recall_ms(memory, capacity * (number + 1))[1]))
    memory.close()
    shutil.rmtree(context.folder / "churns")
    settled, last = seen[2], seen[-1]
    for name, place, unit in (("bytes on disk", 0, "x"), ("recall p95", 1, "x")):
        ratio = last[place] / settled[place]
        is_size = place == 0
        yield Claim(
            f"{name} after ten times the capacity, over after three", f"<= {MAX_CHURN_GROWTH}x" if is_size else "reported",
            round(ratio, 2), unit, ratio <= MAX_CHURN_GROWTH if is_size else None,
            f"capacity {capacity:,}; {settled[place]:,.0f} and {last[place]:,.0f} {'B' if is_size else 'ms'}",
        )  # fmt: skip
