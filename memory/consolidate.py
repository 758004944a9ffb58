"""Consolidation, the "dream": once a day what was lived through is replayed, distilled, faded, and made room for.

Steps: sample episodes by salience and novelty; show them to what was learned; make sure that what repeats is held as facts,
and queue what no pattern reads for enrichment; fade saliences; if the store is nearly full let the least salient
episodes go whose facts are held; then verify. Each step is written down when it is done, so a run that was killed is
taken up again, and every changed row is kept as it was, so a run can be undone. A run that fails its verification is
undone by itself, and says so.
Source of the sampling: weighted reservoir, Efraimidis and Spirakis 2006 (doi:10.1016/j.ipl.2005.11.003).
"""

import hashlib
import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from memory.claims import claims_of
from memory.enrichment import EnrichmentQueue
from memory.protocols import Episodes, Weights
from memory.semantic import SemanticMemory
from memory.store import no_guard
from memory.types import Episode, Guard, Trust

logger = logging.getLogger(__name__)

State = Literal["running", "done", "undone"]
_VERIFIED = 16
"""Kept episodes that have to be recalled by their own words."""
_PAGE = 256

Replay = Callable[[Sequence[Episode]], Mapping[str, float]]
"""Shows episodes to what was learned; what surprised it, as a loss in nats by id, or nothing."""


class VerificationFailed(RuntimeError):
    """A run that must not stay."""


class ConsolidationConfig(BaseModel):
    """How much is dreamt, and what goes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    interval_s: float = Field(86_400.0, gt=0)
    """Between two runs that start by themselves."""
    num_replayed: int = Field(256, ge=0)
    """Episodes of one replay."""
    fade: float = Field(0.95, gt=0, le=1)
    """Share of an episode's salience above `least_salience` that a run leaves."""
    least_salience: float = Field(0.1, ge=0)
    """No episode fades below this."""
    surprise_gain: float = Field(0.5, ge=0)
    """Salience that the most surprising of the replayed gains."""
    most_salience: float = Field(4.0, gt=0)
    """No episode gains beyond this."""
    min_repeats: int = Field(2, ge=2)
    """An episode that was written so often repeats."""
    near: float = Field(0.9, gt=0, le=1)
    """So does one with another this near, by cosine."""
    prune_above: float = Field(0.9, gt=0, le=1)
    """Share of the capacity beyond which episodes go,"""
    prune_to: float = Field(0.8, gt=0, le=1)
    """down to this share,"""
    max_pruned: float = Field(0.1, ge=0, le=1)
    """but no more than this share of all in one run."""
    kept_runs: int = Field(3, ge=1)
    """Runs that can be undone."""
    remember_departed_s: float = Field(2 * 86_400.0, ge=3600)
    """How long it is known at least that an episode left or was erased; longer while a fact or a version has it. More than a
    training takes: a version names what it learned when it ends.
    """
    seed: int = 0
    """Of the sampling."""


@dataclass(frozen=True, slots=True)
class ConsolidationReport:
    """What one run did. `steps` holds each step's findings by its name, in JSON's types: sizes and ids, no texts, so that
    nothing of it has to be erased.
    """

    run: str
    state: State
    started_at: float
    ended_at: float | None
    problem: str
    steps: Mapping[str, Any] = field(default_factory=dict)


