"""``serve``: a web service whose workers share the index, and which an upgrade of the kernel does not end."""

import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest

from .support import TEXTS, App

pytest.importorskip("uvicorn", reason="pip install uvicorn starlette")
pytest.importorskip("starlette", reason="pip install uvicorn starlette")


@pytest.fixture
def url(app: App) -> Iterator[str]:
    command = [sys.executable, "-m", "apps.vectors", "serve", "--workers", "2", "--port", "0"]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, encoding="utf-8", cwd=app.cli.directory, env=app.environment
    ) as server:
        assert server.stderr is not None
        found = None
        for line in server.stderr:
            found = found or re.search(r"http://127\.0\.0\.1:\d+", line)
            if "startup complete" in line:
                break
        assert found is not None
        wait_until_it_listens(int(found[0].rpartition(":")[2]))
        yield found[0]
        server.send_signal(signal.SIGTERM)
        server.stderr.read()


def wait_until_it_listens(port: int) -> None:
    """Uvicorn says that it runs before it does."""
    while True:
        with suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port), timeout=30):
            return


def get(url: str, **parameters: str) -> tuple[int, dict[str, list[dict[str, str]]]]:
    try:
        with urlopen(f"{url}/search?{urlencode(parameters)}", timeout=30) as answer:
            return answer.status, json.load(answer)
    except HTTPError as error:
        with error:
            return error.code, json.load(error)


def test_service_answers_from_the_index_as_it_is_and_goes_on_under_the_next_kernel(app: App, url: str) -> None:
    assert get(url, text="boats")[0] == 503
    app.build(TEXTS)
    status, answer = get(url, text="boats across a river", count="2")
    assert status == 200
    assert len(answer["hits"]) == 2
    assert answer["hits"][0]["name"] == "ferry"
    assert app("add", "selfie", "a photograph that one takes of oneself").status == 0
    for _ in range(5):
        assert get(url, text="a photograph of oneself")[1]["hits"][0]["name"] == "selfie"
    assert app.cli("reboot", "--simulate").status == 0
    for _ in range(5):
        assert get(url, text="a photograph of oneself")[1]["hits"][0]["name"] == "selfie"


@pytest.mark.parametrize(
    "parameters", [{}, {"text": ""}, {"text": "x" * 1001}, {"text": "a", "count": "0"}, {"text": "a", "count": "²"}]
)
def test_question_that_makes_no_sense_is_refused(url: str, parameters: dict[str, str]) -> None:
    assert get(url, **parameters)[0] == 400
