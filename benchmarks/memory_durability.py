"""kill -9 at random moments: of a process with concurrent writers, and of the episodic actor while documents arrive over HTTP.

50 of each (--quick: 10 of a process, 2 of the actor). Nothing acknowledged may be lost, nothing may be there twice, nothing
that was acknowledged as erased may be there, and the indexes have to equal a rebuild from the rows.
"""

import os
import random
import signal
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cluster.bench import BenchContext, Claim

DOCUMENTS_PER_CALL = 3


def run(context: BenchContext) -> Iterable[Claim]:
    """The claims of this file."""
    yield from _processes(context, num_kills=10 if context.quick else 50)
    with context.running_system() as (client, config):
        yield _actor(context, client, config.home, num_kills=2 if context.quick else 50)


def _processes(context: BenchContext, *, num_kills: int) -> Iterable[Claim]:
    from cluster.bench_kills import KillTally, kill_once

    rng, tally = random.Random(0), KillTally()
    for number in range(num_kills):
        context.note(f"process {number + 1} of {num_kills}")
        kill_once(context.folder / "killed", run=f"run{number}", rng=rng, tally=tally)
    told = f"{num_kills} kills, 3 writers; {len(tally.present)} episodes acknowledged, {len(tally.erased)} erased"
    for name, found in (("lost", tally.lost), ("lingering", tally.lingering), ("index problems", tally.problems)):
        yield Claim(f"process killed: {name}", "0", len(found), "", not found, told)


def _actor(context: BenchContext, client: Any, home: Path, *, num_kills: int) -> Claim:
    """Documents are sent without end by one thread while the actor is killed; the server repeats what it broke."""
    from cluster.processes import find_processes

    sent: dict[str, str] = {}
    is_over = threading.Event()

    def send() -> None:
        number = 0
        while not is_over.is_set():
            texts = [f"Entry {number + part} says token t{number + part}." for part in range(DOCUMENTS_PER_CALL)]
            documents = [{"id": f"kill-{number + part}", "text": text} for part, text in enumerate(texts)]
            for row in client.add_documents(documents)["documents"]:
                sent[row["id"]] = row["status"]
            number += DOCUMENTS_PER_CALL

    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    rng = random.Random(1)
    for number in range(num_kills):
        time.sleep(rng.uniform(0.5, 3.0))
        for process in find_processes(home):
            if "".join(process.cmdline()).startswith("ray::EpisodicShell"):
                os.kill(process.pid, signal.SIGKILL)
        context.note(f"actor {number + 1} of {num_kills}: {len(sent)} documents acknowledged")
    time.sleep(1)
    is_over.set()
    sender.join()
    listed: list[str] = []
    while page := client.list_documents(limit=1000, offset=len(listed))["documents"]:
        listed += [one["document_id"] for one in page]
    lost = set(sent) - set(listed)
    doubled = len(listed) - len(set(listed))
    return Claim(
        "episodic actor killed: documents lost or twice", "0", len(lost) + doubled, "", not lost and not doubled,
        f"{num_kills} kills while documents arrive over HTTP, {len(sent)} acknowledged",
    )  # fmt: skip
