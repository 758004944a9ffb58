"""The sandbox with real processes: what a program can do, what it is kept from, and that a stop ends it.

Each wall is tried at each level of isolation that this machine has; a program that gets through one prints THROUGH.
"""

import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import pytest

from autonomous.safety.processes import FOLDER, registered
from autonomous.tools import confined_process
from autonomous.tools.config import LEVELS, Isolation, SandboxConfig
from autonomous.tools.confined_process import (
    NotConfined,
    Outcome,
    run_confined,
    strongest_isolation,
)
from autonomous.tools.python_sandbox import PythonSandbox
from autonomous.tools.syscall_filter import build_filter
from autonomous.tools.tool import ToolError, ToolUnavailable
from memory.store import no_guard
from memory.types import Guard

SMALL = SandboxConfig(cpu_s=2, wall_s=10, memory_bytes=256 << 20)


@cache
def _holds(level: Isolation) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        try:
            run_confined("", level=level, config=SMALL, timeout_s=10, guard=no_guard, safety_folder=Path(folder))
        except NotConfined:
            return False
    return True


def _level(request: pytest.FixtureRequest) -> Isolation:
    if not _holds(request.param):
        pytest.skip(f"this machine does not allow the isolation {request.param}")
    level: Isolation = request.param
    return level


level = pytest.fixture(_level, params=LEVELS, name="level")
kernel_level = pytest.fixture(_level, params=LEVELS[1:], name="kernel_level")
"""At the lowest level the interpreter guards itself, and promises less."""


@pytest.fixture
def strongest(tmp_path: Path) -> Isolation:
    return strongest_isolation(SandboxConfig(min_isolation="interpreter"), safety_folder=tmp_path)


def _run(
    source: str, level: Isolation, folder: Path, *, config: SandboxConfig = SMALL, guard: Guard = no_guard
) -> Outcome:
    return run_confined(source, level=level, config=config, timeout_s=20, guard=guard, safety_folder=folder)


def test_a_program_computes_prints_and_shows_its_last_value(level: Isolation, tmp_path: Path) -> None:
    source = (
        "import json, decimal, re, statistics, datetime, threading\n"
        "thread = threading.Thread(target=lambda: print('thread'))\nthread.start(); thread.join()\n"
        "open('a.txt', 'w').write('kept'); print(open('a.txt').read())\n"
        "statistics.mean([1, 2, 6])"
    )
    outcome = _run(source, level, tmp_path)
    assert (outcome.output, outcome.errors, outcome.status, outcome.isolation) == ("thread\nkept\n3\n", "", 0, level)


def test_standard_libraries_with_shared_objects_and_an_event_loop_work_where_the_kernel_guards(tmp_path: Path) -> None:
    if not _holds("kernel"):
        pytest.skip("this machine does not allow the isolation kernel")
    source = (
        "import asyncio, hashlib, sqlite3, ssl, ctypes, csv, zlib\n"
        "async def main():\n    await asyncio.sleep(0.001)\n"
        "    return sqlite3.connect(':memory:').execute('select 7').fetchone()\n"
        "print(asyncio.run(main()), hashlib.sha256(b'').hexdigest()[:4])\n"
    )
    assert _run(source, "kernel", tmp_path).output == "(7,) e3b0\n"


WALLS = {
    "read a file": "open('/etc/passwd').read()",
    "read by descriptor": "os.read(os.open('/etc/passwd', os.O_RDONLY), 1)",
    "list a folder": "os.listdir('/')",
    "climb out": "open('../../../../../../etc/hostname').read()",
    "write outside": "open({victim!r}, 'a').write('x')",
    "create outside": "open({victim!r} + '.new', 'w')",
    "create in the parent": "open('../new-in-parent', 'w')",
    "remove a file": "os.remove({victim!r})",
    "move a file": "os.rename({victim!r}, 'mine')",
    "cut a file": "os.truncate({victim!r}, 0)",
    "change modes": "os.chmod({victim!r}, 0o777)",
    "change times": "os.utime({victim!r}, (0, 0))",
    "symbolic link": "os.symlink({victim!r}, 'a')",
    "hard link": "os.link({victim!r}, 'b')",
    "make folders": "os.mkdir('c')",
    "look at processes": "open('/proc/self/environ').read()",
    "internet socket": "import socket; socket.socket()",
    "local socket": "import socket; socket.socket(socket.AF_UNIX)",
    "datagram pair": "import socket; socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)",
    "limits of another": "import resource as r; r.prlimit({pid}, r.RLIMIT_CPU)",
    "signals by owner": "import fcntl; fcntl.fcntl(1, fcntl.F_SETOWN, {pid})",
    "signal a process": "os.kill({pid}, 0)",
    "shell": "assert os.system('true') == 0",
    "start a program": "import subprocess; subprocess.run(['true'], check=True)",
    "spawn": "os.posix_spawn('/bin/true', ['true'], {{}})",
    "fork": "0 if os.fork() else os._exit(0)",
    "replace itself": "os.execv('/bin/echo', ['echo', 'THROUGH replace itself'])",
}
_TRY_ALL = """
import os
for name, code in {codes!r}.items():
    try:
        exec(code)
    except BaseException as error:
        print("held", name, type(error).__name__, flush=True)
    else:
        print("THROUGH", name, flush=True)
"""


