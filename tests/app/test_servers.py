"""An application's state under web servers: kept when they end, when they are killed, and through an upgrade.

The servers, their workers, sockets and clients are real. One worker saves the state, the others read it.
"""

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from persistmem.agent.command import environment
from persistmem.agent.paths import RuntimeDirectory

from ..agent.conftest import runtime as runtime  # noqa: PLC0414 - a fixture
from .servers_support import GUNICORN, SCORES, STARLETTE, WSGI, Server, StartServer, stopped, write_project
from .servers_support import serve as serve  # noqa: PLC0414 - a fixture
from .support import generations, saved, wait_until

UVICORN = ("uvicorn", "scores:api", "--port", "0")
GUNICORN_SYNC = ("gunicorn", "scores:wsgi", "--bind", "127.0.0.1:0", "--workers", "2", "--no-control-socket")
GUNICORN_ASGI = ("gunicorn", "scores:api", *GUNICORN_SYNC[2:], "--worker-class")


def start(serve: StartServer, *command: str) -> Server:
    server = serve(*command)
    server.listen()
    return server


def is_saved(name: str, scores: dict[str, int]) -> bool:
    return bool(generations(name)) and saved(name) == {"scores": scores}


def reboot() -> None:
    command = [sys.executable, "-m", "persistmem", "reboot", "--simulate"]
    subprocess.run(command, env=environment(), check=True, capture_output=True, timeout=60)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_fastapi_application_keeps_its_state_through_an_upgrade_and_sigterm(
    serve: StartServer, tmp_path: Path, runtime: RuntimeDirectory, loop: str
) -> None:
    write_project(tmp_path, {"scores.py": SCORES})
    server = start(serve, *UVICORN, "--loop", loop)
    assert server.post("/scores/ada").json() == {"ada": 1}
    reboot()
    assert saved("scores") == {"scores": {"ada": 1}}
    assert server.post("/scores/ada").json() == {"ada": 2}
    assert server.end(signal.SIGTERM) == -signal.SIGTERM
    assert saved("scores") == {"scores": {"ada": 2}}
    server = start(serve, *UVICORN, "--loop", loop)
    assert 'state=restored arena="carried over"' in server.output
    assert server.get("/scores").json() == {"ada": 2}
    assert server.post("/scores/grace").json() == {"ada": 2, "grace": 1}
    server.end(signal.SIGINT)
    assert saved("scores") == {"scores": {"ada": 2, "grace": 1}}


def test_server_that_is_killed_has_left_what_the_last_interval_saved(
    serve: StartServer, tmp_path: Path, name: str
) -> None:
    write_project(tmp_path, {"scores.py": STARLETTE}, name, interval="0.02")
    server = start(serve, *UVICORN)
    for number in (1, 2):
        server.post("/scores/ada")
        wait_until(partial(is_saved, name, {"ada": number}))
    server.kill(signal.SIGKILL)
    server.wait()
    server = start(serve, *UVICORN)
    assert server.get("/scores").json() == {"ada": 2}
    server.end()


def test_state_that_cannot_be_loaded_keeps_the_server_from_starting(
    serve: StartServer, tmp_path: Path, name: str
) -> None:
    write_project(tmp_path, {"scores.py": STARLETTE.replace("version=1", "version=2")}, name)
    start(serve, *UVICORN).end()
    write_project(tmp_path, {"scores.py": STARLETTE}, name)
    server = serve(*UVICORN)
    assert server.wait() == 3
    assert "NewerStateError: state: expected version 1 or older, found version 2" in server.output


def test_of_two_uvicorn_workers_one_writes_and_the_other_reads(
    serve: StartServer, tmp_path: Path, runtime: RuntimeDirectory
) -> None:
    write_project(tmp_path, {"scores.py": STARLETTE})
    server = start(serve, *UVICORN, "--workers", "2")
    writer, reader = server.expect_roles("writer", "reader")
    for _ in range(2):
        refused = server.ask(reader, "POST", "/scores/ada")
        assert refused.status_code == 503
        assert "this process only reads the state, for it was started while another one saves it" in refused.text
    assert server.ask(writer, "POST", "/scores/ada").json() == {"ada": 1}
    assert server.ask(reader, "GET", "/scores").json() == {}
    assert server.ask(writer, "POST", "/save").json() == 1
    assert server.ask(reader, "GET", "/scores").json() == {"ada": 1}

    # The kernel is replaced under both; they know each other again.
    assert server.ask(writer, "POST", "/scores/ada").json() == {"ada": 2}
    reboot()
    assert server.ask(reader, "GET", "/scores").json() == {"ada": 2}
    assert server.ask(reader, "POST", "/scores/ada").status_code == 503
    assert server.ask(writer, "POST", "/scores/ada").json() == {"ada": 3}
    server.ask(writer, "POST", "/save")
    assert server.ask(reader, "GET", "/scores").json() == {"ada": 3}
    assert server.ask(reader, "POST", "/scores/ada").status_code == 503

    # The worker that replaces a killed one takes its place.
    os.kill(writer, signal.SIGKILL)
    (writer,) = server.expect_roles("writer")
    assert server.ask(writer, "POST", "/scores/ada").json() == {"ada": 4}
    assert server.ask(reader, "POST", "/scores/ada").status_code == 503
    assert server.end() == 0
    assert saved("scores") == {"scores": {"ada": 4}}


