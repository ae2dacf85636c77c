"""``make demo``: a cold start, a simulated kernel upgrade, a warm start, each in a process of its own.

Runs the app and the command line as a person would, with an agent of its own that it stops in the end. Everything is
said twice: how long the index alone took, and how long from starting the process until it could answer.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

QUERIES: Final = ("Zürich", "sao pau", "Münhcen", "東京", "-48.88,-123.39")
_WIDTH: Final = 72


@dataclass(frozen=True, slots=True)
class Run:
    """One start of the app, as seen from outside."""

    seconds_to_ready: float
    """From starting the process until it could answer: interpreter, imports and all."""
    steps: dict[str, float]
    origin: dict[str, str | None]
    answers: dict[str, list[str]]

    @property
    def seconds_index(self) -> float:
        """To have the index, in a process that runs already."""
        return sum(seconds for name, seconds in self.steps.items() if name != "snapshot")


class Demo:
    """The app and the command line, with an agent that nobody else uses."""

    def __init__(self, runtime: Path) -> None:
        directories = {"PERSISTMEM_RUNTIME_DIR": str(runtime), "PERSISTMEM_STATE_DIR": str(runtime / "state")}
        self._environment = {**os.environ, **directories, "PYTHONIOENCODING": "utf-8"}

    def persistmem(self, *arguments: str) -> str:
        """Run a command; gives what it printed."""
        return self._run("persistmem", *arguments)

    def warm_up(self) -> None:
        """Start the agent, and import everything once, so that no start that is timed has to compile a module."""
        self.persistmem("agent", "start")
        self._run("apps.cities", "--help")

    def search(self) -> Run:
        """Start the app in a new process."""
        begun = time.monotonic()
        report = json.loads(self._run("apps.cities", "--json", "--", *QUERIES))
        return Run(report["ready"] - begun, report["steps"], report["origin"], report["answers"])

    def _run(self, module: str, *arguments: str) -> str:
        command = [sys.executable, "-m", module, *arguments]
        done = subprocess.run(command, env=self._environment, check=False, capture_output=True, encoding="utf-8")
        if done.returncode:
            sys.exit(f"{done.stderr}{module} {' '.join(arguments)}: exit status {done.returncode}")
        return done.stdout


def main() -> int:
    """Show it all; the exit status is 1 if the answers differ."""
    sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    with tempfile.TemporaryDirectory(prefix="persistmem-demo-") as folder:
        demo = Demo(Path(folder))
        demo.warm_up()
        try:
            return _show(demo)
        finally:
            demo.persistmem("agent", "stop", "--discard")


def _show(demo: Demo) -> int:
    _say("A search over 34,000 cities and their 350,000 other names (GeoNames), and a matrix of their coordinates.\n")
    _say("1. Cold start: nothing is in memory; the app reads the gazetteer and builds its index.")
    cold = demo.search()
    _say_run(cold)
    _say("2. Simulated kernel upgrade: persistmem reboot --simulate")
    _say("   " + demo.persistmem("reboot", "--simulate").strip().replace("\n", "\n   ") + "\n")
    _say("3. Warm start: a new process, under the next kernel; the index is in its arena, checked and used in place.")
    warm = demo.search()
    _say_run(warm)
    same = cold.answers == warm.answers
    _say("4. The same queries, before and after:" if same else "4. The answers differ:")
    for query in QUERIES:
        _say(f"   {query}")
        for hits in [cold.answers[query]] if same else [cold.answers[query], warm.answers[query]]:
            _say(f"      {'; '.join(hits)}")
    _say(f"\n{'':34}{'cold':>10}{'warm':>10}{'ratio':>9}")
    _say_ratio("having the index (1)", cold.seconds_index, warm.seconds_index)
    _say_ratio("process start until ready (2)", cold.seconds_to_ready, warm.seconds_to_ready)
    _say("(1) in a process that runs and has imported everything: attach and read and build, or attach and restore")
    _say(
        "(2) the same, with the interpreter's start and all imports (numpy takes the most). An agent ran before both.\n"
    )
    _say(f"kernel {warm.origin['from']} -> {warm.origin['to']}; arena {warm.origin['kind']}; answers {_verdict(same)}")
    return 0 if same and warm.origin["kind"] == "carried over" else 1


def _say_run(run: Run) -> None:
    steps = ", ".join(f"{name} {seconds * 1e3:.1f} ms" for name, seconds in run.steps.items())
    _say(f"   {steps}\n")


def _say_ratio(what: str, cold: float, warm: float) -> None:
    _say(f"{what:34}{cold * 1e3:7.0f} ms{warm * 1e3:7.1f} ms{cold / warm:8.1f}x")


def _verdict(same: bool) -> str:
    return "identical" if same else "DIFFERENT"


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
