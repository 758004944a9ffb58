"""The calculator against Python's own arithmetic, and against expressions that would never end or fit."""

import math
import re
import time
from contextlib import suppress
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autonomous.tools.calculator import Calculator, evaluate, format_number
from autonomous.tools.tool import ToolError
from memory.store import no_guard

numbers = st.integers(-1000, 1000).map(lambda n: f"({n})")
decimals = st.decimals(-1000, 1000, allow_nan=False, places=3).map(lambda d: f"({d:f})")


def _combined(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    operators = st.sampled_from(["+", "-", "*", "/", "//", " % "])
    powers = st.tuples(inner, st.integers(-3, 3)).map(lambda pair: f"({pair[0]} ** ({pair[1]}))")
    pairs = st.tuples(inner, operators, inner).map(lambda one: f"({one[0]}{one[1]}{one[2]})")
    return st.one_of(pairs, powers, inner.map(lambda one: f"(-{one})"), inner.map(lambda one: f"abs({one})"))


def _python(expression: str) -> Any:
    """Python's evaluation, every number a Fraction."""
    tree = compile(_with_fractions(expression), "expression", "eval")
    return eval(tree, {"F": Fraction, "abs": abs})


def _with_fractions(expression: str) -> str:
    return re.sub(r"(?<![\w.])\d+(?:\.\d+)?", lambda match: f"F('{match.group()}')", expression)


@given(st.recursive(st.one_of(numbers, decimals), _combined, max_leaves=8))
def test_an_expression_has_exactly_the_value_that_python_gives_it_over_fractions(expression: str) -> None:
    try:
        expected = _python(expression)
    except ZeroDivisionError:
        with pytest.raises(ToolError, match="divides by zero"):
            evaluate(expression)
        return
    try:
        value = evaluate(expression)
    except ToolError:  # a number of more than 1000 digits: with so small ones only where powers are raised to powers
        assert "**" in expression
        return
    assert isinstance(value, int | Fraction)
    assert value == expected


@given(st.text(alphabet="0123456789.+-*/%^()e ,sqrtlogpiminfac", max_size=40))
def test_no_text_does_anything_but_give_a_number_or_a_tool_error_at_once(text: str) -> None:
    start = time.process_time()
    with suppress(ToolError):
        value = evaluate(text)
        assert isinstance(value, int | Fraction) or math.isfinite(value)
        assert format_number(value)
    assert time.process_time() - start < 1


@pytest.mark.parametrize(
    ("expression", "shown"),
    [
        ("0.1 + 0.2", "0.3"),
        ("15% of 80", "12"),
        ("200 + 10%", "200.1"),
        ("7 % 3", "1"),
        ("-7 % 3", "2"),
        ("-7 // 2", "-4"),
        ("2^10", "1024"),
        ("6 × 7 ÷ 2", "21"),
        ("1/3", "0.333333333333333 (exactly 1/3)"),
        ("2 ** -2", "0.25"),
        ("sqrt(2.25)", "1.5"),
        ("sqrt(2)", repr(math.sqrt(2))),
        ("round(2.675, 2)", "2.68"),
        ("comb(52, 5)", "2598960"),
        ("factorial(20)", "2432902008176640000"),
        ("max(1, 2.5, gcd(12, 18))", "6"),
        ("log(8, 2)", "3.0"),
        ("sin(pi/6)", repr(math.sin(math.pi / 6))),
        ("1e400 / 1e399", "10"),
    ],
)
def test_values_are_exact_where_they_can_be(expression: str, shown: str) -> None:
    result = Calculator().call({"expression": expression}, timeout_s=1, guard=no_guard)
    assert result.details["value"] == shown
    assert result.text == f"{expression} = {shown}"


@pytest.mark.parametrize(
    ("expression", "problem"),
    [
        ("9**9**9**9", "exponent"),
        ("2**10000", "1000 digits"),
        ("(2**3000) * (2**3000)", "1000 digits"),
        ("1e999999999", "1000 digits"),
        ("1e-999999999", "1000 digits"),
        ("factorial(10**9)", "1000 digits"),
        ("comb(10**9, 5)", "100000"),
        ("comb(100000, 50000)", "1000 digits"),
        ("round(1, 10**9)", "1000"),
        ("exp(1000)", "too large"),
        ("exp(700) * exp(700)", "too large"),
        ("(-8) ** 0.5", "not a real number"),
        ("sqrt(-1)", "has no value"),
        ("log(0)", "has no value"),
        ("1 / 0", "divides by zero"),
        ("10% - 3", "unclear"),
        ("(" * 80 + "1" + ")" * 80 + "+" * 80, "not arithmetic"),
        ("-" * 90 + "1", "nested deeper"),
        ("factorial(2.5)", "not a whole number"),
        ("sqrt()", "arguments"),
        ("True", "not a real number"),
        ("1j", "not a real number"),
        ("'a' * 9", "not a real number"),
        ("__import__('os').system('id')", "not arithmetic"),
        ("(1).__class__.__bases__", "not arithmetic"),
        ("open('/etc/passwd')", "not arithmetic"),
        ("[x for x in (1,)]", "not arithmetic"),
        ("(lambda: 1)()", "not arithmetic"),
        ("sqrt.__globals__", "not arithmetic"),
        ("min(*[1, 2])", "not arithmetic"),
        ("x := 3", "not arithmetic"),
        ("1 if 1 else 2", "not arithmetic"),
        ("f'{1}'", "not arithmetic"),
        ("1 + \x00", "not arithmetic"),
        ("", "expression"),
        ("1" * 1001, "expression"),
    ],
)
def test_hostile_and_endless_expressions_are_refused_by_name(expression: str, problem: str) -> None:
    start = time.process_time()
    with pytest.raises(ToolError, match="expression") as refused:
        Calculator().call({"expression": expression}, timeout_s=1, guard=no_guard)
    assert problem in str(refused.value)
    assert refused.value.param == "expression"
    assert time.process_time() - start < 0.5


def test_arguments_that_do_not_fit_are_named() -> None:
    for arguments, words in (({}, "is missing"), ({"expression": 3}, "expression = 3"), ({"expr": "1"}, "missing")):
        with pytest.raises(ToolError, match=words):
            Calculator().call(arguments, timeout_s=1, guard=no_guard)