def test_second_worker_of_an_application_that_refuses_others_ends_the_server_and_says_why(
    serve: StartServer, tmp_path: Path, name: str
) -> None:
    write_project(tmp_path, {"scores.py": STARLETTE.replace(', others="read"', ", timeout=0.1")}, name)
    server = serve(*UVICORN, "--workers", "2")
    server.wait()
    assert f"BusyError: app {name}: expected to be the one process that saves this state" in server.output
    assert "start this one with others='read'" in server.output


@pytest.mark.parametrize(
    ("worker_class", "interval"), [("uvicorn_worker.UvicornWorker", "0"), ("asgi", "0.05")], ids=["refresh", "interval"]
)
def test_reader_takes_the_place_of_a_gunicorn_worker_that_nobody_replaces(
    serve: StartServer, tmp_path: Path, runtime: RuntimeDirectory, worker_class: str, interval: str
) -> None:
    write_project(tmp_path, {"scores.py": STARLETTE}, interval=interval)
    server = start(serve, *GUNICORN_ASGI, worker_class)
    writer, reader = server.expect_roles("writer", "reader")
    assert server.ask(writer, "POST", "/scores/ada").json() == {"ada": 1}
    assert server.ask(writer, "POST", "/save").status_code == 200
    with stopped(server.process.pid):
        os.kill(writer, signal.SIGKILL)
        if interval == "0":
            wait_until(lambda: server.workers() == {reader})
            assert server.post("/scores/ada").status_code == 503
            assert server.get("/scores").json() == {"ada": 1}
        assert server.expect_roles("writer") == [reader]
        assert server.post("/scores/ada").json() == {"ada": 2}
        reboot()
        assert saved("scores") == {"scores": {"ada": 2}}
        assert server.post("/scores/ada").json() == {"ada": 3}
        assert server.post("/save").status_code == 200
    server.expect_roles("reader")
    assert server.ask(reader, "POST", "/scores/ada").json() == {"ada": 4}
    assert server.end() == 0
    assert saved("scores") == {"scores": {"ada": 4}}


@pytest.mark.parametrize("more", [(), ("--preload", "--threads", "2")], ids=["sync", "preloaded threads"])
def test_gunicorn_workers_start_the_state_from_its_configuration(
    serve: StartServer, tmp_path: Path, name: str, more: tuple[str, ...]
) -> None:
    write_project(tmp_path, {"scores.py": WSGI, "gunicorn.conf.py": GUNICORN}, name)
    server = start(serve, *GUNICORN_SYNC, *more)
    writer, reader = server.expect_roles("writer", "reader")
    assert server.ask(reader, "POST", "/scores/ada").status_code == 503
    assert server.ask(writer, "POST", "/scores/ada").json() == {"ada": 1}
    os.kill(writer, signal.SIGKILL)
    (writer,) = server.expect_roles("writer")
    assert server.ask(writer, "POST", "/scores/grace").json() == {"grace": 1}

    # All workers are replaced at once. Whatever overlaps, the last writer's state is there for one of the new ones.
    old = server.workers()
    server.kill(signal.SIGHUP)
    new = {server.expect_role()[0] for _ in old}
    wait_until(lambda: server.workers() == new)
    for worker in new:
        assert server.ask(worker, "GET", "/scores").json() == {"grace": 1}
    assert sorted(server.ask(worker, "POST", "/scores/grace").status_code for worker in new) == [200, 503]
    assert server.end() == 0
    assert saved(name) == {"scores": {"grace": 2}}


def test_application_that_was_started_before_gunicorn_forks_has_readers_only_for_workers(
    serve: StartServer, tmp_path: Path, runtime: RuntimeDirectory
) -> None:
    started = WSGI + "\n\nimport atexit\n\napp.start()\napp.state.scores['ada'] = 1\natexit.register(app.stop)\n"
    write_project(tmp_path, {"scores.py": started})
    server = start(serve, *GUNICORN_SYNC, "--preload")
    reboot()
    assert server.get("/scores").json() == {"ada": 1}
    refused = server.post("/scores/ada")
    assert refused.status_code == 503
    assert f"only reads the state, for it was forked from process {server.process.pid}, which saves it" in refused.text
    assert server.end() == 0
    assert saved("scores") == {"scores": {"ada": 1}}


USERS_TESTS = """\
# test_scores.py
import asyncio

import httpx
from fastapi.testclient import TestClient
from scores import api, app


def test_scores_survive_a_kernel_upgrade(simulated_kernel):
    with TestClient(api) as client:
        assert client.post("/scores/ada").json() == {"ada": 1}
        app.simulate_kexec()
        assert app.found.origin.kind == "carried over"
        assert client.post("/scores/ada").json() == {"ada": 2}
        app.simulate_kexec()
        assert client.get("/scores").json() == {"ada": 2}


def test_every_test_begins_anew(simulated_kernel):
    with TestClient(api) as client:
        assert client.get("/scores").json() == {}


def test_coroutines(simulated_kernel):
    async def main():
        async with app, httpx.AsyncClient(transport=httpx.ASGITransport(api), base_url="http://x") as client:
            await client.post("/scores/ada")
            app.simulate_kexec()
            assert (await client.get("/scores")).json() == {"ada": 1}
            await client.post("/scores/ada")
            await asyncio.to_thread(app.simulate_kexec)
            assert (await client.get("/scores")).json() == {"ada": 2}

    asyncio.run(main())
"""


def test_users_own_tests_replace_the_kernel_under_fastapis_test_client(tmp_path: Path) -> None:
    write_project(tmp_path, {"scores.py": SCORES, "test_scores.py": USERS_TESTS})
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        env=environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "3 passed" in done.stdout, done.stdout + done.stderr
