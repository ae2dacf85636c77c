"""A Django project's state: started by the first request of a process that serves some, kept when that ends.

Django's own server, gunicorn and uvicorn run it; commands, reloading and a user's tests do what they do in a project.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import persistmem
from persistmem.agent.command import environment
from persistmem.agent.paths import RuntimeDirectory
from persistmem.attachment import list_arenas

from ..agent.conftest import runtime as runtime  # noqa: PLC0414 - a fixture
from .servers_support import Server, StartServer, write_project
from .servers_support import serve as serve  # noqa: PLC0414 - a fixture
from .support import generations, saved, wait_until

PROJECT = {
    "board/state.py": """\
# board/state.py
from dataclasses import field

import persistmem

app = persistmem.App("scores", size="4MiB", others="read")


@app.state(version=1)
class State:
    scores: dict[str, int] = field(default_factory=dict)
""",
    "board/apps.py": """\
# board/apps.py
from persistmem.adapters.django_app import PersistmemConfig

from board.state import app


class BoardConfig(PersistmemConfig):
    name = "board"
    persistmem = app
""",
    "board/views.py": """\
# board/views.py
import persistmem
from django.http import JsonResponse

from board.state import app


def scores(request):
    app.refresh()
    with app.lock:
        return JsonResponse(app.state.scores)


def add(request, name):
    with app.lock:
        app.state.scores[name] = app.state.scores.get(name, 0) + 1
        return JsonResponse(app.state.scores)


def not_the_writer(get_response):  # in MIDDLEWARE
    def respond(request):
        return get_response(request)

    def process_exception(request, error):
        if isinstance(error, persistmem.RefusedError):
            return JsonResponse({"detail": str(error)}, status=503, headers={"Retry-After": "1"})

    respond.process_exception = process_exception
    return respond
""",
    "asgi.py": """\
# asgi.py
import os

from django.core.asgi import get_asgi_application
from persistmem.adapters.django_app import with_lifespan

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "settings")
application = with_lifespan(get_asgi_application())
""",
    # What every project has.
    "board/__init__.py": "",
    "settings.py": """\
SECRET_KEY = "not a secret"
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "urls"
INSTALLED_APPS = ["board"]
MIDDLEWARE = ["board.views.not_the_writer"]
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"process": {"format": "%(process)d %(message)s"}},
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "process"}},
    "loggers": {"persistmem": {"handlers": ["console"], "level": "INFO"}},
}
""",
    "urls.py": """\
from django.urls import path

from board import views

urlpatterns = [path("scores", views.scores), path("scores/<name>", views.add)]
""",
    "manage.py": """\
import os
import sys

from django.core.management import execute_from_command_line

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "settings")
execute_from_command_line(sys.argv)
""",
    "wsgi.py": """\
import os

from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "settings")
application = get_wsgi_application()
""",
}

TESTS = {
    "conftest.py": """\
import os

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "settings")
django.setup()
""",
    "test_board.py": """\
# test_board.py
import pytest
from django.test import Client

from board.state import app


@pytest.fixture(autouse=True)
def state(simulated_kernel):
    pass


def test_scores_survive_a_kernel_upgrade():
    Client().post("/scores/ada")
    app.simulate_kexec()
    assert Client().get("/scores").json() == {"ada": 1}
    assert app.found.origin.kind == "carried over"


def test_every_test_begins_anew():
    assert Client().get("/scores").json() == {}
""",
}

GUNICORN = ("gunicorn", "wsgi", "--bind", "127.0.0.1:0", "--workers", "2", "--no-control-socket")
UVICORN = ("uvicorn", "asgi:application", "--port", "0")


def write(directory: Path, name: str, files: Mapping[str, str] = PROJECT, **options: str) -> None:
    write_project(directory, files, name, **options)


def runserver(serve: StartServer, *options: str) -> Server:
    server = serve("manage.py", "runserver", *options, "127.0.0.1:0")
    server.listen()
    return server


def manage(directory: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "manage.py", *arguments],
        env=environment(),
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_development_server_keeps_its_state_when_it_is_told_to_end(
    serve: StartServer, tmp_path: Path, name: str, number: signal.Signals
) -> None:
    write(tmp_path, name)
    for count in (1, 2):
        server = runserver(serve, "--noreload")
        assert server.post("/scores/ada").json() == {"ada": count}
        assert server.end(number) == (143 if number == signal.SIGTERM else 0)
        assert saved(name) == {"scores": {"ada": count}}


def test_development_server_without_requests_dies_of_sigterm_as_ever_and_saves_nothing(
    serve: StartServer, tmp_path: Path, name: str
) -> None:
    write(tmp_path, name)
    server = runserver(serve, "--noreload")
    assert server.end() == -signal.SIGTERM
    assert name not in [arena.name for arena in list_arenas()]


def test_reloading_keeps_the_state(serve: StartServer, tmp_path: Path, name: str) -> None:
    # What the reloader has not seen yet does not change for it.
    watched = """
LOGGING["filters"] = {
    "views": {
        "()": "django.utils.log.CallbackFilter",
        "callback": lambda record: "views.py first seen" in record.getMessage(),
    }
}
LOGGING["loggers"]["django.utils.autoreload"] = {"handlers": ["console"], "level": "DEBUG", "filters": ["views"]}
"""
    write(tmp_path, name, PROJECT | {"settings.py": PROJECT["settings.py"] + watched})
    server = runserver(serve)
    assert server.post("/scores/ada").json() == {"ada": 1}
    server.expect_ever("board/views.py first seen")
    views = tmp_path / "board" / "views.py"
    views.write_text(views.read_text().replace("+ 1", "+ 10"))
    server.listen()
    assert server.post("/scores/ada").json() == {"ada": 11}


def test_requests_that_come_at_once_wait_until_the_first_has_started_the_state(
    serve: StartServer, tmp_path: Path, name: str
) -> None:
    hook = """

