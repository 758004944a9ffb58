"""Learning tasks: whatever is called in whatever order, and whatever is cut off, the table is the model's."""

from contextlib import ExitStack
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from autonomous.gaps import Gap
from autonomous.tasks import Asked, DataSearched, Learned, LearningTask, Seen, TaskState, decide_task
from tests.unit.autonomous.feedback_life import NOW, FeedbackLife, asked, feedback_life
from tests.unit.autonomous.ledger_life import quick_folder

OPEN = LearningTask("gap", TaskState.OPEN, "unknown", "q", 1.0, None, created_at=NOW, changed_at=NOW)
FOUND = replace(OPEN, state=TaskState.DATA_FOUND, episodes=("e1",))
LEARNED = replace(FOUND, state=TaskState.LEARNED, version="v", num_attempts=1)
CLOSED = replace(LEARNED, state=TaskState.CLOSED)
TASKS = (OPEN, FOUND, LEARNED, CLOSED)


@pytest.mark.parametrize(
    ("task", "event", "state"),
    [
        (OPEN, DataSearched(("e1",)), TaskState.DATA_FOUND),
        (OPEN, DataSearched((), "nothing"), TaskState.OPEN),
        (FOUND, DataSearched(()), TaskState.OPEN),
        (FOUND, Learned("v"), TaskState.LEARNED),
        (LEARNED, Asked(2, 2, True), TaskState.CLOSED),
        (LEARNED, Asked(2, 0, False), TaskState.OPEN),
        (OPEN, Asked(2, 2, True), TaskState.CLOSED),
        (FOUND, Asked(2, 0, False), TaskState.DATA_FOUND),
        (CLOSED, Seen(NOW + 1), TaskState.OPEN),
        (CLOSED, Seen(NOW), TaskState.CLOSED),
    ],
)
def test_a_task_moves_as_the_module_says(task: LearningTask, event: object, state: TaskState) -> None:
    moved = decide_task(task, event, now=NOW + 5)  # type: ignore[arg-type]
    assert moved.state is state
    assert moved.changed_at == (NOW if state is task.state else NOW + 5)


@pytest.mark.parametrize(
    ("task", "event"),
    [
        (OPEN, Learned("v")),
        (LEARNED, Learned("w")),
        (CLOSED, Learned("v")),
        (LEARNED, DataSearched(("e2",))),
        (CLOSED, DataSearched(("e2",))),
        (CLOSED, Asked(1, 0, False)),
        (OPEN, Seen(NOW + 9)),
        (FOUND, Seen(NOW + 9)),
        (LEARNED, Seen(NOW + 9)),
    ],
)
def test_an_event_that_comes_late_or_twice_changes_nothing(task: LearningTask, event: object) -> None:
    assert decide_task(task, event, now=NOW + 5) == task  # type: ignore[arg-type]


def test_what_was_learned_in_vain_is_no_data_any_more() -> None:
    assert decide_task(LEARNED, Asked(3, 1, False, "1 of 3"), now=NOW).episodes == ()
    assert decide_task(CLOSED, Seen(NOW + 1), now=NOW).episodes == ()


EVENTS = st.one_of(
    st.builds(Seen, st.sampled_from([NOW - 1, NOW, NOW + 50])),
    st.builds(DataSearched, st.sampled_from([(), ("e1",), ("e1", "e2")]), st.just("note")),
    st.builds(Learned, st.sampled_from(["v1", "v2"])),
    st.builds(Asked, st.just(2), st.integers(0, 2), st.booleans()),
)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(TASKS), EVENTS)
def test_an_event_twice_is_an_event_once(task: LearningTask, event: object) -> None:
    once = decide_task(task, event, now=NOW + 5)  # type: ignore[arg-type]
    if isinstance(event, Asked) and once.state is TaskState.OPEN:
        return  # a second round of questions is a second round
    assert decide_task(once, event, now=NOW + 5) == once  # type: ignore[arg-type]


@given(st.sampled_from(TASKS), EVENTS)
def test_data_and_attempts_fit_the_state(task: LearningTask, event: object) -> None:
    moved = decide_task(task, event, now=NOW + 5)  # type: ignore[arg-type]
    assert (moved.state is not TaskState.DATA_FOUND) or moved.episodes
    assert moved.num_attempts - task.num_attempts == (
        moved.state is TaskState.LEARNED and task.state is not moved.state
    )


class Crash(RuntimeError):
    """The process ends at a commit."""


NAMES = [f"gap{n}" for n in range(6)]
MAX_TASKS = 4


