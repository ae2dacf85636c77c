"""Stores to memory that compiled code makes, seen from outside: a child runs it one machine instruction at a time."""

import ctypes
import mmap
import os
import signal
from collections.abc import Callable

from .recording import Write

_TRACEME, _CONT, _SINGLESTEP = 0, 7, 9
_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long


def stores_of(memory: mmap.mmap, run: Callable[[], object]) -> list[Write]:
    """What ``run`` writes to ``memory``, which is shared: by each instruction that changes a byte, in order.

    It runs in a child, and what it leaves in memory stays there.
    """
    child = os.fork()
    if child == 0:
        try:
            _ptrace(_TRACEME, 0)
            signal.raise_signal(signal.SIGSTOP)
            run()
            signal.raise_signal(signal.SIGSTOP)
        finally:
            os._exit(0)
    try:
        _await_stop(child, signal.SIGSTOP)
        return _step(memory, child)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _step(memory: mmap.mmap, child: int) -> list[Write]:
    size = len(memory)
    now = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    before = ctypes.create_string_buffer(bytes(memory), size)
    writes = []
    while _ptrace(_SINGLESTEP, child) == 0 and _await_stop(child, signal.SIGTRAP, signal.SIGSTOP) == signal.SIGTRAP:
        if _libc.memcmp(ctypes.c_void_p(now), before, size):
            old, new = before.raw[:size], bytes(memory)
            changed = [at for at in range(size) if old[at] != new[at]]
            first, last = changed[0], changed[-1]
            writes.append(Write(first, new[first : last + 1], atomic=True))
            ctypes.memmove(before, now, size)
    return writes


def _ptrace(request: int, process: int) -> int:
    if _libc.ptrace(request, process, None, None) != 0:
        raise OSError(ctypes.get_errno(), "ptrace")
    return 0


def _await_stop(process: int, *expected: int) -> int:
    _, status = os.waitpid(process, 0)
    assert os.WIFSTOPPED(status), "the child ended"
    assert os.WSTOPSIG(status) in expected
    return os.WSTOPSIG(status)
