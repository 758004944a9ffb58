"""The tools actor: calls tools in a process of its own, so that what they read and run is never in the HTTP process."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray

from actors.base import Shell
from actors.stores import remote_store
from autonomous.budget import BudgetConfig
from autonomous.config import SafetyConfig
from autonomous.cycle_watch import open_budget
from autonomous.knowledge import KnowledgeIntegration, build_tools, count_calls
from autonomous.safety.latch import Latch
from autonomous.safety.monitor import SafetyMonitor
from autonomous.safety.processes import register
from autonomous.safety.screen import Level
from autonomous.tools.config import KnowledgeConfig
from autonomous.tools.tool import ToolResult
from autonomous.versions.ledger import VersionLedger
from memory.types import EpisodeFilter, RecallHit


class ToolsShell(Shell):
    """Holds the KnowledgeIntegration. A stop of learning ends a call that runs within a second; a kill ends the actor with the
    programs that it has started.
    """

    def __init__(
        self,
        settings_sha256: str,
        *,
        config: KnowledgeConfig,
        safety: SafetyConfig,
        budget: BudgetConfig,
        level: Level,
        latch: Path,
        ledger: Path,
    ) -> None:
        super().__init__("tools", settings_sha256)
        register(latch.parent, role="tools", within="learning")
        self._config = config
        opened, audit = Latch.open(latch), VersionLedger(ledger).append_audit
        monitor = SafetyMonitor(opened, audit=audit, rules=safety.rules, level=level)
        self._knowledge = KnowledgeIntegration(
            config,
            tools=build_tools(config, retrieve=_recall, safety_folder=latch.parent),
            latch=opened,
            audit=audit,
            level=level,
            on_call=count_calls(monitor, open_budget(ledger.parent, budget)),
        )

    @ray.method(concurrency_group="control")
    def describe(self) -> list[dict[str, Any]]:
        """As OpenAI's `tools` lists them."""
        return self._knowledge.describe()

    @ray.method(concurrency_group="control")
    def config(self) -> KnowledgeConfig:
        """What the tools run with."""
        return self._config

    @ray.method(concurrency_group="call")
    def call(self, tool: str, arguments: dict[str, Any], timeout_s: float | None, by: str) -> ToolResult:
        """Call a tool. Raises what KnowledgeIntegration.call raises."""
        return self._knowledge.call(tool, arguments, timeout_s=timeout_s, by=by)


def _recall(query: str, *, k: int, min_cosine: float, where: EpisodeFilter) -> Sequence[RecallHit]:
    """The episodic actor's recall."""
    return remote_store("episodic").recall(query, k=k, min_cosine=min_cosine, where=where)
