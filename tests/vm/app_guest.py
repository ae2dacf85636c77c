"""An application's state crosses kernels, back and forth, while the program is upgraded and, once, downgraded.

Another application does not get ready in time. None of them stops before the kernel is left.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from threading import Thread
from typing import IO

from . import guest
from .guest import SystemAgent, run

USER, OTHER = 1001, 1002
LOG = "board.log"
DEADLINE = 10
"""Seconds in which applications are to get ready."""

_RUN = """
with app:
    found = app.found
    print(json.dumps({
        "found": found.state, "arena": found.origin.kind, "kernels": [found.origin.kernel_from, found.origin.kernel_to],
        "migrated_from": found.migrated_from, "generation": found.generation, "saved_by": found.saved_by,
        "state": app.state.__dict__,
    }), flush=True)
    app.state.visits += 1
    print(app.save().number, flush=True)
    app.state.visits += 1
    threading.Event().wait()
"""
"""The last visit is counted after the last save, and no interval ends before the kernel is left."""

BOARD_1 = f"""
import json, logging, threading
from dataclasses import field
import persistmem

logging.basicConfig(level=logging.INFO, format="%(message)s", filename="{LOG}")
app = persistmem.App("leaderboard", size="1MiB", interval="1h")

@app.state(version=1)
class Board:
    visits: int = 0
    scores: dict[str, int] = field(default_factory=lambda: {{"ada": 3, "bob": 5}})

@app.on_prepare
def close() -> None:
    app.state.scores["closed"] = app.state.scores.get("closed", 0) + 1
{_RUN}"""
BOARD_2 = f"""
import json, logging, threading
import persistmem

logging.basicConfig(level=logging.INFO, format="%(message)s", filename="{LOG}")
app = persistmem.App("leaderboard", size="1MiB", interval="1h")

@app.state(version=2)
class Board:
    visits: int
    players: dict[str, dict[str, object]]

@app.migrate(1)
def add_handles(old: dict) -> dict:
    players = {{name: {{"handle": "@" + name, "score": score}} for name, score in old["scores"].items()}}
    return {{"visits": old["visits"], "players": players}}
{_RUN}"""
STUCK = f"""
import json, threading
import persistmem

app = persistmem.App("stuck", size="1MiB", interval="1h")

@app.state(version=1)
class Counter:
    visits: int = 0

@app.on_prepare
def hang() -> None:
    print("hangs", flush=True)
    threading.Event().wait()
{_RUN}"""
LOOK = """
import json, persistmem
with persistmem.attach("leaderboard") as arena:
    generations = [[each.number, each.created.isoformat()] for each in arena.history("state")]
    print(json.dumps([generations, arena.restore("state")]))
"""


class Application:
    """A program that is started as that user, and left running."""

    def __init__(self, program: str, uid: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            user=uid,
            group=uid,
            extra_groups=[],
            cwd=tempfile.gettempdir(),
        )

    @property
    def output(self) -> IO[str]:
        """What it says."""
        assert self.process.stdout is not None
        return self.process.stdout

    def tell(self, what: str) -> None:
        """Report what it found when it started, and the generation that it saved since."""
        lines = self.output.readline(), self.output.readline()
        if not all(lines):
            raise AssertionError(f"{what} ended: {self.process.communicate()[1]}")
        guest.tell(what, json.loads(lines[0]))
        guest.tell(f"{what} saved", int(lines[1]))


def tell_lines(what: str, lines: Iterable[str]) -> None:
    """Report each of ``lines`` as it comes, for as long as this kernel runs."""
    for line in lines:
        guest.tell(what, line.strip())


def look() -> object:
    """The board's generations, and the newest one's document."""
    return json.loads(run("-c", LOOK, uid=USER).stdout)


def main() -> None:
    stage = guest.stage()
    SystemAgent()
    if stage == 0:
        Application(BOARD_1, USER).tell("board")
        stuck = Application(STUCK, OTHER)
        stuck.tell("stuck")
        Thread(target=tell_lines, args=("stuck says", stuck.output), daemon=True).start()
    else:
        if stage == 1:
            stuck = Application(STUCK, OTHER)
            stuck.tell("stuck")
            stuck.process.kill()
        else:
            guest.tell("before the downgrade", look())
            guest.tell_command("downgraded", run("-c", BOARD_1, uid=USER, check=False))
            guest.tell("after the downgrade", look())
        Application(BOARD_2, USER).tell("board")
        guest.tell("log", (Path(tempfile.gettempdir()) / LOG).read_text().splitlines())
    guest.tell_history()
    if stage + 1 < guest.kernels():
        guest.tell_command("stayed", guest.reboot("--deadline", str(DEADLINE)))


if __name__ == "__main__":
    main()
