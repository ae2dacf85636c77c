"""A service manager for tests: a real notification socket, and a real store of descriptors for one service.

It does what systemd's ``service_add_fd_store`` and ``service_remove_fd_store`` do, and starts services as systemd does.
"""

import array
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from persistmem.agent.command import environment
from tests.waiting import readable

PATIENCE = 30.0

_START = """
import os, sys
fds = [int(fd) for fd in sys.argv[1].split(",") if fd]
above = max([200, *fds]) + 1
high = [os.dup2(fd, above + number) for number, fd in enumerate(fds)]
for number, fd in enumerate(high):
    os.dup2(fd, 3 + number)
    os.close(fd)
if fds:
    os.environ["LISTEN_PID"] = str(os.getpid())
os.environ["SYSTEMD_EXEC_PID"] = str(os.getpid())
os.execv(sys.argv[2], sys.argv[2:])
"""


class Manager:
    """Keeps what the service's main process stores. ``None`` for ``most``: as one that does not say (before v254)."""

    def __init__(self, most: int | None = 16) -> None:
        self.most = most
        self.listens_to: int | None = None
        """The pid that ``NotifyAccess=main`` lets speak; None for all."""
        self.answers_barriers = True
        self.sockets: list[tuple[str, int]] = []
        """What a socket unit listens on for the service."""
        self.store: list[tuple[str, int]] = []
        self.said: list[str] = []
        self._directory = tempfile.TemporaryDirectory(prefix="manager-")
        self.address = str(Path(self._directory.name) / "notify")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._socket.bind(self.address)
        self._held_back: list[int] = []
        self._news = threading.Condition()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
            end.sendto(b"END=1", self.address)
        self._thread.join()
        self._socket.close()
        for fd in [fd for _, fd in self.sockets + self.store] + self._held_back:
            os.close(fd)
        self._directory.cleanup()

    def environment(self, **more: str) -> dict[str, str]:
        """What the service is started with."""
        own = {"NOTIFY_SOCKET": self.address}
        if self.most:
            own["FDSTORE"] = str(self.most)
        if given := self.sockets + self.store:
            own |= {"LISTEN_FDS": str(len(given)), "LISTEN_FDNAMES": ":".join(name for name, _ in given)}
        cleared = {"PERSISTMEM_RUNTIME_DIR", "PERSISTMEM_CARRIER"}
        return {name: value for name, value in environment().items() if name not in cleared} | own | more

    def start(self, program: str, **more: str) -> "subprocess.Popen[str]":
        """Start lines of Python as the service's main process."""
        fds = [fd for _, fd in self.sockets + self.store]
        return subprocess.Popen(
            [sys.executable, "-S", "-c", _START, ",".join(map(str, fds)), sys.executable, "-c", program],
            env=self.environment(**more), pass_fds=fds, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def run(self, program: str, **more: str) -> Any:
        """Run the service to its end, and return the JSON that it printed; AssertionError if it fails."""
        process = self.start(program, **more)
        output, error = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, error
        return json.loads(output) if output else None

    def fail(self, program: str, **more: str) -> str:
        """Run the service, which fails, and return the last line of what it said."""
        process = self.start(program, **more)
        _, error = process.communicate(timeout=PATIENCE)
        assert process.returncode == 1, error
        return error.strip().splitlines()[-1]

    def hears(self, what: str, after: int = 0) -> bool:
        """Wait until the service says that, after so many other lines; False if it does not in good time."""
        with self._news:
            return self._news.wait_for(lambda: what in self.said[after:], PATIENCE)

    def names(self) -> list[str]:
        """What is stored."""
        return [name for name, _ in self.store]

    def _listen(self) -> None:
        while True:
            space = socket.CMSG_SPACE(12) + socket.CMSG_SPACE(4 * 253)
            data, ancillary, _, _ = self._socket.recvmsg(4096, space)
            fds: array.array[int] = array.array("i")
            pid = 0
            for _, kind, payload in ancillary:
                if kind == socket.SCM_RIGHTS:
                    fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
                elif kind == socket.SCM_CREDENTIALS:
                    pid = int.from_bytes(payload[:4], sys.byteorder)
            lines = data.decode().split("\n")
            with self._news:
                self.said += lines
                self._news.notify_all()
            if lines == ["END=1"]:
                return
            if lines == ["BARRIER=1"]:
                if not self.answers_barriers:
                    self._held_back += fds
                    continue
            elif self.listens_to in (None, pid):
                self._obey(dict(line.partition("=")[::2] for line in lines), [*fds])
                continue
            for fd in fds:
                os.close(fd)

    def _obey(self, said: Mapping[str, str], fds: list[int]) -> None:
        name = said.get("FDNAME", "stored")
        if said.get("FDSTOREREMOVE") == "1":
            for stored in [entry for entry in self.store if entry[0] == name]:
                self.store.remove(stored)
                os.close(stored[1])
        for fd in fds:
            if said.get("FDSTORE") == "1" and len(self.store) < (self.most or 0):
                self.store.insert(0, (name, fd))
            else:
                os.close(fd)


def read_line(process: "subprocess.Popen[str]") -> str:
    """The next line of what a service prints, in good time."""
    assert process.stdout is not None
    assert readable(process.stdout, seconds=PATIENCE), "the service says nothing"
    return process.stdout.readline().strip()


def end(process: "subprocess.Popen[str]") -> str:
    """End a service that may have ended, and return what it said on its standard error."""
    with suppress(ProcessLookupError):
        process.kill()
    return process.communicate()[1]
