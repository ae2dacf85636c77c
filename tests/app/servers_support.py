"""Servers as users start them: processes that listen on real sockets, and workers that can be talked to one by one."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from persistmem.agent.command import environment
from tests.waiting import readable

from .support import PATIENCE, wait_until

ROLE = re.compile(r"^(\d+) app=\S+ .*role=(writer|reader)", re.MULTILINE)
"""What a worker logs when it has started, or has taken the writer's place; these projects put their process first."""

SCORES = """\
# scores.py
from dataclasses import field

import persistmem
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

app = persistmem.App("scores", size="4MiB", others="read")


@app.state(version=1)
class State:
    scores: dict[str, int] = field(default_factory=dict)


api = FastAPI(lifespan=app.lifespan)


@api.get("/scores")
async def scores() -> dict[str, int]:
    app.refresh()
    return app.state.scores


@api.post("/scores/{name}")
async def add(name: str) -> dict[str, int]:
    app.state.scores[name] = app.state.scores.get(name, 0) + 1
    return app.state.scores


@api.exception_handler(persistmem.RefusedError)
async def not_the_writer(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": str(error)}, status_code=503, headers={"Retry-After": "1"})
"""

STARLETTE = """\
# scores.py
from dataclasses import field

import persistmem
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

app = persistmem.App("scores", size="4MiB", others="read")


@app.state(version=1)
class State:
    scores: dict[str, int] = field(default_factory=dict)


async def scores(request: Request) -> JSONResponse:
    app.refresh()
    return JSONResponse(app.state.scores)


async def add(request: Request) -> JSONResponse:
    name = request.path_params["name"]
    app.state.scores[name] = app.state.scores.get(name, 0) + 1
    return JSONResponse(app.state.scores)


async def save(request: Request) -> JSONResponse:
    return JSONResponse(app.save().number)


async def not_the_writer(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": str(error)}, status_code=503)


api = Starlette(
    routes=[
        Route("/scores", scores),
        Route("/scores/{name}", add, methods=["POST"]),
        Route("/save", save, methods=["POST"]),
    ],
    exception_handlers={persistmem.RefusedError: not_the_writer},
    lifespan=app.lifespan,
)
"""

WSGI = """\
# scores.py
import json
from dataclasses import field

import persistmem

app = persistmem.App("scores", size="4MiB", others="read")


@app.state(version=1)
class State:
    scores: dict[str, int] = field(default_factory=dict)


def wsgi(environ, start_response):  # stands for Flask's, Bottle's, or whatever you have
    status = "200 OK"
    try:
        if environ["REQUEST_METHOD"] == "POST":
            name = environ["PATH_INFO"].rpartition("/")[2]
            with app.lock:
                app.state.scores[name] = app.state.scores.get(name, 0) + 1
        else:
            app.refresh()
        answer = app.state.scores
    except persistmem.RefusedError as error:
        status, answer = "503 Service Unavailable", {"detail": str(error)}
    start_response(status, [("Content-Type", "application/json")])
    return [json.dumps(answer).encode()]
"""

GUNICORN = """\
# gunicorn.conf.py
def post_worker_init(worker):
    from scores import app

    app.start()


def worker_exit(server, worker):
    from scores import app

    if app.is_started:
        app.stop()
"""

_LOGGING = 'import logging\nlogging.basicConfig(level=logging.INFO, format="%(process)d %(message)s")\n'
_TROUBLE = re.compile(r"Traceback|Exception ignored|Warning\b|Fatal|was never awaited|=failed")
_SERVERS_OWN = re.compile(r"^.*ResourceWarning: (unclosed <socket.*family=2|Enable tracemalloc).*$", re.MULTILINE)
"""uvicorn leaves its listening socket to the interpreter."""


