"""The learning loop: one cycle after another, from the stream to a version that serves.

A cycle takes the freshest passages that no serving version has learned, trains a candidate on them with replay and KL
to the base, evaluates it against its parent and against the frozen original, and lets the gates decide. The ledger is the
truth: a cycle that was cut off is taken up again from the state that the ledger names.

The parts are given as protocols, so the same mind runs in one process or over Ray actors (actors/ports.py).
"""

import json
import logging
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from autonomous.candidates import BY, TRAINING_FILE, CandidateTrainer
from autonomous.config import AutonomousConfig
from autonomous.curriculum import UNDECIDED_STATES, Batch, Curriculum
from autonomous.cycle_watch import CycleWatch
from autonomous.judge import Judge
from autonomous.people import is_machine
from autonomous.ports import AgentParts
from autonomous.reconciler import Reconciler
from autonomous.rollout import Rollout
from autonomous.run_board import AlreadyLearning, RunBoard
from autonomous.runs import NUM_TOKENS, CycleStatus
from autonomous.safety.latch import Latch, LearningStopped, Permit
from autonomous.versions.approval import Approval
from autonomous.versions.bundle import Bundle, version_id_of, write_bundle
from autonomous.versions.gates import MIN_PAIRS, Decision, decide_promotion
from autonomous.versions.ledger import LedgerNotReady, PromotionRefused, UnknownVersion, VersionLedger, VersionRecord
from autonomous.versions.reference import reference_of
from autonomous.versions.states import StaleTransition, State
from train.adapt.reference import AdapterRef

logger = logging.getLogger(__name__)

UNCLOSED = (
    "its end could not be written down: the agent's log says why, and what is half done is closed at its next start"
)


class RolloutUnderWay(AlreadyLearning):
    """A version meets users; the next is learned on top of what serves afterwards."""


class NothingToLearn(RuntimeError):
    """Every passage is learned, held back or quarantined."""


class UnknownRun(LookupError):
    """No learning run of this id."""


