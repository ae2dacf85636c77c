"""``redis-server`` and ``memcached``, each started for a measurement, in a folder, where nobody else reaches it."""

import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Self

_PATIENCE = 300.0
_PAUSE = 0.0005


def missing(*programs: str) -> bool:
    """Whether one of them is not installed, which is then said."""
    absent = [program for program in programs if shutil.which(program) is None]
    for program in absent:
        sys.stderr.write(f"{program} is not installed: it is not measured\n")
    return bool(absent)


class Server:
    """A program that answers after a while."""

    def __init__(
        self, command: Iterable[str], answers: Callable[[], object], folder: Path, stop: signal.Signals
    ) -> None:
        """``answers`` raises an OSError while it does not; ``stop`` is what makes it end, keeping what it keeps."""
        self._command = list(command)
        self._answers = answers
        self._log = folder / "log"
        self._stop = stop
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Its process, while it runs."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it, and wait until it answers."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                self._answers()
            except OSError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"it did not start: {self._log.read_text()[-2000:]}") from None
                time.sleep(_PAUSE)
            else:
                return

    def stop(self) -> None:
        """End it in an orderly way."""
        if self._process is not None:
            self._process.send_signal(self._stop)
            try:
                self._process.wait(_PATIENCE)
            finally:
                self._process.kill()
            self._process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def redis_server(folder: Path) -> Server:
    """A Redis that answers at a Unix socket in ``folder``, where its RDB file is loaded from, and saved to by SAVE."""
    import redis

    path = folder / "redis.socket"
    client = redis.Redis(unix_socket_path=str(path))

    def answers() -> None:
        try:
            client.ping()
        except redis.RedisError as error:  # there is none yet, or it is loading
            raise OSError(str(error)) from error

    command = [
        *("redis-server", "--port", "0", "--unixsocket", str(path), "--unixsocketperm", "700", "--dir", str(folder)),
        *("--appendonly", "no", "--save", "", "--rdbcompression", "no", "--logfile", str(folder / "log")),
    ]
    return Server(command, answers, folder, signal.SIGTERM)


def memcached_server(folder: Path, port: int, memory: int, *, restartable: bool = False) -> Server:
    """A memcached on the loopback interface with ``memory`` MiB, in a file of ``folder`` if it is to be restarted."""

    def answers() -> None:
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.settimeout(_PATIENCE)
            connection.sendall(b"version\r\n")
            if not connection.recv(100):
                raise ConnectionError

    command = ["memcached", "-l", "127.0.0.1", "-p", str(port), "-U", "0", "-m", str(memory), "-t", "2", "-u", "root"]
    if restartable:
        command += ["-e", str(folder / "memory")]
    return Server(command, answers, folder, signal.SIGUSR1 if restartable else signal.SIGTERM)


def free_port() -> int:
    """A port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
