"""Judge: a candidate in, its report and gates bound to it in the ledger, and what follows from them, out.

The evaluator scores it on the texts, the engine loads it and is compared with the trainer, the gates decide; a version that
may not go on is quarantined here.
"""

import time
from collections.abc import Callable
from pathlib import Path

from autonomous.candidates import BY
from autonomous.config import AutonomousConfig
from autonomous.curriculum import QUESTIONS_PER_DOMAIN, Curriculum
from autonomous.cycle_watch import CycleWatch
from autonomous.ports import AgentParts
from autonomous.run_board import RunBoard
from autonomous.safety.latch import Permit
from autonomous.versions.data_gates import gate_beliefs, gate_data
from autonomous.versions.gates import (
    Decision,
    GateResult,
    Verdict,
    decide_gates,
    decide_promotion,
    gate_probe_parity,
    is_learned_too_little,
)
from autonomous.versions.ledger import VersionLedger
from autonomous.versions.schema import VersionRecord
from train.adapt.reference import AdapterRef

MORE_QUESTIONS = 4
"""So many times as many questions on what was learned earlier are asked of a version whose gates did not decide."""


class Judge:
    """Judges one run at a time; its owner sees to that."""

    def __init__(
        self,
        config: AutonomousConfig,
        *,
        parts: AgentParts,
        ledger: VersionLedger,
        curriculum: Curriculum,
        board: RunBoard,
        watch: CycleWatch,
        reference: Callable[[str], AdapterRef],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._config = config
        self._parts = parts
        self._ledger = ledger
        self._curriculum = curriculum
        self._board = board
        self._watch = watch
        self._reference = reference
        self._clock = clock

    def judge(self, run_id: str, version_id: str, permit: Permit, *, was_inconclusive: bool) -> Decision:
        """Evaluate and decide. What is inconclusive for the second time is quarantined as what fails is."""
        most = QUESTIONS_PER_DOMAIN * (MORE_QUESTIONS if was_inconclusive else 1)
        gates = self._evaluate(run_id, self._ledger.get(version_id), permit, most=most)
        decision = decide_promotion(gates)
        if decision is Decision.PAUSE and was_inconclusive:
            decision = Decision.QUARANTINE
        if decision is Decision.QUARANTINE:
            reason = f"gates not passed: {', '.join(gate.name for gate in gates if gate.verdict is not Verdict.PASS)}"
            held = None
            if is_learned_too_little(gates):
                attempts = self._curriculum.attempts_of(episodes := self._ledger.episodes_of(version_id))
                held = [one for one in episodes if attempts[one] >= self._config.learning.max_attempts]
                num_again = len(episodes) - len(held)
                reason += f"; of its {len(episodes)} passages {num_again} are learned once more, from another seed"
            self._ledger.quarantine(version_id, by=BY, reason=reason, hold_back=held, guard=permit.check)
        return decision

    def _evaluate(self, run_id: str, record: VersionRecord, permit: Permit, *, most: int) -> list[GateResult]:
        start = self._clock()
        self._board.update(run_id, phase="evaluating", version=record.name)
        lineage = self._ledger.lineage(record.name)
        parent = lineage[-2]
        report = self._parts.evaluator.evaluate(
            Path(record.folder),
            parent=Path(parent.folder) if parent.adapter_number is not None else None,
            questions=self._curriculum.questions_of(record.name),
            earlier=self._curriculum.earlier_questions(parent.name, most=most),
            training=self._board[run_id].training,
        )
        self._board.time(run_id, "evaluation_s", start)
        loading = self._clock()
        self._board.update(run_id, phase="loading")
        replicas = self._parts.engine.prepare(self._reference(record.name), report.probe["text"])
        self._board.time(run_id, "load_s", loading)
        self._board.update(run_id, phase="gating")
        gates = [
            gate_data(report, self._config.data),
            *decide_gates(report, self._config.gates),
            gate_beliefs(report, self._config.data),
            gate_probe_parity(report, replicas, self._config.gates),
        ]
        self._ledger.bind_report(record.name, report=report.to_dict(), gates=gates, by=BY, guard=permit.check)
        self._watch.saw_report(record.name, report, is_fit=decide_promotion(gates) is Decision.GO)
        self._board.update(run_id, gates=tuple(gates))
        return gates
