"""``python -m apps.vectors demo``: cold and warm, four processes, an update in place, a simulated kernel upgrade.

Runs the app and the command line as a person would, in processes of their own, with an agent that nobody else uses.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from apps.vectors.memory import Memory, memory_of
from persistmem.errors import MissingLibraryError

QUERIES: Final = (
    "fear of small spaces",
    "a person who studies insects",
    "feeling sad because you miss home",
    "instrument that makes distant things look near",
)
WORKERS: Final = 4
_NEW: Final = ("selfie", "a photograph that one takes of oneself, with a phone held at arm's length")
_ARENA: Final = "attach the arena"
_COPY: Final = "np.load, a copy each"
_MAPPED: Final = "np.load, mapped file"


class Worker:
    """A process that answers queries."""

    def __init__(self, process: "subprocess.Popen[str]", begun: float) -> None:
        self._process = process
        started = self._answer()
        self.seconds_to_open: float = started["seconds"]
        """To have index and model, in a process that runs and has imported everything."""
        self.seconds_to_ready: float = started["ready"] - begun
        """From starting the process: interpreter, imports and all."""

    def search(self, query: str) -> tuple[list[str], float]:
        """The names of the nearest texts, and the seconds it took."""
        assert self._process.stdin is not None
        self._process.stdin.write(query + "\n")
        self._process.stdin.flush()
        answer = self._answer()
        return answer["names"], answer["seconds"]

    @property
    def memory(self) -> Memory:
        """What it has of the machine's memory."""
        return memory_of(self._process.pid)

    def _answer(self) -> Any:  # noqa: ANN401 - JSON
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"a worker ended with status {self._process.wait()}")
        return json.loads(line)


class Demo:
    """The app and the command line, with an agent of their own."""

    def __init__(self, folder: Path) -> None:
        directories = {"PERSISTMEM_RUNTIME_DIR": str(folder), "PERSISTMEM_STATE_DIR": str(folder / "state")}
        self._environment = {**os.environ, **directories, "PYTHONIOENCODING": "utf-8"}

    def run(self, module: str, *arguments: str) -> str:
        """Run a command to its end; gives all it printed."""
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments], env=self._environment, check=False, encoding="utf-8",
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        if done.returncode:
            sys.exit(f"{done.stdout}{module} {' '.join(arguments)}: exit status {done.returncode}")
        return done.stdout.strip()

    @contextmanager
    def worker(self, source: str) -> Iterator[Worker]:
        """Start a process that answers queries, and end it."""
        begun = time.monotonic()
        with subprocess.Popen(
            [sys.executable, "-m", "apps.vectors.worker", source], env=self._environment, encoding="utf-8",
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        ) as process:  # fmt: skip
            yield Worker(process, begun)


def run(file: Path | None, model: str | None, plots: Path | None) -> int:
    """Show it all; the exit status is 1 if anything is not as it should be."""
    if plots is not None and find_spec("matplotlib") is None:
        raise MissingLibraryError("drawing takes Matplotlib: pip install matplotlib")
    with tempfile.TemporaryDirectory(prefix="persistmem-demo-") as folder:
        demo = Demo(Path(folder))
        demo.run("persistmem", "agent", "start")
        try:
            return _show(demo, Path(folder), file, model, plots)
        finally:
            demo.run("persistmem", "agent", "stop", "--discard")