class Consolidation:
    """See the module. One run at a time; whoever calls it holds off a second."""

    def __init__(
        self,
        config: ConsolidationConfig,
        *,
        episodic: Episodes,
        semantic: SemanticMemory,
        capacity: int,
        weights: Weights,
        replay: Replay | None = None,
        enrichment: EnrichmentQueue | None = None,
    ) -> None:
        self.config = config
        self._episodic = episodic
        self._semantic = semantic
        self._capacity = capacity
        self._weights = weights
        self._replay = replay
        self._enrichment = enrichment
        self._database = semantic.database
        self._clock = semantic.clock
        self._steps: dict[str, Callable[[ConsolidationReport, Guard], dict[str, Any]]] = {
            "snapshot": self._snapshot,
            "sample": self._sample,
            "replay": self._replay_sample,
            "distil": self._distil,
            "fade": self._fade,
            "choose": self._choose,
            "prune": self._prune,
            "verify": self._verify,
        }

    def due(self, *, reset_at: float = 0.0) -> bool:
        """Whether a run was cut off, or an interval has passed since the last one began, or since the first fact came in.

        A reset of the emergency stop, `reset_at` in seconds since the epoch, starts nothing: the interval begins anew, and a
        run that the stop cut off waits for it too.
        """
        reports = self.reports(limit=1)
        if reports and reports[0].state == "running" and reports[0].started_at >= reset_at:
            return True
        since = reports[0].started_at if reports else self._semantic.began_at()
        return since is not None and self._clock() - max(since, reset_at) >= self.config.interval_s

    def run(self, *, guard: Guard = no_guard) -> ConsolidationReport:
        """Go through all steps, or those that a run which was cut off has left. Raises what `guard` raises."""
        report = self._begin(guard)
        try:
            for step, act in self._steps.items():
                if step not in report.steps:
                    found = act(report, guard)
                    report = self._note(report, step, found, guard)
        except VerificationFailed as error:
            return self._take_back(report.run, problem=str(error), guard=guard)
        report = self._end(report.run, "done", problem="", guard=guard)
        kept = [one.run for one in self.reports(limit=self.config.kept_runs)]
        self._episodic.forget_revisions(but=kept, guard=guard)
        self._forget_departed(guard)
        logger.info("consolidated run=%s %s", report.run, json.dumps({**report.steps["fade"], **report.steps["prune"]}))
        return report

    def undo(self, run: str, *, by: str, guard: Guard = no_guard) -> ConsolidationReport:
        """Take a run back: saliences and pruned episodes are as they were, but for what was changed or erased since.

        Raises ValueError for a run that is unknown, was undone already, or is too old.
        """
        runs = {one.run: one for one in self.reports(limit=self.config.kept_runs)}
        if run not in runs or runs[run].state == "undone":
            able = [name for name, one in runs.items() if one.state != "undone"]
            raise ValueError(f"run {run!r} cannot be undone: those that can are {', '.join(able) or 'none'}")
        return self._take_back(run, problem=f"undone by {by}", guard=guard)

    def reports(self, *, limit: int = 20) -> list[ConsolidationReport]:
        """The last runs, newest first."""
        with self._database.read() as connection:
            rows = connection.execute(
                "SELECT run, state, started_at, ended_at, problem, steps FROM consolidation"
                f" ORDER BY started_at DESC, run DESC LIMIT {limit:d}"
            ).fetchall()
        return [ConsolidationReport(*(*row[:5], json.loads(row[5]))) for row in rows]

    # -- steps: each gives what is written down of it

    def _snapshot(self, report: ConsolidationReport, guard: Guard) -> dict[str, Any]:
        """Sizes before, and a digest of what the run may change."""
        del report, guard
        return self._sizes()

    def _sample(self, report: ConsolidationReport, guard: Guard) -> dict[str, Any]:
        """Twice as many as are replayed by salience; of those the half that is least like anything else."""
        del guard
        traits = self._episodic.traits()
        digest = hashlib.sha256(f"{self.config.seed} {report.run}".encode()).digest()
        rng = np.random.default_rng(int.from_bytes(digest[:8]))
        wanted = 2 * self.config.num_replayed
        weights = np.array([max(one.salience, 1e-6) for one in traits])
        order = np.argsort(-(rng.random(len(traits)) ** (1 / weights)))
        chosen = [traits[place].id for place in order[:wanted].tolist()]
        near: dict[str, list[str]] = {}
        surprise: dict[str, float] = {}
        for episode in self._episodic.get(chosen):
            hits = [hit for hit in self._episodic.recall(episode.text, k=4) if hit.episode.id != episode.id]
            surprise[episode.id] = 1 - max((hit.cosine for hit in hits), default=0.0)
            near[episode.id] = [hit.episode.id for hit in hits if hit.cosine >= self.config.near]
        replayed = sorted(surprise, key=lambda key: (-surprise[key], key))[: self.config.num_replayed]
        return {
            "replayed": replayed,
            "surprise": {key: round(surprise[key], 4) for key in replayed},
            "near": {key: others for key, others in near.items() if others},
        }

    def _replay_sample(self, report: ConsolidationReport, guard: Guard) -> dict[str, Any]:
        del guard
        episodes = self._believed(report.steps["sample"]["replayed"])
        losses = dict(self._replay(episodes)) if self._replay and episodes else {}
        return {"num_replayed": len(episodes) if self._replay else 0, "losses": losses}

    def _distil(self, report: ConsolidationReport, guard: Guard) -> dict[str, Any]:
        """What repeats is held as facts; what no pattern reads waits for a model."""
        near: Mapping[str, list[str]] = report.steps["sample"]["near"]
        repeating = [one.id for one in self._episodic.traits() if one.times_seen >= self.config.min_repeats]
        ids = list(dict.fromkeys([*repeating, *near, *(other for others in near.values() for other in others)]))
        num_new, facts, unread = 0, dict[str, None](), []
        for start in range(0, len(ids), _PAGE):
            claims = []
            with self._semantic.stating:
                for episode in self._episodic.get(ids[start : start + _PAGE]):
                    said = claims_of(episode) if episode.trust >= Trust.STANDARD else []
                    claims += said
                    facts |= dict.fromkeys(claim.fact.id for claim in said)
                    if not said and episode.trust >= Trust.STANDARD:
                        unread.append(episode.id)
                num_new += self._semantic.add(claims, guard=guard)
        if self._enrichment is not None:
            self._enrichment.put(unread, guard=guard)
        return {
            "num_repeating": len(ids),
            "num_new_facts": num_new,
            "facts": list(facts)[:_PAGE],
            "num_for_enrichment": len(unread) if self._enrichment is not None else 0,
        }

    def _fade(self, report: ConsolidationReport, guard: Guard) -> dict[str, Any]:
        """All saliences fade; what was replayed gains by its surprise, or else by its novelty."""
        config = self.config
        losses: Mapping[str, float] = report.steps["replay"]["losses"] or report.steps["sample"]["surprise"]
        most = max((loss for loss in losses.values() if math.isfinite(loss)), default=0.0)
        saliences = {}
        for one in self._episodic.traits():
            faded = config.least_salience + config.fade * max(0.0, one.salience - config.least_salience)
            loss = losses.get(one.id, 0.0)
            gain = config.surprise_gain * loss / most if most > 0 and math.isfinite(loss) else 0.0
            saliences[one.id] = round(min(config.most_salience, faded + max(0.0, gain)), 6)
        return {"num_changed": self._episodic.revise(report.run, "fade", saliences=saliences, guard=guard)}

    def _choose(self, report: ConsolidationReport, guard: Guard) -> dict[str, Any]:
        """Who goes, only when the store is nearly full: the least salient whose facts are held."""
        del report, guard
        health = self._episodic.health()
        if health.num_episodes <= self.config.prune_above * self._capacity:
            return {"pruned": []}
        surplus = health.num_episodes - int(self.config.prune_to * self._capacity)
        surplus = min(surplus, int(self.config.max_pruned * health.num_episodes))
        candidates = sorted(self._episodic.traits(), key=lambda one: (one.salience, one.recorded_at))
        pruned: list[str] = []
        for start in range(0, len(candidates), _PAGE):
            for episode in self._episodic.get([one.id for one in candidates[start : start + _PAGE]]):
                if len(pruned) < surplus and self._is_held(episode):
                    pruned.append(episode.id)
            if len(pruned) >= surplus:
                break
        return {"pruned": pruned}

    def _prune(self, report: ConsolidationReport, guard: Guard) -> dict[str, Any]:
        """Let them go, and the repeats of each."""
        pruned = report.steps["choose"]["pruned"]
        return {"num_pruned": self._episodic.revise(report.run, "prune", prune=pruned, guard=guard)}

    def _verify(self, report: ConsolidationReport, guard: Guard) -> dict[str, Any]:
        """What was let go is gone, what was kept is recalled by its own words, the indexes fit the rows."""
        del guard
        self._episodic.verify()
        pruned = report.steps["choose"]["pruned"]
        if self._episodic.has(pruned):
            raise VerificationFailed("episodes that were let go are still there")
        kept = [key for key in report.steps["sample"]["replayed"] if key not in set(pruned)][:_VERIFIED]
        for episode in self._believed(kept):
            has_words = any(character.isalnum() for character in episode.text)
            if has_words and episode.id not in {hit.episode.id for hit in self._episodic.recall(episode.text, k=10)}:
                raise VerificationFailed(f"episode {episode.id!r} is not recalled by its own words")
        return self._sizes()

    # -- helpers

    def _forget_departed(self, guard: Guard) -> None:
        """Episodes that left long ago, and of which no claim and no version is left, need not be known any more."""
        before, last = self._clock() - self.config.remember_departed_s, ""
        unneeded: list[str] = []
        while ids := self._episodic.departed(before=before, after=last, limit=_PAGE):
            last = ids[-1]
            needed = self._semantic.claiming(ids) | self._weights.learned(ids)
            unneeded += [one for one in ids if one not in needed]
        if self._enrichment is not None and unneeded:
            self._enrichment.forget(unneeded, guard=guard)
        self._episodic.forget_departed(unneeded, erased_before=before, guard=guard)

    def _believed(self, ids: Sequence[str]) -> list[Episode]:
        """Those that are still there and not held back: neither is replayed."""
        return [episode for episode in self._episodic.get(ids) if episode.trust >= Trust.STANDARD]

    def _is_held(self, episode: Episode) -> bool:
        """Whether all that patterns read in it is in the semantic memory."""
        wanted = {claim.fact.id for claim in claims_of(episode) if not claim.is_denial}
        return wanted <= set(self._semantic.facts_of_episodes([episode.id]))

    def _sizes(self) -> dict[str, Any]:
        health, facts = self._episodic.health(), self._semantic.health()
        traits = self._episodic.traits()
        digest = hashlib.sha256(json.dumps([(one.id, one.salience) for one in traits]).encode()).hexdigest()
        return {
            "num_episodes": health.num_episodes,
            "size_bytes": health.size_bytes,
            "num_facts": facts["num_facts"],
            "mean_salience": round(float(np.mean([one.salience for one in traits])), 4) if traits else 0.0,
            "digest": digest,
        }

    def _begin(self, guard: Guard) -> ConsolidationReport:
        last = self.reports(limit=1)
        if last and last[0].state == "running":
            logger.info("consolidation run=%s goes on behind %s", last[0].run, ", ".join(last[0].steps) or "nothing")
            return last[0]
        now = max(self._clock(), last[0].started_at + 0.001 if last else 0.0)  # the clock may go backwards
        run = f"dream-{now:.3f}"
        with self._database.write(guard=guard) as connection:
            connection.execute(
                "INSERT INTO consolidation(run, started_at, state, steps, problem, ended_at)"
                " VALUES(:run, :now, 'running', '{}', '', NULL)",
                {"run": run, "now": now},
            )
        return self._report(run)

    def _note(
        self, report: ConsolidationReport, step: str, found: Mapping[str, Any], guard: Guard
    ) -> ConsolidationReport:
        steps = {**report.steps, step: found}
        with self._database.write(guard=guard) as connection:
            connection.execute(
                "UPDATE consolidation SET steps = :steps WHERE run = :run",
                {"run": report.run, "steps": json.dumps(steps)},
            )
        return self._report(report.run)

    def _end(self, run: str, state: State, *, problem: str, guard: Guard) -> ConsolidationReport:
        with self._database.write(guard=guard) as connection:
            connection.execute(
                "UPDATE consolidation SET state = :state, problem = :problem, ended_at = :now WHERE run = :run",
                {"run": run, "state": state, "problem": problem, "now": self._clock()},
            )
        return self._report(run)

    def _take_back(self, run: str, *, problem: str, guard: Guard) -> ConsolidationReport:
        num_rows = self._episodic.undo(run, guard=guard)
        logger.warning("consolidation run=%s was undone, rows=%d: %s", run, num_rows, problem)
        return self._end(run, "undone", problem=problem, guard=guard)

    def _report(self, run: str) -> ConsolidationReport:
        with self._database.read() as connection:
            row = connection.execute(
                "SELECT run, state, started_at, ended_at, problem, steps FROM consolidation WHERE run = :run",
                {"run": run},
            ).fetchone()
        return ConsolidationReport(*(*row[:5], json.loads(row[5])))
