"""Whether fused recall is ever worse than its parts: evidence found among the first 5, 10 and 20, by kind of question.

Each set of cluster.bench_questions in its test half; one memory per set or conversation, all-MiniLM-L6-v2. Beside ours,
from the same scores: words alone (BM25), vectors alone, and reciprocal rank fusion (k = 60) of both. No language model judges
anything. LoCoMo and LongMemEval take part where AUTONOMOUS_LOCOMO and AUTONOMOUS_LONGMEMEVAL name their files.
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np

from cluster.bench import BenchContext, Claim

KS = (5, 10, 20)
MAX_LOSS = 0.01
"""Of a kind of question against the best of the others."""
RRF_K = 60
RANKERS = ("ours", "BM25", "vectors", "RRF")
Recalls = dict[str, dict[str, list[list[float]]]]
"""By ranker and kind of question: a row of recalls at KS for each question."""


def run(context: BenchContext) -> Iterable[Claim]:
    """The claims of this file."""
    from cluster.bench_questions import TEST_SEED, generate_conversations, load_documentation, load_given
    from memory.embed import MiniLmEmbedder

    embedder = MiniLmEmbedder(num_threads=2)
    found: Recalls = {name: defaultdict(list) for name in RANKERS}
    sets = [
        *load_documentation(TEST_SEED)[: 1 if context.quick else None],
        *generate_conversations(TEST_SEED, num=4 if context.quick else 8),
        *load_given(),
    ]
    for number, one in enumerate(sets):
        context.note(f"{one.name}: {len(one.episodes)} episodes, {len(one.questions)} questions")
        _measure(one, embedder, context.folder / f"set{number}", found)
    kinds = sorted(found["ours"])
    context.note(f"recall at {' / '.join(map(str, KS))}, percent")
    for kind in kinds:
        rows = "   ".join(f"{name} {_text(np.mean(found[name][kind], axis=0))}" for name in RANKERS)
        context.note(f"  {kind:28} {len(found['ours'][kind]):4} questions   {rows}")
    means = {name: np.mean([np.mean(found[name][kind], axis=0) for kind in kinds], axis=0) for name in RANKERS}
    for place, k in enumerate(KS):
        best = max(float(means[name][place]) for name in RANKERS[1:])
        ours = float(means["ours"][place])
        told = ", ".join(f"{name} {100 * means[name][place]:.1f}" for name in RANKERS)
        yield Claim(
            f"evidence recall@{k}, mean over kinds of question", f">= {100 * best:.1f}", round(100 * ours, 1), "%",
            ours >= best, f"{sum(map(len, found['ours'].values()))} questions of {len(kinds)} kinds: {told}",
        )  # fmt: skip
    losses = {
        (kind, k): max(float(np.mean(found[name][kind], axis=0)[place]) for name in RANKERS[1:])
        - float(np.mean(found["ours"][kind], axis=0)[place])
        for kind in kinds
        for place, k in enumerate(KS)
    }
    worst = max(losses, key=lambda key: losses[key])
    yield Claim(
        "most that a kind of question loses to the best of the others", f"<= {100 * MAX_LOSS:.0f} point",
        round(100 * losses[worst], 1), "points", losses[worst] <= MAX_LOSS, f"{worst[0]} at {worst[1]}; {len(kinds)} kinds",
    )  # fmt: skip


def _measure(one: Any, embedder: Any, folder: Any, found: Recalls) -> None:
    from memory.episode_backends import EpisodicConfig
    from memory.episodic import EpisodicMemory
    from memory.recall import ANY_EPISODE, Recall

    memory = EpisodicMemory.open(EpisodicConfig(folder=folder), embedder=embedder)
    memory.append(one.episodes)
    while memory.index_pending(max_episodes=128):
        pass
    recall = Recall(embedder)
    for question in one.questions:
        terms, vector = recall.terms(question.text), recall.embed([question.text])[0]
        candidates = memory.candidates(
            terms, vector, statistics=memory.word_statistics(terms), limit=len(one.episodes), where=ANY_EPISODE
        )
        ids = [candidate.episode.id for candidate in candidates]
        words, near = (np.array([getattr(one, name) for one in candidates]) for name in ("bm25", "cosine"))
        ranks = [np.argsort(np.argsort(-scores, kind="stable"), kind="stable") for scores in (words, near)]
        scores = {"BM25": words, "vectors": near, "RRF": sum(1 / (RRF_K + 1 + rank) for rank in ranks)}
        orders = {name: [ids[place] for place in np.argsort(-score, kind="stable")] for name, score in scores.items()}
        orders["ours"] = [hit.episode.id for hit in memory.recall(question.text, k=max(KS))]
        for name, order in orders.items():
            hits = [len(question.evidence & set(order[:k])) / len(question.evidence) for k in KS]
            found[name][question.category].append(hits)
    memory.close()


def _text(recalls: Any) -> str:
    return " / ".join(f"{100 * value:.0f}" for value in recalls)
