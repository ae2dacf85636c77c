"""What the App framework costs: around nothing, at an interval in which nothing changed, and while it packs."""

import dataclasses
import gc
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final

from persistmem.app.declaration import Declaration
from persistmem.app.running import Packing, Running, Settings
from persistmem.attachment import attach, drop_arena
from persistmem.termination import StateLock
from tests.bench.harness import Bound, Row, Samples, Sizes, interleave, timed

GROUP: Final = "app"

_WITH: Final = """
import sys, time
start = time.perf_counter()
import persistmem
app = persistmem.App("bench-app", size="1MiB", interval=0)
@app.state(version=1)
class Board:
    note: bytes = b"x" * 1024
imported = time.perf_counter()
with app:
    pass
print(imported - start, time.perf_counter() - imported)
"""
_RECORD_BYTES: Final = 35
_BLOB_BYTES: Final = 1 << 20


@dataclasses.dataclass
class _Records:
    """Many small things: what a program's dicts hold."""

    scores: dict[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class _Blobs:
    """A few large ones."""

    blobs: list[bytes] = dataclasses.field(default_factory=list)


def measure(sizes: Sizes) -> Iterator[Row]:
    """The rows of this group; wants an agent that nobody else uses."""
    yield from _around_nothing(sizes)
    wanted = min(sizes.array_bytes, 100 << 20)
    records = _Records({f"player{number:012d}": number * 0.5 for number in range(wanted // _RECORD_BYTES)})
    blobs = _Blobs([number.to_bytes(4, "little") * (_BLOB_BYTES // 4) for number in range(max(1, wanted >> 20))])
    for what, state in (("numbers", records), ("blobs of 1 MiB", blobs)):
        yield from _intervals(f"{wanted >> 20} MiB of {what}", state, sizes)


def _around_nothing(sizes: Sizes) -> Iterator[Row]:
    imports: list[float] = []

    def started() -> float:
        done = subprocess.run([sys.executable, "-c", _WITH], check=True, capture_output=True, text=True)
        imported, inside = map(float, done.stdout.split())
        imports.append(imported)
        return inside

    samples = interleave({"with app": started}, "with app", sizes.rounds_process)
    note = f"1 KiB of state; importing persistmem.App before it takes {sorted(imports)[len(imports) // 2] * 1e3:.0f} ms"
    yield Row(
        GROUP, "`with app: pass`, the first of a process", samples.median("with app") * 1e3, "ms", Bound("<", 5),
        samples.noise(), note, samples.seconds,
    )  # fmt: skip


def _intervals(what: str, state: object, sizes: Sizes) -> Iterator[Row]:
    packings: tuple[Packing, ...] = ("here", "child")
    running = {packing: _run(f"bench-{packing}", packing, state) for packing in packings}
    for each in running.values():
        each.save()
        each.stop(save=False)
    running = {packing: _run(f"bench-{packing}", packing, state) for packing in packings}
    gc.collect()
    gc.freeze()
    works: dict[str, Callable[[], float]] = {
        "unchanged": partial(_tick, running["here"], change=False),
        **{packing: partial(_tick, running[packing], change=True) for packing in packings},
    }
    samples = interleave(works, "here", sizes.rounds_array)
    gc.unfreeze()
    yield _row(f"{what}, an interval: nothing changed", samples, "unchanged", Bound("<", 1))
    yield _row(f"{what}, an interval: changed, packed here", samples, "here", None)
    yield _row(f"{what}, an interval: changed, packed by a child", samples, "child", None)
    for packing, each in running.items():
        each.stop(save=False)
        drop_arena(f"bench-{packing}")


def _row(work: str, samples: Samples, name: str, bound: Bound | None) -> Row:
    note = "how long the program stands still"
    return Row(GROUP, work, samples.median(name) * 1e3, "ms", bound, samples.noise(), note, samples.seconds)


def _run(name: str, packing: Packing, state: object) -> Running:
    settings = Settings(name, 0.0, packing, "refuse", 1, 10.0, partial(attach, name, "1GiB"))
    started = Running(settings, Declaration(type(state), 1), None, StateLock())
    if started.found.generation is None:
        started.set_state(state)
    return started


def _tick(running: Running, *, change: bool) -> float:
    rest: list[Callable[[], None] | None] = []
    if change:
        running.changes.note()  # what was changed makes no difference
    seconds = timed(lambda: rest.append(running.save_if_changed()))
    if (settle := rest[0]) is not None:
        settle()
    return seconds
