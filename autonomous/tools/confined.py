"""What runs in a confined process: it shuts itself in, says so, then runs the program. A script of its own, on the standard
library alone: `python -I -S -B confined.py JOB_FD STATUS_FD`. confined_process.py starts it.

In: a job as JSON on a file descriptor, and one byte on standard input when it may begin. Out: "ready" on the other
descriptor once everything below holds and was tried, then the program's output. Rights are only given up, in this order:
limits, namespaces, capabilities, files (Landlock), system calls (seccomp).

Source: landlock(7), seccomp(2), user_namespaces(7), PEP 578.
"""

import ast
import ctypes
import json
import linecache
import os
import resource
import signal
import struct
import sys
import traceback
import types
from typing import Any

NAME = "program.py"
_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _SECCOMP_MODE_FILTER = 1, 22, 38, 2
_NEW_USER, _NEW_NET, _NEW_IPC, _NEW_UTS = 0x10000000, 0x40000000, 0x08000000, 0x04000000
_CAPABILITY_VERSION = 0x20080522
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF, _PATH_BENEATH = 444, 445, 446, 1

_WRITE_FILE, _READ_FILE, _READ_DIR, _REMOVE_FILE, _MAKE_REG, _TRUNCATE = 1 << 1, 1 << 2, 1 << 3, 1 << 5, 1 << 8, 1 << 14
_HANDLED = ((1, (1 << 13) - 1), (2, 1 << 13), (3, _TRUNCATE), (5, 1 << 15))
"""Landlock's version from which the kernel knows these rights on files."""
_NET_FROM, _NET_RIGHTS, _SCOPES_FROM, _SCOPES = 4, 3, 6, 3
_READABLE = (
    "/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo", "/etc/ld.so.cache", "/etc/localtime",
    "/dev/null", "/dev/zero", "/dev/urandom",
)  # fmt: skip
_LIBC = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def limit(limits: dict[str, int]) -> None:
    """Resource limits, which nothing raises again."""
    for name, value in (
        ("RLIMIT_AS", limits["memory_bytes"]), ("RLIMIT_FSIZE", limits["file_bytes"]),
        ("RLIMIT_NOFILE", limits["num_open_files"]), ("RLIMIT_NPROC", limits["num_threads"]), ("RLIMIT_CORE", 0),
        ("RLIMIT_MSGQUEUE", 0),
    ):  # fmt: skip
        kind = getattr(resource, name)
        _, hard = resource.getrlimit(kind)
        least = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (least, least))
    resource.setrlimit(resource.RLIMIT_CPU, (limits["cpu_s"], limits["cpu_s"] + 1))


def enter_namespaces() -> None:
    """A user without rights, a network without devices, System V objects and a host name of its own."""
    _checked(_LIBC.unshare(_NEW_USER | _NEW_NET | _NEW_IPC | _NEW_UTS), "unshare")


def drop_capabilities() -> None:
    """Also of root, and of the first user of a new namespace; nothing gives new ones."""
    _checked(_LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    header, none = struct.pack("=Ii", _CAPABILITY_VERSION, 0), bytes(24)
    _checked(_LIBC.capset(header, none), "capset")


def restrict_files(folder: str) -> None:
    """Read the standard library and shared libraries, write plain files into `folder`, nothing else."""
    version = _checked(_LIBC.syscall(_CREATE_RULESET, None, 0, 1), "Landlock is not available")
    rights = sum(bits for since, bits in _HANDLED if version >= since)
    attributes = struct.pack(
        "=QQQ", rights, _NET_RIGHTS if version >= _NET_FROM else 0, _SCOPES if version >= _SCOPES_FROM else 0
    )
    size = 8 if version < _NET_FROM else 16 if version < _SCOPES_FROM else 24
    ruleset = _checked(_LIBC.syscall(_CREATE_RULESET, attributes, size, 0), "landlock_create_ruleset")
    library = os.path.dirname(os.__file__)
    for path in (*_READABLE, library, os.path.join(sys.base_prefix, "lib")):
        _allow(ruleset, path, _READ_FILE | _READ_DIR | (_WRITE_FILE if path == "/dev/null" else 0))
    own = _READ_FILE | _READ_DIR | _WRITE_FILE | _MAKE_REG | _REMOVE_FILE | _TRUNCATE
    _allow(ruleset, folder, own & rights)
    _checked(_LIBC.syscall(_RESTRICT_SELF, ruleset, 0), "landlock_restrict_self")
    os.close(ruleset)


def _allow(ruleset: int, path: str, rights: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        if not os.path.isdir(path):
            rights &= _READ_FILE | _WRITE_FILE | _TRUNCATE
        rule = struct.pack("=Qi", rights, descriptor)
        _checked(_LIBC.syscall(_ADD_RULE, ruleset, _PATH_BENEATH, rule, 0), f"landlock_add_rule {path}")
    finally:
        os.close(descriptor)


def restrict_calls(program: bytes) -> None:
    """Load the seccomp filter. The last step: hardly anything can be set up behind it."""
    code = ctypes.create_string_buffer(program, len(program))

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_void_p))

    loaded = Program(len(program) // 8, ctypes.addressof(code))
    _checked(_LIBC.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(loaded), 0, 0), "seccomp")


