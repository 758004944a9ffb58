"""KnowledgeIntegration: retrieval and tools in one interface, each call through a permit.

In: a tool's name and arguments, or a question. Out: a result that was screened, or an answer with its steps and citations.
A call asks the stop latch before it begins and before its result is given, and leaves two rows in the audit log, the first
before it begins: which tool, the hash of its arguments, what became of it; never the arguments or the result.
"""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from autonomous.budget import Budget
from autonomous.safety.latch import Latch
from autonomous.safety.monitor import SafetyMonitor
from autonomous.safety.screen import Level, SafetyScreen
from autonomous.tools.calculator import Calculator
from autonomous.tools.code_search import CodeSearch
from autonomous.tools.config import KnowledgeConfig, ToolName
from autonomous.tools.documentation import DocumentationLookup
from autonomous.tools.plan import BY_MODEL, BY_PLAN, Ask, Call, KnowledgeAnswer, Message, Plan
from autonomous.tools.python_sandbox import PythonSandbox
from autonomous.tools.quoting import shortened
from autonomous.tools.tool import Arguments, Retrieve, Tool, ToolError, ToolResult, ToolUnavailable, UnknownTool
from autonomous.versions.audit import sha256_of
from train.data.pii import SECRET_KINDS, mask_sensitive

Json = dict[str, Any]
CallTool = Callable[[Call], Awaitable[ToolResult]]
"""Does a step of a plan. Raises as KnowledgeIntegration.call."""
Generate = Callable[[Sequence[Message]], Awaitable[str]]
"""Chat messages in, the model's reply out."""


def build_tools(config: KnowledgeConfig, *, retrieve: Retrieve, safety_folder: Path) -> list[Tool]:
    """The tools that are enabled, in the order of the configuration."""
    kinds: dict[ToolName, Callable[[], Tool]] = {
        "calculator": Calculator,
        "code_search": lambda: CodeSearch(config.code, retrieve=retrieve),
        "documentation": lambda: DocumentationLookup(
            retrieve, num_passages=config.num_passages, min_cosine=config.min_cosine
        ),
        "python": lambda: PythonSandbox(config.sandbox, safety_folder=safety_folder),
    }
    return [kinds[name]() for name in dict.fromkeys(config.enabled)]


def describe_tools(tools: Collection[Tool]) -> list[Json]:
    """The tools as OpenAI's `tools` lists them."""
    return [
        {
            "type": "function",
            "function": {"name": tool.name, "description": tool.description, "parameters": tool.parameters},
        }
        for tool in tools
    ]


async def answer_with_tools(plan: Plan, *, call: CallTool, generate: Generate) -> KnowledgeAnswer:
    """Do what the plan of a question says, wherever its tools and its model are.

    Raises LearningStopped, BudgetExceeded, and what `generate` raises.
    """
    while True:
        match plan.next():
            case Call() as step:
                try:
                    plan.add_result(await call(step))
                except (ToolError, ToolUnavailable) as error:
                    plan.add_failure(str(error))
            case Ask(messages=messages):
                plan.add_reply(await generate(messages))
            case KnowledgeAnswer() as answer:
                return answer


def count_calls(monitor: SafetyMonitor, budget: Budget) -> Callable[[str], None]:
    """Before each call: the monitor sees a model's, the budget pays for everybody's. Raises BudgetExceeded."""

    def count(by: str) -> None:
        if by == BY_MODEL:
            monitor.observe_action("tool")
        reservation = budget.reserve("tool_calls", 1, f"tool-{secrets.token_hex(6)}")
        budget.settle(reservation, {"tool_calls": 1})

    return count


class KnowledgeIntegration:
    """See the module. `audit` is VersionLedger.append_audit. Thread-safe."""

    def __init__(
        self,
        config: KnowledgeConfig,
        *,
        tools: Sequence[Tool],
        latch: Latch,
        audit: Callable[..., Any],
        level: Level = "high",
        on_call: Callable[[str], object] = lambda by: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`on_call` is told before each call by whom it is made."""
        self._on_call = on_call
        self._config = config
        self._tools = {tool.name: tool for tool in tools}
        self._latch = latch
        self._audit = audit
        self._screen = SafetyScreen(level)
        self._clock = clock

    def describe(self) -> list[Json]:
        """The tools as OpenAI's `tools` lists them."""
        return describe_tools(self._tools.values())

    def call(self, tool: str, arguments: Arguments, *, timeout_s: float | None = None, by: str = BY_PLAN) -> ToolResult:
        """Call a tool, within what a question may use if no time is given.

        Raises UnknownTool, ToolError, ToolUnavailable, BudgetExceeded, LearningStopped (also if it is stopped meanwhile:
        there is no result).
        """
        if tool not in self._tools:
            raise UnknownTool(f"there is no tool {tool[:50]!r}; GET /v1/tools lists {', '.join(self._tools) or 'none'}")
        permit = self._latch.permit("tool call")
        self._on_call(by)
        asked = {"tool": tool, "arguments_sha256": sha256_of(dict(arguments))}
        limit_s = self._config.max_seconds if timeout_s is None else min(timeout_s, self._config.max_seconds)
        if limit_s <= 0:
            raise ToolError("the time of the question is used up (knowledge.max_seconds); ask for less")
        self._audit(actor=by, action="tool.call", subject=tool, before=asked)
        start = self._clock()
        outcome = "failed"
        try:
            permit.check()
            result = self._screened(self._tools[tool].call(arguments, timeout_s=limit_s, guard=permit.check))
            permit.check()
            outcome = "error" if result.is_error else "withheld" if result.is_withheld else "done"
            return result
        except Exception as error:
            outcome = type(error).__name__
            raise
        finally:
            after = {"outcome": outcome, "seconds": round(self._clock() - start, 4)}
            self._audit(actor=by, action="tool.result", subject=tool, before=asked, after=after)

    async def answer(self, question: str, *, generate: Generate) -> KnowledgeAnswer:
        """Answer a question with these tools, called in threads, and a model. Raises as `answer_with_tools`."""

        async def call(step: Call) -> ToolResult:
            wanted = step.call
            return await asyncio.to_thread(
                self.call, wanted.tool, wanted.arguments, timeout_s=step.timeout_s, by=step.by
            )

        plan = Plan(question, config=self._config, tools=self._tools.values(), clock=self._clock)
        return await answer_with_tools(plan, call=call, generate=generate)

    def _screened(self, result: ToolResult) -> ToolResult:
        """Cut, without secrets, and with what the screen found in it."""
        text, counts = mask_sensitive(result.text, kinds=SECRET_KINDS)
        text = shortened(text, max_chars=self._config.max_result_chars)
        verdict = self._screen.screen_document(text)
        details = {**result.details, "masked": counts} if counts else result.details
        is_withheld = verdict.decision == "quarantine"
        citations = tuple(
            replace(one, title=mask_sensitive(one.title, kinds=SECRET_KINDS)[0]) for one in result.citations
        )
        return replace(
            result, text=text, citations=citations, details=details, flags=verdict.reasons, is_withheld=is_withheld
        )
