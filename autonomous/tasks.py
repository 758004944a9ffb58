"""LearningTasks: what is to be learned because it was asked and badly answered. Gaps flow in, tasks with their data flow out.

    OPEN -> DATA_FOUND -> LEARNED -> CLOSED        a gap, passages that may fill it, a version that learned them, answered now
    DATA_FOUND -> OPEN                             the passages were erased or rejected
    LEARNED -> OPEN                                still not answered
    any but CLOSED -> CLOSED                       answered by other means
    CLOSED -> OPEN                                 badly answered again

A task is named by its gap, so all calls are idempotent; each is one transaction, so a crash is before it or behind it.
"""

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from autonomous.feedback_config import FeedbackConfig
from autonomous.feedback_tables import UNASKED
from autonomous.gaps import Gap, Kind
from memory.store import Database, no_guard
from memory.types import Guard


class TaskState(StrEnum):
    """Where a task stands."""

    OPEN = "open"
    DATA_FOUND = "data found"
    LEARNED = "learned"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class Seen:
    """The gap is there, and was last asked at `newest_at`."""

    newest_at: float


@dataclass(frozen=True, slots=True)
class DataSearched:
    """Stored passages that may fill the gap and that the serving version has not learned; none: `note` says what to do."""

    episodes: tuple[str, ...]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Learned:
    """A version that serves has learned passages of the task."""

    version: str


@dataclass(frozen=True, slots=True)
class Asked:
    """The questions were asked again."""

    num_asked: int
    num_answered: int
    is_filled: bool
    note: str = ""


Event = Seen | DataSearched | Learned | Asked


@dataclass(frozen=True, slots=True)
class LearningTask:
    """One task. `questions` are by request id; `episodes` are ids; moments are seconds since the epoch."""

    gap_id: str
    state: TaskState
    kind: Kind
    question: str
    score: float
    mean_confidence: float | None
    episodes: tuple[str, ...] = ()
    note: str = ""
    version: str = ""
    run_id: str = ""
    """The last learning run that had passages of the task in its batch."""
    num_attempts: int = 0
    """How often its data was learned."""
    num_asked: int = 0
    num_answered: int = 0
    created_at: float = 0.0
    changed_at: float = 0.0
    """When its state changed."""
    questions: tuple[tuple[str, str], ...] = ()


def decide_task(task: LearningTask, event: Event, *, now: float) -> LearningTask:
    """The task behind an event; itself where the event says nothing new. Pure."""
    moved = _behind(task, event)
    return moved if moved.state is task.state else replace(moved, changed_at=now)


def _behind(task: LearningTask, event: Event) -> LearningTask:
    match event, task.state:
        case Seen(newest_at), TaskState.CLOSED if newest_at > task.changed_at:
            return replace(task, state=TaskState.OPEN, episodes=(), version="", run_id="", note="")
        case DataSearched(episodes, note), TaskState.OPEN | TaskState.DATA_FOUND:
            state = TaskState.DATA_FOUND if episodes else TaskState.OPEN
            return replace(task, state=state, episodes=episodes, note=note)
        case Learned(version), TaskState.DATA_FOUND:
            return replace(task, state=TaskState.LEARNED, version=version, num_attempts=task.num_attempts + 1)
        case Asked(num_asked, num_answered, is_filled, note), TaskState.OPEN | TaskState.DATA_FOUND | TaskState.LEARNED:
            counted = replace(task, num_asked=num_asked, num_answered=num_answered, note=note)
            if is_filled:
                return replace(counted, state=TaskState.CLOSED)
            is_spent = task.state is TaskState.LEARNED  # what was learned in vain is not learned again
            return replace(counted, state=TaskState.OPEN, episodes=()) if is_spent else counted
    return task


