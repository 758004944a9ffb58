"""Why a version serves or does not: everything that the ledger knows about it, for people and as JSON.

In: the ledger, and the memory's episodes by id. Out: an Explanation. Nothing here judges: it tells what was decided, by
whom, on which numbers, and what came after.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

from autonomous.versions.gates import GateResult, Verdict
from autonomous.versions.history import Step
from autonomous.versions.queries import LedgerQueries
from autonomous.versions.schema import VersionRecord
from autonomous.versions.states import State
from memory.types import Episode

Recall: TypeAlias = Callable[[Sequence[str]], list[Episode]]
"""Episodes by id: those that still exist."""

MAX_SHOWN_DOCUMENTS = 20
_WHY: dict[State, str] = {
    State.DRAFT: "It does not serve: its run has been recorded, and nothing is trained yet.",
    State.TRAINING: "It does not serve: it is being trained.",
    State.FAILED: "It does not exist: its run ended before there was a bundle.",
    State.CANDIDATE: "It does not serve: it is trained and waits to be evaluated.",
    State.EVALUATING: "It does not serve: its gates are not decided.",
    State.GATED: "It does not serve yet: all gates passed.",
    State.AWAITING_APPROVAL: "It does not serve: all gates passed, and it waits for a person's approval.",
    State.SHADOW: "It does not serve users: it stands beside the serving version.",
    State.CANARY: "It serves a share of the requests.",
    State.PRODUCTION: "It serves (V2).",
    State.SUPERSEDED: "It served, and is kept warm for a rollback.",
    State.ARCHIVED: "It served once, and is no longer loaded.",
    State.REJECTED: "It does not serve: it was rejected.",
    State.ROLLED_BACK: "It does not serve: it was taken out of service.",
    State.QUARANTINED: "It does not serve: it is in quarantine (V3), and what it learned is held back.",
}


@dataclass(frozen=True)
class LearnedDocument:
    """A document that the version itself was trained on. `trust` is that of now."""

    document_id: str
    title: str
    source: str
    trust: str
    num_episodes: int


@dataclass(frozen=True)
class Ancestor:
    """One version of the line, root first, with all that happened to it."""

    version: str
    state: str
    proposed_by: str
    approved_by: tuple[str, ...]
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Explanation:
    """See the module. Times in seconds since the epoch."""

    version: str
    state: str
    why: str
    parent: str | None
    created_at: float
    lineage: tuple[Ancestor, ...]
    gates: tuple[GateResult, ...]
    report_sha256: str | None
    approvals: tuple[dict[str, Any], ...]
    """Who approved or rejected it, when and why, and the hashes that the decision is bound to."""
    documents: tuple[LearnedDocument, ...]
    num_episodes: int
    num_erased: int | None
    """Episodes that it learned and that no longer exist; None if the memory was not asked."""
    replaced_by: str | None
    """The version that took its place when it last left service."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        values = asdict(self)
        values["gates"] = [gate.to_dict() for gate in self.gates]
        return values

    def __str__(self) -> str:
        own = self.lineage[-1]
        lines = [f"Version {self.version} is {self.state}. {self.why}"]
        if self.replaced_by:
            lines.append(f"In its place came {self.replaced_by}.")
        lines += ["", "What happened to it:", *(f"  {line}" for line in _step_lines(own.steps))]
        if self.gates:
            lines += ["", "Gates:", *(f"  {gate_line(gate)}" for gate in self.gates)]
        lines += ["", f"What it learned: {self._learned_line()}"]
        for document in self.documents[:MAX_SHOWN_DOCUMENTS]:
            passages = "1 passage" if document.num_episodes == 1 else f"{document.num_episodes} passages"
            lines.append(
                f"  {document.document_id}: {document.title} (source {document.source}, trust {document.trust}, {passages})"
            )
        if (num_more := len(self.documents) - MAX_SHOWN_DOCUMENTS) > 0:
            lines.append(f"  and {num_more} more")
        lines += ["", "It stands on:"]
        for ancestor in self.lineage[:-1]:
            asked = f", asked for by {ancestor.proposed_by}" if ancestor.proposed_by else ", the frozen original"
            agreed = f", approved by {', '.join(ancestor.approved_by)}" if ancestor.approved_by else ""
            lines.append(f"  {ancestor.version} ({ancestor.state}{asked}{agreed})")
        if len(self.lineage) == 1:
            lines.append("  nothing: it is the frozen original" if self.parent is None else f"  {self.parent}")
        return "\n".join(lines)

    def _learned_line(self) -> str:
        if self.num_erased is None:
            return f"{self.num_episodes} passages (the memory was not asked which)"
        erased = f", {self.num_erased} of them erased since" if self.num_erased else ""
        return f"{self.num_episodes} passages of {len(self.documents)} documents{erased}"


