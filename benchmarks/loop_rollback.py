"""A rollback under load: from the decision to the last answer of the bad version, and whether any request failed.

A version is learned; four clients ask without pause, whole and streamed; then a person rolls back. Times are those of the
clients: from the moment the request for the rollback is sent to the arrival of the last answer that names the bad version.
"""

import statistics
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from cluster.bench import BenchContext, Claim
from cluster.bench_documents import make_documents
from cluster.client import Client
from cluster.client_errors import ClientError

CLIENTS = 4
LEARNING_GIVE_UP_S = 1200.0
BEFORE_S, AFTER_S = 4.0, 6.0


@dataclass
class Seen:
    """What the clients saw: (asked, answered, version) on the monotonic clock, and errors."""

    answers: list[tuple[float, float, str]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def run(context: BenchContext) -> Iterable[Claim]:
    """The claims of this file."""
    last_s, started_s, flips_s, seen_all = [], [], [], Seen()
    repeats = 1 if context.quick else 3
    with context.running_system({}) as (client, _):
        for turn in range(repeats):
            bad = _learn(client, seed=turn)
            seen, decided_at, reply = _roll_back(client)
            assert reply["from"] == bad, "the version that was learned serves"
            of_bad = [(asked, answered) for asked, answered, version in seen.answers if version == bad]
            last_s.append(max(answered for _, answered in of_bad) - decided_at)
            started_s.append(max(asked for asked, _ in of_bad) - decided_at)
            flips_s.append(float(reply["seconds"]))
            seen_all.answers += seen.answers
            seen_all.errors += seen.errors
            if client.versions.all()["frozen"]:
                client.versions.unlock(by="bench person", reason="a measurement")
            context.note(f"rollback {turn + 1} of {repeats}: last answer of the bad version after {last_s[-1]:.3f} s")
    yield Claim(
        "rollback: decision -> last answer of the bad version", "< 1 s", round(max(last_s), 3), "s", max(last_s) < 1,
        f"{repeats} rollbacks under {CLIENTS} clients (4 tokens, half of them streamed), worst, in-flight ones included; the "
        f"last question that it got came {max(started_s):+.3f} s from the decision; the pointer flipped within "
        f"{statistics.median(flips_s):.3f} s",
    )  # fmt: skip
    yield Claim(
        "rollback: failed requests", "0", len(seen_all.errors), f"of {len(seen_all.answers) + len(seen_all.errors)}",
        not seen_all.errors, "; ".join(sorted(set(seen_all.errors))[:3]) or "all answered, before, during and after",
    )  # fmt: skip


def _learn(client: Client, *, seed: int) -> str:
    client.add_documents(
        [{"text": one.text, "title": one.name, "source": "bench"} for one in make_documents(6, seed=seed)]
    )
    status = client.follow(client.learn(), on_status=lambda _: None, timeout_s=LEARNING_GIVE_UP_S)
    if status.get("state") != "PRODUCTION":
        raise RuntimeError(
            f"the version to be rolled back was not promoted: {status.get('error') or status.get('state')}"
        )
    return str(status["version"])


def _roll_back(client: Client) -> tuple[Seen, float, dict[str, object]]:
    seen, is_over = Seen(), threading.Event()

    def ask(number: int) -> None:
        with Client(client.base_url) as own:
            while not is_over.is_set():
                asked_at = time.monotonic()
                try:
                    if number % 2:
                        answer = own.ask("What is a station?", retrieval=False, max_tokens=4)
                    else:
                        answer = own.stream("What is a station?", on_text=lambda _: None, retrieval=False, max_tokens=4)
                except ClientError as error:
                    seen.errors.append(str(error))
                else:
                    seen.answers.append((asked_at, time.monotonic(), answer.version))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    time.sleep(BEFORE_S)
    decided_at = time.monotonic()
    reply = client.versions.rollback(by="bench person", reason="a measurement", keep_passages=True)
    time.sleep(AFTER_S)
    is_over.set()
    for thread in threads:
        thread.join()
    return seen, decided_at, reply
