"""What the routes of the tools need. `serve.ray_tools` implements it over an actor: no tool runs in the HTTP process."""

from collections.abc import Mapping
from typing import Any, Protocol

from autonomous.tools.config import KnowledgeConfig
from autonomous.tools.tool import ToolResult


class ToolParts(Protocol):
    """The tools behind their routes."""

    async def describe(self) -> list[dict[str, Any]]:
        """As OpenAI's `tools` lists them."""

    async def call(self, tool: str, arguments: Mapping[str, Any], *, timeout_s: float | None, by: str) -> ToolResult:
        """Call one; never repeated. Raises NotFoundError, ToolError, NotReadyError (not on this machine), LearningStopped."""

    async def config(self) -> KnowledgeConfig:
        """What the tools run with."""
