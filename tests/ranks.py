"""Functions run on several ranks: torch.distributed over gloo, in processes forked for the one call.

In: a module-level function `f(rank, world_size, *arguments)`. Out: what each rank returned. The ranks are forked from a
server (tests/rank_server.py) that has imported torch, if asked DeepSpeed, and the function's module: it is started at the
first call of a session, in seconds, and a call then costs some tenths of one.
"""

import os
import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import torch

from tests.rank_server import Case, RankEnd

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "GLOO_SOCKET_IFNAME": "lo",
    "DS_ACCELERATOR": "cpu",
    "DEEPSPEED_LOG_LEVEL": "error",
}


class RanksFailed(Exception):
    """What the first rank to fail raised or died of, then how the others ended."""


def run_ranks(
    function: Callable[..., Any],
    world_size: int,
    *arguments: Any,
    timeout_s: float = 300,
    needs_deepspeed: bool = False,
) -> list[Any]:
    """Results of function(rank, world_size, *arguments) of all ranks, in order; what they print is printed after them.

    Every rank has torch.distributed initialised, one torch thread, and the environment of a launcher, but not that of
    this process: what a test sets there later is passed as an argument. Results travel by torch.save.
    Raises: RanksFailed if a rank raises or dies, within seconds; at `timeout_s`, with the stacks of the ranks that run.
    """
    with tempfile.TemporaryDirectory(prefix="ranks-") as name:
        case = Case(Path(name), function.__module__, world_size, timeout_s)
        (case.folder / "call").write_bytes(pickle.dumps((function, arguments)))
        server = _SERVERS.pop(needs_deepspeed, None) or _Server(has_deepspeed=needs_deepspeed)
        ends = server.run(case)
        _SERVERS[needs_deepspeed] = server
        for rank in range(world_size):
            sys.stdout.write(_read(case.file("output", rank)))
        if any(end.exit_code or not case.has_result(rank) for rank, end in enumerate(ends)):
            raise RanksFailed(_account(case, ends))
        return [torch.load(case.file("result", rank), weights_only=False) for rank in range(world_size)]


# How they failed.


def _account(case: Case, ends: list[RankEnd]) -> str:
    """The first error in full, then a line for each that followed, then what the ranks did that had to be ended.

    A death comes before all errors: it has no time, and the errors of the others say only that a connection is closed.
    """
    deaths, errors, others = [], [], []
    for rank, end in enumerate(ends):
        stamp, _, error = _read(case.file("error", rank)).partition("\n")
        if error:
            errors.append((int(stamp), rank, error.strip()))
        elif not end.was_ended and (end.exit_code or not case.has_result(rank)):
            deaths.append(f"rank {rank} died: {_cause(end.exit_code)}")
        elif case.has_result(rank):
            others.append(f"rank {rank} had returned, and waited for the others")
        else:
            stack = _read(case.file("stack", rank)) or "(it wrote no stack)"
            others.append(f"rank {rank} was still running:\n{stack}")
    told = list(deaths)
    for _, rank, error in sorted(errors):
        told.append(f"rank {rank} then raised {error.splitlines()[-1]}" if told else f"rank {rank} raised:\n{error}")
    if not told:
        told.append(f"not all of {case.world_size} ranks returned within {case.timeout_s} s")
    return "\n".join(told + others)


def _cause(exit_code: int) -> str:
    return f"signal {signal.Signals(-exit_code).name}" if exit_code < 0 else f"exit code {exit_code}"


def _read(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""


# The server, as seen from here.


class _Server:
    """A started server. It ends when `run` is left with an exception: its answer would be taken for that to another case."""

    def __init__(self, *, has_deepspeed: bool) -> None:
        self._connection, theirs = Pipe()
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115  as long as the server
        program = f"import tests.rank_server as s; s.serve({theirs.fileno()}, has_deepspeed={has_deepspeed})"
        self._process = subprocess.Popen(
            [sys.executable, "-c", program],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            cwd=Path(__file__).parents[1],
            env=os.environ | ENVIRONMENT,
            start_new_session=True,  # an interrupt from the keyboard is for the tests, which then end the server
        )
        theirs.close()

    def run(self, case: Case) -> list[RankEnd]:
        try:
            self._connection.send(case)
            ends: list[RankEnd] = self._connection.recv()
        except BaseException as error:
            self._connection.close()  # it then ends its ranks, and itself
            self._process.wait()
            if isinstance(error, EOFError | ConnectionError):
                self._log.seek(0)
                raise RuntimeError(f"the server that ranks are forked from died: {self._log.read()}") from error
            raise
        return ends


_SERVERS: dict[bool, _Server] = {}
"""One with DeepSpeed and one without, as far as asked for: importing it changes torch. A server at work is not in here."""
