"""`serve.parts.ToolParts` in one process."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autonomous.knowledge import KnowledgeIntegration, build_tools
from autonomous.safety.latch import Latch
from autonomous.tools.config import KnowledgeConfig, SandboxConfig
from autonomous.tools.tool import ToolResult, ToolUnavailable, UnknownTool
from autonomous.versions.ledger import VersionLedger
from memory.episodic import EpisodicMemory
from serve.errors import NotFoundError, NotReadyError


class LocalTools:
    """`serve.parts.ToolParts` in one process."""

    def __init__(self, folder: Path, *, episodic: EpisodicMemory, latch: Latch) -> None:
        self.ledger = VersionLedger(folder / "tools.sqlite")
        self.settings = KnowledgeConfig(
            min_cosine=0.2, max_prompt_chars=600, sandbox=SandboxConfig(min_isolation="interpreter")
        )
        tools = build_tools(self.settings, retrieve=episodic.recall, safety_folder=latch.path.parent)
        self.knowledge = KnowledgeIntegration(self.settings, tools=tools, latch=latch, audit=self.ledger.append_audit)

    async def describe(self) -> list[dict[str, Any]]:
        return self.knowledge.describe()

    async def config(self) -> KnowledgeConfig:
        return self.settings

    async def call(self, tool: str, arguments: Mapping[str, Any], *, timeout_s: float | None, by: str) -> ToolResult:
        try:
            return await asyncio.to_thread(self.knowledge.call, tool, arguments, timeout_s=timeout_s, by=by)
        except UnknownTool as problem:
            raise NotFoundError(str(problem)) from problem
        except ToolUnavailable as problem:
            raise NotReadyError(str(problem)) from problem
