"""When a run of the loop has ended, and who waits for whom: told of the end last, and no refusal because somebody looks."""

import threading
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing
from pathlib import Path

import pytest

from autonomous.cycle_watch import CycleWatch, open_budget
from autonomous.loop import UNCLOSED
from autonomous.phases import ENDED
from autonomous.run_board import AlreadyLearning
from autonomous.runs import CycleStatus
from autonomous.safety.latch import LearningStopped
from autonomous.versions.states import State
from memory.store import StoreProblem
from tests.tiny_learning import FACTS, LENIENT
from tests.tiny_model import write_tiny_llama
from tests.unit.autonomous.loop_world import UNLIMITED, World
from tests.waiting import until


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture
def world(tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """Its cycles fail as soon as they begin: the evaluator was killed."""
    world = World(tmp_path, base, gates=LENIENT)
    world.memory.add(*FACTS)
    monkeypatch.setattr(world.evaluator, "warm_up", killed)
    return world


def killed() -> None:
    raise OSError("the evaluator was killed")


def status_of(world: World, run_id: str) -> CycleStatus:
    status = world.agent.status_of(run_id)
    assert status is not None
    return status


def test_whoever_is_told_that_a_run_has_ended_may_begin_the_next(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    is_settling, may_settle = threading.Event(), threading.Event()

    def settle(*_: object, **__: object) -> None:
        is_settling.set()
        may_settle.wait(timeout=60)

    monkeypatch.setattr(CycleWatch, "end", settle)
    run_id = world.agent.start_cycle()
    assert is_settling.wait(timeout=60)
    assert status_of(world, run_id).phase not in ENDED
    with pytest.raises(AlreadyLearning, match=f"run {run_id} is under way"):
        world.agent.start_cycle()
    may_settle.set()
    until(lambda: status_of(world, run_id).phase in ENDED, timeout_s=60)
    assert status_of(world, run_id).error == "OSError: the evaluator was killed"
    assert world.agent.start_cycle() != run_id


def test_a_person_is_not_refused_because_a_schedule_looks_whether_there_is_something_to_learn(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_looking, may_end = threading.Event(), threading.Event()

    def look(_: CycleWatch) -> None:
        if not is_looking.is_set():
            is_looking.set()
            may_end.wait(timeout=60)
            raise LearningStopped("it looked")

    monkeypatch.setattr(CycleWatch, "look_before_cycle", look)
    with ThreadPoolExecutor() as pool:
        schedule = pool.submit(world.agent.start_cycle, by="agent:schedule")
        assert is_looking.wait(timeout=60)
        person = pool.submit(world.agent.start_cycle, by="Ada")
        assert wait([person], timeout=0.5).done == set()  # she waits
        may_end.set()
        assert status_of(world, person.result(timeout=60)).run_id.startswith("run-")
        with pytest.raises(LearningStopped, match="it looked"):
            schedule.result(timeout=60)


def test_a_run_that_gets_no_thread_has_failed_and_reserves_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def no_thread(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", no_thread)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            world.agent.start_cycle()
    failed = world.agent.status_of()
    assert failed is not None
    assert (failed.phase, failed.state) == ("failed", State.FAILED.value)
    with closing(open_budget(tmp_path, UNLIMITED, clock=world.clock)) as books:
        assert {one.reserved for one in books.usage()} == {0.0}
    assert world.agent.start_cycle() != failed.run_id


def test_a_run_whose_end_cannot_be_written_down_has_ended(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    transition = world.agent.ledger.transition

    def is_full(*arguments: object, to: State, **others: object) -> None:
        if to is State.FAILED:
            raise StoreProblem("the disk is full")
        transition(*arguments, to=to, **others)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(world.agent.ledger, "transition", is_full)
        run_id = world.agent.start_cycle()
        until(lambda: status_of(world, run_id).phase in ENDED, timeout_s=60)
    assert (status_of(world, run_id).phase, status_of(world, run_id).error) == ("failed", UNCLOSED)
    world.start()
    assert world.agent.ledger.get(run_id).state is State.FAILED
