"""One person has one name, however it is typed; the program has none of its own but two."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autonomous.people import is_machine, is_same_person, person_of


@pytest.mark.parametrize(
    "other",
    [
        "ada lovelace", "  Ada   Lovelace ", "ADA LOVELACE", "Ada\u00a0Lovelace", "\uff21da Lovelace", "Ada Love\u200blace",
        "Ada\tLovelace\n", "Ada Love\u00adlace",
    ],
)  # fmt: skip
def test_a_name_is_the_same_in_another_case_width_spacing_or_with_invisible_characters(other: str) -> None:
    assert is_same_person("Ada Lovelace", other)


@pytest.mark.parametrize(("name", "other"), [("ada", "adam"), ("ada", "bob"), ("m\u00fcller", "muller")])
def test_different_names_are_different_people(name: str, other: str) -> None:
    assert not is_same_person(name, other)


def test_a_name_is_the_same_composed_or_decomposed_and_with_sharp_s() -> None:
    assert is_same_person("M\u00fcller", "Mu\u0308ller")
    assert is_same_person("Stra\u00dfer", "STRASSER")


@pytest.mark.parametrize(
    "name",
    ["agent", "Agent", " system ", "agent:schedule", "AGENT : x", "\uff41gent", "sys\u200btem", "", " ", "\u200b"],
)
def test_the_program_and_nobody_are_machines_however_they_are_typed(name: str) -> None:
    assert is_machine(name)


@pytest.mark.parametrize("name", ["ada", "agentina", "systema", "secret agent", "ada:agent"])
def test_a_person_is_no_machine(name: str) -> None:
    assert not is_machine(name)


@settings(deadline=None)
@given(st.text())
def test_comparing_a_compared_name_changes_nothing(name: str) -> None:
    assert person_of(person_of(name)) == person_of(name)
