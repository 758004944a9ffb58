"""Filling: passages that may be learned flow in, freshest first; which of them a batch takes flows out. Pure.

Passages that state facts come first, for a verdict needs questions; others take the room that is left. A passage counts as
learned afterwards, so each is taught whole: none is taken that does not fit, but the first of each source that is needed,
however much it states.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from autonomous.lessons import build_lessons, states_facts
from memory.types import Episode


@dataclass(frozen=True, slots=True)
class Room:
    """What a batch takes at most, in passages and in learning items, and its least sources, no more than passages."""

    num_episodes: int
    num_items: int
    num_sources: int = 1


@dataclass(frozen=True, slots=True)
class Filling:
    """What a batch takes, and what it would take if something left."""

    room: Room
    chosen: tuple[Episode, ...] = ()
    spare: tuple[Episode, ...] = ()
    has_room: bool = True
    """For another passage that states facts."""

    @property
    def is_done(self) -> bool:
        """Whether nothing that comes later could join."""
        return not self.has_room and len(_sources(self.chosen)) >= self.room.num_sources

    def wants(self, episode: Episode) -> bool:
        """Whether a passage could join, or is worth keeping."""
        if not self.has_room:
            return states_facts(episode) and episode.source_id not in _sources(self.chosen)
        return states_facts(episode) or len(self.spare) < self.room.num_episodes


def fill(offered: Sequence[Episode], room: Room) -> Filling:
    """Choose among passages, freshest first. The chosen ones keep that order."""
    stating = [episode for episode in offered if states_facts(episode)]
    plain = [episode for episode in offered if not states_facts(episode)]
    chosen: list[Episode] = []
    for episode in stating:  # one of each source, until there are enough
        if len(_sources(chosen)) == room.num_sources:
            break
        if episode.source_id not in _sources(chosen):
            chosen.append(episode)
    has_room = True
    for episode in stating:
        if episode not in chosen:
            if not _fits(chosen, episode, room):
                has_room = False
                break
            chosen.append(episode)
    has_room = has_room and len(chosen) < room.num_episodes and _num_items(chosen) < room.num_items
    for episode in plain:
        if not _fits(chosen, episode, room):
            break
        chosen.append(episode)
    return Filling(
        room,
        chosen=tuple(episode for episode in offered if episode in chosen),
        spare=tuple(episode for episode in plain if episode not in chosen)[: room.num_episodes],
        has_room=has_room,
    )


def _fits(chosen: Sequence[Episode], episode: Episode, room: Room) -> bool:
    return not chosen or (len(chosen) < room.num_episodes and _num_items([*chosen, episode]) <= room.num_items)


def _num_items(episodes: Sequence[Episode]) -> int:
    return len(build_lessons(episodes).items)


def _sources(episodes: Sequence[Episode]) -> set[str]:
    return {episode.source_id for episode in episodes}
