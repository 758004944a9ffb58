"""Takes versions through their life for the tests of the ledger; run as a program it promotes and rolls back for ever.

`python ledger_life.py PATH` prints one line after each commit that it was told of, until someone kills it.
"""

import os
import random
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from autonomous.versions.bundle import Bundle, digest_of, version_id_of
from autonomous.versions.gates import REQUIRED_GATES, GateResult, Verdict
from autonomous.versions.ledger import VersionLedger
from autonomous.versions.states import State

PASSED = [GateResult(name, Verdict.PASS, 1.0, 0.0, "measured") for name in REQUIRED_GATES]
FAILED = [*PASSED[:-1], GateResult(REQUIRED_GATES[-1], Verdict.FAIL, 1.0, 0.0, "measured")]
ROAD = [State.EVALUATING, State.GATED, State.AWAITING_APPROVAL, State.SHADOW, State.CANARY]


@contextmanager
def quick_folder() -> Iterator[Path]:
    """A folder in memory where there is one: commits wait for the disk, and most tests do not ask about it."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Path(folder)


def make_bundle(parent: str | None, *, mark: str, episodes: tuple[str, ...] = ()) -> Bundle:
    """A bundle that `mark` tells from all others."""
    return Bundle(
        base_sha256="a" * 64,
        adapter_sha256=None if parent is None else digest_of([mark]),
        tokenizer_sha256="b" * 64,
        code_sha256="c" * 64,
        config={"mark": mark},
        data={
            "episodes_sha256": digest_of(episodes),
            "replay_sha256": digest_of(()),
            "num_episodes": len(episodes),
            "num_replay": 0,
        },
        parent=parent,
    )


def make_genesis(ledger: VersionLedger, folder: Path) -> str:
    """The frozen original as the first production."""
    bundle = make_bundle(None, mark="base")
    ledger.genesis(version_id_of(bundle), folder=folder, manifest=bundle.model_dump(mode="json"), by="system")
    return version_id_of(bundle)


def fix(
    ledger: VersionLedger, run_id: str, *, parent: str | None, mark: str, episodes: tuple[str, ...], offset: int = 0
) -> str:
    """TRAINING -> CANDIDATE."""
    bundle = make_bundle(parent, mark=mark, episodes=episodes)
    ledger.fix_bundle(
        run_id,
        version_id=version_id_of(bundle),
        folder=Path("/versions") / version_id_of(bundle),
        manifest=bundle.model_dump(mode="json"),
        episode_ids=episodes,
        stream_offset=offset,
        by="agent",
    )
    return version_id_of(bundle)


def make_candidate(
    ledger: VersionLedger, parent: str, *, mark: str, episodes: tuple[str, ...] = (), offset: int = 0
) -> str:
    """A run from DRAFT to CANDIDATE."""
    run_id = ledger.start_run(parent=parent, config={"mark": mark})
    ledger.transition(run_id, expected=State.DRAFT, to=State.TRAINING, by="agent", reason="batch taken")
    return fix(ledger, run_id, parent=parent, mark=mark, episodes=episodes, offset=offset)


def advance(ledger: VersionLedger, name: str, to: State) -> str:
    """CANDIDATE -> `to`, one of ROAD, with gates that passed."""
    at = State.CANDIDATE
    for state in ROAD[: ROAD.index(to) + 1]:
        if state is State.GATED:
            ledger.bind_report(name, report={"seconds": 1.0}, gates=PASSED, by="agent")
        if state is State.CANARY:
            ledger.set_canary(name, percent=5, by="agent", reason="next")
        else:
            ledger.transition(name, expected=at, to=state, by="alice", reason="next")
        at = state
    return name


def make_production(
    ledger: VersionLedger, parent: str, *, mark: str, episodes: tuple[str, ...] = (), offset: int = 0
) -> str:
    """A version all the way to PRODUCTION."""
    name = make_candidate(ledger, parent, mark=mark, episodes=episodes, offset=offset)
    ledger.promote(advance(ledger, name, State.SHADOW), by="agent", reason="all gates passed")
    return name


def state_of(ledger: VersionLedger, name: str) -> State:
    """Of a run or a version."""
    return ledger.get(name).state


def everything(ledger: VersionLedger) -> object:
    """All that can be asked of a ledger, for comparing before and after."""
    return [record.to_dict() for record in ledger.list()], ledger.audit(1000), ledger.held_back(), ledger.pointers()


def live_for_ever(path: Path) -> None:
    """Promote and roll back until killed."""
    ledger = VersionLedger(path, warm_versions=2)
    make_genesis(ledger, path.parent)
    print("ready", flush=True)  # noqa: T201
    choose = random.Random(len(ledger.audit(10**9)))
    for turn in count(len(ledger.list(10**9))):
        with suppress(ValueError):  # not frozen
            ledger.unlock_promotions(by="bob", reason="drill")
        parent = ledger.pointers().v2
        name = make_production(ledger, parent, mark=str(turn), episodes=(f"episode-{turn}",), offset=turn)
        print("promoted", name, flush=True)  # noqa: T201
        if choose.random() < 0.5:
            bad, _ = ledger.rollback(by="bob", reason="drill")
            print("rolled-back", bad, flush=True)  # noqa: T201


if __name__ == "__main__":
    live_for_ever(Path(sys.argv[1]))
