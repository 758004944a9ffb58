"""What a confined program may ask of the kernel, as a seccomp filter: a list of system calls, everything else is EPERM.

In: the machine's name. Out: the bytes of a BPF program that the confined process loads before the program's first line. On
the list is what an interpreter needs to compute and to work in its folder: no sockets but connected pairs, no processes
(threads may be started), no signals to others, nothing that changes owners, modes or times of files.

Source: seccomp(2); numbers from Linux' unistd_64.h (x86_64) and asm-generic/unistd.h (aarch64).
"""

import struct
from collections.abc import Sequence

_X86_64, _AARCH64 = 0xC000003E, 0xC00000B7
ARCHITECTURES = {"x86_64": _X86_64, "aarch64": _AARCH64}
_COLUMN = {"x86_64": 0, "aarch64": 1}

_KILL, _ALLOW, _ERRNO = 0x80000000, 0x7FFF0000, 0x00050000
_EPERM, _ENOSYS = 1, 38
_LOAD, _EQUAL, _HAS_BITS, _AND, _RETURN = 0x20, 0x15, 0x45, 0x54, 0x06
_NUMBER_AT, _ARCHITECTURE_AT, _ARGUMENTS_AT = 0, 4, 16
_CLONE_THREAD = 0x00010000
_SOCK_STREAM, _SOCK_TYPE_MASK = 1, 0xF

_ALLOWED: dict[str, tuple[int | None, int | None]] = {
    # name: (x86_64, aarch64)
    "read": (0, 63), "write": (1, 64), "close": (3, 57), "fstat": (5, 80), "newfstatat": (262, 79), "stat": (4, None),
    "lstat": (6, None), "statx": (332, 291), "lseek": (8, 62), "mmap": (9, 222), "mprotect": (10, 226), "munmap": (11, 215),
    "brk": (12, 214), "mremap": (25, 216), "madvise": (28, 233), "msync": (26, 227), "mincore": (27, 232),
    "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "rt_sigpending": (127, 136),
    "sigaltstack": (131, 132), "restart_syscall": (219, 128), "alarm": (37, None), "setitimer": (38, 103),
    "getitimer": (36, 102), "pause": (34, None),
    "pread64": (17, 67), "pwrite64": (18, 68), "readv": (19, 65), "writev": (20, 66), "preadv": (295, 69),
    "pwritev": (296, 70),
    "access": (21, None), "faccessat": (269, 48), "faccessat2": (439, 439), "open": (2, None), "openat": (257, 56),
    "pipe": (22, None), "pipe2": (293, 59), "dup": (32, 23), "dup2": (33, None), "dup3": (292, 24), "flock": (73, 32),
    "fsync": (74, 82), "fdatasync": (75, 83), "ftruncate": (77, 46), "fallocate": (285, 47), "fadvise64": (221, 223),
    "getdents64": (217, 61), "getcwd": (79, 17), "rename": (82, None), "renameat": (264, 38), "renameat2": (316, 276),
    "unlink": (87, None), "unlinkat": (263, 35), "readlink": (89, None), "readlinkat": (267, 78), "umask": (95, 166),
    "statfs": (137, 43), "fstatfs": (138, 44), "sendfile": (40, 71), "copy_file_range": (326, 285),
    "select": (23, None), "pselect6": (270, 72), "poll": (7, None), "ppoll": (271, 73), "epoll_create": (213, None),
    "epoll_create1": (291, 20), "epoll_ctl": (233, 21), "epoll_wait": (232, None), "epoll_pwait": (281, 22),
    "eventfd2": (290, 19), "getsockname": (51, 204), "getsockopt": (55, 209), "sendto": (44, 206), "recvfrom": (45, 207),
    "shutdown": (48, 210),
    "sched_yield": (24, 124), "nanosleep": (35, 101), "clock_nanosleep": (230, 115), "clock_gettime": (228, 113),
    "clock_getres": (229, 114), "gettimeofday": (96, 169), "time": (201, None), "times": (100, 153), "futex": (202, 98),
    "set_tid_address": (218, 96), "set_robust_list": (273, 99), "get_robust_list": (274, 100), "rseq": (334, 293),
    "membarrier": (324, 283), "sched_getaffinity": (204, 123), "sched_getscheduler": (145, 120), "sched_getparam": (143, 121),
    "getcpu": (309, 168), "arch_prctl": (158, None), "getrandom": (318, 278),
    "getpid": (39, 172), "getppid": (110, 173), "gettid": (186, 178), "getuid": (102, 174), "geteuid": (107, 175),
    "getgid": (104, 176), "getegid": (108, 177), "getgroups": (115, 158), "getpgrp": (111, None), "getpgid": (121, 155),
    "getsid": (124, 156), "getrlimit": (97, 163), "getrusage": (98, 165), "sysinfo": (99, 179), "uname": (63, 160),
    "exit": (60, 93), "exit_group": (231, 94),
}  # fmt: skip
_CLONE, _CLONE3, _FCNTL, _IOCTL, _PRLIMIT, _SOCKETPAIR = (
    (56, 220),
    (435, 435),
    (72, 25),
    (16, 29),
    (302, 261),
    (53, 199),
)
_FCNTL_COMMANDS = (0, 1, 2, 3, 4, 5, 6, 7, 36, 37, 38, 1030)
"""Duplicates, flags and locks. F_SETOWN is not among them: it sends signals to whoever it names."""
_IOCTL_COMMANDS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
"""TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX. TIOCSTI types into a terminal."""