def _show(demo: Demo, folder: Path, file: Path | None, model: str | None, plots: Path | None) -> int:
    _say("1. Cold start: nothing is in memory; every text is embedded. This takes a few minutes with minilm.")
    begun = time.monotonic()
    arguments = [*([str(file)] if file else []), *(["--model", model] if model else [])]
    _say_indented(demo.run("apps.vectors", "build", *arguments))
    starts = {"embed every text": time.monotonic() - begun}

    _say("2. Warm start: a new process attaches the index.")
    with demo.worker("arena") as worker:
        _say_start(worker)
        starts[_ARENA] = worker.seconds_to_open
        before = _ask(worker)

    demo.run("apps.vectors.copies", str(folder))
    _say(f"3. Memory: {WORKERS} processes that each have answered these queries.")
    memory: dict[str, list[Memory]] = {}
    found: list[bool] = []
    for name, source in ((_ARENA, "arena"), (_COPY, f"copy:{folder}"), (_MAPPED, f"mapped:{folder}")):
        with ExitStack() as stack:
            workers = [stack.enter_context(demo.worker(source)) for _ in range(WORKERS)]
            for worker in workers:
                for query in QUERIES:
                    worker.search(query)
            memory[name] = [worker.memory for worker in workers]
            starts.setdefault(name, min(worker.seconds_to_open for worker in workers))
            if source == "arena":
                demo.run("apps.vectors", "add", *_NEW)
                found = [worker.search(_NEW[1])[0][0] == _NEW[0] for worker in workers]
                demo.run("apps.vectors", "remove", _NEW[0])
    _say_memory(memory)

    _say(f"4. Changed in place: another process added {_NEW[0]!r}, while they ran.")
    _say(f"   found at the next query by {sum(found)} of {WORKERS} processes, which copied and reopened nothing\n")

    _say("5. Simulated kernel upgrade: persistmem reboot --simulate")
    _say_indented(demo.run("persistmem", "reboot", "--simulate"))

    _say("6. Warm start under the next kernel, and every checksum.")
    with demo.worker("arena") as worker:
        _say_start(worker)
        starts["attach it, next kernel"] = worker.seconds_to_open
        after = _ask(worker)
    _say_indented(demo.run("apps.vectors", "verify"))

    same = before == after
    _say("7. The same queries, before and after:" if same else "7. The answers differ:")
    for query, names in before.items():
        _say(f"   {query}: {', '.join(names)}" + ("" if same else f"; now {', '.join(after[query])}"))
    _say(f"\n{'until texts can be searched (1)':34}{'':>10}{'cold / this':>14}")
    starts = dict(sorted(starts.items(), key=lambda item: -item[1]))
    for name, seconds in starts.items():
        _say(f"   {name:31}{_duration(seconds):>10}{starts['embed every text'] / seconds:13,.0f}x")
    _say("(1) in a process that runs and has imported everything; embedding: with the process's start\n")
    if plots is not None:
        _plot(starts, memory, plots)
    return 0 if same and all(found) else 1


def _ask(worker: Worker) -> dict[str, list[str]]:
    answers, seconds = {}, []
    for query in QUERIES:
        answers[query], took = worker.search(query)
        seconds.append(took)
    _say(f"   a query takes {_duration(min(seconds))}: the text's embedding, and one pass over the matrix\n")
    return answers


def _say_start(worker: Worker) -> None:
    _say(f"   index and model in {_duration(worker.seconds_to_open)}")
    _say(f"   {_duration(worker.seconds_to_ready)} after the process's start, imports and all")


def _say_memory(memory: dict[str, list[Memory]]) -> None:
    _say(f"   {'':24}{'RSS each':>12}{'PSS each':>12}{'together':>12}")
    for name, processes in memory.items():
        rss, pss = (sum(values) / len(processes) for values in _columns(processes))
        _say(f"   {name:24}{_mib(rss):>12}{_mib(pss):>12}{_mib(pss * len(processes)):>12}")
    _say("")


def _columns(processes: Sequence[Memory]) -> tuple[list[int], list[int]]:
    return [process.rss for process in processes], [process.pss for process in processes]


def _plot(starts: dict[str, float], memory: dict[str, list[Memory]], folder: Path) -> None:
    from apps.vectors.plots import plot_memory, plot_starts  # noqa: PLC0415 - an extra, and slow to import

    ours = [name for name in starts if name.startswith("attach")]
    plot_starts(starts, ours, "from nothing, from files, from the arena", folder / "vectors-start.png")
    plot_memory(
        memory, _ARENA, f"memory of {len(memory[_ARENA])} processes that search the same texts",
        folder / "vectors-memory.png",
    )  # fmt: skip


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{1e3 * seconds:.1f} ms"


def _mib(count: float) -> str:
    return f"{count / (1 << 20):,.0f} MiB"


def _say_indented(text: str) -> None:
    _say("   " + text.replace("\n", "\n   ") + "\n")


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
