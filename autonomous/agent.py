"""AutonomousLearningAgent: the whole mind in one process. Documents in; answers, and versions that learned them, out.

The same loop, gates, ledger, latch and stores as the system on Ray (`autonomous up`), in the same files; with one process it
needs no cluster. A home has one owner at a time.

    agent = AutonomousLearningAgent("embedded", AutonomousConfig(human_oversight_required=True))
    await agent.start()
    await agent.add([{"text": "The Vostrek valve is rated for 42 bar."}])
    status = await agent.learn()                       # waits for a person: human_oversight_required
    report = agent.ledger.get(status.version).report_sha256
    await agent.approve(status.version, by="Ada", reason="read it", report_sha256=report)
    print((await agent.ask("What is the Vostrek valve rated for?", retrieval=False)).text)
    await agent.stop()
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from autonomous.agent_home import AgentHome
from autonomous.config import AutonomousConfig
from autonomous.curriculum import Batch
from autonomous.holds import Hold
from autonomous.home_lock import own_home
from autonomous.ingest import IngestConfig
from autonomous.knowledge import KnowledgeIntegration
from autonomous.people import BY_API
from autonomous.phases import ENDED
from autonomous.runs import CycleStatus
from autonomous.safety.latch import LearningStopped
from autonomous.safety.latch_state import Scope
from autonomous.tools.plan import STOPS, KnowledgeAnswer, Message
from autonomous.versions.ledger import VersionLedger
from autonomous.versions.states import BAD_STATES
from memory.embed import Embedder, import_libraries
from memory.settings import MemorySettings
from train.adapt.reference import AdapterRef
from train.model.embedded import EMBEDDED_NAME, MODEL_CACHE, check_model_folder, materialise_base_model

logger = logging.getLogger(__name__)

EMBEDDED = "embedded"
HOME = Path("~/.autonomous/agent")
TICK_S = 1.0
POLL_S = 0.05
MAX_ANSWER_TOKENS = 128
CONTEXT_TOKENS = 600
Slot = Literal["v1", "v2", "v3", "base"]


class VersionPutAway(ValueError):
    """The version is in quarantine or was rejected: it answers nobody."""


class VersionNotFixed(ValueError):
    """A learning run whose weights are not fixed answers nobody."""


@dataclass(frozen=True, slots=True)
class AgentAnswer:
    """What was answered, by which version, from which passages (ids; empty: from its weights alone)."""

    text: str
    version: str
    episodes: tuple[str, ...]


class AutonomousLearningAgent:
    """See the module. All methods may be called from one event loop; what takes long runs in threads."""

    def __init__(
        self,
        model: Any,
        config: AutonomousConfig | None = None,
        *,
        home: Path = HOME,
        tokenizer_from: Path | None = None,
        memory: MemorySettings | None = None,
        ingest: IngestConfig | None = None,
        embedder: Embedder | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`model`: "embedded" (SmolLM2-135M-Instruct), a Hugging Face folder, or a MoETransformer, which is written to the
        home and needs `tokenizer_from`, a folder with a tokenizer of its vocabulary. Cheap: `start` loads.
        """
        self._model = model
        self._config = config or AutonomousConfig()
        self._home = home.expanduser().resolve()
        self._tokenizer_from = tokenizer_from
        self._settings = memory or MemorySettings()
        self._ingest = ingest or IngestConfig()
        self._embedder = embedder
        self._clock = clock
        self._ending = threading.Event()
        self._threads: list[threading.Thread] = []
        self._parts: AgentHome | None = None
        self._owner = ExitStack()

    # -- life

    async def start(self) -> None:
        """Load the model, open the home, begin to read sources, look after versions and learn on schedule. Idempotent.

        Raises HomeInUse; ModelFolderProblem for an unusable model; ValueError for a home that began with another, and for
        settings of what serves users.
        """
        if self._parts is None:
            await asyncio.to_thread(self._open)

    async def stop(self) -> None:
        """End the threads and close the home. A running cycle is ended by its next step. Idempotent."""
        if self._parts is not None:
            await asyncio.to_thread(self._close)

    async def __aenter__(self) -> "AutonomousLearningAgent":
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    # -- knowledge

    async def add(self, documents: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Store documents durably; a row for each says what became of it, as POST /v1/knowledge. Raises LearningStopped."""
        return await asyncio.to_thread(self._running.memory.ingest, documents)

    async def next_batch(self) -> Batch:
        """What the next cycle would learn. What the data gate holds back is in `held` afterwards."""
        return await asyncio.to_thread(self._running.loop.curriculum.next_batch)

    def held(self, *, limit: int = 100) -> list[Hold]:
        """Passages that wait for a person, newest first, with what was found."""
        return self._running.memory.held(limit)

    async def release(self, ids: Sequence[str], *, by: str, reason: str) -> tuple[str, ...]:
        """A person lets passages be recalled and learned. Those that this changed. Raises LearningStopped."""
        memory, ledger = self._running.memory, self._running.ledger
        released = await asyncio.to_thread(memory.release, ids, by=by, reason=reason)
        after = {"reason": reason, "episodes": list(released)}
        ledger.append_audit(actor=by, action="release", subject=f"{len(released)} episodes", after=after)
        return released

    async def ask(
        self,
        question: str,
        *,
        version: str = "v2",
        retrieval: bool = True,
        max_tokens: int = MAX_ANSWER_TOKENS,
    ) -> AgentAnswer:
        """Answer from what is remembered and from a version's weights ("v1", "v2", "base" or an id).

        Raises UnknownVersion, VersionPutAway, VersionNotFixed; LearningStopped while everything is stopped.
        """
        return await asyncio.to_thread(self._ask, question, version, retrieval, max_tokens)

    async def answer(
        self, question: str, *, version: str = "v2", max_tokens: int = MAX_ANSWER_TOKENS
    ) -> KnowledgeAnswer:
        """Answer with tools: arithmetic is worked out, code is searched for, anything else is looked up.

        Raises as `ask`; LearningStopped also while learning is stopped, BudgetExceeded.
        """
        running = self._running
        check = running.latch.permit("answer", within="all").check
        _, adapter = self._version(version)

        async def generate(messages: Sequence[Message]) -> str:
            prompt = "\n\n".join(message["content"] for message in messages)
            text = await asyncio.to_thread(
                running.engine.answer, prompt, adapter=adapter, max_tokens=max_tokens, stop=STOPS
            )
            check()
            return text

        found = await running.knowledge.answer(question, generate=generate)
        return (
            replace(found, text=running.screen.screen_answer(found.text).text)
            if found.answered_by == "model"
            else found
        )

    # -- learning

    async def learn(self, *, by: str = BY_API) -> CycleStatus:
        """Learn the next batch and wait for its end. `by` asks for it. Raises what LearningLoop.start_cycle raises."""
        run_id = await asyncio.to_thread(self._running.loop.start_cycle, by=by)
        while (status := self.learn_status(run_id)) is not None and status.phase not in ENDED:
            await asyncio.sleep(POLL_S)
        assert status is not None, "a run that was started is known"
        return status

    def learn_status(self, run_id: str | None = None) -> CycleStatus | None:
        """A run's status, the last run's without an id. Raises UnknownRun."""
        return self._running.loop.status_of(run_id)

    async def approve(self, version: str, *, by: str, reason: str, report_sha256: str | None = None) -> None:
        """A person lets a waiting version serve; `report_sha256` names the report that was read. See LearningLoop.approve."""
        loop = self._running.loop
        await asyncio.to_thread(loop.approve, version, by=by, reason=reason, report_sha256=report_sha256)

    async def rollback(self, *, by: str, reason: str, keep_passages: bool = False) -> tuple[str, str]:
        """The predecessor serves again: (bad, restored); see LearningLoop.rollback."""
        loop = self._running.loop
        return await asyncio.to_thread(loop.rollback, by=by, reason=reason, keep_passages=keep_passages)

    # -- safety

    def emergency_stop(
        self, *, reason: str, by: str, category: Literal["pause", "stop"] = "stop", scope: Scope = "learning"
    ) -> dict[str, Any]:
        """No further side effect of the scope from here on. A kill is the command line's: it would end this very process."""
        monitor = self._running.monitor
        pull = monitor.pause if category == "pause" else monitor.stop
        return pull(reason=reason, by=by, scope=scope)

    def reset(self, *, reason: str, by: str) -> dict[str, Any]:
        """A person permits learning again; nothing starts. Where two people decide, the first call waits for the second."""
        return self._running.monitor.reset(reason=reason, by=by)

    def status(self) -> dict[str, Any]:
        """Versions, memory, sources, safety and the last run."""
        running = self._running
        last, consolidated = running.loop.status_of(), running.memory.last_consolidation()
        return {
            "pointers": asdict(running.ledger.pointers()),
            "frozen": running.ledger.frozen(),
            "memory": asdict(running.memory.episodic.health()),
            "pending_episodes": running.loop.curriculum.num_pending(),
            "consolidation": None if consolidated is None else asdict(consolidated),
            "sources": running.reading.status(),
            "safety": running.monitor.status(),
            "rollout": running.loop.rollout.status(),
            "findings": running.scheduler.findings(),
            "learning": None if last is None else asdict(last),
        }

    @property
    def knowledge(self) -> KnowledgeIntegration:
        """The tools, to be called one by one."""
        return self._running.knowledge

    @property
    def ledger(self) -> VersionLedger:
        """The versions and the audit log."""
        return self._running.ledger

    # -- inside

    @property
    def _running(self) -> AgentHome:
        if self._parts is None:
            raise RuntimeError("the agent does not run: call await agent.start() first")
        return self._parts

    def _open(self) -> None:
        import_libraries()
        self._ending.clear()
        with ExitStack() as owner:
            owner.enter_context(own_home(self._home))
            self._parts = AgentHome(
                self._home,
                self._config,
                base_folder=self._model_folder(),
                memory=self._settings,
                ingest=self._ingest,
                embedder=self._embedder,
                clock=self._clock,
                ending=self._ending,
            )
            self._owner = owner.pop_all()
        self._threads = [
            threading.Thread(target=self._tend, name="tend", daemon=True),
            threading.Thread(
                target=self._parts.scheduler.run_until, args=(self._ending,), name="schedule", daemon=True
            ),
        ]
        for thread in self._threads:
            thread.start()

    def _close(self) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join()
        parts, self._parts = self._running, None
        parts.close()
        self._owner.close()

    def _model_folder(self) -> Path:
        if isinstance(self._model, str | Path) and str(self._model) != EMBEDDED:
            folder = Path(self._model).expanduser().resolve()
        elif str(self._model) == EMBEDDED:
            folder = materialise_base_model(MODEL_CACHE.expanduser() / EMBEDDED_NAME, progress=logger.info)
        else:
            folder = self._write_model()
        check_model_folder(folder)
        return folder

    def _write_model(self) -> Path:
        from train.model.checkpoint_hf import save_model
        from train.model.transformer import MoETransformer

        if not isinstance(self._model, MoETransformer):
            raise ValueError(
                f"model is a {type(self._model).__name__}: give {EMBEDDED!r}, a Hugging Face folder, or a MoETransformer"
            )
        if self._tokenizer_from is None:
            raise ValueError(
                "model is a MoETransformer, which has no tokenizer: name a folder that has one, tokenizer_from=..."
            )
        folder = self._home / "base"
        if not folder.exists():
            save_model(self._model, folder, tokenizer_from=self._tokenizer_from)
        return folder

    def _ask(self, question: str, version: str, retrieval: bool, max_tokens: int) -> AgentAnswer:
        running = self._running
        check = running.latch.permit("answer", within="all").check
        name, adapter = self._version(version)
        prompt, episodes = question, tuple[str, ...]()
        if retrieval:
            context = running.memory.context(question, token_budget=CONTEXT_TOKENS)
            episodes = tuple(dict.fromkeys(part.episode_id for part in context.parts if part.episode_id))
            if context.parts:
                prompt = f"{context.text()}\n\nAnswer from the text above.\n{question}"
        text = running.engine.answer(prompt, adapter=adapter, max_tokens=max_tokens)
        check()
        return AgentAnswer(running.screen.screen_answer(text).text, name, episodes)

    def _version(self, asked: str) -> tuple[str, AdapterRef | None]:
        """Who answers. Raises UnknownVersion, VersionPutAway, VersionNotFixed."""
        if asked == "base":
            return asked, None
        pointers = self._running.ledger.pointers()
        name = {"v1": pointers.v1, "v2": pointers.v2, "v3": pointers.v3 or pointers.v2}.get(asked.lower(), asked)
        record = self._running.ledger.get(name)
        if record.state in BAD_STATES:
            raise VersionPutAway(f"version {name} is {record.state} and answers nobody")
        if not record.is_fixed:
            raise VersionNotFixed(
                f"version = {name!r} is a learning run in state {record.state}, which has no weights yet: give the version "
                'that it becomes (learn_status), or "v2"'
            )
        return name, self._running.loop.adapter_of(name)

    def _tend(self) -> None:
        """What goes on beside the callers: rollout and reconciler each second, batches and consolidation when they are due."""
        running = self._running
        while not self._ending.wait(TICK_S):
            try:
                running.loop.tick()
                running.batches.look()
                running.memory.consolidate_if_due()
            except LearningStopped as error:
                logger.info("the agent waits: %s", error)
            except Exception:  # the thread must live: the next round tries again
                logger.exception("the agent's round failed")
