"""A dashboard as its users have it: a process, its socket, and pages read as a person or a parser would."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from time import monotonic
from typing import Final, TypeVar

import httpx

from persistmem.attachment import attach

ROOT: Final = Path(__file__).parents[3]
PATIENCE: Final = 30.0
COMMAND: Final = [sys.executable, "-m", "apps.dashboard"]
T = TypeVar("T")


class Page(HTMLParser):
    """What a page says, and what it is made of."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self._texts: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self._texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self._texts).split())

    def says(self, pattern: str) -> bool:
        """Whether a regular expression is found in the text; it is an assertion, for its message."""
        assert re.search(pattern, self.text), f"{pattern!r} is not in:\n{self.text}"
        return True

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


class Dashboard:
    """A dashboard that runs. Ending it checks that it had nothing to complain about."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [*COMMAND, "--listen", "127.0.0.1:0", "--interval", "100ms", *arguments],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout
        told = self.process.stdout.readline()
        found = re.fullmatch(r"dashboard: (http://\S+)/ \((.+)\); Ctrl-C ends it\n", told)
        assert found, told or self.process.communicate()[1]
        self.url, self.mode = found[1], found[2]
        self.client = httpx.Client(base_url=self.url, timeout=PATIENCE, verify=False)  # no TLS here: spare it

    def page(self, path: str = "/") -> Page:
        return Page(self.client.get(path).text)

    def token(self) -> str:
        """What forms carry in this client's session."""
        return next(str(each["value"]) for each in self.page().attributes("input") if each.get("name") == "token")

    def post(self, path: str, **form: str) -> httpx.Response:
        """Send a form as a page of the dashboard does."""
        return self.client.post(
            path, data={"token": form.pop("token", None) or self.token(), **form}, headers={"Origin": self.url}
        )

    def arena(self, name: str) -> str:
        """The path of an arena's page."""
        html = self.client.get("/").text
        found = re.search(rf'href="(/arena/[^"]+)"><bdi>{re.escape(name)}</bdi>', html)
        assert found, f"no arena {name} in {Page(html).text}"
        return found[1]

    def until(self, text: str, path: str = "/") -> Page:
        """Load a page again and again until it says ``text``, a regular expression."""
        deadline = monotonic() + PATIENCE
        while not re.search(text, (page := self.page(path)).text) and monotonic() < deadline:
            pass
        assert page.says(text)
        return page

    def end(self, by: signal.Signals = signal.SIGINT) -> int:
        self.client.close()
        self.process.send_signal(by)
        _, complaints = self.process.communicate(timeout=PATIENCE)
        assert complaints == ""
        return self.process.returncode


StartDashboard = Callable[..., Dashboard]


def eventually(check: Callable[[], T | None], what: str) -> T:
    """Return what ``check`` gives once that is something."""
    deadline = monotonic() + PATIENCE
    while monotonic() < deadline:
        if (found := check()) is not None:
            return found
    raise AssertionError(f"in {PATIENCE} seconds there was no {what}")


def keep(arena: str, **snapshots: object) -> None:
    """Have an arena of 1 MiB that holds these snapshots, and be none of those who have it attached."""
    with attach(arena, "1MiB") as attached:
        for name, document in snapshots.items():
            attached.snapshot(name, document)


def damage(arena: str, offset: int) -> None:
    """Flip a bit of an arena behind everybody's back."""
    with attach(arena) as attached:
        memory = attached.descriptor()
    [byte] = os.pread(memory, 1, offset)
    os.pwrite(memory, bytes([byte ^ 1]), offset)
    os.close(memory)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the dashboard's command to its end."""
    return subprocess.run(
        [*COMMAND, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False, env=os.environ
    )