def _walls(victims: Path) -> str:
    """A program that runs at every wall, each with a file of its own."""
    victims.mkdir(parents=True)
    codes = {}
    for number, (name, code) in enumerate(WALLS.items()):
        (victims / str(number)).write_text("untouched")
        codes[name] = code.format(victim=str(victims / str(number)), pid=os.getpid())
    return _TRY_ALL.format(codes=codes)


def _through(output: str) -> set[str]:
    return {line.removeprefix("THROUGH ") for line in output.splitlines() if line.startswith("THROUGH")}


def test_what_is_outside_is_out_of_reach(level: Isolation, tmp_path: Path) -> None:
    source = _walls(tmp_path / "victims")
    outcome = _run(source, level, tmp_path)
    assert _through(outcome.output) == set()
    assert outcome.output.count("held") == len(WALLS)
    assert [file.read_text() for file in (tmp_path / "victims").iterdir()] == ["untouched"] * len(WALLS)
    assert not (Path(tempfile.gettempdir()) / "new-in-parent").exists()


def test_where_nothing_shuts_it_in_the_same_program_gets_through_each_of_them(tmp_path: Path) -> None:
    source = _walls(tmp_path / "victims")
    (tmp_path / "folder").mkdir()
    run = subprocess.run(
        [sys.executable, "-c", source], cwd=tmp_path / "folder", capture_output=True, text=True, check=True
    )
    assert _through(run.stdout) == set(WALLS)


ESCAPES = {
    "direct system call": (
        "import ctypes; libc = ctypes.CDLL(None)\n"
        "print('THROUGH' if libc.socket(2, 1, 0) >= 0 or libc.fork() >= 0 or libc.open(b'/etc/passwd', 0) >= 0 else 'held')"
    ),
    "undo the filter": "import ctypes; print('THROUGH' if ctypes.CDLL(None).prctl(22, 0, 0, 0, 0) == 0 else 'held')",
    "new namespaces": "import ctypes; print('THROUGH' if ctypes.CDLL(None).unshare(0x10000000) == 0 else 'held')",
    "trace another": f"import ctypes; print('THROUGH' if not ctypes.CDLL(None).ptrace(16, {os.getppid()}, 0, 0) else 'held')",
    "mount": "import ctypes; print('THROUGH' if ctypes.CDLL(None).mount(b'x', b'/', b'tmpfs', 0, 0) == 0 else 'held')",
    "rings": "import ctypes; print('THROUGH' if ctypes.CDLL(None).syscall(425, 8, b'0' * 200) >= 0 else 'held')",
    "32-bit numbers": "import ctypes; print('THROUGH' if ctypes.CDLL(None).syscall(0x40000029, 2, 1, 0) >= 0 else 'held')",
    "overwrite what guards": (
        "import sys\nframe = sys._getframe()\n"
        "while frame: frame.f_globals.update(_QUIET=(), _OF_PATHS=(), confine=None); frame = frame.f_back\n"
        "try:\n    open('/etc/passwd'); print('THROUGH')\nexcept OSError:\n    print('held')"
    ),
}


@pytest.mark.parametrize("escape", ESCAPES)
def test_the_kernel_holds_whatever_the_interpreter_is_made_to_do(
    escape: str, kernel_level: Isolation, tmp_path: Path
) -> None:
    assert _run(ESCAPES[escape], kernel_level, tmp_path).output == "held\n"


def test_in_namespaces_a_program_has_no_user_and_no_right(tmp_path: Path) -> None:
    if not _holds("namespaces"):
        pytest.skip("this machine does not allow the isolation namespaces")
    assert _run("import os; os.getuid() == os.geteuid() == 65534", "namespaces", tmp_path).output == "True\n"