@app.on_restore
def wait(found):
    print("starting", flush=True)
    with open("released") as pipe:
        app.state.scores["ada"] = int(pipe.read())
"""
    wsgi = """

django = application


def application(environ, start_response):
    print("arrived", flush=True)
    return django(environ, start_response)
"""
    more = {"board/state.py": hook, "wsgi.py": wsgi, "settings.py": 'WSGI_APPLICATION = "wsgi.application"\n'}
    write(tmp_path, name, PROJECT | {file: PROJECT[file] + text for file, text in more.items()})
    os.mkfifo(tmp_path / "released")
    server = runserver(serve, "--noreload")
    with ThreadPoolExecutor() as clients:
        first = clients.submit(server.post, "/scores/ada")
        server.expect("starting")
        second = clients.submit(server.post, "/scores/ada")
        server.expect("arrived")
        (tmp_path / "released").write_text("5")
        answers = [first.result().json(), second.result().json()]
    assert sorted(answer["ada"] for answer in answers) == [6, 7]
    server.end()
    assert saved(name) == {"scores": {"ada": 7}}


def test_start_that_failed_is_tried_again_by_the_next_request(serve: StartServer, tmp_path: Path, name: str) -> None:
    other = persistmem.App(name, "1MiB")
    other.state(version=1)(dict)
    one_only = {"board/state.py": PROJECT["board/state.py"].replace(', others="read"', ", timeout=0.1")}
    write(tmp_path, name, PROJECT | one_only)
    with other:
        other.state["scores"] = {"ada": 1}
        server = runserver(serve, "--noreload")
        assert server.post("/scores/ada").status_code == 500
        server.expect("BusyError")
    assert server.post("/scores/ada").json() == {"ada": 2}


def test_of_two_gunicorn_workers_one_writes_and_the_other_reads(serve: StartServer, tmp_path: Path, name: str) -> None:
    write(tmp_path, name)
    server = serve(*GUNICORN)
    server.listen()
    writer, reader = server.expect_booting(), server.expect_booting()
    assert server.ask(writer, "POST", "/scores/ada").json() == {"ada": 1}
    assert server.expect_roles("writer") == [writer]
    refused = server.ask(reader, "POST", "/scores/ada")
    assert refused.status_code == 503
    assert "this process only reads the state" in refused.text
    assert server.expect_roles("reader") == [reader]

    os.kill(writer, signal.SIGTERM)
    other = server.expect_booting()
    wait_until(lambda: server.workers() == {reader, other})
    assert server.ask(other, "POST", "/scores/ada").json() == {"ada": 2}
    assert server.ask(reader, "POST", "/scores/ada").status_code == 503
    assert server.end() == 0
    assert saved(name) == {"scores": {"ada": 2}}


def test_asgi_application_with_lifespan_is_started_and_stopped_with_its_server(
    serve: StartServer, tmp_path: Path, name: str
) -> None:
    write(tmp_path, name)
    server = serve(*UVICORN, "--workers", "2")
    server.listen()
    writer, reader = server.expect_roles("writer", "reader")
    assert server.ask(writer, "POST", "/scores/ada").json() == {"ada": 1}
    assert server.ask(reader, "POST", "/scores/ada").status_code == 503
    server.end()
    assert saved(name) == {"scores": {"ada": 1}}

    write(tmp_path, name, {"board/state.py": PROJECT["board/state.py"].replace("scores:", "points:")})
    server = serve(*UVICORN)
    assert server.wait() == 3
    assert "MigrationError: state: State has no field scores" in server.output


def test_asgi_server_without_lifespan_starts_the_state_with_the_first_request(
    serve: StartServer, tmp_path: Path, name: str
) -> None:
    write(tmp_path, name, interval="0.02")
    server = serve(*UVICORN, "--lifespan", "off")
    server.listen()
    assert "role=" not in server.output
    assert server.post("/scores/ada").json() == {"ada": 1}
    server.expect_roles("writer")
    wait_until(lambda: generations(name) and saved(name) == {"scores": {"ada": 1}})


def test_management_commands_do_not_become_the_writer(serve: StartServer, tmp_path: Path, name: str) -> None:
    write(tmp_path, name)
    manage(tmp_path, "check")
    assert name not in [arena.name for arena in list_arenas()]
    server = runserver(serve, "--noreload")
    server.post("/scores/ada")
    with_state = "from board.state import app\nwith app:\n    print(app.is_writer, app.state.scores)"
    assert manage(tmp_path, "shell", "--no-imports", "-c", with_state) == "False {}\n"
    server.end()
    assert manage(tmp_path, "shell", "--no-imports", "-c", with_state) == "True {'ada': 1}\n"


def test_users_own_tests_replace_the_kernel_under_djangos_test_client(
    tmp_path: Path, name: str, runtime: RuntimeDirectory
) -> None:
    write(tmp_path, name, PROJECT | TESTS)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error"],
        env=environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "2 passed" in done.stdout, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert list_arenas() == []


def test_config_that_names_no_application_is_told_so(tmp_path: Path, name: str) -> None:
    nothing = PROJECT["board/apps.py"].replace("persistmem = app", "verbose_name = 'Board'")
    write(tmp_path, name, PROJECT | {"board/apps.py": nothing})
    with pytest.raises(subprocess.CalledProcessError) as caught:
        manage(tmp_path, "check")
    assert "ImproperlyConfigured: BoardConfig.persistmem: expected a persistmem.App, found None" in caught.value.stderr
