"""MemoryManagement: one door to all memory: remember, recall, the context of a request, forget, and whom to believe.

The tiers, from the slowest to the quickest: what a version's weights have learned, the 128K tokens of its context window,
episodes, facts, and what a session holds in mind. `context_for` fills a token budget from the last three; the window is
the bound of the budget, and the weights tell which versions learned a source when it is forgotten.
The parts are given: objects of this process, or what stands for them elsewhere.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from memory.passages import split_sentences
from memory.protocols import Episodes, Facts, Weights, WorkingStore
from memory.recall import ANY_EPISODE
from memory.store import no_guard
from memory.trust import SourceTrusts
from memory.types import Alarm, AppendResult, Episode, EpisodeFilter, Guard, RecallHit, Trust

logger = logging.getLogger(__name__)

Tier = Literal["working", "semantic", "episodic"]
CONTEXT_WINDOW_TOKENS = 131_072
_PAGE = 256
_SAYING_CHARS = 25
_SEARCHED, _SEARCHED_CHARS = 16, 500
"""Passages of an erasure whose very text is searched for."""


class ContextConfig(BaseModel):
    """How the budget of a context is shared."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    window_tokens: int = Field(CONTEXT_WINDOW_TOKENS, gt=0)
    """The context window of the model that reads; no budget is larger."""
    working_share: float = Field(0.25, ge=0, le=1)
    """Most of a budget for what the session holds in mind,"""
    semantic_share: float = Field(0.25, ge=0, le=1)
    """and for facts; episodes have the rest, and what these leave."""
    num_episodes: int = Field(20, gt=0)
    """Most passages of a context."""
    num_facts: int = Field(20, gt=0)
    """Most facts of a context."""
    min_cosine: float = Field(-1.0, ge=-1, le=1)
    """Passages that are further from the request are left out."""


class NoWeights:
    """A memory beside which nothing learns."""

    def versions_that_learned(self, episode_ids: Sequence[str]) -> list[str]:
        """None."""
        del episode_ids
        return []

    def learned(self, episode_ids: Sequence[str]) -> set[str]:
        """None."""
        del episode_ids
        return set()


@dataclass(frozen=True, slots=True)
class ContextPart:
    """One piece of a context. `text` is data for the model, never an instruction."""

    tier: Tier
    text: str
    num_tokens: int
    episode_id: str = ""
    """Where it stands; empty for what a session holds in mind."""
    source_id: str = ""


@dataclass(frozen=True, slots=True)
class Context:
    """What goes before a request: what the session holds in mind, then facts, then passages, each tier best first."""

    parts: tuple[ContextPart, ...]
    budget_tokens: int

    @property
    def num_tokens(self) -> int:
        """Of all parts."""
        return sum(part.num_tokens for part in self.parts)

    def text(self) -> str:
        """The parts, one below the other."""
        return "\n".join(part.text for part in self.parts)


@dataclass(frozen=True, slots=True)
class ForgetReport:
    """What an erasure has reached. Nothing of it is found any more when it is given."""

    episodes: tuple[str, ...]
    num_facts: int
    """Facts that nobody else claims."""
    num_working: int
    """Entries of sessions that held a passage of it."""
    versions: tuple[str, ...]
    """Versions whose weights learned from it: to be built anew without it."""


class ErasureIncomplete(RuntimeError):
    """Something of what was erased is still found. Call it again; if it stays, stop serving and look at the log."""