def test_nothing_of_the_environment_is_seen(level: Isolation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_TOKEN", "secret")
    source = "import os, sys\nprint(dict(os.environ), 'tests' in ''.join(sys.path))"
    assert _run(source, level, tmp_path).output == "{} False\n"


BOMBS = {
    "loop that ignores its limit": (
        "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass", "longer than",
    ),
    "sleep": ("import time; time.sleep(60)", "longer than"),
    "memory in one piece": ("x = bytearray(1 << 30)", "MemoryError"),
    "memory in pieces": ("x = []\nwhile True: x.append(bytearray(1 << 20))", "MemoryError"),
    "output": ("while True: print('flood' * 1000)", "wrote more than"),
    "errors": ("import sys\nwhile True: sys.stderr.write('flood' * 1000)", "wrote more than"),
    "large file": ("f = open('a', 'wb')\nwhile True: f.write(b'0' * 1_000_000)", "File too large"),
    "many files": ("for i in range(10**6): open(f'f{i}', 'w').close()", "files"),
    "many large files": (
        "for i in range(30): open(f'f{i}', 'wb').write(b'0' * 8_000_000)\nimport time; time.sleep(9)", "hold more than",
    ),
    "descriptors": ("x = []\nwhile True: x.append(open('a', 'w'))", "Too many open files"),
    "threads": (
        "import threading, time\nfor i in range(10_000): threading.Thread(target=time.sleep, args=(30,)).start()", "thread",
    ),
}  # fmt: skip
QUICK = SandboxConfig(cpu_s=1, wall_s=1.5, memory_bytes=256 << 20, output_bytes=20_000)


@pytest.mark.slow
@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs_go_off_within_their_limits_and_leave_nothing(
    bomb: str, strongest: Isolation, tmp_path: Path, temporary: Path
) -> None:
    source, words = BOMBS[bomb]
    result = _tool(tmp_path, QUICK).call({"source": source}, timeout_s=20, guard=no_guard)
    assert result.is_error
    assert words in result.text
    assert len(result.text) < QUICK.output_bytes + 1000
    assert result.details["seconds"] < 6
    assert list(temporary.iterdir()) == []
    assert registered(tmp_path) == {}
    assert result.details["isolation"] == strongest


@pytest.mark.slow
def test_an_endless_loop_ends_at_its_limit_of_processor_time(tmp_path: Path) -> None:
    config = QUICK.model_copy(update={"wall_s": 60.0})  # on a busy machine a second of processor time takes several
    result = _tool(tmp_path, config).call({"source": "while True: pass"}, timeout_s=60, guard=no_guard)
    assert (result.is_error, "processor time" in result.text) == (True, True)


def _tool(safety: Path, config: SandboxConfig = SMALL) -> PythonSandbox:
    return PythonSandbox(config.model_copy(update={"min_isolation": "interpreter"}), safety_folder=safety)


def test_an_error_of_the_program_is_a_result_that_shows_its_line(tmp_path: Path) -> None:
    result = _tool(tmp_path).call({"source": "x = 1\nprint('before')\nx / 0"}, timeout_s=9, guard=no_guard)
    assert result.is_error
    assert result.text.startswith("before\nerrors:\n")
    assert 'File "program.py", line 3, in <module>\n    x / 0' in result.text
    assert "confined.py" not in result.text
    left = _tool(tmp_path).call({"source": "import sys; sys.exit(3)"}, timeout_s=9, guard=no_guard)
    assert (left.is_error, left.text) == (True, "The program ended with status 3.")
    assert "SyntaxError" in _tool(tmp_path).call({"source": "x ="}, timeout_s=9, guard=no_guard).text


def test_sources_that_cannot_be_run_are_refused_by_name(tmp_path: Path) -> None:
    tool = _tool(tmp_path, SMALL.model_copy(update={"source_chars": 10}))
    for source, words in (("x" * 11, "10 are allowed"), ("\ud800", "valid string"), ("", "source")):
        with pytest.raises(ToolError, match=words) as refused:
            tool.call({"source": source}, timeout_s=9, guard=no_guard)
        assert refused.value.param == "source"


def test_below_the_configured_minimum_no_program_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confined_process, "build_filter", lambda machine: b"")  # a machine without a filter
    tool = PythonSandbox(SandboxConfig(min_isolation="kernel"), safety_folder=tmp_path)
    with pytest.raises(ToolUnavailable, match=r"does not allow the isolation 'kernel' .* or lower min_isolation"):
        tool.call({"source": "print('THROUGH')"}, timeout_s=9, guard=no_guard)
    weak = PythonSandbox(SandboxConfig(min_isolation="interpreter"), safety_folder=tmp_path)
    assert weak.call({"source": "1 + 1"}, timeout_s=9, guard=no_guard).details["isolation"] == "interpreter"


def test_a_wall_that_does_not_hold_is_noticed_before_the_program_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    allow_all = b"\x06\x00\x00\x00\x00\x00\xff\x7f"
    monkeypatch.setattr(confined_process, "build_filter", lambda machine: allow_all)
    with pytest.raises(NotConfined, match="sockets can be made"):
        _run("print('THROUGH')", "kernel", tmp_path)


def test_a_program_that_cannot_be_written_down_does_not_begin(tmp_path: Path) -> None:
    (tmp_path / FOLDER).write_text("a file where the folder of records belongs")
    with pytest.raises(OSError, match="exists"):
        _run("open('/dev/null')", "interpreter", tmp_path)


def test_the_filter_is_whole_and_there_is_none_for_a_machine_that_nobody_knows() -> None:
    for machine in ("x86_64", "aarch64"):
        program = build_filter(machine)
        assert len(program) % 8 == 0
        assert len(program) // 8 < 4096  # BPF_MAXINSNS
        assert program[-8:] == bytes((6, 0, 0, 0, 1, 0, 5, 0))  # what is not listed: EPERM
    assert build_filter("riscv64") == b""
