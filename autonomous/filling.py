"""Filling: passages that may be learned flow in, freshest first; which of them a batch takes flows out. Pure.

Passages that bring questions come first, for a verdict needs questions; others take the room that is left. A passage counts
as learned afterwards, so each is taught whole: none is taken that does not fit, but what the least sources and the least
questions of a verdict need, however much it states; and none that answers a question of the batch in another way: its turn
comes in a later batch. What the system wrote itself joins as far as its share allows.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from autonomous.data_gate import is_generated
from autonomous.lessons import answers_of, build_lessons
from autonomous.statistics import MIN_PAIRS
from memory.types import Episode


@dataclass(frozen=True, slots=True)
class Room:
    """What a batch takes at most, in passages and in learning items, and its least sources, no more than passages."""

    num_episodes: int
    num_items: int
    num_sources: int = 1
    max_generated_share: float = 1.0
    """Of the passages: those that the system wrote itself."""

    def allows(self, chosen: Collection[Episode], episode: Episode) -> bool:
        """Whether a passage may join those that are chosen, as far as its author is concerned."""
        num_generated = 1 + sum(map(is_generated, chosen))
        return not is_generated(episode) or num_generated <= self.max_generated_share * (1 + len(chosen))

    def lacks(self, chosen: Collection[Episode], episode: Episode) -> bool:
        """Whether those that are chosen have too few sources, and this one's is another."""
        sources = {one.source_id for one in chosen}
        return len(sources) < self.num_sources and episode.source_id not in sources


@dataclass(frozen=True, slots=True)
class Filling:
    """What a batch takes, and what it would take if something left or joined."""

    room: Room
    chosen: tuple[Episode, ...] = ()
    answers: Mapping[str, str] = field(default_factory=dict)
    """What the chosen ones are asked, with the answers."""
    spare: tuple[Episode, ...] = ()
    has_room: bool = True
    """For another passage that brings questions."""

    @property
    def is_done(self) -> bool:
        """Whether nothing that comes later could join."""
        return not self.has_room and len({one.source_id for one in self.chosen}) >= self.room.num_sources

    def wants(self, episode: Episode) -> bool:
        """Whether a passage could join, or is worth keeping."""
        is_kept = len(self.spare) < self.room.num_episodes
        if not self.room.allows(self.chosen, episode):
            return is_kept
        if self.room.lacks(self.chosen, episode):
            return True
        if not self.has_room:
            return False
        answers = answers_of(episode)
        return not _clash(answers, self.answers) and (is_kept or _bring(answers, self.answers))


def fill(offered: Sequence[Episode], room: Room) -> Filling:
    """Choose among passages, freshest first. The chosen ones keep that order."""
    filling = _Growing(offered, room).grown()
    missed = [one for one in offered if room.lacks(filling.chosen, one)]
    if missed:  # what was chosen first may keep all of a source out: now that source comes first
        filling = _Growing([*missed, *(one for one in offered if one not in missed)], room).grown()
    return replace(filling, chosen=tuple(one for one in offered if one in filling.chosen))


class _Growing:
    """A batch that grows passage by passage."""

    def __init__(self, offered: Sequence[Episode], room: Room) -> None:
        self._room = room
        self._offered = offered
        self._answers = {episode.id: answers_of(episode) for episode in offered}
        self._chosen: list[Episode] = []
        self._core: list[Episode] = []  # for their source or their questions; others leave where room is needed
        self._asked: dict[str, str] = {}
        self._has_room = True

    def grown(self) -> Filling:
        """Until nothing joins any more."""
        while self._grow():
            pass
        left = (one for one in self._offered if one not in self._chosen and not self._clashes(one))
        spare = [one for one in left if not self._brings(one) or not self._room.allows(self._chosen, one)]
        is_full = len(self._core) >= self._room.num_episodes or _num_items(self._core) >= self._room.num_items
        return Filling(
            self._room,
            chosen=tuple(self._chosen),
            answers=self._asked,
            spare=tuple(spare[: self._room.num_episodes]),
            has_room=self._has_room and not is_full,
        )

    def _grow(self) -> bool:
        """Whether one more joined: of a source that is needed, with questions, or one of the others, which makes room for
        more that the system wrote itself.
        """
        able = [one for one in self._offered if one not in self._chosen and self._room.allows(self._chosen, one)]
        able = [one for one in able if not self._clashes(one)]
        bringing = [one for one in able if self._brings(one)]
        others = [one for one in able if one not in bringing]
        if needed := [one for one in (*bringing, *others) if self._room.lacks(self._chosen, one)]:
            return self._join(needed[0], is_core=True)
        if self._has_room and bringing:
            self._has_room = self._fits(self._core, bringing[0])
            if self._has_room and self._fits(self._chosen, bringing[0]):
                return self._join(bringing[0], is_core=True)
        return bool(others) and self._fits(self._chosen, others[0]) and self._join(others[0], is_core=False)

    def _join(self, episode: Episode, *, is_core: bool) -> bool:
        self._chosen.append(episode)
        self._asked |= self._answers[episode.id]
        if is_core:
            self._core.append(episode)
        return True

    def _fits(self, joined: Sequence[Episode], episode: Episode) -> bool:
        is_due = len(self._asked) < MIN_PAIRS and self._brings(episode)
        has_items = is_due or _num_items([*joined, episode]) <= self._room.num_items
        return has_items and len(joined) < self._room.num_episodes

    def _brings(self, episode: Episode) -> bool:
        return _bring(self._answers[episode.id], self._asked)

    def _clashes(self, episode: Episode) -> bool:
        return _clash(self._answers[episode.id], self._asked)


def _num_items(episodes: Sequence[Episode]) -> int:
    return len(build_lessons(episodes).items)


def _bring(answers: Mapping[str, str], asked: Mapping[str, str]) -> bool:
    """Whether there is a question that is not asked yet."""
    return any(question not in asked for question in answers)


def _clash(answers: Mapping[str, str], asked: Mapping[str, str]) -> bool:
    """Whether a question that is asked would have another answer."""
    return any(asked.get(question, answer) != answer for question, answer in answers.items())
