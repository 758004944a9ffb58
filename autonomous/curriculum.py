"""What is learned next, what is replayed beside it, and by which questions a version is judged.

In flow the ledger (what was learned, what is held back) and the memory (what exists); out flow batches, items, questions.
Nothing is written. Order of learning: docs/decisions/0002.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autonomous.config import LearningConfig
from autonomous.lessons import Lessons, Question, build_lessons
from autonomous.ports import MemoryPort
from autonomous.versions.ledger import VersionLedger
from autonomous.versions.states import State
from memory.types import Episode
from train.continual.items import LearningItem
from train.continual.replay import ExperienceReplay, num_replay

PAGE = 256
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


class Curriculum:
    """Chooses from a memory by a ledger. Holds no state of its own."""

    def __init__(self, config: LearningConfig, *, memory: MemoryPort, ledger: VersionLedger) -> None:
        self._config = config
        self._memory = memory
        self._ledger = ledger

    def next_batch(self) -> Batch:
        """The freshest passages that neither V2's line nor a quarantined or waiting version has learned.

        A passage counts as learned afterwards, so no more are taken than `max_batch_items` can teach whole; at least one.
        """
        decided = self._decided_episodes()
        wanted = self._config.max_batch_episodes
        chosen: list[tuple[int, Episode]] = []
        offset = 0
        while len(chosen) < wanted and (page := self._memory.freshest(PAGE, offset)):
            chosen.extend((seq, episode) for seq, episode in page if episode.id not in decided)
            offset += len(page)
        chosen = chosen[:wanted]
        limit = self._config.max_batch_items
        while len(chosen) > 1 and len(_lessons_of(chosen, max_items=limit + 1).items) > limit:
            chosen.pop()
        return Batch(
            episodes=tuple(episode for _, episode in chosen),
            lessons=_lessons_of(chosen, max_items=limit),
            stream_offset=max((seq for seq, _ in chosen), default=0),
        )

    def num_decided_episodes(self) -> int:
        """Episodes that no future batch takes: learned, held back, or in a version that waits."""
        return len(self._decided_episodes())

    def questions_of(self, version_id: str) -> list[Question]:
        """Held-out questions on what the version itself was trained on, as far as it still exists."""
        episodes = self._memory.get(self._ledger.episodes_of(version_id))
        return list(build_lessons(episodes, max_items=self._config.max_batch_items).questions)

    def replay_for(self, parent: str) -> list[LearningItem]:
        """Old items for all steps of a batch, drawn from what the parent's line has learned and what still exists.

        As many as the steps have room for: with a pool of one step's worth, the loss on the earlier batch was measured to
        rise by a quarter instead of falling. Of a uniform draw those are likelier that are more salient: consolidation
        raises the salience of what the serving version no longer knows.
        """
        config = self._config
        buffer: ExperienceReplay[str] = ExperienceReplay(config.replay_capacity, seed=config.seed)
        buffer.add({episode: episode for episode in sorted(self._ledger.learned_episodes(parent))})
        wanted = config.max_steps * num_replay(config.items_per_step, config.replay_ratio)
        if wanted == 0 or len(buffer) == 0:
            return []
        rng = np.random.default_rng([config.seed, len(buffer)])
        drawn = self._memory.get(buffer.sample(min(REPLAY_CHOICE * wanted, len(buffer)), rng))
        weights = np.array([max(episode.salience, LEAST_SALIENCE) for episode in drawn])
        order = np.argsort(-(rng.random(len(drawn)) ** (1 / weights)))
        episodes = [drawn[place] for place in order[:wanted].tolist()]
        return list(build_lessons(episodes, max_items=wanted).items)

    def _decided_episodes(self) -> set[str]:
        ledger = self._ledger
        waiting = {
            episode for record in ledger.in_states(WAITING_STATES) for episode in ledger.episodes_of(record.name)
        }
        return ledger.learned_episodes(ledger.pointers().v2) | ledger.held_back() | waiting


def _lessons_of(chosen: Sequence[tuple[int, Episode]], *, max_items: int) -> Lessons:
    return build_lessons([episode for _, episode in chosen], max_items=max_items)
