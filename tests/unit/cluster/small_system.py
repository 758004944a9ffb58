"""A small running system behind the real HTTP application: the stores, the latch and the ledger are the real ones.

What is small is the learner: a run takes a few polls, and its version answers what the batch taught.
"""

from collections.abc import AsyncIterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from autonomous.lessons import Lessons, build_lessons
from autonomous.safety.latch import Latch
from autonomous.versions.ledger import VersionLedger
from serve.engine import GenerateChunk, GenerateRequest
from serve.errors import ConflictError, NotFoundError, OverloadedError
from serve.stream import WholeAnswer, collect
from tests.unit.serve.local_parts import LocalParts

NUM_STEPS = 3
LOSSES = (2.5, 1.25, 0.5)
GATES = [
    {"name": "G2 gain", "verdict": "pass", "value": 1.5, "threshold": 0.1, "reason": "lower bound above the threshold"},
    {"name": "G3 control", "verdict": "pass", "value": 1.02, "threshold": 1.1, "reason": "within the bound"},
]


class SmallSystem(LocalParts):
    """`serve.parts.Parts` with learning. `outcome` is the state in which a run's version ends."""

    def __init__(self, folder: Path, home: Path) -> None:
        super().__init__(folder)
        (home / "safety").mkdir(parents=True)
        Latch.create(home / "safety" / "latch")
        self.latch = Latch.open(home / "safety" / "latch")
        self.ledger = VersionLedger(home / "ledger.sqlite")
        self.outcome = "PRODUCTION"
        self.num_refusals = 0
        self.state = "CANDIDATE"
        self.polls = 0
        self.learned: dict[str, str] = {}
        self.batch: Lessons | None = None
        self.slots = {"v1": "ver-base", "v2": "ver-base", "v3": None}

    async def ingest(self, documents: Any) -> Any:
        if self.num_refusals:
            self.num_refusals -= 1
            raise OverloadedError("the queue of memory writes is full; try again later")
        return await super().ingest(documents)

    async def generate(self, request: GenerateRequest) -> AsyncIterator[GenerateChunk]:
        taught = [answer for question, answer in self.learned.items() if question in request.prompt]
        if request.adapter is not None and taught:
            for word in taught[0].split(" "):
                yield GenerateChunk(f"{word} ")
            yield GenerateChunk("", "stop", self.engine.count_tokens(request.prompt), len(taught[0].split()))
            return
        async for chunk in super().generate(request):
            yield chunk

    async def complete(self, request: GenerateRequest) -> WholeAnswer:
        return await collect(self.generate(request))

    async def learn(self, *, by: str | None) -> str:
        self.latch.permit("learning")
        self.batch = self._next()
        if not self.batch.items:
            raise ConflictError("every stored passage is learned, held back or quarantined; add documents first")
        self.run_id, self.polls = "run-000000000001", 0
        return self.run_id

    async def learn_status(self, run_id: str) -> dict[str, Any]:
        if run_id != self.run_id:
            raise NotFoundError(f"no learning run {run_id!r}; POST /v1/learn starts one")
        self.polls += 1
        status = {"run_id": run_id, "phase": "training", "step": self.polls, "num_steps": NUM_STEPS}
        if self.polls <= NUM_STEPS:
            return status | {"loss": LOSSES[self.polls - 1]}
        if self.polls == NUM_STEPS + 1:
            return status | {"phase": "evaluating", "step": NUM_STEPS, "loss": LOSSES[-1], "version": "ver-new"}
        if self.outcome == "failed":
            return {"run_id": run_id, "phase": "failed", "error": "NonFiniteLoss: the loss is NaN at step 2"}
        if self.state != self.outcome:
            self._end_run()
        gates = [gate | {"verdict": "fail"} if self.outcome == "QUARANTINED" else gate for gate in GATES]
        timings = {"training_s": 1.0, "evaluation_s": 0.5, "swap_s": 0.05}
        training = {"losses": list(LOSSES), "num_steps": NUM_STEPS, "replay_share": 0.2}
        return {
            "run_id": run_id, "phase": "done", "step": NUM_STEPS, "num_steps": NUM_STEPS, "loss": LOSSES[-1],
            "version": "ver-new", "state": self.state, "gates": gates, "timings": timings, "training": training,
        }  # fmt: skip

    def _end_run(self) -> None:
        self.state = self.outcome
        if self.state == "PRODUCTION":
            self._promote()

    def _promote(self) -> None:
        assert self.batch is not None
        self.slots = {"v1": "ver-new", "v2": "ver-new", "v3": None}
        for question in self.batch.questions:
            self.learned |= {question.question: question.answer, question.paraphrase: question.answer}

    async def approve(self, version_id: str, *, by: str, reason: str, report_sha256: str | None) -> None:
        if self.state != "AWAITING_APPROVAL":
            raise ConflictError(f"version {version_id} is {self.state} and does not wait for approval")
        self.state = self.outcome = "PRODUCTION"
        self._promote()

    async def learn_next(self) -> dict[str, Any]:
        episodes = [episode for _, episode in self.episodic.episodes_after(0, limit=100)]
        rows = [{"id": e.id, "document_id": e.document_id, "title": e.title} for e in episodes]
        return {"num_pending": len(rows), "episodes": rows, "questions": [asdict(q) for q in self._next().questions]}

    def _next(self) -> Lessons:
        return build_lessons([episode for _, episode in self.episodic.episodes_after(0, limit=100)], max_items=64)

    async def status(self) -> dict[str, Any]:
        delays = {"retrieval_s": 0.1, "learning_s": None, "swap_s": 0.05}
        learning = await self.learn_status(self.run_id) if self.run_id else None
        return {
            **await super().status(),
            "uptime_s": 5.0,
            "delays": delays,
            "learning": learning,
            "pending_episodes": 2,
        }
