"""kill -9 of an actor, or of all, at random moments while the loop learns: 50 times (--quick: 4).

Documents arrive over HTTP without pause, one learning cycle follows another, and each 10 ms the ledger's file is read for how
many versions are PRODUCTION. A kill comes once its victims live again, at a random moment: while they start, learn, judge or
promote. In the end every acknowledged document is listed once, no line of versions was trained on a
passage twice, no passage is both held back and learned by what serves, and the audit log is whole. The gates are lenient and
the batches small, so that many versions come to be; training and evaluation are real.
"""

import random
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from autonomous.phases import ENDED
from autonomous.versions.ledger import VersionLedger
from autonomous.versions.states import State
from cluster.bench import BenchContext, Claim
from cluster.bench_documents import make_documents
from cluster.client import Client
from cluster.client_errors import ClientError
from cluster.processes import find_processes

OVERRIDES: dict[str, Any] = {
    "agent.learning.max_steps": 3, "agent.learning.max_batch_episodes": 4, "agent.learning.max_batch_items": 36,
    "agent.gates.min_recall": 0.0, "agent.gates.min_gain_nats": 0.0, "agent.gates.max_forgetting": 10.0,
    "agent.gates.max_control_ratio": 3.0,
}  # fmt: skip
KILL_PAUSE_S = (1.0, 25.0)
"""Between the return of all victims and the kill; a cycle takes about as long."""
DOCUMENT_PAUSE_S = 0.5
LEARN_PAUSE_S = 0.5
LEAST_LOOKS = 10
"""At the ledger, for each kill."""
SETTLE_TIMEOUT_S = 180.0


@dataclass
class Watch:
    """What was seen while processes were killed."""

    acknowledged: set[str] = field(default_factory=set)
    num_looks: int = 0
    wrong_production: Counter[int] = field(default_factory=Counter)
    """How often there was another number of PRODUCTION than one."""
    num_cycles: int = 0
    num_killed: int = 0
    """Processes."""


def run(context: BenchContext) -> Iterable[Claim]:
    """The claims of this file."""
    num_kills, rng, watch = 4 if context.quick else 50, random.Random(0), Watch()
    with context.running_system(OVERRIDES) as (client, config):
        everybody = _everybody()
        with _working(client.base_url, config.home, watch):
            for number in range(num_kills):
                victims = everybody if number % 5 == 4 else (rng.choice(everybody),)
                num_killed = 0
                while num_killed == 0:  # it may have gone by itself meanwhile
                    _wait_until_they_live(config.home, victims)
                    time.sleep(rng.uniform(*KILL_PAUSE_S))
                    num_killed = _kill(config.home, victims)
                watch.num_killed += num_killed
                context.note(
                    f"kill {number + 1} of {num_kills}: {'all' if len(victims) > 1 else victims[0]} ({num_killed} processes); "
                    f"{len(watch.acknowledged)} documents, {watch.num_cycles} cycles begun"
                )
        yield from _judge(client, config.home, watch, num_kills=num_kills)


def _everybody() -> tuple[str, ...]:
    """Classes of the long-lived actors and of the engine's replica. Ray, once imported, looks for its token only where a
    system that has started says it is.
    """
    from actors.registry import ACTORS

    return (*(spec.shell.__name__ for spec in ACTORS.values()), "EngineDeployment")


@contextmanager
def _working(url: str, home: Path, watch: Watch) -> Iterator[None]:
    """In the block documents come, batches are learned and the ledger is looked at. Raises what broke one of these."""
    is_over = threading.Event()
    with ThreadPoolExecutor() as pool:
        works = [pool.submit(work, url, home, watch, is_over) for work in (_send, _learn, _look)]
        try:
            yield
        finally:
            is_over.set()
    for work in works:
        work.result()


