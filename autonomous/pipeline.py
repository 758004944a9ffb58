"""TrainingPipelineIntegration: from feedback and gaps to data, to a learning run, to a version that answers.

`collect` turns corrections into documents and gaps into tasks, and looks for passages that fill them; `prepare` tells what
the next run would get and where it comes from; `train` starts the run; `follow_up`, after a promotion, asks the gaps'
questions again. Every step may be cut off anywhere and is repeated by the next call. Parts are protocols and callables, so
it runs in one process or over Ray (actors/feedback.py).
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from autonomous.data_gate import ORIGIN
from autonomous.feedback import SOURCE, Correction, FeedbackStore, Votes
from autonomous.feedback_config import FeedbackConfig
from autonomous.gaps import Embed, GapDetector, Judged, is_refusal
from autonomous.holds import HoldState
from autonomous.lessons import answer_hits, states_facts, taught_facts
from autonomous.requests import RequestLog
from autonomous.tasks import Asked, DataSearched, Learned, LearningTask, LearningTasks, TaskState
from memory.questions import question_of
from memory.store import no_guard
from memory.types import Episode, Guard, RecallHit, Trust

FEEDBACK_ORIGIN, DOCUMENT_ORIGIN = "feedback", "document"
"""Who wrote a passage, beside GENERATED_ORIGIN: users as a correction, or whoever else; the latter where nothing is said."""
NO_DATA = "nothing is stored about it: add documents that answer it"
WAITS = (
    "what is stored about it waits until a person releases it: GET /v1/memory/waiting, and `held` of GET /v1/learn/next"
)
ALL_LEARNED = (
    "what is stored about it was learned, and it is still badly answered: add other documents, or read the answers"
)


class PipelineMemory(Protocol):
    """What the pipeline needs of the memory and the ledger."""

    def search(self, question: str, *, k: int, min_cosine: float) -> list[RecallHit]:
        """Passages that may be learned, best first."""

    def ingest(self, documents: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Store documents as POST /v1/knowledge does; a row with `status` for each. Idempotent by id."""

    def of_document(self, document_id: str) -> list[Episode]:
        """Its stored passages, also those that wait."""

    def get(self, ids: Sequence[str]) -> list[Episode]:
        """The episodes that still exist."""

    def learned(self, ids: Sequence[str]) -> set[str]:
        """Those that the serving version has learned."""

    def held_back(self, ids: Sequence[str]) -> set[str]:
        """Those that no batch takes, because a version that had learned them was rejected or rolled back."""

    def hold_states(self, episodes: Sequence[Episode]) -> Mapping[str, HoldState]:
        """Those of the episodes that the data gate holds, or that a person has released."""

    def raise_salience(self, run: str, saliences: Mapping[str, float]) -> None:
        """Let these be learned first. Idempotent by `run`, which names the reason."""

    def hold_back(self, source_id: str, *, reason: str) -> None:
        """Believe a source no further than UNTRUSTED, unless a person has decided about it."""

    def forget_document(self, document_id: str) -> None:
        """Erase a document from every store; one that is unknown is erased already."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer of the serving version, from its weights."""

    text: str
    version: str


@dataclass(frozen=True, slots=True)
class Collected:
    """What one look for gaps did."""

    num_requests: int
    num_gaps: int
    num_corrections: int
    """That became documents."""
    num_erased: int
    """Documents of withdrawn corrections."""
    num_with_data: int
    """Tasks with passages that are learned next."""
    num_passages: int
    """Of those tasks."""


@dataclass(frozen=True, slots=True)
class Preview:
    """What the next learning run would get."""

    num_episodes: int
    by_source: Mapping[str, int]
    by_origin: Mapping[str, int]
    tasks: Mapping[str, tuple[str, ...]]
    """Episode ids by the task that asked for them."""


@dataclass(frozen=True, slots=True)
class FollowUp:
    """What became of the tasks that a version has learned."""

    version: str
    num_tasks: int
    num_closed: int
    num_reopened: int
    num_asked: int
    num_answered: int


