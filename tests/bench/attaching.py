"""Attaching arenas of 64 MiB and of 16 GiB through an agent."""

import subprocess
import sys
from collections.abc import Iterator
from functools import partial

from persistmem.attachment import attach
from persistmem.sizes import format_size
from tests.bench.harness import Bound, Row, Sizes, interleave, timed

GROUP = "attach"

_FIRST = """
import sys, time
from persistmem import attach
start = time.perf_counter()
arena = attach(sys.argv[1])
print(time.perf_counter() - start)
"""


def measure(sizes: Sizes) -> Iterator[Row]:
    """The rows of this group; wants an agent that nobody else uses."""
    names = [format_size(size).replace(" ", "") for size in sizes.attach_bytes]
    arenas = [attach(name, size) for name, size in zip(names, sizes.attach_bytes, strict=True)]
    again = interleave({name: partial(_again, name) for name in names}, names[0], 5 * sizes.rounds)
    first = interleave({name: partial(_first, name) for name in names}, names[0], sizes.rounds_process)
    small, large = names
    for what, samples in (("first of a process", first), ("later", again)):
        for name in names:
            note = "in a process that has imported everything; the arena is there, and sparse"
            yield Row(
                GROUP, f"attach {name}, {what}", samples.median(name) * 1e3, "ms", Bound("<", 5), samples.noise(), note,
                samples.seconds,
            )  # fmt: skip
        yield Row(
            GROUP, f"attach {large} / {small}, {what}", samples.ratio(large), "x", Bound("<=", 1.25), samples.noise(),
            "the same time, give or take the noise",
        )  # fmt: skip
    for arena in arenas:
        arena.close()


def _again(name: str) -> float:
    return timed(lambda: attach(name).close())


def _first(name: str) -> float:
    done = subprocess.run([sys.executable, "-c", _FIRST, name], check=True, capture_output=True, text=True)
    return float(done.stdout)