def _judge(client: Client, home: Path, watch: Watch, *, num_kills: int) -> Iterable[Claim]:
    _wait_until_quiet(client)
    with suppress(ClientError):  # nothing may be left to learn
        client.follow(client.learn(), on_status=lambda _: None, timeout_s=SETTLE_TIMEOUT_S)
    told = f"{num_kills} kills, every fifth of all actors at once, {watch.num_killed} processes"
    listed: list[str] = []
    while page := client.list_documents(limit=1000, offset=len(listed))["documents"]:
        listed += [one["document_id"] for one in page]
    lost, doubled = watch.acknowledged - set(listed), len(listed) - len(set(listed))
    yield Claim(
        "kill -9 of actors: documents lost, or there twice", "0", len(lost) + doubled, "",
        not lost and not doubled and len(watch.acknowledged) >= num_kills,
        f"{told}; {len(watch.acknowledged)} documents acknowledged over HTTP",
    )  # fmt: skip
    ledger = VersionLedger(home / "ledger.sqlite")
    served = [
        record for record in ledger.list(10_000) if record.state in (State.PRODUCTION, State.SUPERSEDED, State.ARCHIVED)
    ]
    line = Counter(key for record in ledger.lineage(ledger.pointers().v2) for key in ledger.episodes_of(record.name))
    twice = [key for key, count in line.items() if count > 1]
    both = ledger.held_back() & set(line)
    yield Claim(
        "kill -9 of actors: passages learned twice, or learned and held back", "0", len(twice) + len(both), "",
        not twice and not both and len(line) > 0,
        f"{told}; {len(line)} passages in the line that serves, {len(served) - 1} versions were promoted",
    )  # fmt: skip
    wrong = sum(watch.wrong_production.values())
    yield Claim(
        "kill -9 of actors: instants without exactly one V2", "0", wrong, f"of {watch.num_looks}",
        wrong == 0 and watch.num_looks >= LEAST_LOOKS * num_kills,
        f"{told}; the ledger's file read every 10 ms; {dict(watch.wrong_production) or 'always one'}",
    )  # fmt: skip
    report = ledger.verify_audit()
    yield Claim(
        "kill -9 of actors: audit log whole", "whole", float(report.num_rows), "rows", report.ok, report.reason or told
    )


def _processes(home: Path, victims: tuple[str, ...]) -> list[psutil.Process]:
    """Those in which the victims run."""
    names = tuple(name for victim in victims for name in (f"ray::{victim}", f"ray::ServeReplica:autonomous:{victim}"))
    found = []
    for process in find_processes(home):
        with suppress(psutil.NoSuchProcess):
            if "".join(process.cmdline()).startswith(names):
                found.append(process)
    return found


def _kill(home: Path, victims: tuple[str, ...]) -> int:
    num_killed = 0
    for process in _processes(home, victims):
        with suppress(psutil.NoSuchProcess):
            process.kill()
            num_killed += 1
    return num_killed


def _wait_until_they_live(home: Path, victims: tuple[str, ...]) -> None:
    deadline = time.monotonic() + SETTLE_TIMEOUT_S
    while len(_processes(home, victims)) < len(victims):
        if time.monotonic() > deadline:
            raise RuntimeError(f"of {', '.join(victims)} not all were there {SETTLE_TIMEOUT_S:.0f} s after a kill")
        time.sleep(0.1)


def _send(url: str, home: Path, watch: Watch, is_over: threading.Event) -> None:
    del home
    documents = iter(make_documents(100_000, seed=7))
    with Client(url) as client:
        while not is_over.wait(DOCUMENT_PAUSE_S):
            one = next(documents)
            row = {"id": one.name, "text": one.text, "title": one.name, "source": "bench"}
            while True:  # ids make it idempotent: what was not acknowledged is sent again
                try:
                    watch.acknowledged |= {found["id"] for found in client.add_documents([row])["documents"]}
                    break
                except ClientError:
                    if is_over.wait(DOCUMENT_PAUSE_S):
                        return


def _learn(url: str, home: Path, watch: Watch, is_over: threading.Event) -> None:
    del home
    with Client(url) as client:
        while not is_over.wait(LEARN_PAUSE_S):
            with suppress(ClientError):
                client.learn()
                watch.num_cycles += 1


def _look(url: str, home: Path, watch: Watch, is_over: threading.Event) -> None:
    del url
    with closing(sqlite3.connect(f"file:{home / 'ledger.sqlite'}?mode=ro", uri=True)) as connection:
        while not is_over.wait(0.01):
            (count,) = connection.execute("SELECT count(*) FROM versions WHERE state = 'PRODUCTION'").fetchone()
            watch.num_looks += 1
            if count != 1:
                watch.wrong_production[count] += 1


def _wait_until_quiet(client: Client) -> None:
    """The actors are back, and the cycle that was under way has ended."""
    deadline = time.monotonic() + SETTLE_TIMEOUT_S
    while time.monotonic() < deadline:
        with suppress(ClientError):
            learning = client.status().get("learning")
            if not learning or learning["phase"] in ENDED:
                return
        time.sleep(1.0)
    raise RuntimeError(f"the system was not quiet within {SETTLE_TIMEOUT_S:.0f} s after the last kill")
