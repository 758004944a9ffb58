"""Bring-up before Ray: what is refused, with which sentence, and that nothing is left."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from actors.registry import note_num_shards, told_store_problem
from autonomous.home_lock import own_home
from autonomous.safety.processes import register, registered
from cluster.config import SystemConfig, load_config
from cluster.jobs.agent import main as start_agent
from cluster.processes import HOME_VARIABLE, end_processes, find_processes
from cluster.state import RunningState, read_state, write_state
from cluster.stop import NotUp, bring_down
from cluster.up import AlreadyUp, BringUpError, PortInUse, StageClock, bring_up, deploy, prepare_model
from tests.tiny_model import write_tiny_llama


def quiet(_: str, __: float | None) -> None:
    """No progress."""


def config_of(folder: Path, **overrides: object) -> SystemConfig:
    path = folder / "system.toml"
    path.write_text(f'home = "{folder / "home"}"\n[http]\nport = 0\n', encoding="utf-8")
    return load_config(path, overrides=overrides)


def sleeper(home: Path) -> subprocess.Popen[bytes]:
    """A process that carries the home in its environment, as every worker of a system does."""
    code = "import time; time.sleep(600)"
    return subprocess.Popen([sys.executable, "-c", code], env=os.environ | {HOME_VARIABLE: str(home)})


def test_port_in_use_is_refused_by_name_before_anything_is_started(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        config = config_of(tmp_path, **{"http.port": taken.getsockname()[1]})
        with pytest.raises(PortInUse, match=r"http\.port"):
            bring_up(config, on_stage=quiet)
    assert find_processes(config.home) == []


def test_model_folder_with_a_missing_shard_is_named_with_the_fix(tmp_path: Path) -> None:
    folder = write_tiny_llama(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": {"lm_head.weight": "model-00002-of-00002.safetensors"}})
    )
    config = config_of(tmp_path, **{"model.source": str(folder)})
    with pytest.raises(BringUpError, match=r"model-00002-of-00002\.safetensors"):
        prepare_model(config)


def test_a_memory_that_cannot_be_opened_is_told_before_an_actor_is_created(tmp_path: Path) -> None:
    def deployed(**memory: object) -> None:
        config = config_of(tmp_path, **{f"memory.{name}": value for name, value in memory.items()})
        deploy(config, model_folder=tmp_path, http_port=1, clock=StageClock(quiet))

    with pytest.raises(BringUpError, match=r"PostgreSQL at .* does not answer"):
        deployed(database="postgresql://nobody@127.0.0.1:1/none")
    note_num_shards(tmp_path / "home" / "memory", num_shards=2)
    with pytest.raises(BringUpError, match=r"memory.num_shards = 3.*were written with 2: set it back"):
        deployed(num_shards=3)


def test_a_store_that_an_actor_cannot_open_is_told_without_the_trace() -> None:
    told = (
        'The actor died because of an error raised in its creation task\n  File "store.py", line 128\n'
        "memory.store.StoreProblem: database ledger.sqlite has schema version 1, this program needs 2.\n"
    )
    assert told_store_problem(told) == "database ledger.sqlite has schema version 1, this program needs 2."
    assert told_store_problem("The actor died: out of memory") == ""


def test_the_home_of_a_live_one_process_agent_is_refused_and_its_processes_stay_registered(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    with own_home(config.home):
        register(config.home / "safety", role="learner", within="learner")
        with pytest.raises(BringUpError, match=r"another agent works in it.*give another home"):
            bring_up(config, on_stage=quiet)
        assert registered(config.home / "safety")
    assert find_processes(config.home) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "error: .*no-such.toml"),
        ("colour = 1", "error: .*colour"),
        ("[http]\nport = 0", r"error: http\.port = 0 .*set http\.port to a fixed number"),
        ('[model]\nsource = "nowhere"', r"error: model\.source = 'nowhere'"),
    ],
)
def test_the_job_that_starts_the_agent_ends_with_a_sentence_and_not_with_a_trace(
    text: str | None, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "no-such.toml"
    if text is not None:
        path.write_text(f'home = "{tmp_path / "home"}"\n{text}\n', encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["agent", "--config", str(path)])
    with pytest.raises(SystemExit, match=words):
        start_agent()


def test_running_system_and_left_processes_refuse_a_second_start_and_down_ends_exactly_them(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    config.home.mkdir()
    mine, other = sleeper(config.home), sleeper(tmp_path / "another-home")
    try:
        with pytest.raises(AlreadyUp, match="autonomous down"):
            bring_up(config, on_stage=quiet)
        write_state(config.home, running(mine))
        with pytest.raises(AlreadyUp, match=r"http://127\.0\.0\.1:1"):
            bring_up(config, on_stage=quiet)
        report = bring_down(config.home, on_stage=quiet)
        assert report.num_processes_ended == 1
        assert mine.wait(timeout=10) != 0
        assert other.poll() is None
        assert read_state(config.home) is None
        with pytest.raises(NotUp):
            bring_down(config.home, on_stage=quiet)
    finally:
        mine.kill()
        other.kill()
        mine.wait()
        other.wait()


def running(process: subprocess.Popen[bytes]) -> RunningState:
    return RunningState(
        url="http://127.0.0.1:1",
        dashboard_url="",
        ray_address="",
        ray_temp_dir="/nonexistent",
        token_path="",
        head_pid=process.pid,
        head_created_at=psutil.Process(process.pid).create_time(),
        started_at=time.time(),
        config_path="",
        session_dir="",
    )


def test_a_process_that_only_just_began_is_found(tmp_path: Path) -> None:
    """The kernel shows no environment while a program begins: of 300 such looks, 6 saw none."""
    for _ in range(40):
        process = sleeper(tmp_path)
        try:
            assert [found.pid for found in find_processes(tmp_path)] == [process.pid]
        finally:
            process.kill()
            process.wait()


def test_state_of_a_reused_pid_is_not_taken_for_the_running_system(tmp_path: Path) -> None:
    process = sleeper(tmp_path)
    try:
        state = running(process)
        write_state(tmp_path, RunningState(**{**vars(state), "head_created_at": state.head_created_at - 100}))
        assert read_state(tmp_path) is None
    finally:
        end_processes(tmp_path, head_pid=None, grace_s=0)
        process.wait()
