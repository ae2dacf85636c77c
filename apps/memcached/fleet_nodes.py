"""The machines of a fleet, each with one server: started, stopped and given a new kernel as an operator would do it.

Knows processes, their environment and their ports; must not know what the servers are asked for.
"""

import os
import re
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import persistmem

_MEBIBYTES: Final = 64
_PATIENCE: Final = 30.0
_PAUSE: Final = 0.005


class FleetError(persistmem.Error):
    """A machine of the fleet did not do what it was told to."""


class Node(ABC):
    """A machine with one server, which has the same port each time it is started.

    Its processes have sessions of their own, so that Ctrl-C in the terminal does not reach them.
    """

    _stop_signal = signal.SIGTERM

    def __init__(self, name: str, folder: Path) -> None:
        folder.mkdir(mode=0o700)
        self.name = name
        self._folder = folder
        self._log = folder / "server.log"
        self._port: int | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """HOST:PORT, once it has been started."""
        return f"127.0.0.1:{self._port}"

    def start(self) -> None:
        """Start the server, and wait until it listens.

        Raises:
            FleetError: it ended instead, or does not listen within 30 seconds.

        """
        self._forget_listening()
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command(self._port), env=self._environment(), start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        deadline = time.monotonic() + _PATIENCE
        while (port := self._listening()) is None:
            if self._process.poll() is not None or time.monotonic() > deadline:
                said = self._log.read_text("utf-8", "replace").strip()[-2000:]
                raise FleetError(f"{self.name}: its server does not listen; it said: {said or 'nothing'}")
            time.sleep(_PAUSE)
        self._port = port

    def stop(self) -> None:
        """Ask the server to end, and wait until it has.

        Raises:
            FleetError: it has not ended within 30 seconds.

        """
        assert self._process is not None
        self._process.send_signal(self._stop_signal)
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            told = f"its server was sent {self._stop_signal.name}, and still runs after {_PATIENCE:.0f} s"
            raise FleetError(f"{self.name}: {told}") from None

    @abstractmethod
    def replace_kernel(self) -> None:
        """Do what an operator does between stopping the server and starting it again."""

    def discard(self) -> None:
        """End everything that runs on this machine, and forget what it keeps."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    @abstractmethod
    def _command(self, port: int | None) -> list[str]:
        """The server's command line; without ``port`` it chooses one."""

    @abstractmethod
    def _environment(self) -> Mapping[str, str]: ...

    @abstractmethod
    def _forget_listening(self) -> None:
        """Remove what the last server left where ``_listening`` looks."""

    @abstractmethod
    def _listening(self) -> int | None:
        """The port, if the server listens by now."""


class PersistmemNode(Node):
    """A machine with an agent and a simulated kernel of its own; what its server keeps, the agent keeps."""

    def replace_kernel(self) -> None:
        """Let the agent take what it keeps into the next, simulated kernel."""
        self._persistmem("reboot", "--simulate")

    def discard(self) -> None:
        """End the server, and then the agent with all that it keeps."""
        super().discard()
        self._persistmem("agent", "stop", "--discard")

    def _persistmem(self, *arguments: str) -> None:
        command = f"persistmem {' '.join(arguments)}"
        try:
            done = subprocess.run(
                [sys.executable, "-m", "persistmem", *arguments], env=self._environment(), start_new_session=True,
                stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_PATIENCE, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise FleetError(f"{self.name}: {command} still runs after {_PATIENCE:.0f} s") from None
        if done.returncode:
            told = (done.stderr or done.stdout).strip()
            raise FleetError(f"{self.name}: {command}: exit status {done.returncode}; {told}")

    def _command(self, port: int | None) -> list[str]:
        options = ("--name", "fleet", "--size", f"{_MEBIBYTES}MiB", "--listen", f"127.0.0.1:{port or 0}")
        return [sys.executable, "-m", "apps.memcached", *options]

    def _environment(self) -> Mapping[str, str]:
        own = {"PERSISTMEM_RUNTIME_DIR": str(self._folder / "run"), "PERSISTMEM_STATE_DIR": str(self._folder / "state")}
        return {**os.environ, **own}

    def _forget_listening(self) -> None:
        self._log.unlink(missing_ok=True)

    def _listening(self) -> int | None:
        found = re.search(rb"listening on 127\.0\.0\.1:(\d+)\n", self._log.read_bytes())
        return int(found[1]) if found else None


class MemcachedNode(Node):
    """A machine with a plain memcached, whose memory a new kernel takes away."""

    # It saves nothing, whatever ends it; but on SIGTERM it goes on answering for up to a second (seen with 1.6.18), and
    # would be dark for a shorter time than the fleet that it is compared with.
    _stop_signal = signal.SIGKILL

    @property
    def _ports(self) -> Path:
        return self._folder / "ports"

    def replace_kernel(self) -> None:
        """Nothing is left to do: when its server ended, so did all that it kept, as it does with a kernel."""

    def _command(self, port: int | None) -> list[str]:
        options = ["-l", "127.0.0.1", "-p", str(port or -1), "-U", "0", "-m", str(_MEBIBYTES)]
        # It refuses to be root's by mistake, and nobody else can reach this folder.
        return ["memcached", *options, *(["-u", "root"] if os.geteuid() == 0 else [])]

    def _environment(self) -> Mapping[str, str]:
        return {**os.environ, "MEMCACHED_PORT_FILENAME": str(self._ports)}

    def _forget_listening(self) -> None:
        self._ports.unlink(missing_ok=True)

    def _listening(self) -> int | None:
        # memcached puts the file in place by a rename, when it listens.
        found = re.search(r"^TCP INET: (\d+)$", self._ports.read_text(), re.MULTILINE) if self._ports.exists() else None
        return int(found[1]) if found else None
