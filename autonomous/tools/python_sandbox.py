"""Runs a Python program that nobody has vouched for: in a process of its own, shut in, within limits.

In: the source. Out: what it printed, and how it was shut in (`details["isolation"]`). The strongest isolation that the machine
allows is found at the first call; below the configured minimum nothing is run. What each level guarantees: docs/security.md.
"""

import signal
from pathlib import Path

from pydantic import Field

from autonomous.tools.config import Isolation, SandboxConfig
from autonomous.tools.confined_process import Outcome, run_confined, strongest_isolation
from autonomous.tools.tool import Arguments, ToolArguments, ToolError, ToolResult, parse_arguments, schema_of
from memory.types import Guard


class PythonArguments(ToolArguments):
    """Of the sandbox."""

    source: str = Field(min_length=1)
    """A Python 3 program on the standard library. What it prints is the result, and the value of its last line if that is an
    expression. It has no network, and files in its own folder alone."""


class PythonSandbox:
    """See the module. Each call is a process of its own; nothing stays between calls."""

    name = "python"
    description = (
        "Runs a short Python program (standard library, no network, no files of yours) and gives what it prints."
    )
    parameters = schema_of(PythonArguments)

    def __init__(self, config: SandboxConfig, *, safety_folder: Path) -> None:
        self._config = config
        self._safety_folder = safety_folder
        self._isolation: Isolation | None = None

    def isolation(self) -> Isolation:
        """How programs are shut in here; tried once. Raises ToolUnavailable if that is below the minimum."""
        if self._isolation is None:
            self._isolation = strongest_isolation(self._config, safety_folder=self._safety_folder)
        return self._isolation

    def call(self, arguments: Arguments, *, timeout_s: float, guard: Guard) -> ToolResult:
        """See Tool. A program that fails or is ended is a result with `is_error`."""
        source = parse_arguments(PythonArguments, arguments).source
        if len(source) > self._config.source_chars:
            raise ToolError(
                f"source has {len(source)} characters; {self._config.source_chars} are allowed "
                "(knowledge.sandbox.source_chars): shorten it",
                "source",
            )
        outcome = run_confined(
            source,
            level=self.isolation(),
            config=self._config,
            timeout_s=timeout_s,
            guard=guard,
            safety_folder=self._safety_folder,
        )
        return ToolResult(
            _text(outcome),
            is_error=bool(outcome.ended) or outcome.status != 0,
            details={
                "isolation": outcome.isolation, "status": outcome.status, "ended": outcome.ended, "seconds": outcome.seconds,
            },
        )  # fmt: skip


def _text(outcome: Outcome) -> str:
    parts = [outcome.output.rstrip("\n")]
    if outcome.errors.strip():
        parts.append(f"errors:\n{outcome.errors.rstrip()}")
    if outcome.ended:
        parts.append(f"The program was ended: {outcome.ended}.")
    elif outcome.status < 0:
        parts.append(f"The program was ended by {signal.Signals(-outcome.status).name}.")
    elif outcome.status:
        parts.append(f"The program ended with status {outcome.status}.")
    return "\n".join(part for part in parts if part) or "The program printed nothing."
