"""The delays of the loop: a new document until it is found, until it is cited, until the weights know it; the swap.

Needs a running system; without one, a system is started in a temporary home and ended afterwards. The documents are
made up (seeded; names and codes that no model has seen) and erased again. Nothing is learned while others wait.
"""

import statistics
import time
from collections.abc import Iterable, Iterator
from typing import Any

from autonomous.lessons import answer_hits
from cluster.bench import BenchContext, Claim, percentile
from cluster.bench_documents import MadeUp, make_documents
from cluster.client import Client
from cluster.client_errors import ClientError

SEED = 20250
POLL_S = 0.01
GIVE_UP_S = 60.0
LEARNING_GIVE_UP_S = 1200.0
SOURCE = "benchmark"


def run(context: BenchContext) -> Iterable[Claim]:
    """The claims of this file."""
    with context.running_system() as (client, _, is_own):
        stored: list[str] = []
        try:
            yield from retrieval_delays(client, stored, count=4 if context.quick else 20, note=context.note)
            yield from learning_delays(
                client, stored, is_own=is_own, repeats=1 if context.quick else 3, note=context.note
            )
        finally:
            if not is_own:
                for document in stored:
                    client.delete_document(document)


def retrieval_delays(client: Client, stored: list[str], *, count: int, note: Any) -> Iterator[Claim]:
    """One document at a time: POST -> first search that finds it -> first answer that cites it."""
    found_s, cited_s = [], []
    for document in make_documents(count, seed=SEED):
        start = time.monotonic()
        identity = _store(client, document, stored)
        while not any(hit["document_id"] == identity for hit in client.search(document.question, k=3)["hits"]):
            if time.monotonic() - start > GIVE_UP_S:
                raise TimeoutError(f"document {identity} is not found {GIVE_UP_S:.0f} s after it was stored")
            time.sleep(POLL_S)
        found_s.append(time.monotonic() - start)
        answer = client.ask(document.question, max_tokens=16)
        if any(source["document_id"] == identity for source in answer.sources):
            cited_s.append(time.monotonic() - start)
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


def learning_delays(client: Client, stored: list[str], *, is_own: bool, repeats: int, note: Any) -> Iterator[Claim]:
    """POST of documents -> the promoted adapter answers with retrieval off; and the hot swap within it."""
    waiting = client.next_batch()["episodes"]
    strangers = [episode for episode in waiting if episode["document_id"] not in stored]
    if strangers:
        why = (
            f"not measured: {len(strangers)} passages of other documents wait to be learned; run autonomous learn first"
        )
        yield Claim("learning delay, document -> weights", "< 300 s", None, "s", None, why)
        yield Claim("hot swap", "< 5 s", None, "s", None, why)
        return
    delays, swaps, hits, asked, problems = [], [], 0, 0, []
    for turn in range(repeats):
        start = time.monotonic()
        for document in make_documents(8, seed=SEED + 1 + turn):
            _store(client, document, stored)
        questions = client.next_batch()["questions"]
        before = client.versions.all()["pointers"]["v2"]
        status = client.follow(client.learn(), on_status=lambda _: None, timeout_s=LEARNING_GIVE_UP_S)
        note(f"learning run {turn + 1} of {repeats}: {status['phase']}, {status.get('state')}")
        if status.get("state") != "PRODUCTION":
            failed = [f"{g['name']} {g['verdict']}" for g in status.get("gates") or [] if g["verdict"] != "pass"]
            problems.append(
                f"run {turn + 1} was not promoted ({status.get('error') or ', '.join(failed) or status.get('state')})"
            )
            continue
        for number, question in enumerate(questions):
            answer = client.ask(question["paraphrase"], retrieval=False, max_tokens=32)
            if number == 0 and answer.version == status["version"]:
                delays.append(time.monotonic() - start)
            hits += answer_hits(answer.text, question["key"])
            asked += 1
        if (swap_s := (status.get("timings") or {}).get("swap_s")) is not None:
            swaps.append(float(swap_s))
        if not is_own:
            _undo(client, before=before, problems=problems)
    trouble = f"; {'; '.join(problems)}" if problems else ""
    slowest = max(delays) if delays else None
    how = f"{len(delays)} of {repeats} runs of 8 made-up documents, slowest; {hits} of {asked} reworded questions hit"
    yield Claim(
        "learning delay, document -> weights", "< 300 s", None if slowest is None else round(slowest, 1), "s",
        None if slowest is None else slowest < 300, f"{how}{trouble}",
    )  # fmt: skip
    slowest = max(swaps) if swaps else None
    yield Claim(
        "hot swap", "< 5 s", None if slowest is None else round(slowest, 3), "s",
        None if slowest is None else slowest < 5,
        f"gates' decision -> version serves, as the agent timed it; slowest of {len(swaps)}{trouble}",
    )  # fmt: skip


def _undo(client: Client, *, before: str, problems: list[str]) -> None:
    """Put the version of the running system back that served before the measurement."""
    if client.versions.all()["pointers"]["v2"] == before:
        return
    try:
        client.versions.rollback(by="benchmark", reason="undo of a measurement with made-up documents")
    except ClientError as error:
        problems.append(f"the measured version could not be rolled back: {error}")


def _store(client: Client, document: MadeUp, stored: list[str]) -> str:
    reply = client.add_documents([{"text": document.text, "title": document.name, "source": SOURCE}])["documents"][0]
    if reply["status"] not in ("stored", "repeated"):
        raise ValueError(f"the made-up document {document.name} was {reply['status']}: {reply.get('reason')}")
    stored.append(str(reply["id"]))
    return stored[-1]
