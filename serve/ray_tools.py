"""ToolParts over the tools actor."""

from collections.abc import Mapping
from typing import Any

from autonomous.tools.config import KnowledgeConfig
from autonomous.tools.tool import ToolResult
from serve.ray_memory import CallActor


class RayToolParts:
    """`call` repeats an idempotent call while the actor restarts, `act` never repeats one that may have begun."""

    def __init__(self, call: CallActor, act: CallActor) -> None:
        self._call = call
        self._act = act

    async def describe(self) -> list[dict[str, Any]]:
        """See ToolParts."""
        return list(await self._call("tools", "describe"))

    async def call(self, tool: str, arguments: Mapping[str, Any], *, timeout_s: float | None, by: str) -> ToolResult:
        """See ToolParts. A program that was run twice would count twice."""
        result: ToolResult = await self._act("tools", "call", tool, dict(arguments), timeout_s, by)
        return result

    async def config(self) -> KnowledgeConfig:
        """See ToolParts."""
        config: KnowledgeConfig = await self._call("tools", "config")
        return config
