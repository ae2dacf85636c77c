"""Servers as users start them, in a place of their own, and a client that sees every byte."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from tests.waiting import readable

PATIENCE = 20.0
ROOT = Path(__file__).parents[3]
SERVE = [sys.executable, "-m", "apps.memcached"]

needs_memcached = pytest.mark.skipif(
    shutil.which("memcached") is None, reason="what this is compared with is missing: apt install memcached"
)


def needs_tool(name: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(name) is None, reason=f"{name} is missing: apt install libmemcached-tools")


class Wire:
    """A connection without a client library."""

    def __init__(self, where: int | Path) -> None:
        if isinstance(where, Path):
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.connect(str(where))
        else:
            self.socket = socket.create_connection(("127.0.0.1", where))
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.settimeout(PATIENCE)
        self._asked = 0

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def ask(self, data: bytes) -> bytes:
        """Send whole commands, and return all that is replied to them."""
        self._asked += 1
        end = b"EN O%d.\r\n" % self._asked
        self.socket.sendall(data + b"mg nobody-at-all O%d.\r\n" % self._asked)
        return self.until(end).removesuffix(end)

    def until(self, end: bytes) -> bytes:
        """Return what comes up to and with ``end``, or until the connection ends."""
        got = bytearray()
        while not got.endswith(end) and (piece := self.socket.recv(1 << 16)):
            got += piece
        return bytes(got)

    def rest(self) -> bytes:
        """Return what comes until the connection ends."""
        got = bytearray()
        while piece := self.socket.recv(1 << 16):
            got += piece
        return bytes(got)

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Server:
    """``python -m apps.memcached``, answering."""

    def __init__(self, process: "subprocess.Popen[str]", where: list[str]) -> None:
        self.process = process
        self.where = where

    @property
    def port(self) -> int:
        return int(self.where[0].rpartition(":")[2])

    def wire(self) -> Wire:
        return Wire(self.port)

    @contextmanager
    def wires(self, number: int) -> Iterator[list[Wire]]:
        """So many connections, each of which the server has answered at."""
        with ExitStack() as stack:
            wires = [stack.enter_context(self.wire()) for _ in range(number)]
            for wire in wires:
                wire.ask(b"")
            yield wires

    def stats(self) -> dict[str, str]:
        with self.wire() as wire:
            lines = wire.ask(b"stats\r\n").decode().splitlines()
        return dict(line.split(" ", 2)[1:] for line in lines if line.startswith("STAT"))

    def memory(self) -> int:
        """Bytes that it has of memory that nobody shares with it."""
        return sum(
            int(line.split()[1]) << 10
            for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
            if line.startswith("RssAnon:")
        )

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal, and return the exit status."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)


class House:
    """A runtime directory with its agent, and the servers that use it."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="persistmem-test-"))
        self._servers: list[Server] = []

    def environment(self, **more: str) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if name not in ("FORCE_COLOR", "COLUMNS")}
        places = {
            "PERSISTMEM_RUNTIME_DIR": str(self.directory / "run"),
            "PERSISTMEM_STATE_DIR": str(self.directory / "state"),
            "PYTHONPATH": str(ROOT),
        }
        return {**inherited, **places, **more}

    def serve(self, name: str, *options: str, environment: Mapping[str, str] | None = None) -> Server:
        """Start a server, at a port that is free if ``options`` do not say where."""
        where = () if "--listen" in options or "--unix" in options else ("--listen", "127.0.0.1:0")
        process = subprocess.Popen(
            [*SERVE, "--name", name, *where, *options],
            env=self.environment(**(environment or {})), cwd=self.directory, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        server = Server(process, [])
        self._servers.append(server)
        assert process.stderr is not None
        for _ in range(max(1, options.count("--listen") + options.count("--unix"))):
            line = process.stderr.readline()
            assert line.startswith("listening on "), line + process.stderr.read()
            server.where.append(line.removeprefix("listening on ").strip())
        return server

    def run(self, *command: str, **more: str) -> "subprocess.CompletedProcess[str]":
        """Run a program to its end."""
        return subprocess.run(
            command, env=self.environment(**more), cwd=self.directory, capture_output=True, text=True,
            timeout=PATIENCE, check=False,
        )  # fmt: skip

    def persistmem(self, *arguments: str) -> str:
        done = self.run(sys.executable, "-m", "persistmem", *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def agent_pid(self) -> int:
        pid: int = json.loads(self.persistmem("status", "--json"))["pid"]
        return pid

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for server in self._servers:
            server.process.kill()
            server.process.communicate()
        self.persistmem("agent", "stop", "--discard")
        shutil.rmtree(self.directory)


class Memcached:
    """The real one."""

    def __init__(self, *options: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        command = ["memcached", "-l", "127.0.0.1", "-p", str(self.port), "-U", "0", "-t", "1", *options]
        self._process = subprocess.Popen([*command, *(["-u", "root"] if os.geteuid() == 0 else [])])
        ended = os.pidfd_open(self._process.pid)
        while True:
            try:
                Wire(self.port).close()
            except ConnectionRefusedError:
                assert not readable(ended, seconds=0.01), "memcached ended"
            else:
                os.close(ended)
                return

    def wire(self) -> Wire:
        return Wire(self.port)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(PATIENCE)
