"""How soon drifts of a stream are found, of which kind they are taken for, and how often there is a false alarm.

Streams of paragraphs drawn from real texts (cluster.bench_domains), embedded by all-MiniLM-L6-v2, with their detected
language. After 300 to 500 paragraphs one thing changes: the language (German for English), the domain (manuals for a book),
what is wanted (a German paragraph for an English one), or how often the model errs (3 of 10 for 1 of 10, drawn). Delay:
paragraphs from the change to the alarm.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from cluster.bench import BenchContext, Claim

LENGTH = 900
MIN_CHARACTERS = 200
POOL = 800
"""Paragraphs of a kind; each stream draws them in an order of its own, and again when all were drawn."""
KINDS = ("language", "domain", "task", "temporal")
MIN_FOUND, MAX_FALSE = 0.95, 0.15


def run(context: BenchContext) -> Iterable[Claim]:
    """The claims of this file."""
    from train.continual.drift import DriftConfig, DriftMonitor

    num_streams = 5 if context.quick else 20
    pools = _embed_pools(context)

    def drifts(kind: str | None, seed: int) -> tuple[int, list[Any]]:
        rng = np.random.default_rng([seed, KINDS.index(kind) if kind else 9])
        begin = int(rng.integers(300, 500))
        monitor = DriftMonitor(DriftConfig(seed=seed))
        found = [monitor.update(one) for one in _stream(pools, kind, begin=begin, rng=rng)]
        return begin, [one for one in found if one is not None]

    window = DriftConfig().window
    for kind in KINDS:
        outcomes = [drifts(kind, seed) for seed in range(num_streams)]
        found = [next((one for one in ones if one.end > begin), None) for begin, ones in outcomes]
        right = [one is not None and one.kind == kind for one in found]
        delays = [one.end - begin for (begin, _), one in zip(outcomes, found, strict=True) if one is not None]
        told = (
            f"{num_streams} streams; delay: median {np.median(delays) if delays else float('nan'):.0f}, most "
            f"{max(delays, default=0)} paragraphs; windows of {window}; taken for: "
            + ", ".join(sorted({one.kind for one in found if one is not None}))
        )
        share = float(np.mean(right))
        yield Claim(
            f"{kind} drift found, and as such",
            f">= {MIN_FOUND:.0%}",
            round(100 * share, 1),
            "%",
            share >= MIN_FOUND,
            told,
        )
    alarms = sum(len(drifts(None, seed)[1]) for seed in range(2 * num_streams))
    rate = 1000 * alarms / (2 * num_streams * LENGTH)
    yield Claim(
        "false alarms", f"<= {MAX_FALSE} per 1,000 paragraphs", round(rate, 3), "per 1,000", rate <= MAX_FALSE,
        f"{alarms} in {2 * num_streams} streams of {LENGTH} paragraphs without drift; 3 tests at 0.1 % a window of {window}",
    )  # fmt: skip


def _embed_pools(context: BenchContext) -> dict[str, list[tuple[Any, str]]]:
    """Of each kind of paragraphs, embeddings and languages."""
    import pyarrow as pa

    from cluster.bench_domains import DOMAINS
    from memory.embed import MiniLmEmbedder
    from train.data.language import LanguageConfig, load_model
    from train.data.schema import text_bytes

    embedder, detector, config = MiniLmEmbedder(num_threads=2), load_model(), LanguageConfig()
    pools = {}
    for name in ("prose", "manuals", "german"):
        context.note(f"embedding {name}")
        paragraphs = [one for text in DOMAINS[name]() for one in text.split("\n\n") if len(one) >= MIN_CHARACTERS]
        chosen = [paragraphs[index] for index in np.random.default_rng(0).permutation(len(paragraphs))[:POOL]]
        data, offsets = text_bytes(pa.chunked_array([pa.array(chosen, pa.large_string())]))
        best, _ = detector.predict(data, offsets, max_characters=config.max_characters, min_letters=config.min_letters)
        languages = [detector.labels[index] if index >= 0 else "und" for index in best]
        pools[name] = list(zip(embedder.embed(chosen), languages, strict=True))
    return pools


def _stream(
    pools: dict[str, list[tuple[Any, str]]], kind: str | None, *, begin: int, rng: np.random.Generator
) -> Iterator[Any]:
    from train.continual.drift import Observation

    decks: dict[str, list[int]] = {name: [] for name in pools}

    def draw(name: str) -> tuple[Any, str]:
        if not decks[name]:
            decks[name] = rng.permutation(len(pools[name])).tolist()
        return pools[name][decks[name].pop()]

    for index in range(LENGTH):
        new = kind if index >= begin else None
        source = {"language": "german", "domain": "manuals"}.get(new or "", "prose")
        inputs, language = draw(source)
        outputs, _ = draw("german" if new in ("language", "task") else source)
        yield Observation(inputs, outputs, language, float(rng.random() < (0.3 if new else 0.1)))
