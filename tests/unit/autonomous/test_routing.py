"""Which tool a question asks for, and what counts as a model's call."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autonomous.tools.calculator import evaluate
from autonomous.tools.routing import ToolCall, arithmetic_of, decide_tool, holds_call, read_call


@pytest.mark.parametrize(
    ("question", "expression"),
    [
        ("What is 12 * (3 + 4)?", "12 * (3 + 4)"),
        ("what's 15% of 80", "15% of 80"),
        ("Calculate: 2^10 =", "2^10"),
        ("7 plus 5 times 2", "7 + 5 * 2"),
        ("How much is the square root of 2.25?", "sqrt(2.25)"),
        ("12 percent of 50?", "12 % of 50"),
    ],
)
def test_a_question_that_is_nothing_but_arithmetic_is_worked_out(question: str, expression: str) -> None:
    assert arithmetic_of(question) == expression
    assert decide_tool(question) == ToolCall("calculator", {"expression": expression})


@pytest.mark.parametrize(
    "question",
    [
        "What is the capital of France?", "Who won in 1998?", "What is 911?", "What happened on 2024-01-31?", "1 / 0",
        "What is 9**9**9**9?", "The pump has 3 valves and 4 seals", "", "e", "()", "What is 12 * apples?",
    ],
)  # fmt: skip
def test_other_questions_are_not(question: str) -> None:
    assert arithmetic_of(question) == ""


@given(st.integers(0, 10**6), st.sampled_from("+-*"), st.integers(1, 10**6))
def test_every_sum_of_two_numbers_is_recognised_with_its_value(left: int, sign: str, right: int) -> None:
    assert evaluate(arithmetic_of(f"What is {left} {sign} {right}?")) == eval(f"{left}{sign}{right}")


@pytest.mark.parametrize(
    ("question", "query", "kind"),
    [
        ("Where is the function start_pump defined?", "start_pump", "symbol"),
        ("Show me the definition of `Latch.stop`", "Latch.stop", "symbol"),
        ("Which file has the code with `max_kl`?", "max_kl", "literal"),
        ("In which class is VersionLedger implemented?", "VersionLedger", "symbol"),
    ],
)
def test_a_question_about_code_that_names_an_identifier_is_searched_for(question: str, query: str, kind: str) -> None:
    assert decide_tool(question) == ToolCall("code_search", {"query": query, "kind": kind})


@pytest.mark.parametrize("question", ["What is the access code of the gate?", "Who defined the metre?", "Write code"])
def test_words_about_code_without_an_identifier_are_looked_up(question: str) -> None:
    assert decide_tool(question) is None


ARGUMENTS = {"expression": "1 + 1"}
FUNCTION = {"name": "calculator", "arguments": json.dumps(ARGUMENTS)}


@pytest.mark.parametrize(
    "reply",
    [
        'CALL calculator {"expression": "1 + 1"}',
        ' \nCALL calculator {"expression": "1 + 1"}\n',
        json.dumps({"name": "calculator", "arguments": ARGUMENTS}),
        json.dumps(FUNCTION),
        json.dumps({"id": "call_1", "type": "function", "function": FUNCTION}),
        json.dumps({"tool_calls": [{"id": "call_1", "type": "function", "function": FUNCTION}]}),
    ],
)
def test_a_reply_that_is_a_call_is_read_in_both_forms(reply: str) -> None:
    assert read_call(reply) == ToolCall("calculator", ARGUMENTS)
    assert holds_call(reply)


@pytest.mark.parametrize(
    "reply",
    [
        "The answer is 2.",
        'I will CALL calculator {"expression": "1"}',
        'CALL calculator {"expression": "1"} and then answer',
        "CALL calculator 1 + 1",
        'CALL calculator ["1"]',
        "CALL calculator {broken}",
        'CALL a {"x": 1}\nCALL b {"x": 2}',
        json.dumps({"name": "calculator"}),
        json.dumps({"name": "calculator", "arguments": "not json"}),
        json.dumps({"name": ["calculator"], "arguments": {}}),
        json.dumps({"name": "calculator", "arguments": {}, "also": 1}),
        json.dumps({"tool_calls": [FUNCTION, FUNCTION]}),
        json.dumps({"tool_calls": []}),
        json.dumps([FUNCTION]),
        "[" * 100_000,
        "",
        "null",
    ],
)
def test_anything_else_is_no_call(reply: str) -> None:
    assert read_call(reply) is None


@given(st.text(max_size=200))
def test_no_reply_breaks_the_reader(reply: str) -> None:
    call = read_call(reply)
    assert call is None or isinstance(call.arguments, dict)
