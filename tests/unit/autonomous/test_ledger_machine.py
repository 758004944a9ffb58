"""Any sequence of legal and illegal calls keeps the ledger's invariants, seen by a second connection at each step."""

import sqlite3
from contextlib import ExitStack

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from autonomous.versions.budget import MAX_ROLLBACKS, UNLOCK
from autonomous.versions.gates import Decision, decide_promotion
from autonomous.versions.ledger import NothingToRollBack, VersionLedger
from autonomous.versions.states import TRANSITIONS, State
from tests.unit.autonomous.ledger_life import (
    FAILED,
    PASSED,
    ROAD,
    advance,
    fix,
    make_candidate,
    make_genesis,
    quick_folder,
)

PICK = st.integers(0, 10**6)
EPISODES = st.frozensets(st.sampled_from("ab"), min_size=1).map(lambda chosen: tuple(sorted(chosen)))
STATES = st.sampled_from(list(State))


class LedgerMachine(RuleBasedStateMachine):
    """Calls of all kinds on one ledger. A refused call must change nothing."""

    @initialize()
    def begin(self) -> None:
        self.stack = ExitStack()
        folder = self.stack.enter_context(quick_folder())
        self.ledger = VersionLedger(folder / "ledger.sqlite", warm_versions=1)
        self.stack.callback(self.ledger.close)
        self.second = sqlite3.connect(folder / "ledger.sqlite")
        self.stack.callback(self.second.close)
        make_genesis(self.ledger, folder)
        self.marks = 0
        self.numbers: dict[int, str] = {}
        self.checked_seq = 0
        self.num_rollbacks, self.unlocked_seq = 0, 0

    def teardown(self) -> None:
        if hasattr(self, "stack"):
            self.stack.close()

    def name(self, pick: int, *states: State) -> str:
        records = self.ledger.list(10**6)
        fitting = [record for record in records if record.state in states] or records
        return fitting[pick % len(fitting)].name

    def mark(self) -> str:
        self.marks += 1
        return str(self.marks)

    def attempt(self, call, *arguments, **named) -> None:
        """The call succeeds, or it raises what a user can act on and leaves everything as it was."""
        before = self.facts()
        try:
            call(*arguments, **named)
        except ValueError:
            assert self.facts() == before

    def facts(self) -> list[object]:
        tables = ("versions", "held_back", "version_episodes", "adapter_numbers", "audit")
        return [self.second.execute(f"SELECT * FROM {table}").fetchall() for table in tables]

    def one_production(self) -> None:
        query = "SELECT count(*) FROM versions WHERE state = 'PRODUCTION'"
        assert self.second.execute(query).fetchone() == (1,)

    @rule(pick=PICK)
    def start_run(self, pick: int) -> None:
        self.attempt(self.ledger.start_run, parent=self.name(pick), config={}, guard=self.one_production)

    @rule(pick=PICK, episodes=EPISODES)
    def fix_bundle(self, pick: int, episodes: tuple[str, ...]) -> None:
        run = self.name(pick, State.TRAINING)
        parent = self.ledger.get(run).parent
        self.attempt(fix, self.ledger, run, parent=parent, mark=self.mark(), episodes=episodes)

    @rule(pick=PICK, episodes=EPISODES, to=st.sampled_from(ROAD[:-1]))
    def train_and_advance(self, pick: int, episodes: tuple[str, ...], to: State) -> None:
        parent = self.name(pick, State.PRODUCTION, State.SUPERSEDED, State.CANARY)
        advance(self.ledger, make_candidate(self.ledger, parent, mark=self.mark(), episodes=episodes), to)

    @rule(pick=PICK, episodes=EPISODES, is_good=st.sampled_from([True, True, False]))
    def train_and_decide(self, pick: int, episodes: tuple[str, ...], is_good: bool) -> None:
        parent = self.name(pick, State.PRODUCTION, State.SUPERSEDED)
        name = make_candidate(self.ledger, parent, mark=self.mark(), episodes=episodes)
        if is_good:
            self.attempt(self.ledger.promote, advance(self.ledger, name, State.SHADOW), by="agent", reason="random")
        else:
            self.ledger.quarantine(advance(self.ledger, name, State.EVALUATING), by="agent", reason="random")

    @rule(pick=PICK, is_right=st.booleans(), expected=STATES, to=STATES, by=st.sampled_from(["agent", "alice"]))
    def transition(self, pick: int, is_right: bool, expected: State, to: State, by: str) -> None:
        name = self.name(pick)
        if is_right:
            expected = self.ledger.get(name).state
            legal = sorted(TRANSITIONS[expected])
            to = legal[pick % len(legal)] if legal else to
        evidence = {"seen": pick} if pick % 2 else None
        self.attempt(self.ledger.transition, name, expected=expected, to=to, by=by, reason="random", evidence=evidence)

    @rule(pick=PICK, is_passed=st.booleans())
    def bind_report(self, pick: int, is_passed: bool) -> None:
        self.attempt(
            self.ledger.bind_report,
            self.name(pick, State.EVALUATING, State.SHADOW),
            report={"pick": pick},
            gates=PASSED if is_passed else FAILED,
            by="agent",
        )

    @rule(pick=PICK)
    def promote(self, pick: int) -> None:
        name = self.name(pick, State.SHADOW, State.CANARY)
        self.attempt(self.ledger.promote, name, by="agent", reason="random", guard=self.one_production)

    @rule(pick=PICK, percent=st.sampled_from([0.5, 5, 50]))
    def set_canary(self, pick: int, percent: float) -> None:
        name = self.name(pick, State.SHADOW, State.CANARY)
        self.attempt(
            self.ledger.set_canary, name, percent=percent, by="agent", reason="random", guard=self.one_production
        )
        if self.ledger.get(name).state is State.CANARY:
            assert self.ledger.get(name).percent in (0.5, 5, 50)

    @rule(pick=PICK, is_breach=st.booleans())
    def withdraw(self, pick: int, is_breach: bool) -> None:
        name = self.name(pick, State.SHADOW, State.CANARY)
        self.attempt(self.ledger.withdraw, name, by="agent", reason="random", is_breach=is_breach)

    @rule(pick=PICK, is_any=st.booleans())
    def quarantine(self, pick: int, is_any: bool) -> None:
        name = self.name(pick) if is_any else self.name(pick, State.EVALUATING, State.GATED, State.SHADOW)
        self.attempt(self.ledger.quarantine, name, by="agent", reason="random", guard=self.one_production)

    @rule(pick=PICK)
    def release(self, pick: int) -> None:
        name = self.name(pick, State.QUARANTINED)
        self.attempt(self.ledger.release, name, by="alice", reason="random", evidence={"seen": pick}, consent=None)

    @rule(pick=PICK)
    def advance_released(self, pick: int) -> None:
        name = self.name(pick, State.CANDIDATE)
        if self.ledger.get(name).state is State.CANDIDATE:
            advance(self.ledger, name, ROAD[pick % (len(ROAD) - 1)])

    @rule()
    def roll_back(self) -> None:
        before = self.facts()
        served = self.ledger.pointers().v2
        try:
            bad, restored = self.ledger.rollback(by="alice", reason="random")
        except NothingToRollBack:
            assert self.facts() == before
            assert self.ledger.get(served).is_genesis
            return
        assert (bad, restored) == (served, self.ledger.pointers().v2)
        self.num_rollbacks += 1

    @rule(by=st.sampled_from(["agent", "alice"]))
    def unlock(self, by: str) -> None:
        may = by == "alice" and self.num_rollbacks >= MAX_ROLLBACKS
        self.attempt(self.ledger.unlock_promotions, by=by, reason="random")
        assert may is (self.ledger.audit(1)[0].action == UNLOCK and self.ledger.audit(1)[0].seq > self.unlocked_seq)
        if may:
            self.num_rollbacks, self.unlocked_seq = 0, self.ledger.audit(1)[0].seq

    @invariant()
    def nothing_was_promoted_while_two_rollbacks_were_not_looked_into(self) -> None:
        if self.num_rollbacks >= MAX_ROLLBACKS:
            promoted = [row for row in self.ledger.audit(10**6) if row.action == "version.promote"]
            rolled_back = [row.seq for row in self.ledger.audit(10**6) if row.action == "version.rollback"]
            assert not [row for row in promoted if row.seq > max(rolled_back)]

    @precondition(lambda self: self.marks > 3)
    @rule()
    def recover(self) -> None:
        self.ledger.recover(by="system")

    @invariant()
    def exactly_one_version_serves_and_it_passed_its_gates(self) -> None:
        self.one_production()
        record = self.ledger.get(self.ledger.pointers().v2)
        assert record.is_genesis or decide_promotion(record.gates) is Decision.GO

    @invariant()
    def the_audit_log_is_whole_and_agrees_with_the_table(self) -> None:
        assert self.ledger.verify_audit().ok

    @invariant()
    def no_step_was_recorded_that_the_table_of_transitions_lacks(self) -> None:
        rows = [row for row in self.ledger.audit(10**6) if row.seq > self.checked_seq]
        for row in rows:
            if row.before and "state" in row.before:
                assert row.after is not None
                assert State(row.after["state"]) in TRANSITIONS[State(row.before["state"])]
        self.checked_seq += len(rows)

    @invariant()
    def an_adapter_number_belongs_to_one_version_for_ever(self) -> None:
        for record in self.ledger.list(10**6):
            if record.adapter_number is not None:
                assert self.numbers.setdefault(record.adapter_number, record.name) == record.name

    @invariant()
    def nothing_that_production_learned_is_held_back(self) -> None:
        assert not self.ledger.held_back() & self.ledger.learned_episodes(self.ledger.pointers().v2)


TestLedger = LedgerMachine.TestCase
TestLedger.settings = settings(max_examples=30, stateful_step_count=25, deadline=None)
