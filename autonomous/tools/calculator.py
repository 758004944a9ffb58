"""Arithmetic without a model: Python's expressions over exact numbers, with every size bounded before it is computed.

In: a text such as "15% of 80" or "sqrt(2) * (3 - 0.1)". Out: its value. Integers and decimals are exact (rationals); what
has no exact value (roots that do not come out, logarithms, angles) is a float of 64 bits and is marked so. The text is
parsed by `ast` and walked; nothing is evaluated that the tables below do not name.
"""

import ast
import decimal
import math
import operator
import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Any

from pydantic import Field

from autonomous.tools.tool import Arguments, ToolArguments, ToolError, ToolResult, parse_arguments, schema_of, shown
from memory.types import Guard

Number = int | Fraction | float

MAX_CHARS = 1000
MAX_DIGITS = 1000
"""Of a numerator or a denominator."""
MAX_EXPONENT = 10_000
MAX_DEPTH = 60
MAX_COMB = 100_000
_MAX_BITS = int(MAX_DIGITS * math.log2(10)) + 1
_SHOWN_DIGITS = 60
_ABOUT_DIGITS = 15

_SIGNS = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-", "–": "-", "^": "\x00"})
_PERCENT = re.compile(r"(?<![\w.])(\d+(?:\.\d*)?|\.\d+)\s*%(?=\s*(?:$|[),*/+]|of\b))")
_UNCLEAR_PERCENT = re.compile(r"\d\s*%\s*-")
_OF = re.compile(r"\bof\b")


class CalculatorArguments(ToolArguments):
    """Of the calculator."""

    expression: str = Field(min_length=1, max_length=MAX_CHARS)
    """Arithmetic: + - * / // % ** ( ), sqrt exp log log2 log10 sin cos tan asin acos atan atan2 degrees radians abs round
    floor ceil min max comb factorial gcd lcm, pi, e; "15% of 80"."""


class Calculator:
    """See the module."""

    name = "calculator"
    description = "Works out arithmetic exactly. Use it for every sum, percentage, power or root."
    parameters = schema_of(CalculatorArguments)

    def call(self, arguments: Arguments, *, timeout_s: float, guard: Guard) -> ToolResult:
        """See Tool. The bounds on sizes keep it within milliseconds."""
        del timeout_s
        guard()
        expression = parse_arguments(CalculatorArguments, arguments).expression.strip()
        value = evaluate(expression)
        text = format_number(value)
        return ToolResult(f"{expression} = {text}", details={"value": text, "is_exact": not isinstance(value, float)})


def evaluate(expression: str) -> Number:
    """The value of an expression. Raises ToolError naming what cannot be worked out."""
    text = _as_python(expression)
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        what = error.msg if isinstance(error, SyntaxError) else str(error)
        raise _refused(expression, f"is not arithmetic ({what}); write it like 2 * (3 + 4)") from error
    try:
        return _Walk(text).value(tree.body, depth=0)
    except ZeroDivisionError as error:
        raise _refused(expression, "divides by zero; change the divisor") from error
    except OverflowError as error:
        raise _refused(expression, "is too large for a number of 64 bits; use smaller numbers") from error
    except (ValueError, TypeError) as error:
        if isinstance(error, ToolError):
            raise
        raise _refused(expression, f"has no value ({error}); change the arguments") from error


def format_number(value: Number) -> str:
    """Exact as a decimal where that ends within 60 digits; otherwise 15 digits, with the fraction if it is short."""
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return repr(value)
    with decimal.localcontext() as context:
        context.prec = _SHOWN_DIGITS
        context.clear_flags()
        exact = Decimal(value.numerator) / Decimal(value.denominator)
        if not context.flags[decimal.Inexact] and abs(exact.adjusted()) <= _SHOWN_DIGITS:
            return f"{exact:f}"
        context.prec = _ABOUT_DIGITS
        about = f"{+exact}"
    fraction = f"{value.numerator}/{value.denominator}"
    return f"{about} (exactly {fraction})" if len(fraction) <= _SHOWN_DIGITS else f"about {about}"