class TrainingPipelineIntegration:
    """See the module. One caller at a time for `collect`, `train` and `follow_up`; whoever owns it sees to that."""

    def __init__(
        self,
        config: FeedbackConfig,
        *,
        log: RequestLog,
        feedback: FeedbackStore,
        tasks: LearningTasks,
        memory: PipelineMemory,
        embed: Embed,
        upcoming: Callable[[], Sequence[Episode]],
        start_cycle: Callable[[str], str],
        answer: Callable[[str], Reply],
    ) -> None:
        self._config = config
        self._log = log
        self._feedback = feedback
        self._memory = memory
        self._embed = embed
        self._detector = GapDetector(config, embed=embed)
        self._upcoming = upcoming
        self._start_cycle = start_cycle
        self._answer = answer
        self.tasks = tasks

    def collect(self, *, guard: Guard = no_guard) -> Collected:
        """Corrections become documents, gaps become tasks, tasks find their data. Raises what the parts raise."""
        self._log.prune(guard=guard)
        num_erased = self.erase_unwanted(guard=guard)
        num_corrections = self._ingest_corrections(guard)
        judged = self.judged(self._config.capacity)
        gaps = self._detector.detect(judged, known=self.tasks.known())
        self.tasks.see(gaps, guard=guard)
        found = [self._find_data(task, guard) for task in self.tasks.list(TaskState.OPEN, TaskState.DATA_FOUND)]
        with_data = [episodes for episodes in found if episodes]
        return Collected(
            num_requests=len(judged),
            num_gaps=len(gaps),
            num_corrections=num_corrections,
            num_erased=num_erased,
            num_with_data=len(with_data),
            num_passages=len({key for episodes in with_data for key in episodes}),
        )

    def judged(self, limit: int) -> list[Judged]:
        """The newest requests with their votes."""
        requests = self._log.recent(limit)
        votes = self._feedback.votes([one.id for one in requests])
        return [Judged(one, votes.get(one.id, Votes())) for one in requests]

    def erase_unwanted(self, *, guard: Guard = no_guard) -> int:
        """Erase the documents of corrections that were withdrawn or replaced; how many. Goes on where it was cut off."""
        unwanted = self._feedback.unwanted()
        for document_id in unwanted:
            guard()
            self._memory.forget_document(document_id)
            self._feedback.note_erased(document_id, guard=guard)
        return len(unwanted)

    def prepare(self) -> Preview:
        """What the next learning run would get: how much, from whom, written by whom, for which tasks."""
        episodes = self._upcoming()
        ids = {episode.id for episode in episodes}
        tasks = {
            task.gap_id: tuple(key for key in task.episodes if key in ids)
            for task in self.tasks.list(TaskState.DATA_FOUND)
        }
        return Preview(
            num_episodes=len(episodes),
            by_source=dict(Counter(episode.source_id for episode in episodes)),
            by_origin=dict(Counter(episode.metadata.get(ORIGIN, DOCUMENT_ORIGIN) for episode in episodes)),
            tasks={gap_id: chosen for gap_id, chosen in tasks.items() if chosen},
        )

    def train(self, *, by: str, guard: Guard = no_guard) -> str:
        """Start a learning run that `by` asked for; its id.

        Raises what the learning loop raises (NothingToLearn, AlreadyLearning, LearningStopped).
        """
        preview = self.prepare()
        guard()
        run_id = self._start_cycle(by)
        self.tasks.note_run(list(preview.tasks), run_id, guard=guard)
        return run_id

    def follow_up(self, version: str, *, guard: Guard = no_guard) -> FollowUp:
        """Ask again what the serving version should know now; tasks are closed or open again.

        Raises what `answer` raises; a task that was not asked to the end stays LEARNED and is asked by the next call.
        """
        for task in self.tasks.list(TaskState.DATA_FOUND):
            if self._memory.learned(task.episodes):
                self.tasks.note(task.gap_id, Learned(version), guard=guard)
        behind = [self._ask_again(task, guard) for task in self.tasks.list(TaskState.LEARNED)]
        asked = [task for task in behind if task is not None]
        closed = [task for task in asked if task.state is TaskState.CLOSED]
        return FollowUp(
            version=version,
            num_tasks=len(asked),
            num_closed=len(closed),
            num_reopened=len(asked) - len(closed),
            num_asked=sum(task.num_asked for task in asked),
            num_answered=sum(task.num_answered for task in asked),
        )

    # -- steps

    def _ingest_corrections(self, guard: Guard) -> int:
        num_kept = 0
        while corrections := self._feedback.wanted():
            guard()
            self._memory.hold_back(SOURCE, reason="corrections of users are believed when a person has read them")
            rows = self._memory.ingest([document_of(one) for one in corrections])
            for one, row in zip(corrections, rows, strict=True):
                is_kept = row["status"] != "rejected"
                self._feedback.note_document(one.document_id, is_kept=is_kept, guard=guard)
                num_kept += is_kept
        return num_kept

    def _find_data(self, task: LearningTask, guard: Guard) -> tuple[str, ...]:
        """Passages near the gap's question, and its corrections; those that state facts and are not learned yet are to be
        learned first. Without facts they would only take up the batch: nothing of them can be asked.

        What a task has found it keeps, learned or not, until it is asked again: a version with it may wait for a person.
        """
        config = self._config
        hits = self._memory.search(task.question, k=config.passages_per_task, min_cosine=config.answer_cosine)
        corrections = self._feedback.corrections_of([key for key, _ in task.questions])
        passages = [episode for one in corrections for episode in self._memory.of_document(one.document_id)]
        kept = [episode for episode in self._memory.get(task.episodes) if episode.trust >= Trust.STANDARD]
        near = [*(one for one in passages if one.trust >= Trust.STANDARD), *(hit.episode for hit in hits)]
        found = {episode.id: episode for episode in (*kept, *near)}
        ids = list(found)
        states = self._memory.hold_states(list(found.values()))
        held = {key for key in ids if states.get(key) == "held"}
        learned, refused = self._memory.learned(ids), self._memory.held_back(ids) | held
        own = {episode.id for episode in kept}
        chosen = tuple(key for key in ids if key not in refused and (key in own or key not in learned))
        is_waiting = bool(held) or any(one.trust < Trust.STANDARD for one in passages)
        note = "" if chosen else WAITS if is_waiting else ALL_LEARNED if ids else NO_DATA
        if self.tasks.note(task.gap_id, DataSearched(chosen, note), guard=guard) is None:
            return ()
        if first := [key for key in chosen if key not in learned and states_facts(found[key])]:
            guard()
            digest = hashlib.sha256("".join(first).encode()).hexdigest()[:12]
            self._memory.raise_salience(f"gap-{task.gap_id}-{digest}", dict.fromkeys(first, config.task_salience))
        return chosen

    def _ask_again(self, task: LearningTask, guard: Guard) -> LearningTask | None:
        questions = list(dict.fromkeys([task.question, *(text for _, text in task.questions)]))[
            : self._config.questions_asked
        ]
        keys = self._keys_of(task, questions)
        answered = [
            question for question in questions if is_answered(self._answer(question).text, key=keys.get(question, ""))
        ]
        share = len(answered) / len(questions)
        is_filled = share >= self._config.min_answered
        note = "" if is_filled else f"{len(answered)} of {len(questions)} questions were answered after learning"
        return self.tasks.note(task.gap_id, Asked(len(questions), len(answered), is_filled, note), guard=guard)

    def _keys_of(self, task: LearningTask, questions: Sequence[str]) -> dict[str, str]:
        """What the answer to each question must hold: the key of the fact in the task's data that it asks for."""
        facts = [fact for episode in self._memory.get(task.episodes) for fact in taught_facts(episode)]
        if not facts:
            return {}
        asked_QD = self._embed(list(questions))
        known_FD = self._embed([question_of(fact) for fact, _ in facts])
        nearest = (asked_QD @ known_FD.T).argmax(axis=1).tolist()
        return {question: facts[place][1] for question, place in zip(questions, nearest, strict=True)}


def is_answered(text: str, *, key: str) -> bool:
    """Whether an answer holds what it must; where nothing is known to check it by, whether it is one at all."""
    return not is_refusal(text) and (not key or answer_hits(text, key))


def document_of(correction: Correction) -> dict[str, Any]:
    """A correction as a document of POST /v1/knowledge. Its metadata name the answer that it corrects."""
    return {
        "id": correction.document_id,
        "source": correction.source_id,
        "title": correction.question[:200],
        "text": f"{correction.question}\n\n{correction.text}",
        "happened_at": correction.at,
        "metadata": {ORIGIN: FEEDBACK_ORIGIN, "response_id": correction.response_id},
    }