def explain(ledger: LedgerQueries, name: str, *, recall: Recall | None = None) -> Explanation:
    """All about one version or run. Raises UnknownVersion."""
    record = ledger.get(name)
    lineage = tuple(_ancestor(ledger, one) for one in ledger.lineage(record.name))
    steps = lineage[-1].steps
    ids = ledger.episodes_of(record.name)
    episodes = None if recall is None else recall(ids)
    return Explanation(
        version=record.name,
        state=record.state.value,
        why=_why(record, steps),
        parent=record.parent,
        created_at=record.created_at,
        lineage=lineage,
        gates=record.gates,
        report_sha256=record.report_sha256,
        approvals=tuple(_decision(ledger, step) for step in steps if _is_decision(step)),
        documents=documents_of(episodes or []),
        num_episodes=len(ids),
        num_erased=None if episodes is None else len(ids) - len(episodes),
        replaced_by=ledger.successor(record.name),
    )


def documents_of(episodes: Sequence[Episode]) -> tuple[LearnedDocument, ...]:
    """The documents of episodes, in their order."""
    by_document: dict[str, list[Episode]] = {}
    for episode in episodes:
        by_document.setdefault(episode.document_id, []).append(episode)
    return tuple(
        LearnedDocument(
            document_id=document_id,
            title=found[0].title,
            source=found[0].source_id,
            trust=min(episode.trust for episode in found).name,
            num_episodes=len(found),
        )
        for document_id, found in by_document.items()
    )


def gate_line(gate: GateResult) -> str:
    """A gate's verdict with its numbers, in a line."""
    numbers = (
        ""
        if gate.value is None
        else f" {gate.value:.4g} against {gate.threshold:.4g}"
        if gate.threshold is not None
        else f" {gate.value:.4g}"
    )
    return f"{gate.verdict.value}: {gate.name}{numbers} ({gate.reason})"


def moment(seconds: float) -> str:
    """A time for people, UTC."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))


def _ancestor(ledger: LedgerQueries, record: VersionRecord) -> Ancestor:
    steps = tuple(ledger.steps(record.name))
    return Ancestor(
        version=record.name,
        state=record.state.value,
        proposed_by=ledger.proposer(record.name),
        approved_by=tuple(dict.fromkeys(step.by for step in steps if step.is_approval)),
        steps=steps,
    )


def _why(record: VersionRecord, steps: Sequence[Step]) -> str:
    sentence = _WHY[record.state]
    moves = [step for step in steps if step.to_state == record.state.value]
    if moves and moves[-1].reason:
        sentence += f" Since {moment(moves[-1].at)}, by {moves[-1].by}: {moves[-1].reason}."
    if record.state is not State.PRODUCTION and (
        open_gates := [gate.name for gate in record.gates if gate.verdict is not Verdict.PASS]
    ):
        sentence += f" Gates that it did not pass: {', '.join(open_gates)}."
    return sentence


def _is_decision(step: Step) -> bool:
    return step.is_approval or step.action.endswith(".reject")


def _decision(ledger: LedgerQueries, step: Step) -> dict[str, Any]:
    bound = ledger.evidence(step.evidence_sha256) if step.evidence_sha256 else None
    verdict = "approved" if step.is_approval else "rejected"
    return {"verdict": verdict, "by": step.by, "at": step.at, "reason": step.reason, "row": step.seq, "bound_to": bound}


def _step_lines(steps: Sequence[Step]) -> list[str]:
    lines = []
    for step in steps:
        what = step.action.partition(".")[2].replace("_", " ")
        moved = f", {step.from_state} -> {step.to_state}" if step.from_state and step.to_state else ""
        reason = f": {step.reason}" if step.reason else ""
        lines.append(f"{moment(step.at)}  {what} by {step.by}{moved}{reason}  (row {step.seq})")
    return lines