class MemoryManagement:
    """See the module. Every method may be called from any thread."""

    def __init__(
        self,
        config: ContextConfig,
        *,
        episodic: Episodes,
        semantic: Facts,
        working: WorkingStore,
        trusts: SourceTrusts,
        count_tokens: Callable[[str], int],
        weights: Weights | None = None,
        hold_on_alarm: bool = True,
    ) -> None:
        self.config = config
        self.episodic = episodic
        self.semantic = semantic
        self.working = working
        self.trusts = trusts
        self._count_tokens = count_tokens
        self._weights = weights or NoWeights()
        self._hold_on_alarm = hold_on_alarm

    def remember(self, episodes: Sequence[Episode], *, guard: Guard = no_guard) -> AppendResult:
        """Store what happened, each episode with no more trust than its source has. Durable when it returns.

        Facts follow with whoever reads the stream of episodes.
        """
        return self.trusts.append(self.episodic, episodes, guard=guard)

    def note(self, key: str, value: str, *, session: str, ttl_s: float | None = None, pinned: bool = False) -> None:
        """Hold something in a session's mind. See WorkingMemory.put."""
        self.working.put(key, value, session=session, ttl_s=ttl_s, pinned=pinned)

    def recall(self, query: str, *, k: int, where: EpisodeFilter = ANY_EPISODE) -> list[RecallHit]:
        """The k best passages. See EpisodicMemory.recall."""
        return self.episodic.recall(query, k=k, min_cosine=self.config.min_cosine, where=where)

    def context_for(
        self, request: str, token_budget: int, *, session: str = "", where: EpisodeFilter = ANY_EPISODE
    ) -> Context:
        """What fits a request within a budget of the serving model's tokens: never more than that.

        A tier that needs less than its share leaves the rest to the next. A passage that is too long is cut at a sentence.
        Raises ValueError for a budget that is not above 0.
        """
        if token_budget <= 0:
            raise ValueError(f"token_budget is {token_budget}: give at least 1 token")
        budget = min(token_budget, self.config.window_tokens)
        left = budget
        parts: list[ContextPart] = []
        for tier, share, offered in (
            ("working", self.config.working_share, self._in_mind(session)),
            ("semantic", self.config.semantic_share, self._facts(request, where)),
            ("episodic", 1.0, self._passages(request, where)),
        ):
            room = left if tier == "episodic" else min(left, int(budget * share))
            taken = self._fill(offered, room)
            left -= sum(part.num_tokens for part in taken)
            parts += taken
        return Context(tuple(parts), budget)

    def forget(
        self,
        source_id: str | None = None,
        *,
        document_id: str | None = None,
        on_erased: Callable[[ForgetReport], None] = lambda report: None,
        guard: Guard = no_guard,
    ) -> ForgetReport:
        """Erase a source, or one document, from every tier, and make sure by searching that nothing is found.

        What is erased is written down first, until `on_erased` has told it: a call that is repeated after a crash, or after
        ErasureIncomplete, erases, searches and reports the same again. Raises ErasureIncomplete if a search still finds
        something.
        """
        if (source_id is None) == (document_id is None):
            raise ValueError("give either a source_id or a document_id to forget")
        kind, value = ("source", source_id) if source_id is not None else ("document", document_id or "")
        with self.semantic.stating:
            stored = self.episodic.ids_of_source(value) if kind == "source" else self.episodic.ids_of(value)
            ids = self.semantic.begin_erasure(kind, value, stored, guard=guard)
            if not ids:
                return ForgetReport((), 0, 0, ())
            num_facts = self.semantic.forget_episodes(ids, guard=guard)
            num_working, searched = 0, list[Episode]()
            for start in range(0, len(ids), _PAGE):
                erased = self.episodic.get(ids[start : start + _PAGE])
                num_working += self.working.forget([said for episode in erased for said in _sayings(episode.text)])
                searched += erased[: max(0, _SEARCHED - len(searched))]
            if kind == "source":
                self.episodic.delete_source(value, guard=guard)
            else:
                self.episodic.delete_document(value, guard=guard)
            num_working += self.working.forget([said for episode in searched for said in _sayings(episode.text)])
            self._check_erased(ids, searched)
            report = ForgetReport(tuple(ids), num_facts, num_working, tuple(self._weights.versions_that_learned(ids)))
            on_erased(report)
            self.semantic.end_erasure(kind, value)
        return report

    def believe(
        self, source_id: str, trust: Trust, *, by: str, reason: str, guard: Guard = no_guard
    ) -> tuple[str, ...]:
        """Believe a source so far from now on, and all that it has said: the episodes whose trust changed.

        Below STANDARD it is held back: neither recalled nor learned, and its facts are not believed; else an alarm against
        it is settled. Quarantined episodes stay quarantined: release them one by one.
        """
        with self.semantic.stating:
            self.trusts.decide(source_id, trust, by=by, reason=reason, guard=guard)
            changed = self._set_trust_of(source_id, trust, guard=guard)
            if trust >= Trust.STANDARD:
                self.semantic.settle_alarm(source_id, by=by, reason=reason, guard=guard)
        return changed

    def release(self, ids: Sequence[str], *, guard: Guard = no_guard) -> tuple[str, ...]:
        """Let episodes that wait be recalled and learned: the ids whose trust changed."""
        waiting = (Trust.QUARANTINED, Trust.UNTRUSTED)
        return self.episodic.set_trust(Trust.STANDARD, ids=ids, between=waiting, guard=guard)

    def suspect(self, ids: Sequence[str], *, guard: Guard = no_guard) -> tuple[str, ...]:
        """Hold episodes back until they are released, and their claims with them: the ids whose trust changed."""
        with self.semantic.stating:
            held = self.episodic.set_trust(
                Trust.UNTRUSTED, ids=ids, between=(Trust.STANDARD, Trust.TRUSTED), guard=guard
            )
            self.semantic.withdraw_episodes(held, guard=guard)
        return held

    def waiting(self, *, limit: int, offset: int = 0) -> list[Episode]:
        """One page of what waits to be released, newest first."""
        where = EpisodeFilter(min_trust=Trust.QUARANTINED, max_trust=Trust.UNTRUSTED)
        return [episode for _, episode in self.episodic.find(where, limit=limit, offset=offset)]

    def watch(self, *, guard: Guard = no_guard) -> list[Alarm]:
        """The open alarms; the sources concerned are held back unless `hold_on_alarm` is off.

        A hold that was cut off is finished by the next call; what a person releases after one stays released.
        """
        alarms = self.semantic.alarms()
        for alarm in alarms if self._hold_on_alarm else ():
            with self.semantic.stating:
                if alarm.is_held:
                    continue
                if self.trusts.of(alarm.source_id) >= Trust.STANDARD:
                    reason = f"contradicts others with {alarm.num_contradicting} of {alarm.num_facts} facts"
                    self.trusts.decide(alarm.source_id, Trust.UNTRUSTED, by="memory", reason=reason, guard=guard)
                    logger.warning("source=%s is held back: it %s", alarm.source_id, reason)
                self._set_trust_of(alarm.source_id, Trust.UNTRUSTED, guard=guard)
                self.semantic.note_hold(alarm.source_id, guard=guard)
        return alarms

    # -- helpers

    def _set_trust_of(self, source_id: str, trust: Trust, *, guard: Guard) -> tuple[str, ...]:
        """Of all that a source has said but what is quarantined; held episodes take their claims along.

        The rows are chosen inside the write, so one that is being stored meanwhile is either before it or has the new trust.
        """
        believed = (Trust.UNTRUSTED, Trust.TRUSTED)
        changed = self.episodic.set_trust(trust, source_id=source_id, between=believed, guard=guard)
        if trust < Trust.STANDARD:
            self.semantic.withdraw_source(source_id, guard=guard)
        return changed

    def _in_mind(self, session: str) -> Iterable[ContextPart]:
        """Pinned entries first, then the rest, most recently used first."""
        if session:
            for is_pinned in (True, False):
                for key, value in reversed(self.working.items(session, pinned=is_pinned)):
                    yield ContextPart("working", f"{key}: {value}", 0)

    def _facts(self, request: str, where: EpisodeFilter) -> Iterable[ContextPart]:
        seen: set[str] = set()
        beliefs = self.semantic.search(request, limit=self.config.num_facts)
        if where != ANY_EPISODE:  # a fact may be told where the episode that says it may be found
            sayers = self.episodic.get([belief.fact.episode_id for belief in beliefs])
            allowed = {episode.id for episode in sayers if where.passes(episode)}
            beliefs = [belief for belief in beliefs if belief.fact.episode_id in allowed]
        for belief in beliefs:
            if belief.fact.sentence not in seen:
                seen.add(belief.fact.sentence)
                yield ContextPart("semantic", belief.fact.sentence, 0, belief.fact.episode_id)

    def _passages(self, request: str, where: EpisodeFilter) -> Iterable[ContextPart]:
        for hit in self.recall(request, k=self.config.num_episodes, where=where):
            yield ContextPart("episodic", hit.episode.text, 0, hit.episode.id, hit.episode.source_id)

    def _fill(self, offered: Iterable[ContextPart], room: int) -> list[ContextPart]:
        taken: list[ContextPart] = []
        for part in offered:
            num_tokens = self._count_tokens(f"{part.text}\n")
            fitting = replace(part, num_tokens=num_tokens) if num_tokens <= room else self._cut(part, room)
            if fitting.text:
                taken.append(fitting)
                room -= fitting.num_tokens
            if room <= 0:
                break
        return taken

    def _cut(self, part: ContextPart, room: int) -> ContextPart:
        """Its first sentences, as many as fit; a fact or an entry is not cut."""
        text, num_tokens = "", 0
        for sentence in split_sentences(part.text) if part.tier == "episodic" else ():
            longer = f"{text} {sentence}".strip()
            cost = self._count_tokens(f"{longer}\n")
            if cost > room:
                break
            text, num_tokens = longer, cost
        return replace(part, text=text, num_tokens=num_tokens)

    def _check_erased(self, ids: Sequence[str], erased: Sequence[Episode]) -> None:
        left = self.episodic.has(ids)
        facts = self.semantic.facts_of_episodes(ids)
        gone = set(ids)
        found = {
            hit.episode.id
            for episode in erased
            for hit in self.episodic.recall(episode.text[:_SEARCHED_CHARS], k=3)
            if hit.episode.id in gone
        }
        if left or facts or found:
            raise ErasureIncomplete(
                f"of {len(ids)} erased episodes {len(left)} are stored, {len(found)} are recalled and {len(facts)} facts "
                "are claimed: call forget again; if it stays so, look at the log of the store"
            )


def _sayings(text: str) -> list[str]:
    """Its sentences that say enough to be known by, or the whole of it."""
    return [one for one in split_sentences(" ".join(text.split())) if len(one) >= _SAYING_CHARS] or [text]
