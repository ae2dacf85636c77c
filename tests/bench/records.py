"""200,000 small records: snapshot and restore against msgpack and XXH3 alone, and against pickle on tmpfs."""

import gc
import itertools
import mmap
import os
import pickle
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgpack
import xxhash

from persistmem import Arena
from persistmem.testing import new_arena
from tests.bench.harness import Bound, Row, Samples, Sizes, interleave, timed

GROUP = "small records"
Records = dict[str, dict[str, object]]


def make_records(count: int) -> Records:
    """A user table as a web application holds it: text, numbers, a short list; about 100 bytes each, packed."""
    return {
        f"user-{number:07d}": {
            "id": number,
            "name": f"name {number * 7919 % count}",
            "email": f"u{number}@mail.example",
            "score": number * 0.37,
            "visits": number % 977,
            "tags": ["reader", "eu" if number % 2 else "us"],
            "active": number % 3 == 0,
        }
        for number in range(count)
    }


class Changing:
    """Records of which one, in the middle, differs each time they are stored, at the same packed length."""

    def __init__(self, count: int) -> None:
        self.records = make_records(count)
        self._one = self.records[f"user-{count // 2:07d}"]
        self._clock = itertools.count(1)

    def next(self) -> Records:
        """The records, with a change since the last time."""
        self._one["score"] = float(next(self._clock))
        return self.records


def measure(sizes: Sizes) -> Iterator[Row]:
    """The rows of this group."""
    changing = Changing(sizes.records)
    packed_size = len(msgpack.packb(changing.records))
    size = max(1 << 20, 5 * packed_size) + (1 << 20) & ~4095
    with new_arena(size) as arena:
        yield from _snapshot_rows(_snapshots(changing, arena, packed_size, sizes.rounds), packed_size)
        yield from _restore_rows(_restores(changing, arena, sizes.rounds))


def _snapshots(changing: Changing, arena: Arena, packed_size: int, rounds: int) -> Samples:
    fd = os.memfd_create("reference", os.MFD_CLOEXEC)
    os.ftruncate(fd, packed_size)
    memory = memoryview(mmap.mmap(fd, packed_size))
    os.close(fd)

    def reference() -> None:
        packed = msgpack.packb(changing.records)
        memory[:] = packed
        xxhash.xxh3_64_intdigest(memory)

    def pack_alone() -> float:
        changing.next()
        return timed(lambda: msgpack.packb(changing.records))

    def arena_snapshot() -> float:
        records = changing.next()
        return timed(lambda: arena.snapshot("records", records))

    def arena_same() -> float:
        return timed(lambda: arena.snapshot("records", changing.records))

    def work() -> float:
        changing.next()
        return timed(reference)

    works = {"snapshot": arena_snapshot, "packb + copy + XXH3": work, "packb": pack_alone, "unchanged": arena_same}
    return interleave(works, "packb + copy + XXH3", rounds)


def _snapshot_rows(samples: Samples, packed_size: int) -> Iterator[Row]:
    note = f"{packed_size / 1e6:.1f} MB packed; median {samples.median('snapshot') * 1e3:.1f} ms"
    yield Row(
        GROUP, "snapshot / (packb + one copy + one XXH3 pass)", samples.ratio("snapshot"), "x",
        Bound("<=", 1.15), samples.noise(), note, samples.seconds,
    )  # fmt: skip


def _restores(changing: Changing, arena: Arena, rounds: int) -> Samples:
    arena.snapshot("records", changing.next())
    packed = msgpack.packb(changing.records)
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="persistmem-bench-") as folder:
        file = Path(folder) / "records.pickle"
        file.write_bytes(pickle.dumps(changing.records, protocol=pickle.HIGHEST_PROTOCOL))

        def reference() -> object:
            xxhash.xxh3_64_intdigest(packed)
            gc.disable()
            try:
                return msgpack.unpackb(packed)
            finally:
                gc.enable()

        def unpickle_paused() -> object:
            gc.disable()
            try:
                return pickle.loads(file.read_bytes())
            finally:
                gc.enable()

        works = {
            "restore": lambda: timed(lambda: arena.restore("records")),
            "XXH3 + unpackb": lambda: timed(reference),
            "pickle.loads": lambda: timed(lambda: pickle.loads(file.read_bytes())),
            "pickle.loads, gc paused": lambda: timed(unpickle_paused),
        }
        return interleave(works, "XXH3 + unpackb", rounds)


def _restore_rows(samples: Samples) -> Iterator[Row]:
    note = f"gc paused in both; median {samples.median('restore') * 1e3:.1f} ms"
    yield Row(
        GROUP, "restore / (one XXH3 pass + unpackb)", samples.ratio("restore"), "x",
        Bound("<=", 1.1), samples.noise(), note, samples.seconds,
    )  # fmt: skip
    for name, bound in (("pickle.loads", Bound("<", 1)), ("pickle.loads, gc paused", None)):
        yield Row(
            GROUP, f"restore / {name} from tmpfs", samples.ratio("restore", name), "x", bound, samples.noise(),
            f"median of {name}: {samples.median(name) * 1e3:.1f} ms",
        )  # fmt: skip
