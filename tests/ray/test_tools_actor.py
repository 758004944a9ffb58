"""The tools actor under a real Ray: calls, errors that keep their types, a stop and a kill while a program runs."""

from pathlib import Path
from typing import Any

import pytest
import ray
from ray.exceptions import RayActorError, RayTaskError

from actors.registry import ACTORS, ensure_actor
from autonomous.budget import BudgetConfig
from autonomous.config import SafetyConfig
from autonomous.safety.latch import Latch, LearningStopped
from autonomous.safety.processes import kill_registered, registered
from autonomous.tools.config import KnowledgeConfig, SandboxConfig
from autonomous.tools.tool import ToolError, UnknownTool
from cluster.processes import is_alive
from tests.waiting import until

ENDLESS = {"source": "open('began', 'w').close()\nwhile True: pass"}


@pytest.fixture(scope="module")
def tools(home: Path) -> Any:
    sandbox = SandboxConfig(min_isolation="interpreter", cpu_s=60, wall_s=60)
    config = KnowledgeConfig(enabled=("calculator", "python"), requested_by_model=("calculator",), sandbox=sandbox)
    arguments = {
        "config": config,
        "safety": SafetyConfig(),
        "budget": BudgetConfig(),
        "level": "high",
        "latch": home / "safety" / "latch",
        "ledger": home / "ledger.sqlite",
    }
    handle = ensure_actor("tools", ACTORS["tools"], arguments)
    ray.get(handle.identity.remote(), timeout=120)
    return handle


def program(home: Path) -> int:
    """The pid of the program that runs, once its first line has run."""
    records = registered(home / "safety").values()
    pids = [record.pid for record in records if record is not None and record.role == "tool"]
    return pids[0] if pids and Path(f"/proc/{pids[0]}/cwd/began").exists() else 0


def test_calls_are_answered_and_errors_keep_their_types_and_fields(tools: Any) -> None:
    assert ray.get(tools.call.remote("calculator", {"expression": "6 * 7"}, None, "api")).details["value"] == "42"
    assert ray.get(tools.call.remote("python", {"source": "6 * 7"}, None, "api")).text == "42"
    with pytest.raises(RayTaskError) as refused:
        ray.get(tools.call.remote("calculator", {"expression": "1 / 0"}, None, "api"))
    assert isinstance(refused.value.cause, ToolError)
    assert refused.value.cause.param == "expression"
    with pytest.raises(RayTaskError) as unknown:
        ray.get(tools.call.remote("rm", {}, None, "api"))
    assert isinstance(unknown.value.cause, UnknownTool)


def test_a_stop_ends_a_program_that_would_run_on(tools: Any, home: Path) -> None:
    running = tools.call.remote("python", ENDLESS, None, "api")
    until(lambda: program(home))
    pid = program(home)
    latch = Latch.open(home / "safety" / "latch")
    latch.stop(reason="test", by="tester")
    until(lambda: not is_alive(pid))
    with pytest.raises(RayTaskError) as stopped:
        ray.get(running, timeout=20)
    assert isinstance(stopped.value.cause, LearningStopped)
    latch.reset(reason="test over", by="tester")


def test_a_kill_ends_the_actor_with_its_program_and_it_comes_back_empty(tools: Any, home: Path) -> None:
    running = tools.call.remote("python", ENDLESS, None, "api")
    until(lambda: program(home))
    pid, actor_pid = program(home), ray.get(tools.identity.remote()).pid
    killed = {one.pid: one.is_gone for one in kill_registered(home / "safety", "learning")}
    assert (killed[pid], killed[actor_pid]) == (True, True)
    with pytest.raises(RayActorError):
        ray.get(running, timeout=60)

    def answers() -> bool:
        try:
            return bool(ray.get(tools.identity.remote(), timeout=60).is_restart)
        except RayActorError:
            return False

    until(answers, timeout_s=90)
    assert program(home) == 0