Instruction = tuple[int, int, int, int]
"""code, jump if true, jump if false, constant."""


def build_filter(machine: str) -> bytes:
    """The filter for a machine as `platform.machine()` names it; empty where none is known."""
    if machine not in ARCHITECTURES:
        return b""
    column = _COLUMN[machine]
    program: list[Instruction] = [
        (_LOAD, 0, 0, _ARCHITECTURE_AT),
        (_EQUAL, 1, 0, ARCHITECTURES[machine]),
        (_RETURN, 0, 0, _KILL),  # a call of another architecture has other numbers
        (_LOAD, 0, 0, _NUMBER_AT),
    ]
    for numbers in _ALLOWED.values():
        if (number := numbers[column]) is not None:
            program += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ALLOW)]
    program += _when(_CLONE[column], _argument(0), [(_HAS_BITS, 0, 1, _CLONE_THREAD), (_RETURN, 0, 0, _ALLOW)])
    program += _when(_FCNTL[column], _argument(1), _any_of(_FCNTL_COMMANDS))
    program += _when(_IOCTL[column], _argument(1), _any_of(_IOCTL_COMMANDS))
    program += _when(_PRLIMIT[column], _argument(0), _any_of((0,)))  # of itself
    program += _when(
        _SOCKETPAIR[column], _argument(1), [(_AND, 0, 0, _SOCK_TYPE_MASK), *_any_of((_SOCK_STREAM,))]
    )  # a datagram socket could be given another address
    # The C library then falls back to clone, whose flags a filter can see.
    program += [(_EQUAL, 0, 1, _CLONE3[column]), (_RETURN, 0, 0, _ERRNO | _ENOSYS), (_RETURN, 0, 0, _ERRNO | _EPERM)]
    return b"".join(struct.pack("=HBBI", *one) for one in program)


def _argument(number: int) -> Instruction:
    """Load the low half of an argument (both architectures are little-endian)."""
    return _LOAD, 0, 0, _ARGUMENTS_AT + 8 * number


def _any_of(values: Sequence[int]) -> list[Instruction]:
    return [one for value in values for one in ((_EQUAL, 0, 1, value), (_RETURN, 0, 0, _ALLOW))]


def _when(number: int, load: Instruction, checks: list[Instruction]) -> list[Instruction]:
    """For one system call: `checks` on an argument, else EPERM."""
    body = [load, *checks, (_RETURN, 0, 0, _ERRNO | _EPERM)]
    return [(_EQUAL, 0, len(body), number), *body]
