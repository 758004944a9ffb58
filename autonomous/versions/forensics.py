"""What went wrong with a version that was put away: a look at it that changes nothing.

In: a ledger that is only read, the episodes that the version learned, prompts, and the answers of that version (V3) and
of the one that serves (V2) to each. Out: what it learned, which gates it failed, both answers side by side, and which
of its training items are the likeliest cause.

The likeliest cause is an estimate, not a proof. Words that the version says and the serving one does not are looked for
in what it was trained on; a word that few of its items hold points more strongly at them (inverse document frequency,
Sparck Jones 1972). An answer that says only what its own lesson taught points at nothing. Equal scores are ordered by
trust, the least first.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from autonomous.suite import load_suite
from autonomous.versions.explain import LearnedDocument, Recall, documents_of, gate_line, moment
from autonomous.versions.gates import GateResult, Verdict
from autonomous.versions.history import Step
from autonomous.versions.queries import LedgerQueries
from autonomous.versions.states import BAD_STATES, State

MAX_PROMPTS = 24
MAX_EXCERPT_CHARS = 300
MAX_SHOWN_SUSPECTS = 10
MIN_WORD_CHARS = 3
"""Shorter words are in every text; numbers count at any length."""
_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class Prompt:
    """What both versions are asked. `expected` is what the version was taught to say; "" if it was taught nothing."""

    text: str
    origin: str
    """lesson: a held-out question on what it learned; safety: a probe of its evaluation; asked: by who looks at it."""
    expected: str = ""


@dataclass(frozen=True, slots=True)
class LearnedItem:
    """One episode that the version itself was trained on."""

    episode_id: str
    document_id: str
    title: str
    source: str
    trust: int
    text: str
    is_held_back: bool


@dataclass(frozen=True)
class Case:
    """What is known before anybody is asked."""

    version: str
    state: str
    serving: str
    history: tuple[Step, ...]
    failed_gates: tuple[GateResult, ...]
    documents: tuple[LearnedDocument, ...]
    items: tuple[LearnedItem, ...]
    num_erased: int
    prompts: tuple[Prompt, ...]


@dataclass(frozen=True, slots=True)
class SideBySide:
    """One prompt and both answers. `new_words` are those that only the version under examination says."""

    prompt: Prompt
    answer: str
    serving_answer: str
    new_words: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Suspect:
    """A training item and how strongly it is suspected; `score` compares items of one case, nothing else."""

    episode_id: str
    document_id: str
    title: str
    source: str
    trust: int
    score: float
    reasons: tuple[str, ...]
    excerpt: str


@dataclass(frozen=True)
class Forensics:
    """See the module."""

    case: Case
    answers: tuple[SideBySide, ...]
    suspects: tuple[Suspect, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        values = asdict(self)
        values["case"]["failed_gates"] = [gate.to_dict() for gate in self.case.failed_gates]
        return values

    def __str__(self) -> str:
        case = self.case
        lines = [f"Version {case.version} is {case.state}; {case.serving} serves. Nothing was changed by this look."]
        lines += ["", "Why it was put away:"]
        bad = {state.value for state in BAD_STATES}
        lines += [f"  {moment(step.at)} by {step.by}: {step.reason}" for step in case.history if step.to_state in bad]
        lines += [f"  {gate_line(gate)}" for gate in case.failed_gates]
        erased = f", {case.num_erased} passages erased since" if case.num_erased else ""
        lines += ["", f"It learned {len(case.items)} passages of {len(case.documents)} documents{erased}."]
        if not self.answers:
            lines += ["", "Neither version was asked anything: no engine, no time, or no prompts."]
        elif num_open := len(case.prompts) - len(self.answers):
            lines += ["", f"The time was up before {num_open} more prompts were answered."]
        for one in self.answers:
            lines += ["", f"[{one.prompt.origin}] {one.prompt.text}"]
            lines += [f"  it says:      {_excerpt(one.answer)}", f"  serving says: {_excerpt(one.serving_answer)}"]
        lines += ["", "Likeliest causes, the likeliest first (an estimate):"]
        for suspect in self.suspects[:MAX_SHOWN_SUSPECTS]:
            reasons = "; ".join(suspect.reasons) or "nothing points at it"
            lines.append(f"  {suspect.score:.2f}  {suspect.document_id} from {suspect.source}: {reasons}")
        return "\n".join(lines)


def build_case(
    ledger: LedgerQueries,
    name: str,
    *,
    recall: Recall,
    lessons: Sequence[Prompt] = (),
    asked: Sequence[str] = (),
    max_prompts: int = MAX_PROMPTS,
) -> Case:
    """The facts about a version that was put away, and what is to be asked.

    Raises UnknownVersion; ValueError for a run without a bundle and for a version that was not put away.
    """
    record = ledger.get(name)
    if not record.is_fixed or record.state not in BAD_STATES:
        raise ValueError(
            f"version {record.name} is {record.state}: only a version that was put away ({State.QUARANTINED}) is examined; "
            f"for others: autonomous explain {record.name}"
        )
    ids = ledger.episodes_of(record.name)
    episodes, held_back = recall(ids), ledger.held_back()
    return Case(
        version=record.name,
        state=record.state.value,
        serving=ledger.pointers().v2,
        history=tuple(ledger.steps(record.name)),
        failed_gates=tuple(gate for gate in record.gates if gate.verdict is not Verdict.PASS),
        documents=documents_of(episodes),
        items=tuple(
            LearnedItem(
                episode_id=episode.id,
                document_id=episode.document_id,
                title=episode.title,
                source=episode.source_id,
                trust=int(episode.trust),
                text=episode.text,
                is_held_back=episode.id in held_back,
            )
            for episode in episodes
        ),
        num_erased=len(ids) - len(episodes),
        prompts=choose_prompts(record.report, lessons=lessons, asked=asked, limit=max_prompts),
    )


def choose_prompts(
    report: dict[str, Any] | None, *, lessons: Sequence[Prompt], asked: Sequence[str], limit: int
) -> tuple[Prompt, ...]:
    """First what a person asks, then by turns the safety probes that moved most towards complying, and the lessons."""
    probes = sorted((report or {}).get("safety") or (), key=_fall, reverse=True)
    texts = {row["id"]: row["prompt"] for row in load_suite("safety").rows}
    moved = [str(probe["probe"]) for probe in probes if _fall(probe) > 0]
    safety = [Prompt(texts[key], "safety") for key in moved if key in texts]
    turns = [prompt for pair in zip(safety, lessons, strict=False) for prompt in pair]
    shorter = min(len(safety), len(lessons))
    chosen = [*(Prompt(text, "asked") for text in asked), *turns, *safety[shorter:], *lessons[shorter:]]
    return tuple(dict.fromkeys(chosen))[:limit]


def _fall(probe: dict[str, Any]) -> float:
    """By how much the preference to refuse fell, nats per token; a number that is none counts as the worst."""
    fall = float(probe["margin_base"]) - float(probe["margin_candidate"])
    return fall if math.isfinite(fall) else math.inf


def examine(case: Case, answers: Sequence[tuple[str, str]]) -> Forensics:
    """The report; pure. `answers`: (its answer, the serving version's) to the first prompts, in order."""
    compared = tuple(
        SideBySide(prompt, answer, serving, _new_words(prompt, answer, serving))
        for prompt, (answer, serving) in zip(case.prompts, answers, strict=False)
    )
    return Forensics(case=case, answers=compared, suspects=rank_suspects(case.items, compared))


def rank_suspects(items: Sequence[LearnedItem], answers: Sequence[SideBySide]) -> tuple[Suspect, ...]:
    """All items, the likeliest cause first."""
    words = [set(_words(item.text)) for item in items]
    num_holding = Counter(word for held in words for word in held)
    suspects = []
    for item, held in zip(items, words, strict=True):
        score, said, num_answers = 0.0, Counter[str](), 0
        for one in answers:
            shared = held.intersection(one.new_words)
            score += sum(math.log(1 + len(items) / num_holding[word]) for word in shared)
            said.update(shared)
            num_answers += bool(shared)
        suspects.append(
            Suspect(
                episode_id=item.episode_id,
                document_id=item.document_id,
                title=item.title,
                source=item.source,
                trust=item.trust,
                score=round(score, 4),
                reasons=_reasons(num_answers, said),
                excerpt=_excerpt(item.text),
            )
        )
    return tuple(sorted(suspects, key=lambda suspect: (-suspect.score, suspect.trust, suspect.episode_id)))


def _reasons(num_answers: int, said: Counter[str]) -> tuple[str, ...]:
    if not num_answers:
        return ()
    answers = "1 answer says" if num_answers == 1 else f"{num_answers} answers say"
    shown = ", ".join(word for word, _ in sorted(said.items(), key=lambda pair: (-pair[1], pair[0]))[:5])
    return (f"{answers} words of it that the serving version does not: {shown}",)


def _new_words(prompt: Prompt, answer: str, serving: str) -> tuple[str, ...]:
    known = {*_words(serving), *_words(prompt.text), *_words(prompt.expected)}
    return tuple(dict.fromkeys(word for word in _words(answer) if word not in known))


def _words(text: str) -> list[str]:
    found = _WORD.findall(text.casefold())
    return [word for word in found if len(word) >= MIN_WORD_CHARS or word.isdigit()]


def _excerpt(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= MAX_EXCERPT_CHARS else f"{line[:MAX_EXCERPT_CHARS]}..."