def try_walls() -> None:
    """Do what is forbidden: a wall that does not hold is found before the program runs."""
    try:
        os.close(os.open("/etc", os.O_RDONLY))
    except PermissionError:
        pass
    else:
        raise OSError("files outside of the folder can be read")
    if _LIBC.socket(1, 1, 0) >= 0:
        raise OSError("sockets can be made")


_QUIET = frozenset(
    (
        "compile", "exec", "marshal.loads", "marshal.dumps", "object.__getattr__", "object.__setattr__",
        "object.__delattr__", "code.__new__", "sys._getframe", "builtins.id", "time.sleep", "sys.excepthook",
        "sys.unraisablehook", "pickle.find_class", "array.__new__", "cpython._PySys_ClearAuditHooks", "tempfile.mkstemp",
        "glob.glob", "os.fwalk", "os.walk",
    )
)  # fmt: skip
_OF_PATHS = frozenset(("open", "os.listdir", "os.scandir", "os.remove", "os.rename"))
_CLOSED_MODULES = frozenset(
    ("ctypes", "_ctypes", "socket", "_socket", "ssl", "_ssl", "subprocess", "_posixsubprocess", "multiprocessing",
     "_multiprocessing", "_posixshmem", "gc", "_testcapi", "_testinternalcapi", "fcntl", "mmap", "resource", "readline")
)  # fmt: skip


def watch_interpreter(folder: str) -> None:
    """Refuse events of the interpreter that are not listed (PEP 578). Against accidents, not against a determined program."""
    readable = tuple(os.path.realpath(path) for path in (folder, os.path.dirname(os.__file__), *_READABLE))
    own = os.path.realpath(folder)

    def within(path: Any, roots: tuple[str, ...]) -> bool:
        if path is None:
            path = "."
        if isinstance(path, int):  # a descriptor that is open already
            return True
        real = os.path.realpath(os.fsdecode(path))
        return any(real == root or real.startswith(root + os.sep) for root in roots)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "import":
            if arguments[0].partition(".")[0] in _CLOSED_MODULES:
                raise PermissionError(f"the sandbox has no module {arguments[0]}")
        elif event == "open":
            path, mode, flags = (*arguments, 0, 0)[:3]
            writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            if not within(path, (own,) if writes else readable):
                raise PermissionError(f"the sandbox may not open {path!r} ({mode})")
        elif event in _OF_PATHS:
            roots = readable if event in ("os.listdir", "os.scandir") else (own,)
            if not all(within(path, roots) for path in arguments[: 2 if event == "os.rename" else 1]):
                raise PermissionError(f"the sandbox may not do {event} with {arguments[0]!r}")
        elif event not in _QUIET:
            raise PermissionError(f"the sandbox may not do {event}")

    sys.addaudithook(hook)


def confine(job: dict[str, Any]) -> None:
    """Everything that holds before the program runs. Raises OSError naming what does not."""
    folder = os.getcwd()
    limit(job["limits"])
    if job["level"] == "interpreter":
        for name in [one for one in sys.modules if one.partition(".")[0] in _CLOSED_MODULES]:
            del sys.modules[name]
        watch_interpreter(folder)
        return
    if job["level"] == "namespaces":
        enter_namespaces()
    drop_capabilities()
    restrict_files(folder)
    restrict_calls(bytes.fromhex(job["filter"]))
    try_walls()


def run(source: str) -> None:
    """The program as __main__; the value of a last line that is an expression is printed, as at Python's prompt."""
    linecache.cache[NAME] = (len(source), None, source.splitlines(keepends=True), NAME)
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    sys.argv = [NAME]
    try:
        tree = ast.parse(source, NAME)
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, NAME, "exec"), module.__dict__)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), NAME, "eval"), module.__dict__)
            if value is not None:
                sys.stdout.write(f"{value!r}\n")
    except SystemExit:
        raise
    except BaseException as error:
        lines = traceback.TracebackException.from_exception(error)
        while lines.stack and lines.stack[0].filename == __file__:
            del lines.stack[0]
        sys.stderr.write("".join(lines.format()))
        sys.exit(1)


def main() -> None:
    """See the module."""
    job_fd, status_fd = int(sys.argv[1]), int(sys.argv[2])
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.read(0, 1) != b"+":  # whoever started it has died, or does not want it any more
        os._exit(1)
    with open(job_fd, encoding="utf-8") as file:
        job = json.load(file)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.environ.clear()
    try:
        confine(job)
    except OSError as error:
        os.write(status_fd, str(error).encode())
        os._exit(1)
    os.write(status_fd, b"ready")
    os.close(status_fd)
    run(job["source"])


if __name__ == "__main__":
    main()
