"""Applications as users write them: programs that are told to end, or killed; and one in this process."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import persistmem
from persistmem.agent.command import environment
from persistmem.app.declaration import Declaration
from persistmem.app.loading import SNAPSHOT, StateDamage
from persistmem.app.running import Running, Settings
from persistmem.arena import Arena
from persistmem.attachment import attach
from persistmem.termination import StateLock
from tests.waiting import readable

PATIENCE = 30.0
"""Seconds after which a test fails instead of waiting on."""


SLOW = """
class Slow:
    '''Takes its time to be packed, as often as it is told to: says so, and waits.'''
    waiting = 1
    def pack(self):
        if Slow.waiting:
            Slow.waiting -= 1
            print('packing', flush=True)
            Slow.wait()
        return 'slow'
    wait = staticmethod(lambda: sys.stdin.readline())

persistmem.register_type(Slow, 'tests.app.Slow', Slow.pack, lambda _: 'slow')
"""
"""A type for programs, with which a save can be met halfway; it comes back as "slow"."""


class Slow:
    """What it is to a process that only reads it."""


persistmem.register_type(Slow, "tests.app.Slow", lambda _: "slow", lambda _: "slow")  # type: ignore[arg-type, return-value]


class Script:
    """A program in a process of its own: lines in and out, and what it leaves behind."""

    def __init__(self, code: str, *arguments: str, **more: str) -> None:
        """Start it, with ``more`` in its environment."""
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed in close()
        self._unread = b""
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            bufsize=0,
            start_new_session=True,
            env={**environment(), **more},
        )

    @property
    def pid(self) -> int:
        return self.process.pid

    def line(self) -> str:
        """The next line that it prints."""
        assert self.process.stdout is not None
        while b"\n" not in self._unread:
            assert readable(self.process.stdout, seconds=PATIENCE), f"it prints nothing; {self.errors}"
            more = os.read(self.process.stdout.fileno(), 65536)
            assert more, f"it ended; {self.errors}"
            self._unread += more
        line, _, self._unread = self._unread.partition(b"\n")
        return line.decode()

    def say(self, line: str = "") -> None:
        """Give it a line to read."""
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")

    def kill(self, number: int = signal.SIGKILL) -> None:
        self.process.send_signal(number)

    def end(self) -> int:
        """Wait until it has ended; its exit status."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.process.wait(PATIENCE)

    @property
    def errors(self) -> str:
        """What it has written to stderr."""
        return os.pread(self._errors.fileno(), 1 << 20, 0).decode()

    def close(self) -> None:
        """End it, and what it has forked."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self._errors):
            assert stream is not None
            stream.close()


StartScript = Callable[..., Script]


def wait_until(condition: Callable[[], object]) -> None:
    """Look again and again, until it holds."""
    ends = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < ends, "it does not come about"


def saved(name: str, generation: int | None = None) -> Any:
    """The state that the next start of application ``name`` would find."""
    with attach(name) as arena:
        return arena.restore(SNAPSHOT, generation=generation)["state"]


def generations(name: str) -> list[int]:
    """Numbers of the generations that are kept of application ``name``, newest first."""
    with attach(name) as arena:
        return [generation.number for generation in arena.history(SNAPSHOT)] if SNAPSHOT in arena.snapshots() else []


@contextmanager
def descriptor_of(name: str) -> Iterator[int]:
    """A descriptor of the arena's memory, to look at it, or to damage it, behind everybody's back."""
    with attach(name) as arena:
        fd = arena.descriptor()
        try:
            yield fd
        finally:
            os.close(fd)


def memory_of(name: str) -> bytes:
    """Every byte of an arena."""
    with descriptor_of(name) as fd:
        return os.pread(fd, os.fstat(fd).st_size, 0)


def flip(name: str, at: int) -> None:
    """Damage one byte of an arena; twice is none."""
    with descriptor_of(name) as fd:
        os.pwrite(fd, bytes([os.pread(fd, 1, at)[0] ^ 1]), at)


def damage(name: str, generation: int) -> None:
    """Damage the document of one generation."""
    with attach(name) as arena:
        (piece,) = [p for p in arena.pieces() if p.kind == "document" and p.generations == (generation,)]
    flip(name, piece.offset)


def running_on(
    arena: Arena,
    make: Callable[[], object] = dict,
    *,
    on_corrupt: Callable[[StateDamage], object] | None = None,
    **options: Any,
) -> Running:
    """What ``with app`` starts, without an agent and a schedule."""
    settings = {"interval": 0.0, "packing": "here", "others": "refuse", "keep": 2, "timeout": 10.0, **options}
    return Running(Settings("test", attach=lambda: arena, **settings), Declaration(make, 1), on_corrupt, StateLock())


LOGFMT = re.compile(r'(\w+)=("(?:[^"\\]|\\.)*"|[^\s"]+)(?: |$)')


def parse_log(line: str) -> dict[str, str]:
    """Read a line of logfmt, as its tools do: values as they are, or as JSON strings."""
    import json

    fields: dict[str, str] = {}
    at = 0
    while at < len(line):
        match = LOGFMT.match(line, at)
        assert match is not None, f"no logfmt at {at}: {line!r}"
        assert match[1] not in fields
        fields[match[1]] = json.loads(match[2]) if match[2].startswith('"') else match[2]
        at = match.end()
    return fields
