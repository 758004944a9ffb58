"""What is learned next, what is replayed beside it, and by which questions a version is judged.

In flow the ledger (what was learned, what is held back) and the memory (what exists); out flow batches, items, questions.
Passages that the data gate holds are left out, and the memory is told to hold them; else nothing is written. Order of
learning: docs/decisions/0002.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from autonomous.config import LearningConfig
from autonomous.data_gate import DataGateConfig, DataReport, decide_batch, is_generated
from autonomous.data_report import BatchInspector
from autonomous.filling import Filling, Room, fill
from autonomous.holds import Hold
from autonomous.lessons import Lessons, Question, build_lessons
from autonomous.ports import MemoryPort
from autonomous.safety.poison import Conflict, Evidence
from autonomous.safety.screen import Level
from autonomous.statistics import MIN_PAIRS
from autonomous.versions.gates import is_learned_too_little
from autonomous.versions.ledger import VersionLedger
from autonomous.versions.states import State
from memory.types import Episode
from train.continual.items import LearningItem
from train.continual.replay import ExperienceReplay
from train.replay_share import num_replay

PAGE, MAX_PAGE = 256, 16_384
"""Passages that are read at once: each page is twice as long as the one before, so that a memory of prose alone, which is
read whole, is read in a few."""
MAX_ROUNDS = 16
"""Of filling a batch: rounds of judging. What is held is not looked at again, so a flood of it delays learning only."""
QUESTIONS_PER_DOMAIN, LEAST_QUESTIONS, EARLIER_SOURCES = 24, 8, 4
"""Of what must not be forgotten: most questions of a domain, fewest of a source that is one of its own, most such sources."""
NEWEST_BATCHES, EARLIER_EPISODES = 3, 1024
"""The batches that are a domain together; most episodes whose sources are looked at."""
REPLAY_CHOICE, LEAST_SALIENCE = 4, 1e-3
"""Replayed episodes are chosen from so many times as many, by salience, of which this is the least."""
UNDECIDED_STATES = (State.CANDIDATE, State.EVALUATING, State.GATED, State.SHADOW)
"""Trained, and cut off before the end: the next cycle takes them up."""
WAITING_STATES = (*UNDECIDED_STATES, State.AWAITING_APPROVAL, State.CANARY)
"""Their episodes are in no new batch until the version is decided."""


@dataclass(frozen=True)
class Batch:
    """What would be learned next. `stream_offset` is the newest commit order in it."""

    episodes: tuple[Episode, ...]
    lessons: Lessons
    stream_offset: int
    data: DataReport = field(default_factory=DataReport)
    """What was measured of it."""
    undecided: dict[str, str] = field(default_factory=dict)
    """Passages that could not be judged, with the reason: they are offered again."""


@dataclass
class _Choice:
    """What a batch takes of what the data gate let pass, and what is needed to measure it again."""

    filling: Filling
    places: dict[str, int] = field(default_factory=dict)
    """Commit orders by id."""
    undecided: dict[str, str] = field(default_factory=dict)
    released: set[str] = field(default_factory=set)
    evidence: Evidence = field(default_factory=Evidence)
    conflicts: list[Conflict] = field(default_factory=list)


class Curriculum:
    """Chooses from a memory by a ledger. Holds no state of its own."""

    def __init__(
        self,
        config: LearningConfig,
        *,
        memory: MemoryPort,
        ledger: VersionLedger,
        data: DataGateConfig | None = None,
        level: Level = "high",
    ) -> None:
        self._config = config
        self._memory = memory
        self._ledger = ledger
        self._data = data or DataGateConfig()
        self._inspector = BatchInspector(level=level, poison=self._data.poison)

    def next_batch(self) -> Batch:
        """The freshest passages that neither V2's line nor a quarantined or waiting version has learned, and that the data
        gate lets pass; as many as a batch can teach whole.
        """
        learned = self._ledger.learned_episodes(self._ledger.pointers().v2)
        choice = self._choose(learned)
        chosen = choice.filling.chosen
        report, _ = self._inspector.inspect(chosen, choice.evidence, learned=learned, conflicts=choice.conflicts)
        report = report.with_released(choice.released)
        if late := {**decide_batch(report, self._data).undecided, **self._too_many_generated(choice.filling)}:
            chosen, report = (), DataReport()
        return Batch(
            episodes=chosen,
            lessons=build_lessons(chosen),
            stream_offset=max((choice.places[episode.id] for episode in chosen), default=0),
            data=report,
            undecided={**choice.undecided, **late},
        )

    def _too_many_generated(self, filling: Filling) -> dict[str, str]:
        """Why passages wait that the system wrote itself, where others state too little for a verdict."""
        reason = (
            "the system wrote it itself, and so much of a batch at most may be such: data.max_generated_share = "
            f"{self._data.max_generated_share:g}; wait for documents of others that state facts"
        )
        waiting = {one.id: reason for one in filling.spare if is_generated(one)}
        return waiting if len(filling.answers) < MIN_PAIRS else {}

    def held(self, limit: int) -> list[Hold]:
        """What waits for a person, newest first."""
        return self._memory.held(limit)

    def num_pending(self) -> int:
        """Passages that a future batch may take: neither learned nor held, nor in a version that waits."""
        return self._memory.num_learnable(self._decided_episodes())

    def attempts_of(self, episode_ids: Sequence[str]) -> Counter[str]:
        """For each of these passages, how many versions were trained on it and learned too little of their batch."""
        ledger = self._ledger
        missed = [one.name for one in ledger.trained_on(episode_ids) if is_learned_too_little(one.gates)]
        return Counter(key for name in missed for key in set(ledger.episodes_of(name)) & set(episode_ids))

    def questions_of(self, version_id: str) -> list[Question]:
        """Held-out questions on what the version itself was trained on, as far as it still exists."""
        episodes = self._memory.get(self._ledger.episodes_of(version_id))
        return list(build_lessons(episodes).questions)

    def earlier_questions(self, parent: str, *, most: int = QUESTIONS_PER_DOMAIN) -> list[tuple[str, list[Question]]]:
        """What a child of this version must not forget: (domain, held-out questions), at most so many of each domain.

        The newest batches of the line are one domain, because they are lost first; then the sources of all that the line has
        learned and that still exists, the smallest ones together. What is too little for a verdict joins the largest domain.
        A sample keeps its questions while others join (`ExperienceReplay`), so what the parent was asked is not asked again.
        """
        line = [version for version in self._ledger.lineage(parent) if version.adapter_number is not None]
        if not line:
            return []
        newest = [
            question for version in reversed(line[-NEWEST_BATCHES:]) for question in self.questions_of(version.name)
        ]
        known: ExperienceReplay[str] = ExperienceReplay(EARLIER_EPISODES, seed=self._config.seed)
        known.add({episode: episode for episode in self._ledger.learned_episodes(parent)})
        by_source: dict[str, list[Episode]] = {}
        for episode in self._memory.get(list(known.items())):
            by_source.setdefault(episode.source_id, []).append(episode)
        found = {name: self._sample(build_lessons(own).questions, most) for name, own in by_source.items()}
        large = sorted(found, key=lambda name: (-len(found[name]), name))[:EARLIER_SOURCES]
        apart = [name for name in large if len(found[name]) >= LEAST_QUESTIONS]
        rest = [question for name in sorted(found) if name not in apart for question in found[name]]
        domains = [("the newest batches", self._sample(newest, most)), *((name, found[name]) for name in apart)]
        return _decidable([*domains, ("other sources", self._sample(rest, most))])

    def _sample(self, questions: Sequence[Question], most: int) -> list[Question]:
        kept: ExperienceReplay[Question] = ExperienceReplay(most, seed=self._config.seed)
        kept.add({question.paraphrase: question for question in questions})
        return list(kept.items().values())

    def replay_for(self, parent: str) -> list[LearningItem]:
        """Old items for all steps of a batch, drawn from what the parent's line has learned and what still exists.

        As many as the steps have room for: with a pool of one step's worth, the loss on the earlier batch was measured to
        rise by a quarter instead of falling. Of a uniform draw those are likelier that are more salient: consolidation
        raises the salience of what the serving version no longer knows.
        """
        config = self._config
        buffer: ExperienceReplay[str] = ExperienceReplay(config.replay_capacity, seed=config.seed)
        buffer.add({episode: episode for episode in sorted(self._ledger.learned_episodes(parent))})
        most = max(config.items_per_step, num_replay(config.items_per_step, config.replay_ratio))
        wanted = config.max_steps * most if config.replay_ratio else 0
        if wanted == 0 or len(buffer) == 0:
            return []
        rng = np.random.default_rng([config.seed, len(buffer)])
        drawn = self._memory.get(buffer.sample(min(REPLAY_CHOICE * wanted, len(buffer)), rng))
        weights = np.array([max(episode.salience, LEAST_SALIENCE) for episode in drawn])
        order = np.argsort(-(rng.random(len(drawn)) ** (1 / weights)))
        episodes = [drawn[place] for place in order[:wanted].tolist()]
        return list(build_lessons(episodes, max_items=wanted).items)

    def _choose(self, learned: Collection[str]) -> _Choice:
        """Fill a batch from the freshest passages, holding those that the data gate holds."""
        config = self._config
        data = self._data
        room = Room(config.max_batch_episodes, config.max_batch_items, data.min_sources, data.max_generated_share)
        choice = _Choice(Filling(room))
        stream = self._offered(choice.released)
        for _ in range(MAX_ROUNDS):
            if choice.filling.is_done:
                break
            wanted = (one for one in stream if choice.filling.wants(one[1]))
            fresh = list(islice(wanted, config.max_batch_episodes))
            if not fresh:
                break
            choice.places.update((episode.id, seq) for seq, episode in fresh)
            episodes = [*choice.filling.chosen, *choice.filling.spare, *(episode for _, episode in fresh)]
            evidence = self._memory.contradicted(episodes)
            report, conflicts = self._inspector.inspect(episodes, evidence, learned=learned)
            decision = decide_batch(report.with_released(choice.released), self._data, is_whole=False)
            if decision.held:
                self._memory.hold([Hold.of(one, decision.held[one.id]) for one in episodes if one.id in decision.held])
            accepted = set(decision.accepted)
            choice.filling = fill([episode for episode in episodes if episode.id in accepted], room)
            choice.undecided.update(decision.undecided)
            choice.evidence = _merged(choice.evidence, evidence)
            choice.conflicts += [one for one in conflicts if one.episode_id in decision.held]
        return choice

    def _offered(self, released: set[str]) -> Iterator[tuple[int, Episode]]:
        """Passages that are not decided and not held, freshest first; those that a person released go into `released`."""
        decided = self._decided_episodes()
        offset, most = 0, PAGE
        while page := self._memory.freshest(most, offset):
            offset, most = offset + len(page), min(2 * most, MAX_PAGE)
            open_ones = [(seq, episode) for seq, episode in page if episode.id not in decided]
            states = self._memory.hold_states([episode for _, episode in open_ones])
            released.update(key for key, state in states.items() if state == "released")
            yield from ((seq, episode) for seq, episode in open_ones if states.get(episode.id) != "held")

    def _decided_episodes(self) -> set[str]:
        ledger = self._ledger
        waiting = {
            episode for record in ledger.in_states(WAITING_STATES) for episode in ledger.episodes_of(record.name)
        }
        return ledger.learned_episodes(ledger.pointers().v2) | ledger.held_back() | waiting


def _merged(earlier: Evidence, later: Evidence) -> Evidence:
    beliefs = {belief.fact.id: belief for belief in (*earlier.beliefs, *later.beliefs)}
    return Evidence(tuple(beliefs.values()), is_current=later.is_current)


def _decidable(domains: Sequence[tuple[str, list[Question]]]) -> list[tuple[str, list[Question]]]:
    """Domains with enough questions for a verdict; those of the others join the largest, which may have too few itself."""
    name, largest = max(domains, key=lambda domain: len(domain[1]))
    asked = {question.paraphrase: question for question in largest}
    for _, few in domains:
        if len(few) < MIN_PAIRS:
            asked |= {question.paraphrase: question for question in few}
    whole = [(other, list(asked.values()) if other == name else questions) for other, questions in domains]
    return [(other, questions) for other, questions in whole if len(questions) >= MIN_PAIRS]