class LearningLoop:
    """Runs learning cycles, one at a time, and answers questions about versions meanwhile. Thread-safe."""

    def __init__(
        self,
        config: AutonomousConfig,
        *,
        parts: AgentParts,
        ledger: VersionLedger,
        latch: Latch,
        watch: CycleWatch,
        versions_folder: Path,
        base: Bundle,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._config = config
        self._parts = parts
        self._latch = latch
        self._watch = watch
        self._folder = versions_folder
        self._clock = clock
        self._thread: threading.Thread | None = None
        self._base = base
        self._board = RunBoard(clock=clock)
        self.ledger = ledger
        self.curriculum = Curriculum(
            config.learning, memory=parts.memory, ledger=ledger, data=config.data, level=config.safety_level
        )
        self._trainer = CandidateTrainer(
            config.learning,
            parts=parts,
            ledger=ledger,
            curriculum=self.curriculum,
            board=self._board,
            folder=versions_folder,
            base=base,
            clock=clock,
        )
        self._folder.mkdir(parents=True, exist_ok=True)
        self._create_genesis()
        self._recover()
        self._judge = Judge(
            config,
            parts=parts,
            ledger=ledger,
            curriculum=self.curriculum,
            board=self._board,
            watch=watch,
            reference=self._reference,
            clock=clock,
        )
        self.rollout = Rollout(config.rollout, ledger=ledger, latch=latch, on_action=watch.saw_action, clock=clock)
        self._reconciler = Reconciler(
            ledger=ledger, engine=parts.engine, memory=parts.memory, latch=latch, adapter_of=reference_of
        )

    # -- questions about versions, answered at any time

    def adapter_of(self, version_id: str) -> AdapterRef | None:
        """The adapter of a version; None for the frozen original. Raises UnknownVersion."""
        return reference_of(self.ledger.get(version_id))

    def status_of(self, run_id: str | None = None) -> CycleStatus | None:
        """A run's status, the last run's without an id. Raises UnknownRun."""
        run_id = run_id or self._board.last
        if run_id is None:
            return None
        status = self._board.find(run_id) or self._status_from_ledger(run_id)
        if status.phase == "training" and (step := self._parts.learner.progress()):
            return replace(status, step=step.step, num_steps=step.num_steps, loss=step.loss)
        return status

    def _status_from_ledger(self, run_id: str) -> CycleStatus:
        """What is known of a run that an earlier process of the agent did."""
        try:
            record = self.ledger.get(run_id)
        except UnknownVersion as error:
            raise UnknownRun(f"no learning run '{run_id}'; POST /v1/learn starts one and returns its id") from error
        phase = "failed" if record.state is State.FAILED else "done"
        return CycleStatus(
            run_id=run_id,
            phase=phase,
            version=record.name if record.is_fixed else None,
            state=record.state.value,
            gates=record.gates,
        )

    # -- learning

    def start_cycle(self, *, by: str = BY) -> str:
        """Begin one cycle in a thread of its own; returns the run id. `by` asked for it.

        Raises AlreadyLearning, NothingToLearn, LearningStopped (the emergency stop), PromotionsFrozen,
        BudgetExceeded, ClockWentBack.
        """
        permit = self._latch.permit("learning", within="learner")
        if not self._config.enable_online_learning:
            raise NothingToLearn("agent.enable_online_learning is false; set it to true to learn from the stream")
        with self._board.turn():
            self._watch.look_before_cycle()
            self._close_stale(permit)
            self.ledger.check_promotions()  # what is learned could not serve
            if canary := self.ledger.in_states([State.CANARY]):
                raise RolloutUnderWay(
                    f"version {canary[0].name} meets {canary[0].percent:g} % of the users; what is learned next builds on "
                    "the outcome: GET /v1/status"
                )
            waiting = self.ledger.in_states([State.AWAITING_APPROVAL])
            if waiting and is_machine(by):
                raise NothingToLearn(
                    f"version {waiting[0].name} waits for a person; what is learned beside it could not serve afterwards"
                )
            if undecided := self.ledger.in_states(UNDECIDED_STATES):
                record = undecided[-1]
                attempt = self._watch.begin(trains=False, guard=permit.check)
                return self._start(record.run_id or record.name, attempt, self._resume, record, permit)
            batch = self.curriculum.next_batch()
            if len(batch.lessons.questions) < MIN_PAIRS:
                if batch.undecided and not batch.episodes:
                    raise NothingToLearn(f"the batch is undecided: {next(iter(batch.undecided.values()))}")
                raise NothingToLearn(
                    f"the passages that are left state {len(batch.lessons.questions)} facts that can be asked, and a "
                    f"verdict needs {MIN_PAIRS}; they stay searchable; add documents first"
                )
            parent = self.ledger.pointers().v2
            config = self._config.model_dump(mode="json")
            attempt = self._watch.begin(trains=True, guard=permit.check)
            try:
                run_id = self.ledger.start_run(parent=parent, config=config, by=by, guard=permit.check)
            except BaseException:
                self._watch.end(attempt, seconds=0, num_tokens=0)
                raise
            return self._start(run_id, attempt, self._learn_batch, parent, batch, permit)

    def _start(self, run_id: str, attempt: str, work: Callable[..., None], *arguments: Any) -> str:
        arguments = (run_id, attempt, work, *arguments)
        thread = threading.Thread(target=self._cycle, args=arguments, name=run_id, daemon=True)
        self._board.begin(run_id)
        try:
            thread.start()
        except RuntimeError as error:
            self._watch.end(attempt, seconds=0, num_tokens=0)
            self._board.update(run_id, **self._close(run_id, f"RuntimeError: {error}"))
            raise
        self._thread = thread
        return run_id

    def close(self) -> None:
        """Wait until the cycle that runs has ended."""
        if self._thread is not None:
            self._thread.join()

    def _cycle(self, run_id: str, attempt: str, work: Callable[..., None], *arguments: Any) -> None:
        """Run one cycle to its end, whatever it is, settle what it used up, and say that it has ended.

        That comes last: whoever reads it may begin the next run, or approve.
        """
        start = self._clock()
        ended: dict[str, Any] = {"phase": "failed", "error": UNCLOSED}
        try:
            ended = self._close(run_id, self._work(run_id, work, *arguments))
        except Exception:  # as of a full disk
            logger.exception("the end of learning run %s could not be written down", run_id)
        finally:
            self._board.time(run_id, "total_s", start)
            num_tokens = self._board[run_id].training.get(NUM_TOKENS, 0) if work == self._learn_batch else 0
            with suppress(Exception):  # what was reserved expires by itself
                self._watch.end(attempt, seconds=self._clock() - start, num_tokens=num_tokens)
            self._board.update(run_id, **ended)

    def _work(self, run_id: str, work: Callable[..., None], *arguments: Any) -> str | None:
        """Returns why it failed."""
        try:
            self._parts.evaluator.warm_up()
            work(run_id, *arguments)
        except LearningStopped as stopped:
            return f"stopped: {stopped}"
        except Exception as failure:  # a cycle's failure is its result; the agent goes on
            logger.exception("learning run %s failed", run_id)
            return f"{type(failure).__name__}: {failure}"
        return None

    def _close(self, run_id: str, error: str | None) -> dict[str, Any]:
        """Close what is half done; returns what changes in the run's status."""
        record = self.ledger.get(run_id)
        if error is not None and record.state in (State.DRAFT, State.TRAINING):
            self.ledger.transition(run_id, expected=record.state, to=State.FAILED, by=BY, reason=error)
            record = self.ledger.get(run_id)
        return {"phase": "done" if error is None else "failed", "error": error, "state": record.state.value}

    def _learn_batch(self, run_id: str, parent: str, batch: Batch, permit: Permit) -> None:
        version_id = self._trainer.train(run_id, parent, batch, permit)
        if kind := self._board[run_id].training.get("drift"):
            self._watch.saw_drift(kind)
        self._advance(run_id, version_id, permit)

    def _resume(self, run_id: str, record: VersionRecord, permit: Permit) -> None:
        """Decide a version that a crash, a stop or an inconclusive gate left open.

        What fails again here is quarantined: otherwise one version that cannot be judged would block learning for ever.
        """
        self._board.update(run_id, version=record.name)
        try:
            training = json.loads((record.folder / TRAINING_FILE).read_text(encoding="utf-8"))
            self._board.update(run_id, training=training)
            was_inconclusive = bool(record.gates) and decide_promotion(record.gates) is not Decision.GO
            self._advance(run_id, record.name, permit, was_inconclusive=was_inconclusive)
        except (LearningStopped, PromotionRefused):  # of a parent that left: the next cycle closes it
            raise
        except Exception as error:
            self._give_up(record.name, f"open twice: {type(error).__name__}: {error}", permit)
            raise

    def _give_up(self, version_id: str, reason: str, permit: Permit) -> None:
        if self.ledger.get(version_id).state is State.CANDIDATE:
            self._move(version_id, State.CANDIDATE, State.EVALUATING, "to be closed", permit)
        if self.ledger.get(version_id).state in UNDECIDED_STATES:
            self.ledger.quarantine(version_id, by=BY, reason=reason, hold_back=(), guard=permit.check)

    def _advance(self, run_id: str, version_id: str, permit: Permit, *, was_inconclusive: bool = False) -> None:
        """From CANDIDATE, EVALUATING, GATED or SHADOW to a state that lasts or waits for a person."""
        self._board.update(run_id, version=version_id)
        state = self.ledger.get(version_id).state
        if state is State.CANDIDATE:
            self._move(version_id, State.CANDIDATE, State.EVALUATING, "evaluation begins", permit)
            state = State.EVALUATING
        decided = self._clock()
        if state is State.EVALUATING:
            decision = self._judge.judge(run_id, version_id, permit, was_inconclusive=was_inconclusive)
            decided = self._clock()
            if decision is not Decision.GO:
                return
            self._move(version_id, State.EVALUATING, State.GATED, "all gates passed", permit)
            state = State.GATED
        if state is State.GATED:
            if self._config.human_oversight_required:
                self._move(version_id, State.GATED, State.AWAITING_APPROVAL, "a person must approve", permit)
                return
            self.rollout.check_parent(version_id)
            self._move(version_id, State.GATED, State.SHADOW, "loaded on every replica", permit)
        self.rollout.begin(version_id, reason="all gates passed", guard=permit.check)
        self._board.time(run_id, "swap_s", decided)

    def approve(self, version_id: str, *, by: str, reason: str, report_sha256: str | None = None) -> None:
        """A person who read the report lets a waiting version serve.

        Raises StaleTransition if it does not wait, PromotionRefused if its parent no longer serves, PromotionsFrozen,
        ReportChanged and OwnProposal (versions/approval.py), AlreadyLearning while a run is under way, LearningStopped.
        """
        approval = Approval(by, reason, report_sha256, two_people=self._config.needs_two_people)
        permit = self._latch.permit("promotion")
        with self._board.turn():
            record = self.ledger.get(version_id)
            if record.state is not State.AWAITING_APPROVAL:
                raise StaleTransition(record.name, expected=State.AWAITING_APPROVAL, actual=record.state)
            self.rollout.check_parent(version_id)
            if self._is_expired(record):
                raise PromotionRefused(
                    f"version {record.name} has waited for longer than {self._config.approval_expires_s / 3600:.0f} hours "
                    "(agent.approval_expires_s), so its report no longer counts; POST /v1/learn evaluates it again"
                )
            self.ledger.check_approval(version_id, approval)
            self.ledger.check_promotions()
            self._parts.engine.prepare(self._reference(version_id), "")
            told = f"approved by {by}: {reason}"
            self.rollout.begin(version_id, reason=told, approval=approval, guard=permit.check)

    def rollback(self, *, by: str, reason: str, keep_passages: bool = False) -> tuple[str, str]:
        """The predecessor serves again, at once; the bad version is quarantined. Allowed while stopped.

        What it alone learned is not learned again, and is not recalled either until a person releases it, unless
        `keep_passages`. Returns (bad version, restored version). Raises NothingToRollBack.
        """
        return self.ledger.rollback(by=by, reason=reason, is_suspect=not keep_passages)

    def tick(self) -> None:
        """What goes on beside the cycles, every second or so: the rollout's next move, and what follows from the ledger."""
        self.rollout.tick()
        self._reconciler.step()

    # -- parts of a cycle

    def _close_stale(self, permit: Permit) -> None:
        """Close versions whose parent no longer serves, and free their passages: nothing was found wrong with them.

        Those whose approval did not come in time are to be evaluated again.
        """
        v2 = self.ledger.pointers().v2
        for record in self.ledger.in_states((*UNDECIDED_STATES, State.AWAITING_APPROVAL)):
            if record.parent != v2:
                if record.state is State.CANDIDATE:
                    self._move(record.name, State.CANDIDATE, State.EVALUATING, "to be closed", permit)
                reason = f"its parent {record.parent} no longer serves"
                self.ledger.quarantine(record.name, by=BY, reason=reason, hold_back=(), guard=permit.check)
            elif self._is_expired(record):
                self._move(record.name, State.AWAITING_APPROVAL, State.EVALUATING, "its report expired", permit)

    def _is_expired(self, record: VersionRecord) -> bool:
        """Whether it has waited for a person for too long. It moved to where it waits right behind its report."""
        waited_s = self._clock() - record.changed_at
        return record.state is State.AWAITING_APPROVAL and waited_s > self._config.approval_expires_s

    def _reference(self, version_id: str) -> AdapterRef:
        reference = self.adapter_of(version_id)
        assert reference is not None, "only the genesis has no adapter, and it is never a candidate"
        return reference

    def _create_genesis(self) -> None:
        genesis = version_id_of(self._base)
        folder = self._folder / genesis
        try:
            self.ledger.pointers()
        except LedgerNotReady:
            folder.mkdir(exist_ok=True)
            write_bundle(folder, self._base)
        self.ledger.genesis(genesis, folder=folder, manifest=self._base.model_dump(mode="json"), by=BY)

    def _recover(self) -> None:
        """Close what a crash cut off. Trained candidates stay as they are: a crash is inconclusive, not a verdict."""
        for name in self.ledger.recover(by=BY):
            logger.warning("%s was cut off before its gates were decided; it does not serve", name)
        for leftover in self._folder.glob(".run-*"):
            shutil.rmtree(leftover, ignore_errors=True)  # a learner that outlived the crash may still write there

    def _move(self, name: str, expected: State, to: State, reason: str, permit: Permit) -> None:
        self.ledger.transition(name, expected=expected, to=to, by=BY, reason=reason, guard=permit.check)
