"""ToolParts over the tools actor."""

from collections.abc import Mapping
from typing import Any

from autonomous.tools.config import KnowledgeConfig
from autonomous.tools.tool import ToolResult
from serve.ray_calls import ActorCalls


class RayToolParts:
    """Implements `serve.tool_parts.ToolParts`."""

    def __init__(self, calls: ActorCalls) -> None:
        self._calls = calls

    async def describe(self) -> list[dict[str, Any]]:
        """See ToolParts."""
        return list(await self._calls.call("tools", "describe"))

    async def call(self, tool: str, arguments: Mapping[str, Any], *, timeout_s: float | None, by: str) -> ToolResult:
        """See ToolParts. A program that was run twice would count twice."""
        result: ToolResult = await self._calls.act("tools", "call", tool, dict(arguments), timeout_s, by)
        return result

    async def config(self) -> KnowledgeConfig:
        """See ToolParts."""
        config: KnowledgeConfig = await self._calls.call("tools", "config")
        return config
