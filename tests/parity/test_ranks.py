"""The harness that runs functions on ranks (tests/ranks.py): what it returns, and how it tells what went wrong."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from tests.ranks import RanksFailed, run_ranks
from tests.waiting import until

ROOT = Path(__file__).parents[2]
SOON_S = 15
"""Seconds, many times what it takes on a quiet machine, and far less than the time-out."""
STATE = ["as imported"]


# What the ranks do.


def _own_and_summed(rank: int, world_size: int, scale: float, rows: Tensor) -> tuple[int, int, Tensor]:
    own = rows * scale * (rank + 1)
    dist.all_reduce(own)
    return rank, world_size, own


def _surroundings(rank: int, world_size: int) -> dict[str, str | int]:
    names = ["RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT"]
    found: dict[str, str | int] = {name: os.environ[name] for name in [*names, "GLOO_SOCKET_IFNAME"]}
    return found | {
        "backend": dist.get_backend(), "world": dist.get_world_size(), "rank": dist.get_rank(),
        "threads": torch.get_num_threads(), "deepspeed": "deepspeed" in sys.modules,
    }  # fmt: skip


def _rank_1_raises(rank: int, world_size: int) -> None:
    if rank == 1:
        raise ValueError("num_experts = 3 is not divisible")
    dist.barrier()


def _all_raise_in_turn(rank: int, world_size: int) -> None:
    time.sleep(0.5 * (world_size - rank))
    raise ValueError(f"of rank {rank}")


def _rank_1_dies(rank: int, world_size: int, cause: str) -> None:
    if rank == 1 and cause == "signal SIGKILL":
        os.kill(os.getpid(), signal.SIGKILL)
    if rank == 1:
        os._exit(int(cause.rsplit(maxsplit=1)[-1]))
    dist.barrier()


def _all_leave(rank: int, world_size: int) -> None:
    os._exit(0)


def _rank_1_dies_and_the_others_sleep(rank: int, world_size: int) -> None:
    if rank == 1:
        os._exit(17)
    time.sleep(600)


def _rank_1_sleeps_for_ever(rank: int, world_size: int) -> None:
    if rank == 1:
        time.sleep(600)
    dist.barrier()


def _leaves_traces(rank: int, world_size: int) -> None:
    STATE.append("changed")
    os.environ["RANKS_TRACE"] = "set"
    torch.manual_seed(rank)
    dist.new_group([0])
    torch.ones(2, requires_grad=True).sum().backward()
    threading.Thread(target=time.sleep, args=(600,), daemon=True).start()


def _traces(rank: int, world_size: int) -> tuple[list[str], str | None, int, int]:
    return STATE, os.environ.get("RANKS_TRACE"), torch.initial_seed(), threading.active_count()


def _leaves_a_process_behind(rank: int, world_size: int) -> int:
    return subprocess.Popen(["sleep", "600"]).pid


def _returns_something_that_cannot_be_saved(rank: int, world_size: int) -> object:
    return threading.Lock()


def _prints(rank: int, world_size: int) -> None:
    print(f"printed by rank {rank}")  # noqa: T201


def _server_pid(rank: int, world_size: int) -> int:
    return os.getppid()


def _kills_the_server(rank: int, world_size: int) -> None:
    os.kill(os.getppid(), signal.SIGKILL)


def _writes_its_pid_and_sleeps(rank: int, world_size: int, folder: Path) -> None:
    (folder / str(os.getpid())).touch()
    time.sleep(600)


def _one_step_of_zero_1(rank: int, world_size: int, rows: Tensor) -> tuple[Tensor, list[str], bool]:
    import deepspeed.ops  # here, and not above: the other ranks of this file are without it

    before = set(sys.modules)
    model = _weights()
    engine, *_ = deepspeed.initialize(
        model=model,
        model_parameters=model.parameters(),
        config={
            "train_micro_batch_size_per_gpu": 1,
            "zero_optimization": {"stage": 1, "reduce_bucket_size": 1000, "allgather_bucket_size": 1000},
            "optimizer": {"type": "AdamW", "params": {"lr": 0.1, "weight_decay": 0.1, "torch_adam": True}},
        },
    )
    engine.backward(engine(rows[rank : rank + 1]).square().mean())
    engine.step()
    may_compile = deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"]
    return model.weight.detach(), sorted(set(sys.modules) - before), may_compile


def _weights() -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(4, 3)


def _wait_until_gone(pids: list[int]) -> None:
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), timeout_s=SOON_S)


# The claims.


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_each_rank_gets_the_arguments_and_their_results_come_back_in_order(world_size: int):
    results = run_ranks(_own_and_summed, world_size, 0.5, torch.arange(3.0))
    total = torch.arange(3.0) * 0.5 * sum(range(1, world_size + 1))
    assert [result[:2] for result in results] == [(rank, world_size) for rank in range(world_size)]
    for *_, summed in results:
        assert torch.equal(summed, total)


def test_a_rank_has_gloo_one_thread_and_the_environment_of_a_launcher():
    first, second = run_ranks(_surroundings, 2)
    own = {"RANK", "LOCAL_RANK", "rank"}
    assert {name: value for name, value in first.items() if name not in own} == {
        name: value for name, value in second.items() if name not in own
    }
    assert [first["RANK"], second["RANK"], first["LOCAL_RANK"], second["LOCAL_RANK"]] == ["0", "1", "0", "1"]
    assert [first["rank"], second["rank"]] == [0, 1]
    assert {first[name] for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_SIZE")} == {"2"}
    assert first["MASTER_ADDR"] == "127.0.0.1"
    assert int(first["MASTER_PORT"]) > 1023
    assert (first["GLOO_SOCKET_IFNAME"], first["backend"], first["world"], first["threads"]) == ("lo", "gloo", 2, 1)


def test_a_session_that_does_not_ask_for_deepspeed_does_not_import_it():
    program = "from tests.parity.test_ranks import _surroundings, run_ranks;"
    program += "print(run_ranks(_surroundings, 1)[0]['deepspeed'])"
    answer = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert answer.stdout == "False\n"


def test_an_error_is_told_in_full_and_first_and_the_others_errors_in_a_line_each():
    started = time.monotonic()
    with pytest.raises(RanksFailed) as failure:
        run_ranks(_rank_1_raises, 3)
    told = str(failure.value)
    assert told.startswith("rank 1 raised:\nTraceback")
    assert "in _rank_1_raises\n" in told
    assert told.count("Traceback") == 1
    ends = [line.partition(" ")[2].split(":")[0] for line in told.splitlines() if line.startswith("rank ")]
    assert ends[0] == "1 raised", told
    assert sorted(ends[1:]) == ["0 then raised RuntimeError", "2 then raised RuntimeError"], told
    assert "ValueError: num_experts = 3 is not divisible\n" in told
    assert time.monotonic() - started < SOON_S


def test_of_several_errors_the_earliest_is_the_one_told_in_full():
    with pytest.raises(RanksFailed) as failure:
        run_ranks(_all_raise_in_turn, 3)
    lines = [line for line in str(failure.value).splitlines() if line.startswith("rank ")]
    assert lines == [
        "rank 2 raised:", "rank 1 then raised ValueError: of rank 1", "rank 0 then raised ValueError: of rank 0",
    ]  # fmt: skip


@pytest.mark.parametrize("cause", ["exit code 17", "exit code 0", "signal SIGKILL"])
def test_a_rank_that_dies_without_an_error_is_named_with_its_cause_within_seconds(cause: str):
    started = time.monotonic()
    with pytest.raises(RanksFailed) as failure:
        run_ranks(_rank_1_dies, 2, cause)
    died, followed = str(failure.value).splitlines()
    assert died == f"rank 1 died: {cause}"
    assert followed.startswith("rank 0 then raised RuntimeError: ")
    assert time.monotonic() - started < SOON_S


def test_ranks_that_all_leave_without_a_result_and_without_an_error_have_failed():
    with pytest.raises(RanksFailed, match="rank 0 died: exit code 0\nrank 1 died: exit code 0"):
        run_ranks(_all_leave, 2)


def test_a_rank_that_does_not_notice_the_death_of_another_is_ended_within_seconds():
    started = time.monotonic()
    with pytest.raises(RanksFailed) as failure:
        run_ranks(_rank_1_dies_and_the_others_sleep, 3)
    lines = [line for line in str(failure.value).splitlines() if line.startswith("rank ")]
    assert lines == ["rank 1 died: exit code 17", "rank 0 was still running:", "rank 2 was still running:"]
    assert time.monotonic() - started < SOON_S


def test_a_hang_ends_at_the_time_out_with_the_stack_of_every_rank():
    started = time.monotonic()
    with pytest.raises(RanksFailed) as failure:
        run_ranks(_rank_1_sleeps_for_ever, 2, timeout_s=2)
    told = str(failure.value)
    first, second = told.split("rank 1 was still running:")
    assert first.startswith("not all of 2 ranks returned within 2 s\nrank 0 was still running:\n")
    assert "in barrier\n" in first
    assert "in barrier\n" not in second
    for stack in (first, second):
        assert "in _rank_1_sleeps_for_ever\n" in stack
    assert 2 <= time.monotonic() - started < SOON_S


def test_a_call_finds_nothing_of_the_one_before():
    before = run_ranks(_traces, 2)
    run_ranks(_leaves_traces, 2)
    assert run_ranks(_traces, 2) == before
    for state, variable, _, num_threads in before:
        assert (state, variable, num_threads) == (["as imported"], None, 1)


def test_a_call_after_one_that_failed_works():
    with pytest.raises(RanksFailed):
        run_ranks(_rank_1_dies, 2, "signal SIGKILL")
    assert len(run_ranks(_traces, 2)) == 2


def test_processes_that_a_rank_leaves_behind_are_killed():
    _wait_until_gone(run_ranks(_leaves_a_process_behind, 2))


def test_a_result_that_cannot_be_saved_is_an_error_of_its_rank():
    with pytest.raises(RanksFailed, match=r"rank 0 raised:[\s\S]*TypeError: cannot pickle '_thread\.lock' object"):
        run_ranks(_returns_something_that_cannot_be_saved, 1)


def test_what_ranks_print_is_printed_in_their_order(capsys: pytest.CaptureFixture[str]):
    run_ranks(_prints, 2)
    assert capsys.readouterr().out == "printed by rank 0\nprinted by rank 1\n"


def test_a_server_that_died_is_told_and_replaced():
    with pytest.raises(RuntimeError, match="the server that ranks are forked from died"):
        run_ranks(_kills_the_server, 1)
    first, second = run_ranks(_server_pid, 1), run_ranks(_server_pid, 1)
    assert first == second


def test_a_module_that_starts_a_thread_is_refused_for_a_fork_would_lose_it(tmp_path: Path):
    module = "import threading, time\nthreading.Thread(target=time.sleep, args=(600,), daemon=True).start()\n"
    (tmp_path / "starts_a_thread.py").write_text(module + "def nothing(rank, world_size): ...\n", encoding="utf-8")
    program = "from starts_a_thread import nothing; from tests.ranks import run_ranks; run_ranks(nothing, 1)"
    answer = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "RuntimeError: importing starts_a_thread started the threads {'python'}" in answer.stderr


def test_ranks_end_with_the_process_of_the_tests(tmp_path: Path):
    program = "import pathlib, tests.parity.test_ranks as t;"
    program += f"t.run_ranks(t._writes_its_pid_and_sleeps, 2, pathlib.Path({str(tmp_path)!r}))"
    tests = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT)
    try:
        until(lambda: len(list(tmp_path.iterdir())) == 2 or tests.poll() is not None, timeout_s=60)
        pids = [int(file.name) for file in tmp_path.iterdir()]
        assert len(pids) == 2
    finally:
        tests.kill()
        tests.wait()
    _wait_until_gone(pids)


def test_a_step_of_zero_1_equals_one_process_imports_next_to_nothing_and_compiles_nothing():
    rows = torch.arange(8.0).view(2, 4)
    results = run_ranks(_one_step_of_zero_1, 2, rows, needs_deepspeed=True)
    model = _weights()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    model(rows).square().mean().backward()
    optimizer.step()
    for weight, imported, may_compile in results:
        torch.testing.assert_close(weight, model.weight.detach(), rtol=1e-6, atol=1e-6)
        assert not torch.equal(weight, _weights().weight)
        assert len(imported) < 20, imported
        assert not may_compile
