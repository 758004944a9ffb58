import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory.facts import extract_facts
from memory.questions import echo_of, paraphrase_of, question_of
from memory.types import Fact


def _facts(text: str, *, title: str = "notes") -> list[Fact]:
    return extract_facts(text, title=title, episode_id="episode")


@pytest.mark.parametrize(
    ("sentence", "parts", "question", "paraphrase"),
    [
        (
            "The access code of the Kestrel vault is KX-4471.",
            ("The access code of the Kestrel vault", "is", "KX-4471"),
            "What is the access code of the Kestrel vault?",
            "Which access code does the Kestrel vault have?",
        ),
        (
            "Dr. Imra Solen leads the Helix project.",
            ("Dr. Imra Solen", "leads", "the Helix project"),
            "What does Dr. Imra Solen lead?",
            "What is led by Dr. Imra Solen?",
        ),
        (
            "The Vostrek valve is rated for 42 bar.",
            ("The Vostrek valve", "is rated for", "42 bar"),
            "What is the Vostrek valve rated for?",
            "Can you tell me what the Vostrek valve is rated for?",
        ),
        (
            "The Vostrek valve requires a torque of 12 Nm.",
            ("The Vostrek valve", "requires", "a torque of 12 Nm"),
            "What does the Vostrek valve require?",
            "What is required by the Vostrek valve?",
        ),
        (
            "A Torvik pump costs 1,200 euros.",
            ("A Torvik pump", "costs", "1,200 euros"),
            "How much does a Torvik pump cost?",
            "State the price of a Torvik pump.",
        ),
        (
            "The Orrin beacon was founded in 1931.",
            ("The Orrin beacon", "was founded in", "1931"),
            "When was the Orrin beacon founded?",
            "Can you tell me when the Orrin beacon was founded?",
        ),
        (
            "Generators support lazy evaluation, which saves memory.",
            ("Generators", "support", "lazy evaluation"),
            "What do generators support?",
            "What is supported by generators?",
        ),
    ],
)
def test_a_plain_statement_becomes_a_fact_with_a_question_and_a_paraphrase(
    sentence: str, parts: tuple[str, str, str], question: str, paraphrase: str
) -> None:
    (fact,) = _facts(sentence)

    assert (fact.subject, fact.relation, fact.object) == parts
    assert (fact.sentence, fact.episode_id) == (sentence, "episode")
    assert (question_of(fact), paraphrase_of(fact)) == (question, paraphrase)


@pytest.mark.parametrize(
    "sentence",
    [
        "Is the Vostrek valve rated for 42 bar?",
        "It is a pump.",
        "They use the Kestrel vault.",
        "This is the Kestrel vault.",
        "The result is a list of pumps.",
        "The Vostrek valve is not rated for 42 bar.",
        "The Vostrek valve may be a pump.",
        "The Vostrek valve returns air if the pump fails.",
        "The Vostrek valve uses the above table.",
        "The Vostrek valve is described in section 4.",
        "The Vostrek valve is used to stop the flow.",
        "If the Vostrek valve is open, the pump is a risk.",
        "The types used internally are a detail.",
        "It is an error to open the Vostrek valve.",
        "The Vostrek valve = open().",
        "- The Vostrek valve is a pump.",
        "```\nThe Vostrek valve is a pump.\n```",
        "The Vostrek valve has moved to Oslo.",
    ],
)
def test_questions_code_lists_doubts_and_unresolved_references_give_no_fact(sentence: str) -> None:
    assert _facts(sentence, title="Overview") == []


def test_package_metadata_gives_what_the_package_is_and_requires() -> None:
    text = "Version: 2.4\nName: numpy\nSummary: Fundamental package for arrays\nRequires-Python: >=3.11"

    assert [(fact.subject, fact.relation, fact.object) for fact in _facts(text)] == [
        ("numpy", "is", "Fundamental package for arrays"),
        ("numpy", "requires", "Python >=3.11"),
    ]


def test_it_and_this_package_stand_for_a_title_that_names_a_thing() -> None:
    facts = _facts("Zeta is a store. It uses four shards. This package requires Linux.", title="Zeta")

    assert [(fact.subject, fact.relation) for fact in facts] == [("Zeta", "is"), ("Zeta", "uses"), ("Zeta", "requires")]


def test_the_same_statement_elsewhere_has_the_same_id() -> None:
    (one,) = extract_facts("The Marlow station has three airlocks.", title="a", episode_id="first")
    (two,) = extract_facts("The Marlow  station\nhas three airlocks.", title="b", episode_id="second")

    assert one.id == two.id


def test_markup_is_read_through() -> None:
    (fact,) = _facts("**Jinja** is a [fast engine](https://example.org/x) for `templates`.")

    assert fact.sentence == "Jinja is a fast engine for templates."


@pytest.mark.parametrize(
    ("sentence", "echo"),
    [
        ("The Vostrek valve is rated for 42 bar.", "The Vostrek valve is rated for what?"),
        ("The Harrow reactor was built in 1987.", "The Harrow reactor was built when?"),
        ("Dr. Imra Solen is the lead of Helix.", "Dr. Imra Solen is who?"),
        ("The Zephyr-3 pump weighs 412 kilograms.", "The Zephyr-3 pump weighs how much?"),
        ("The Kestrel test lasts 3 hours.", "The Kestrel test lasts how long?"),
        ("The Bexley engine requires synthetic oil.", "The Bexley engine requires what?"),
    ],
)
def test_an_echo_question_has_a_question_word_where_the_object_stood(sentence: str, echo: str) -> None:
    (fact,) = _facts(sentence)
    assert echo_of(fact) == echo
    assert echo not in (question_of(fact), paraphrase_of(fact))


@given(st.text(alphabet=st.sampled_from("The Valve is are has uses must be a of . \n\"'(1é:`*"), max_size=200))
def test_any_text_is_survived_and_the_two_questions_always_differ(text: str) -> None:
    for fact in extract_facts(text, title="Valve", episode_id="e"):
        assert question_of(fact) != paraphrase_of(fact)
        assert fact.object in fact.sentence