def _as_python(expression: str) -> str:
    """Signs of print, powers and percents as Python writes them."""
    text = expression.translate(_SIGNS).replace("\x00", "**").strip()
    if _UNCLEAR_PERCENT.search(text):
        raise _refused(
            expression, "is unclear: % before - may be a percent or a remainder; write (10%) - 3 or 10 % (-3)"
        )
    return _OF.sub("*", _PERCENT.sub(r"percent(\1)", text))


def _refused(expression: str, problem: str) -> ToolError:
    return ToolError(f"expression = {shown(expression)} {problem}", "expression")


class _Walk:
    """Walks one parsed expression. `text` is what was parsed: decimals are read from it, not from Python's floats."""

    def __init__(self, text: str) -> None:
        self._text = text

    def value(self, node: ast.expr, *, depth: int) -> Number:
        if depth > MAX_DEPTH:
            raise _refused(self._text, f"is nested deeper than {MAX_DEPTH} brackets; work out a part of it first")
        match node:
            case ast.Constant():
                return self._literal(node)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
                return self._checked(
                    _BINARY[type(op)](self.value(left, depth=depth + 1), self.value(right, depth=depth + 1))
                )
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -self.value(operand, depth=depth + 1)
            case ast.UnaryOp(op=ast.UAdd(), operand=operand):
                return self.value(operand, depth=depth + 1)
            case ast.Name(id=name) if name in _CONSTANTS:
                return _CONSTANTS[name]
            case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _FUNCTIONS:
                function, least, most = _FUNCTIONS[name]
                if not least <= len(args) <= most:
                    raise _refused(self._text, f"gives {name} {len(args)} arguments; it takes {least} to {most}")
                return self._checked(function(*(self.value(one, depth=depth + 1) for one in args)))
        part = ast.get_source_segment(self._text, node) or type(node).__name__
        raise _refused(
            self._text, f"holds {shown(part)}, which is not arithmetic; use numbers, + - * / // % ** and functions"
        )

    def _literal(self, node: ast.Constant) -> Number:
        if type(node.value) is int:
            return self._checked(node.value)
        if type(node.value) is not float:
            raise _refused(self._text, f"holds {shown(node.value)}, which is not a real number; use digits")
        try:
            written = Decimal((ast.get_source_segment(self._text, node) or "").replace("_", ""))
        except decimal.InvalidOperation as error:
            raise _refused(self._text, "holds a number that cannot be read; write it like 1.5e3") from error
        if abs(written.adjusted()) > MAX_DIGITS:
            raise self._too_long()
        return _exact(Fraction(written))

    def _checked(self, value: Number) -> Number:
        if isinstance(value, complex):
            raise _refused(self._text, "is not a real number (a root of a negative one); change its sign")
        if isinstance(value, float):
            if not math.isfinite(value):
                raise OverflowError
            return value
        if max(value.numerator.bit_length(), value.denominator.bit_length()) > _MAX_BITS:
            raise self._too_long()
        return _exact(value)

    def _too_long(self) -> ToolError:
        return _refused(self._text, f"has a number of more than {MAX_DIGITS} digits; use smaller ones")


def _exact(value: int | Fraction) -> int | Fraction:
    return value.numerator if value.denominator == 1 else value


def _divide(left: Number, right: Number) -> Number:
    if isinstance(left, float) or isinstance(right, float):
        return left / right
    return Fraction(left) / Fraction(right)


def _power(base: Number, exponent: Number) -> Number:
    """Sized before it is computed. A power that is no whole number is a float."""
    if not isinstance(exponent, int) or isinstance(base, float):
        result: Number = float(base) ** float(exponent)
        return result
    if abs(exponent) > MAX_EXPONENT:
        raise ToolError(f"expression has the exponent {exponent}; use at most {MAX_EXPONENT}", "expression")
    bits = max(abs(base.numerator).bit_length(), base.denominator.bit_length())
    if (bits - 1) * abs(exponent) > _MAX_BITS:
        raise ToolError(f"expression has a power of more than {MAX_DIGITS} digits; use smaller numbers", "expression")
    return Fraction(base) ** exponent


