"""The table of transitions and the pure check."""

import pickle
from itertools import pairwise

import pytest

from autonomous.versions.states import (
    BAD_STATES,
    COMPOUND_TRANSITIONS,
    EVIDENCE_NEEDED,
    PEOPLE_ONLY,
    QUARANTINE_PATHS,
    SERVED_STATES,
    TRANSITIONS,
    IllegalTransition,
    StaleTransition,
    State,
    decide_transition,
)

LEGAL = [(state, to) for state in State for to in sorted(TRANSITIONS[state])]
ILLEGAL = [(state, to) for state in State for to in State if to not in TRANSITIONS[state]]
ROAD = [
    State.DRAFT,
    State.TRAINING,
    State.CANDIDATE,
    State.EVALUATING,
    State.GATED,
    State.AWAITING_APPROVAL,
    State.SHADOW,
    State.CANARY,
    State.PRODUCTION,
    State.SUPERSEDED,
    State.ARCHIVED,
]


def test_the_table_has_a_row_for_every_state():
    assert set(TRANSITIONS) == set(State)


def test_the_main_road_of_the_design_is_legal():
    assert all(to in TRANSITIONS[at] for at, to in pairwise(ROAD))


@pytest.mark.parametrize(
    ("at", "to"),
    [
        (State.SHADOW, State.PRODUCTION),
        (State.GATED, State.SHADOW),
        (State.DRAFT, State.FAILED),
        (State.TRAINING, State.FAILED),
        (State.EVALUATING, State.REJECTED),
        (State.REJECTED, State.QUARANTINED),
        (State.SHADOW, State.ROLLED_BACK),
        (State.CANARY, State.ROLLED_BACK),
        (State.PRODUCTION, State.ROLLED_BACK),
        (State.ROLLED_BACK, State.QUARANTINED),
        (State.QUARANTINED, State.CANDIDATE),
        (State.SUPERSEDED, State.PRODUCTION),
    ],
)
def test_the_side_roads_of_the_design_are_legal(at: State, to: State):
    assert to in TRANSITIONS[at]


def test_quarantine_leads_back_to_candidate_only_and_never_straight_to_traffic():
    assert TRANSITIONS[State.QUARANTINED] == {State.CANDIDATE}


def test_failed_and_archived_are_ends():
    assert not TRANSITIONS[State.FAILED]
    assert not TRANSITIONS[State.ARCHIVED]


def test_production_is_reached_only_from_states_that_passed_the_gates():
    assert {at for at, to in LEGAL if to is State.PRODUCTION} == {State.SHADOW, State.CANARY, State.SUPERSEDED}


def test_the_other_tables_name_only_legal_steps():
    assert set(COMPOUND_TRANSITIONS) | PEOPLE_ONLY | EVIDENCE_NEEDED <= set(LEGAL)
    for start, path in QUARANTINE_PATHS.items():
        assert all(to in TRANSITIONS[at] for at, to in zip((start, *path), path, strict=False))
    assert not BAD_STATES & SERVED_STATES


@pytest.mark.parametrize(("at", "to"), LEGAL)
def test_a_legal_step_by_a_person_with_evidence_gives_the_new_state(at: State, to: State):
    assert decide_transition(at, expected=at, to=to, name="v", by="alice", has_evidence=True) is to


@pytest.mark.parametrize(("at", "to"), ILLEGAL)
def test_an_illegal_step_is_refused_and_the_error_names_both_states(at: State, to: State):
    with pytest.raises(IllegalTransition, match=f"from {at} to {to}"):
        decide_transition(at, expected=at, to=to, name="v", by="alice", has_evidence=True)


def test_a_wrong_expectation_names_expected_and_actual_even_if_the_step_were_illegal():
    with pytest.raises(StaleTransition, match="expected in state GATED but is SHADOW") as caught:
        decide_transition(State.SHADOW, expected=State.GATED, to=State.DRAFT, name="v-1", by="alice")
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.name, again.expected, again.actual, str(again)) == ("v-1", "GATED", State.SHADOW, str(caught.value))


@pytest.mark.parametrize("actor", ["agent", "system", "agent:scheduler"])
@pytest.mark.parametrize(("at", "to"), sorted(PEOPLE_ONLY))
def test_the_agent_can_neither_approve_nor_release_from_quarantine(actor: str, at: State, to: State):
    with pytest.raises(IllegalTransition, match="only by a person"):
        decide_transition(at, expected=at, to=to, name="v", by=actor, has_evidence=True)


def test_a_release_from_quarantine_needs_new_evidence():
    with pytest.raises(IllegalTransition, match="new evidence"):
        decide_transition(State.QUARANTINED, expected=State.QUARANTINED, to=State.CANDIDATE, name="v", by="alice")
