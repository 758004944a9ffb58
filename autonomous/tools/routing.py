"""Which tool a question asks for, by rules: so that a weak model need not know. Pure.

In: a question. Out: a tool call, or what a model's reply asks for. Rules are narrow: what they do not know is looked up.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from autonomous.tools.calculator import FUNCTION_NAMES, evaluate
from autonomous.tools.tool import ToolError

_LEAD = re.compile(
    r"^(?:please\s+)?(?:what(?:'s|\s+is|\s+are)|how\s+much\s+(?:is|are)|calculate|compute|evaluate|work\s+out|solve)\b[\s:]*",
    re.IGNORECASE,
)
_WORDS = (
    (re.compile(r"\bplus\b"), "+"), (re.compile(r"\bminus\b"), "-"), (re.compile(r"\b(?:times|multiplied\s+by)\b"), "*"),
    (re.compile(r"\bdivided\s+by\b"), "/"), (re.compile(r"\b(?:to\s+the\s+power\s+of)\b"), "**"),
    (re.compile(r"\bsquared\b"), "**2"), (re.compile(r"\b(?:per\s?cent|percent)\b"), "%"),
    (re.compile(r"\bthe\s+square\s+root\s+of\s+([\d.]+)"), r"sqrt(\1)"),
)  # fmt: skip
_ARITHMETIC = re.compile(r"[\d\s.+\-*/%^()×÷·−,]|\b(?:" + "|".join(sorted({"of", *FUNCTION_NAMES})) + r")\b")
_SOMETHING_TO_DO = re.compile(r"[+\-*/%^×÷·−]|\(")
_IDENTIFIER = re.compile(
    r"`([^`\s]{2,100})`|\b([A-Za-z_]\w*(?:\.\w+)+\(?\)?|[a-z]\w*_\w+|[A-Z][a-z0-9]+[A-Z]\w*|\w+\(\))"
)
_ASKS_FOR_CODE = re.compile(
    r"\b(?:code|defined|definition|implement(?:ed|ation|s)?|function|method|class|source\s+file|which\s+file)\b",
    re.IGNORECASE,
)
_ASKS_FOR_DEFINITION = re.compile(r"\b(?:defined?|definition|implement\w*|class|function|method)\b", re.IGNORECASE)
_CALL_LINE = re.compile(r"CALL\s+([a-z_]+)\s+(\{.*\})")


_CALL_SYNTAX = re.compile(r"\bCALL\s+\w+\s*\{|\"tool_calls\"|\"(?:function|arguments)\"\s*:")


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that is to be made."""

    tool: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


def decide_tool(question: str) -> ToolCall | None:
    """The tool that a question asks for by itself; None: none of the rules knows it."""
    if expression := arithmetic_of(question):
        return ToolCall("calculator", {"expression": expression})
    if _ASKS_FOR_CODE.search(question) and (match := _IDENTIFIER.search(question)):
        symbol = (match[1] or match[2]).removesuffix("()")
        kind = "symbol" if _ASKS_FOR_DEFINITION.search(question) else "literal"
        return ToolCall("code_search", {"query": symbol, "kind": kind})
    return None


def arithmetic_of(question: str) -> str:
    """The expression that a question is nothing else but; "" if it is something else, or has no value."""
    text = _LEAD.sub("", question.strip()).rstrip(" ?=!.").strip()
    for words, sign in _WORDS:
        text = words.sub(sign, text)
    if not any(char.isdigit() for char in text) or not _SOMETHING_TO_DO.search(text) or _ARITHMETIC.sub("", text):
        return ""
    try:
        evaluate(text)
    except ToolError:
        return ""
    return text


def read_call(reply: str) -> ToolCall | None:
    """The call that a model's whole reply is: OpenAI's JSON, or one line `CALL name {"argument": "value"}`. Else None.

    Nothing is searched for inside of a longer reply: a call that is talked about is not made.
    """
    text = reply.strip()
    if match := _CALL_LINE.fullmatch(text):
        return _call(match[1], match[2])
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if isinstance(value, dict) and set(value) == {"tool_calls"} and isinstance(value["tool_calls"], list):
        value = value["tool_calls"][0] if len(value["tool_calls"]) == 1 else None
    if isinstance(value, dict) and "function" in value and set(value) <= {"id", "type", "function"}:
        value = value["function"]
    if isinstance(value, dict) and set(value) == {"name", "arguments"}:
        return _call(value["name"], value["arguments"])
    return None


def holds_call(text: str) -> bool:
    """Whether a text holds something like a call: a model that repeats it would make it."""
    return _CALL_SYNTAX.search(text) is not None


def _call(name: object, arguments: object) -> ToolCall | None:
    if isinstance(arguments, str):  # OpenAI sends them as a text
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return None
    if not isinstance(name, str) or not isinstance(arguments, dict):
        return None
    return ToolCall(name, arguments)
