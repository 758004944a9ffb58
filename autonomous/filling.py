"""Filling: passages that may be learned flow in, freshest first; which of them a batch takes flows out. Pure.

Passages that bring questions come first, for a verdict needs questions; others take the room that is left. A passage counts
as learned afterwards, so each is taught whole: none is taken that does not fit, but the first of each source that is needed,
however much it states, and none that answers a question of the batch in another way: its turn comes in a later batch. What
the system wrote itself joins as far as its share allows.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from autonomous.data_gate import is_generated
from autonomous.lessons import answers_of, build_lessons
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
        is_needed = self.room.lacks(self.chosen, episode)
        if not is_needed and not self.has_room:
            return False
        answers = answers_of(episode)
        return not _clash(answers, self.answers) and (is_needed or is_kept or _bring(answers, self.answers))


def fill(offered: Sequence[Episode], room: Room) -> Filling:
    """Choose among passages, freshest first. The chosen ones keep that order."""
    answers = {episode.id: answers_of(episode) for episode in offered}
    chosen: list[Episode] = []
    asked: dict[str, str] = {}

    def first(is_wanted: Callable[[Episode], bool]) -> Episode | None:
        """The first that may join and is wanted."""
        able = (one for one in offered if one not in chosen and room.allows(chosen, one))
        return next((one for one in able if not _clash(answers[one.id], asked) and is_wanted(one)), None)

    def join(episode: Episode) -> None:
        chosen.append(episode)
        asked.update(answers[episode.id])

    def brings(episode: Episode) -> bool:
        return _bring(answers[episode.id], asked)

    def is_needed(episode: Episode) -> bool:
        return room.lacks(chosen, episode)

    # one of each source, until there are enough
    while one := first(lambda episode: is_needed(episode) and brings(episode)) or first(is_needed):
        join(one)
    has_room = True
    while has_room and (one := first(brings)):
        if has_room := _fits(chosen, one, room):
            join(one)
    has_room = has_room and len(chosen) < room.num_episodes and _num_items(chosen) < room.num_items
    while (one := first(lambda episode: not brings(episode))) and _fits(chosen, one, room):
        join(one)
    left = (one for one in offered if one not in chosen and not _clash(answers[one.id], asked))
    spare = [one for one in left if not brings(one) or not room.allows(chosen, one)]
    return Filling(
        room,
        chosen=tuple(one for one in offered if one in chosen),
        answers=asked,
        spare=tuple(spare[: room.num_episodes]),
        has_room=has_room,
    )


def _bring(answers: Mapping[str, str], asked: Mapping[str, str]) -> bool:
    """Whether there is a question that is not asked yet."""
    return any(question not in asked for question in answers)


def _clash(answers: Mapping[str, str], asked: Mapping[str, str]) -> bool:
    """Whether a question that is asked would have another answer."""
    return any(asked.get(question, answer) != answer for question, answer in answers.items())


def _fits(chosen: Sequence[Episode], episode: Episode, room: Room) -> bool:
    return not chosen or (len(chosen) < room.num_episodes and _num_items([*chosen, episode]) <= room.num_items)


def _num_items(episodes: Sequence[Episode]) -> int:
    return len(build_lessons(episodes).items)
