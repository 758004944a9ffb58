"""The delays of the loop: a new document until it is found, until it is cited, until the weights know it; the swap.

Measured on a system of its own, never on one that runs: what is learned here is made up, and each batch is a promotion. The
documents are seeded, with names and codes that no model has seen.
"""

import statistics
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from autonomous.lessons import answer_hits
from cluster.bench import BenchContext, Claim, percentile
from cluster.bench_documents import DOCUMENTS_PER_BATCH, MadeUp, make_documents
from cluster.client import Client

SEED = 20250
POLL_S = 0.01
GIVE_UP_S = 60.0
LEARNING_GIVE_UP_S = 1200.0
SOURCE = "benchmark"


def run(context: BenchContext) -> Iterable[Claim]:
    """The claims of this file."""
    with context.running_system({}) as (client, _):
        yield from retrieval_delays(client, count=4 if context.quick else 20, note=context.note)
        yield from learning_delays(client, repeats=1 if context.quick else 3, note=context.note)


def retrieval_delays(client: Client, *, count: int, note: Any) -> Iterator[Claim]:
    """One document at a time: POST -> first search that finds it -> first answer that cites it. Each is erased again, so that
    none stands before those whose learning is timed.
    """
    found_s, cited_s = [], []
    for document in make_documents(count, seed=SEED):
        start = time.monotonic()
        identity = _store(client, document)
        while not any(hit["document_id"] == identity for hit in client.search(document.question, k=3)["hits"]):
            if time.monotonic() - start > GIVE_UP_S:
                raise TimeoutError(f"document {identity} is not found {GIVE_UP_S:.0f} s after it was stored")
            time.sleep(POLL_S)
        found_s.append(time.monotonic() - start)
        answer = client.ask(document.question, max_tokens=16)
        if any(source["document_id"] == identity for source in answer.sources):
            cited_s.append(time.monotonic() - start)
        client.delete_document(identity)
    note(f"retrieval: {count} documents, p95 {percentile(found_s, 95):.2f} s")
    how = f"{count} made-up documents, one after another; from the request to store it"
    p95 = percentile(found_s, 95)
    yield Claim(
        "retrieval delay, document -> found (p95)", "< 2 s", round(p95, 3), "s", p95 < 2,
        f"{how} to the first search that finds it, polled every {POLL_S * 1000:.0f} ms; "
        f"median {statistics.median(found_s):.3f} s",
    )  # fmt: skip
    all_cited = len(cited_s) == count
    p95 = percentile(cited_s, 95) if cited_s else None
    yield Claim(
        "answer with the new document (p95)", "cited by all, < 5 s", None if p95 is None else round(p95, 3), "s",
        p95 is not None and all_cited and p95 < 5,
        f"{how} to a whole answer of 16 tokens that cites it; {len(cited_s)} of {count} cite it",
    )  # fmt: skip


@dataclass
class _Learned:
    """Over all batches."""

    delays_s: list[float] = field(default_factory=list)
    swaps_s: list[float] = field(default_factory=list)
    num_hits: int = 0
    num_asked: int = 0
    problems: list[str] = field(default_factory=list)


def learning_delays(client: Client, *, repeats: int, note: Any) -> Iterator[Claim]:
    """POST of documents -> the promoted adapter answers with retrieval off; and the hot swap within it."""
    learned = _Learned()
    for turn in range(repeats):
        state = _learn_batch(client, learned, seed=SEED + 1 + turn)
        note(f"learning run {turn + 1} of {repeats}: {state}")
    num_met, trouble = len(learned.delays_s), "".join(f"; {problem}" for problem in learned.problems)
    slowest = max(learned.delays_s, default=None)
    yield Claim(
        "learning delay, document -> weights", "< 300 s", None if slowest is None else round(slowest, 1), "s",
        None if slowest is None else num_met == repeats and slowest < 300,
        f"{num_met} of {repeats} runs of {DOCUMENTS_PER_BATCH} made-up documents, which one batch takes, slowest; "
        f"{learned.num_hits} of {learned.num_asked} reworded questions hit{trouble}",
    )  # fmt: skip
    yield Claim(
        "facts learned in a minute", "reported",
        None if slowest is None else round(60 * learned.num_hits / sum(learned.delays_s), 1), "", None,
        f"those answered in other words, of {num_met} batches one after another; what comes faster waits",
    )  # fmt: skip
    slowest = max(learned.swaps_s, default=None)
    yield Claim(
        "hot swap", "< 5 s", None if slowest is None else round(slowest, 3), "s",
        None if slowest is None else slowest < 5,
        f"gates' decision -> version serves, as the agent timed it; slowest of {len(learned.swaps_s)}{trouble}",
    )  # fmt: skip


def _learn_batch(client: Client, learned: _Learned, *, seed: int) -> str:
    """Store documents, learn them, ask; how it ended."""
    start = time.monotonic()
    for document in make_documents(DOCUMENTS_PER_BATCH, seed=seed):
        _store(client, document)
    questions = client.next_batch()["questions"]
    status = client.follow(client.learn(), on_status=lambda _: None, timeout_s=LEARNING_GIVE_UP_S)
    state = str(status.get("state"))
    if state != "PRODUCTION":
        failed = [
            f"{gate['name']} {gate['verdict']}" for gate in status.get("gates") or [] if gate["verdict"] != "pass"
        ]
        learned.problems.append(f"a batch was not promoted ({status.get('error') or ', '.join(failed) or state})")
        return state
    for number, question in enumerate(questions):
        answer = client.ask(question["paraphrase"], retrieval=False, max_tokens=32)
        if answer.version != status["version"]:
            learned.problems.append(f"{answer.version} answered and not {status['version']}, which was promoted")
            return state
        if number == 0:
            learned.delays_s.append(time.monotonic() - start)
        learned.num_hits += answer_hits(answer.text, question["key"])
        learned.num_asked += 1
    if (swap_s := (status.get("timings") or {}).get("swap_s")) is not None:
        learned.swaps_s.append(float(swap_s))
    return state


def _store(client: Client, document: MadeUp) -> str:
    reply = client.add_documents([{"text": document.text, "title": document.name, "source": SOURCE}])["documents"][0]
    if reply["status"] not in ("stored", "repeated"):
        raise ValueError(f"the made-up document {document.name} was {reply['status']}: {reply.get('reason')}")
    return str(reply["id"])