def _whole(value: Number, what: str) -> int:
    if not isinstance(value, int):
        raise ToolError(f"expression gives {what} {format_number(value)}, which is not a whole number", "expression")
    return value


def _factorial(n: Number) -> int:
    n = _whole(n, "factorial")
    if n > 0 and math.lgamma(min(n, MAX_COMB) + 1) / math.log(2) > _MAX_BITS:
        raise ToolError(
            f"expression has factorial({n}), of more than {MAX_DIGITS} digits; use a smaller one", "expression"
        )
    return math.factorial(n)


def _comb(n: Number, k: Number) -> int:
    n, k = _whole(n, "comb"), _whole(k, "comb")
    if n > MAX_COMB:
        raise ToolError(f"expression has comb({n}, ...); use at most {MAX_COMB}", "expression")
    if 0 <= k <= n:
        bits = (math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)) / math.log(2)
        if bits > _MAX_BITS:
            raise ToolError(
                f"expression has a comb of more than {MAX_DIGITS} digits; use smaller numbers", "expression"
            )
    return math.comb(n, k)


def _sqrt(value: Number) -> Number:
    if not isinstance(value, float) and value >= 0:
        root = Fraction(math.isqrt(value.numerator), math.isqrt(value.denominator))
        if root * root == value:
            return root
    return math.sqrt(value)


def _log(value: Number, base: Number = math.e) -> float:
    natural = math.log(value) if isinstance(value, int) else math.log(float(value))
    return natural if base == math.e else math.log(value, base)


def _round(value: Number, digits: Number = 0) -> Number:
    """Half to even, as Python."""
    digits = _whole(digits, "round")
    if abs(digits) > MAX_DIGITS:
        raise ToolError(f"expression rounds to {digits} digits; use at most {MAX_DIGITS}", "expression")
    return round(value, digits) if isinstance(value, float) else round(Fraction(value), digits)


_BINARY: Mapping[type[ast.operator], Callable[[Any, Any], Number]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: _divide,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: _power,
}
_CONSTANTS: Mapping[str, float] = {"pi": math.pi, "e": math.e, "tau": math.tau}
_MANY = 50
_FUNCTIONS: Mapping[str, tuple[Callable[..., Number], int, int]] = {
    "percent": (lambda value: _divide(value, 100), 1, 1),
    "sqrt": (_sqrt, 1, 1),
    "exp": (math.exp, 1, 1),
    "log": (_log, 1, 2),
    "ln": (_log, 1, 1),
    "log2": (math.log2, 1, 1),
    "log10": (math.log10, 1, 1),
    "sin": (math.sin, 1, 1),
    "cos": (math.cos, 1, 1),
    "tan": (math.tan, 1, 1),
    "asin": (math.asin, 1, 1),
    "acos": (math.acos, 1, 1),
    "atan": (math.atan, 1, 1),
    "atan2": (math.atan2, 2, 2),
    "degrees": (math.degrees, 1, 1),
    "radians": (math.radians, 1, 1),
    "abs": (abs, 1, 1),
    "round": (_round, 1, 2),
    "floor": (math.floor, 1, 1),
    "ceil": (math.ceil, 1, 1),
    "min": (lambda *values: min(values), 1, _MANY),
    "max": (lambda *values: max(values), 1, _MANY),
    "comb": (_comb, 2, 2),
    "factorial": (_factorial, 1, 1),
    "gcd": (lambda *values: math.gcd(*(_whole(one, "gcd") for one in values)), 1, _MANY),
    "lcm": (lambda *values: math.lcm(*(_whole(one, "lcm") for one in values)), 1, _MANY),
}
"""Name -> (function, fewest arguments, most)."""
FUNCTION_NAMES = frozenset(_FUNCTIONS) | frozenset(_CONSTANTS)