class LearningTasks:
    """See the module. Thread-safe."""

    def __init__(self, config: FeedbackConfig, database: Database, *, clock: Callable[[], float]) -> None:
        self._config = config
        self._database = database
        self._clock = clock

    def see(self, gaps: Sequence[Gap], *, guard: Guard = no_guard) -> None:
        """A task for each gap: new, refreshed, or open again when it was badly answered since it was closed."""
        with self._database.write(guard=guard) as connection:
            now = self._clock()
            for gap in gaps:
                task = _find(connection, gap.id)
                if task is None:
                    if not _is_kept(connection, gap):
                        continue
                    task = LearningTask(
                        gap.id, TaskState.OPEN, gap.kind, gap.question, gap.score, gap.mean_confidence,
                        created_at=now, changed_at=now,
                    )  # fmt: skip
                task = decide_task(task, Seen(gap.newest_at), now=now)
                task = replace(task, kind=gap.kind, score=gap.score, mean_confidence=gap.mean_confidence)
                _write(connection, task)
                connection.execute("DELETE FROM task_question WHERE gap_id = :id", {"id": gap.id})
                connection.executemany(
                    "INSERT INTO task_question(gap_id, response_id, question) SELECT :gap, :response, :question"
                    " WHERE EXISTS (SELECT 1 FROM request WHERE id = :response)",
                    [{"gap": gap.id, "response": key, "question": text} for key, text in gap.questions.items()],
                )
                connection.execute(f"DELETE FROM learning_task WHERE gap_id = :id AND {UNASKED}", {"id": gap.id})
            self._prune(connection)

    def note(self, gap_id: str, event: Event, *, guard: Guard = no_guard) -> LearningTask | None:
        """Apply an event; the task behind it, None if there is none of this gap any more."""
        with self._database.write(guard=guard) as connection:
            task = _find(connection, gap_id)
            if task is None:
                return None
            moved = decide_task(task, event, now=self._clock())
            _write(connection, moved)
            return moved

    def note_run(self, gap_ids: Sequence[str], run_id: str, *, guard: Guard = no_guard) -> None:
        """A learning run has begun with passages of these tasks."""
        with self._database.write(guard=guard) as connection:
            connection.executemany(
                "UPDATE learning_task SET run_id = :run WHERE gap_id = :id",
                [{"run": run_id, "id": key} for key in gap_ids],
            )

    def get(self, gap_id: str) -> LearningTask | None:
        """One task."""
        with self._database.read() as connection:
            return _find(connection, gap_id)

    def list(self, *states: TaskState) -> list[LearningTask]:
        """Tasks in these states, or all: highest score first."""
        wanted = states or tuple(TaskState)
        with self._database.read() as connection:
            ids = connection.execute(
                f"SELECT gap_id FROM learning_task WHERE state {self._database.one_of('states')}"
                " ORDER BY score DESC, gap_id",
                {"states": self._database.many([state.value for state in wanted])},
            ).fetchall()
            found = [_find(connection, row[0]) for row in ids]
        return [task for task in found if task is not None]

    def known(self) -> dict[str, str]:
        """The questions of all tasks by gap: a gap that is near one of them is the same gap."""
        with self._database.read() as connection:
            return dict(connection.execute("SELECT gap_id, question FROM learning_task ORDER BY gap_id").fetchall())

    def _prune(self, connection: sqlite3.Connection) -> None:
        (num_tasks,) = connection.execute("SELECT count(*) FROM learning_task").fetchone()
        connection.execute(
            "DELETE FROM learning_task WHERE gap_id IN (SELECT gap_id FROM learning_task ORDER BY state != 'closed',"
            " CASE WHEN state = 'closed' THEN changed_at ELSE score END, gap_id LIMIT :surplus)",
            {"surplus": max(0, num_tasks - self._config.max_tasks)},
        )


_NAMES = tuple(
    "gap_id state kind question score mean_confidence episodes note version run_id num_attempts num_asked num_answered"
    " created_at changed_at".split()
)
_COLUMNS = ", ".join(_NAMES)
_SEPARATOR = "\n"
"""Between episode ids, which are hex."""


def _is_kept(connection: sqlite3.Connection, gap: Gap) -> bool:
    """Whether a request with the gap's question was not erased since the gap was found."""
    ids = [{"id": key} for key, question in gap.questions.items() if question == gap.question]
    return any(connection.execute("SELECT 1 FROM request WHERE id = :id", row).fetchone() for row in ids)


def _find(connection: sqlite3.Connection, gap_id: str) -> LearningTask | None:
    row = connection.execute(f"SELECT {_COLUMNS} FROM learning_task WHERE gap_id = :id", {"id": gap_id}).fetchone()
    if row is None:
        return None
    questions = connection.execute(
        "SELECT response_id, question FROM task_question WHERE gap_id = :id ORDER BY response_id", {"id": gap_id}
    ).fetchall()
    values = dict(zip(_NAMES, row, strict=True))
    values["state"] = TaskState(values["state"])
    values["episodes"] = tuple(values["episodes"].split(_SEPARATOR)) if values["episodes"] else ()
    return LearningTask(**values, questions=tuple(questions))


def _write(connection: sqlite3.Connection, task: LearningTask) -> None:
    row = {name: getattr(task, name) for name in _NAMES}
    row |= {"state": task.state.value, "episodes": _SEPARATOR.join(task.episodes)}
    places = ", ".join(f":{name}" for name in _NAMES)
    changes = ", ".join(f"{name} = :{name}" for name in _NAMES[1:])
    connection.execute(
        f"INSERT INTO learning_task({_COLUMNS}) VALUES({places}) ON CONFLICT(gap_id) DO UPDATE SET {changes}", row
    )