class Server:
    """A server's process, what it and its workers print, and its workers."""

    def __init__(self, command: list[str], directory: Path, **more: str) -> None:
        """Start ``python -X dev -m COMMAND`` in ``directory``; or a script there, if it is one."""
        self.output = ""
        self.pids: set[int] = set()
        """Of workers that told."""
        how = [] if command[0].endswith(".py") else ["-m"]
        self.process = subprocess.Popen(
            [sys.executable, "-X", "dev", "-W", "default::ResourceWarning", *how, *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=directory,
            env={**environment(), "PYTHONUNBUFFERED": "1", "HOME": str(directory), "NO_COLOR": "1", **more},
            start_new_session=True,
        )
        self._checked = 0

    def expect(self, pattern: str, times: int = 1) -> re.Match[str]:
        """Wait until it has printed ``pattern`` so many times since the last call; the last of them."""
        while len(found := list(re.finditer(pattern, self.output[self._checked :], re.MULTILINE))) < times:
            assert self._read(), f"it ended without {pattern!r}:\n{self.output}"
        self._checked += found[times - 1].end()
        return found[times - 1]

    def expect_ever(self, pattern: str) -> None:
        """Wait until it has printed ``pattern``, or see that it had, whatever was expected before."""
        while not re.search(pattern, self.output):
            assert self._read(), f"it ended without {pattern!r}:\n{self.output}"

    def listen(self) -> None:
        """Wait until it says where it listens, and until it does: some tell first, and their workers' roles as well."""
        self.url = self.expect(r"http://127\.0\.0\.1:\d+")[0]
        wait_until(self._listens)

    def expect_roles(self, *roles: str) -> list[int]:
        """Wait until as many workers said that they have these roles; their processes, in this order."""
        found = [self.expect_role() for _ in roles]
        assert sorted(roles) == sorted(role for _, role in found), self.output
        return [pid for wanted in dict.fromkeys(roles) for pid, role in found if role == wanted]

    def expect_role(self) -> tuple[int, str]:
        """Wait until one more worker says what it is; its process, and that."""
        pid, role = self.expect(ROLE.pattern).groups()
        self.pids.add(int(pid))
        return int(pid), role

    def expect_booting(self) -> int:
        """Wait until one more gunicorn worker is there; its process."""
        pid = int(self.expect(r"Booting worker with pid: (\d+)")[1])
        self.pids.add(pid)
        return pid

    def get(self, path: str) -> httpx.Response:
        return self.request("GET", path)

    def post(self, path: str) -> httpx.Response:
        return self.request("POST", path)

    def request(self, method: str, path: str) -> httpx.Response:
        """Over a connection of its own, to whichever worker takes it."""
        return httpx.request(method, self.url + path, timeout=PATIENCE, trust_env=False)

    def ask(self, worker: int, method: str, path: str) -> httpx.Response:
        """The same, while all workers but this one are stopped."""
        with stopped(*(self.workers() - {worker})):
            return self.request(method, path)

    def workers(self) -> set[int]:
        """Those of them that still run."""
        return {pid for pid in self.pids if state_of(pid) not in ("Z", None)}

    def kill(self, number: int = signal.SIGKILL) -> None:
        self.process.send_signal(number)

    def end(self, number: int = signal.SIGTERM) -> int:
        """Have it end, and return its exit status; it has printed nothing that should worry anybody."""
        self.kill(number)
        status = self.wait()
        assert not _TROUBLE.search(_SERVERS_OWN.sub("", self.output)), self.output
        return status

    def wait(self) -> int:
        """Wait until it and its workers have ended; its exit status."""
        while self._read():
            pass
        return self.process.wait(PATIENCE)

    def close(self) -> None:
        assert self.process.stdout is not None
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process.stdout.close()

    def _listens(self) -> bool:
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", int(self.url.rpartition(":")[2]))) == 0

    def _read(self) -> bool:
        assert self.process.stdout is not None
        assert readable(self.process.stdout, seconds=PATIENCE), f"it prints nothing:\n{self.output}"
        read = os.read(self.process.stdout.fileno(), 65536).decode()
        self.output += read
        return bool(read)


StartServer = Callable[..., Server]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[StartServer]:
    """Starts servers in ``tmp_path``, and ends them."""
    servers: list[Server] = []

    def start(*command: str, **more: str) -> Server:
        servers.append(Server(list(command), tmp_path, **more))
        return servers[-1]

    yield start
    for each in servers:
        each.close()


def write_project(directory: Path, files: Mapping[str, str], name: str = "scores", **options: str) -> None:
    """Write a user's files; the application there is called ``name``, and has more ``options``."""
    more = "".join(f", {option}={value}" for option, value in options.items())
    for path, text in files.items():
        written = text.replace('persistmem.App("scores", size="4MiB"', f'persistmem.App("{name}", size="1MiB"{more}')
        if path == "scores.py":
            written = _LOGGING + written
        (directory / path).parent.mkdir(exist_ok=True)
        (directory / path).write_text(written)


@contextmanager
def stopped(*processes: int) -> Iterator[None]:
    """Have processes stand still."""
    for process in processes:
        os.kill(process, signal.SIGSTOP)
    try:
        wait_until(lambda: all(state_of(process) == "T" for process in processes))
        yield
    finally:
        for process in processes:
            os.kill(process, signal.SIGCONT)


def state_of(process: int) -> str | None:
    """The letter that says what a process does; None if there is none."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return None
