"""BatchInspector: a batch and what the memory holds flow in, a DataReport flows out. It measures, and decides nothing.

Measured are provenance and licence, personal data and secrets, duplicates in the batch and of what was learned, texts of the
evaluation suites, and poison. Nothing but the texts is asked, so the same arguments give the same report.
"""

from collections.abc import Collection, Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from autonomous.data_gate import DataReport, EpisodeReport
from autonomous.safety.poison import Conflict, Evidence, judge_poison
from autonomous.safety.poison_limits import PoisonConfig
from autonomous.safety.probes import build_probes
from autonomous.safety.screen import Level
from autonomous.safety.statements import statements_of
from autonomous.suite import EVALUATION_SUITES, asked_texts, load_suite
from autonomous.versions.audit import sha256_of
from memory.facts import facts_of
from memory.types import Episode
from train.data.decontaminate import Contamination, DecontaminationConfig, count_matches
from train.data.minhash import MinHashConfig, shingles_of
from train.data.pii import find_sensitive_all

_LICENCE_KEYS = ("licence", "license")
_SHINGLES = MinHashConfig()

Shingles = npt.NDArray[np.uint64]


class BatchInspector:
    """Inspects batches at one level of safety. The suites are hashed at the first batch."""

    def __init__(self, *, level: Level, poison: PoisonConfig) -> None:
        self._level = level
        self._poison = poison

    def inspect(
        self,
        episodes: Sequence[Episode],
        evidence: Evidence,
        *,
        learned: Collection[str],
        conflicts: Sequence[Conflict] = (),
    ) -> tuple[DataReport, tuple[Conflict, ...]]:
        """The report, and the contradictions that were found. `learned` are ids of what the serving version has learned;
        `conflicts` are those of passages that were held before, to be asked about as well.
        """
        found = judge_poison(episodes, evidence.beliefs, level=self._level, config=self._poison)
        texts = _column([episode.text for episode in episodes])
        spans = find_sensitive_all([episode.text for episode in episodes])
        shared = count_matches(texts, self._contamination).tolist() if episodes else []
        duplicates = _duplicates(episodes, evidence, learned=learned)
        rows = [
            EpisodeReport(
                episode_id=episode.id,
                source_id=episode.source_id,
                trust=episode.trust,
                licence=next((episode.metadata[key] for key in _LICENCE_KEYS if key in episode.metadata), None),
                num_sensitive=len(sensitive),
                duplicate_share=share,
                duplicate_of=other,
                leaks={name: count for name, count in zip(self._contamination.set_names, counts, strict=True) if count},
                poison=found.findings.get(episode.id, ()) if evidence.is_current else None,
            )
            for episode, sensitive, counts, (share, other) in zip(episodes, spans, shared, duplicates, strict=True)
        ]
        probes = build_probes(evidence.beliefs, episodes, conflicts=[*conflicts, *found.conflicts])
        report = DataReport(
            episodes=tuple(rows),
            label_agreement=_label_agreement(episodes),
            num_beliefs=len(evidence.beliefs),
            suites_sha256=sha256_of([load_suite(name).sha256 for name in EVALUATION_SUITES]),
            probes=tuple(probe.to_dict() for probe in probes),
        )
        return report, found.conflicts

    @cached_property
    def _contamination(self) -> Contamination:
        texts = {name: list(asked_texts(load_suite(name)).values()) for name in EVALUATION_SUITES}
        return Contamination.build(texts, DecontaminationConfig())


def _duplicates(
    episodes: Sequence[Episode], evidence: Evidence, *, learned: Collection[str]
) -> list[tuple[float | None, str]]:
    """For each passage the largest share of its shingles that one other holds which states all that it states.

    Others are the passages before it, and learned ones that state the same facts; None where there is no other.
    """
    facts = {episode.id: {fact.id for fact in facts_of(episode)} for episode in episodes}
    known: dict[str, tuple[set[str], str]] = {}
    for belief in evidence.beliefs:
        for saying in belief.sayings:
            if saying.episode_id in learned:
                known.setdefault(saying.episode_id, (set(), saying.text))[0].add(belief.fact.id)
    shingles = _shingles([episode.text for episode in episodes])
    found: list[tuple[float | None, str]] = []
    for place, episode in enumerate(episodes):
        mine = facts[episode.id]
        others = [(other.id, shingles[row]) for row, other in enumerate(episodes[:place]) if mine <= facts[other.id]]
        if mine:
            same = [(key, text) for key, (said, text) in known.items() if key != episode.id and mine <= said]
            others += zip([key for key, _ in same], _shingles([text for _, text in same]), strict=True)
        shares = [(len(np.intersect1d(shingles[place], other)) / len(shingles[place]), key) for key, other in others]
        found.append(max(shares, default=(None, "")))
    return found


def _label_agreement(episodes: Sequence[Episode]) -> float | None:
    """Share of the slots of a batch whose statements do not contradict each other."""
    stated = [one for episode in episodes for one in statements_of(episode) if one.slot is not None]
    slots = {one.slot for one in stated}
    if not slots:
        return None
    torn = {one.slot for one in stated if any(one.contradicts(other) for other in stated)}
    return 1 - len(torn) / len(slots)


def _shingles(texts: Sequence[str]) -> list[Shingles]:
    return shingles_of(_column(texts), _SHINGLES) if texts else []


def _column(texts: Sequence[str]) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(list(texts), pa.large_string())])