class TaskMachine(RuleBasedStateMachine):
    """Calls on the real table beside a dictionary; some calls die at their commit, then the database is opened anew."""

    @initialize()
    def begin(self) -> None:
        self.stack = ExitStack()
        folder = self.stack.enter_context(quick_folder())
        self.life: FeedbackLife = self.stack.enter_context(feedback_life(folder, max_tasks=MAX_TASKS))
        self.life.log.append([asked(name, name) for name in NAMES])
        self.model: dict[str, LearningTask] = {}
        self.erased: set[str] = set()

    def teardown(self) -> None:
        if hasattr(self, "stack"):
            self.stack.close()

    def crash(self) -> None:
        raise Crash

    def attempt(self, call, *arguments, dies: bool):  # type: ignore[no-untyped-def]
        """Whether the call took effect."""
        try:
            call(*arguments, **({"guard": self.crash} if dies else {}))
        except Crash:
            self.life.reopen()
            return False
        return True

    @rule(
        names=st.lists(st.sampled_from(NAMES), unique=True, max_size=5), score=st.integers(1, 9), at=st.integers(-1, 99),
        dies=st.booleans(),
    )  # fmt: skip
    def see(self, names: list[str], score: int, at: int, dies: bool) -> None:
        gaps = [Gap(name, name, {name: name}, "unknown", float(score), None, NOW + at) for name in names]
        if not self.attempt(self.life.tasks.see, gaps, dies=dies):
            return
        now = self.life.clock.now
        for name in names:
            fresh = LearningTask(name, TaskState.OPEN, "unknown", name, 0.0, None, created_at=now, changed_at=now)
            if name in self.erased:
                continue
            task = decide_task(self.model.get(name, fresh), Seen(NOW + at), now=now)
            self.model[name] = replace(task, score=float(score), questions=((name, name),))
        order = sorted(
            self.model.values(),
            key=lambda one: (one.state != "closed", one.changed_at if one.state == "closed" else one.score, one.gap_id),
        )
        for task in order[: max(0, len(order) - MAX_TASKS)]:
            del self.model[task.gap_id]

    @rule(name=st.sampled_from(NAMES), event=EVENTS, dies=st.booleans())
    def note(self, name: str, event: object, dies: bool) -> None:
        if self.attempt(self.life.tasks.note, name, event, dies=dies) and name in self.model:
            self.model[name] = decide_task(self.model[name], event, now=self.life.clock.now)  # type: ignore[arg-type]

    @rule(names=st.lists(st.sampled_from(NAMES), unique=True), dies=st.booleans())
    def note_run(self, names: list[str], dies: bool) -> None:
        if self.attempt(self.life.tasks.note_run, names, "run-1", dies=dies):
            for name in set(names) & self.model.keys():
                self.model[name] = replace(self.model[name], run_id="run-1")

    @rule(name=st.sampled_from(NAMES), dies=st.booleans())
    def erase(self, name: str, dies: bool) -> None:
        if self.attempt(self.life.log.forget, name, dies=dies):
            self.model.pop(name, None)
            self.erased.add(name)

    @rule(seconds=st.integers(1, 60))
    def wait(self, seconds: int) -> None:
        self.life.clock.now += seconds

    @rule()
    def restart(self) -> None:
        self.life.reopen()

    @invariant()
    def table_is_the_model(self) -> None:
        if hasattr(self, "life"):
            assert {task.gap_id: task for task in self.life.tasks.list()} == self.model


TaskMachine.TestCase.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
test_any_calls_and_crashes_leave_what_the_model_says = TaskMachine.TestCase


def gap(name: str, *, score: float = 1.0, questions: dict[str, str] | None = None) -> Gap:
    return Gap(name, name, questions or {name: name}, "unknown", score, None, NOW)


def test_beyond_the_bound_closed_tasks_go_first_oldest_first_then_those_of_the_lowest_score() -> None:
    with quick_folder() as folder, feedback_life(folder, max_tasks=3) as life:
        life.log.append([asked(name, name) for name in "abcdef"])
        life.tasks.see([gap("a", score=9), gap("b", score=8), gap("c", score=1)])
        for name in ("b", "a"):
            life.clock.now += 1
            life.tasks.note(name, Asked(1, 1, True))
        left = []
        for name in ("d", "e", "f"):
            life.tasks.see([gap(name, score=5)])
            left.append("".join(sorted(task.gap_id for task in life.tasks.list())))
        assert left == ["acd", "cde", "def"]


def test_a_gap_whose_question_was_erased_since_it_was_found_makes_no_task() -> None:
    with quick_folder() as folder, feedback_life(folder) as life:
        life.log.append([asked("medoid", "r1"), asked("other", "r2")])
        found = gap("medoid", questions={"r1": "medoid", "r2": "other"})
        life.log.forget("r1")
        life.tasks.see([found])
        assert life.tasks.list() == []
        assert b"medoid" not in life.texts_on_disk()
