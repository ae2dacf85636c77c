"""Gets and sets of one process against what a user would cache with instead; two processes; a full cache."""

import gc
import itertools
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Final

import msgpack

from persistmem import Cache
from persistmem.cache.keys import encode_key
from persistmem.cache.layout import record_size
from tests.bench.cache.hits import sized_cache
from tests.bench.cache.requests import zipf
from tests.bench.cache.results import OURS
from tests.bench.cache.rivals import (
    DICT,
    DISKCACHE,
    LMDB,
    LMDB_PACKED,
    MEMCACHED,
    REDIS,
    SLOW,
    Pairs,
    Rival,
    open_all,
)
from tests.bench.cache.sizes import CacheSizes
from tests.bench.harness import Bound, Row, Samples, Sizes, interleave

GROUP: Final = "cache: speed"

_BOUNDS_GET: Final = {LMDB: 0.7, DISKCACHE: 1 / 5, REDIS: 1 / 30, MEMCACHED: 1 / 30, DICT: 2}
_BOUNDS_SET: Final = {LMDB: 0.8, DISKCACHE: 1 / 20, REDIS: 1 / 5, MEMCACHED: 1 / 5, DICT: 2.5}
"""Our time over theirs."""
_SLOWER: Final = 5


def make_value(number: int) -> dict[str, object]:
    """What a web application caches for a user; about 40 bytes, packed."""
    return {"id": number, "name": f"n{number % 100_000:05d}", "score": number * 0.37, "on": number % 3 == 0}


def make_key(number: int) -> str:
    """A key as people write them."""
    return f"user:{number:08d}"


def measure_speed(sizes: Sizes) -> Iterator[Row]:
    """The rows of this group; wants an agent that nobody else uses."""
    cache_sizes = CacheSizes.of(sizes)
    bytes_of = random.Random(1).randbytes
    kibibyte, large = bytes_of(1 << 10), bytes_of(64 << 10)
    small = [(make_key(number), make_value(number)) for number in range(cache_sizes.small)]
    yield from _kind("small dicts", small, 60, cache_sizes, packs=True)
    yield from _kind("1 KiB", _bytes(kibibyte, cache_sizes.kibibyte), 1 << 10, cache_sizes, packs=False)
    yield from _kind("64 KiB", _bytes(large, cache_sizes.large), 64 << 10, cache_sizes, packs=False)
    yield _two_processes(cache_sizes)
    yield from _full(cache_sizes)


def _bytes(value: bytes, count: int) -> Pairs:
    """Values of one size, each another object, so that no cache can share them."""
    return [(make_key(number), number.to_bytes(8, "little") + value[8:]) for number in range(count)]


def _kind(what: str, pairs: Pairs, size: int, sizes: CacheSizes, *, packs: bool) -> Iterator[Row]:
    sys.stderr.write(f"{what} ...\n")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm", prefix="persistmem-bench-")))
        rivals = open_all(stack, folder, pairs, len(pairs) * (size + 16), packs=packs)
        gc.collect()
        gc.freeze()
        for verb, samples in (
            ("get", _interleaved(rivals, pairs, sizes, reads=True)),
            ("set", _interleaved(rivals, pairs, sizes, reads=False)),
        ):
            yield from _rows(f"{verb} of {what}", samples, _BOUNDS_SET if verb == "set" else _BOUNDS_GET)
        if packs:
            direct = {name: rivals[name] for name in (OURS, LMDB, DICT)}
            samples = _interleaved(direct, pairs, sizes, reads=True, alpha=0.99)
            yield from _rows(f"get of {what}, Zipf(0.99)", samples, {})
        gc.unfreeze()


def _interleaved(
    rivals: Mapping[str, Rival], pairs: Pairs, sizes: CacheSizes, *, reads: bool, alpha: float | None = None
) -> Samples:
    """Seconds for each operation. In each round all have the same keys, in the same random order.

    But the reference, which runs twice, has others the second time, and not right after the first: or it would find
    them in the processor's caches. Each key is as likely as any other, unless there is an ``alpha``.
    """
    count = min(sizes.operations, len(pairs))
    draws = 2 * (sizes.rounds + 1)
    if alpha is None:
        rounds = [random.Random(number).sample(pairs, count) for number in range(draws)]
    else:
        popular = [pairs[number] for number in zipf(alpha, len(pairs), count * draws).tolist()]
        rounds = [popular[number * count : (number + 1) * count] for number in range(draws)]
    keys = [[key for key, _ in chosen] for chosen in rounds]

    def timed_round(name: str, turn: Iterator[int]) -> float:
        number = next(turn)
        part = count // _SLOWER if name in SLOW else count
        rival, asked, given = rivals[name], keys[number][:part], rounds[number][:part]
        start = time.perf_counter()
        if reads:
            rival.read(asked)
        else:
            rival.write(given)
        return (time.perf_counter() - start) / part

    others = [name for name in rivals if name != OURS]
    order = [*others[: len(others) // 2], OURS, *others[len(others) // 2 :]]
    works = {name: partial(timed_round, name, itertools.count(step=1 if name == OURS else 2)) for name in order}
    return interleave(works, OURS, sizes.rounds)


def _turns(times: int) -> Iterator[int]:
    """Numbers of the rounds, for a work that runs so often in each."""
    return (number // times for number in itertools.count())


def _rows(what: str, samples: Samples, bounds: Mapping[str, float]) -> Iterator[Row]:
    ours = samples.median(OURS)
    for name in (LMDB, LMDB_PACKED, DISKCACHE, REDIS, MEMCACHED, DICT):
        if name in samples.seconds:
            bound = Bound("<=", bounds[name]) if name in bounds else None
            note = f"{ours * 1e6:.2f} us / {samples.median(name) * 1e6:.2f} us"
            yield Row(
                GROUP, f"{what}: persistmem / {name}", samples.ratio(OURS, name), "x", bound, samples.noise(), note,
                samples.seconds,
            )  # fmt: skip


# Two processes


def _two_processes(sizes: CacheSizes) -> Row:
    name = "bench-two"
    cache = Cache(name, 64 << 20)
    cache.set_many({make_key(number): make_value(number) for number in range(sizes.small)})
    ratios: dict[str, list[float]] = {"cache": [], "dict": []}
    for _ in range(sizes.rounds + 1):
        for what, found in ratios.items():
            alone = sum(_reads(what, name, sizes, 1))
            found.append(sum(_reads(what, name, sizes, 2)) / alone)
    cache.close()
    medians = {what: sorted(found[1:])[len(found[1:]) // 2] for what, found in ratios.items()}
    return Row(
        GROUP, "two processes together: reads / those of one", medians["cache"], "x", Bound(">=", 1.7), None,
        f"of a dict in each process, which share nothing: {medians['dict']:.2f}", {},
    )  # fmt: skip


def _reads(what: str, arena: str, sizes: CacheSizes, processes: int) -> list[float]:
    command = [sys.executable, "-m", "tests.bench.cache.worker", what, arena, str(sizes.small), str(sizes.seconds)]
    workers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(processes)
    ]
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
    start = time.monotonic() + 0.05
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write(f"{start}\n")
        worker.stdin.flush()
    return [float(worker.communicate()[0]) for worker in workers]


# A full cache


def _full(sizes: CacheSizes) -> Iterator[Row]:
    """A cache that holds a fifth of what is asked for, and one that nothing has to leave, at the same work.

    What misses in the full one is set there, in place of something else. Where it did so, the half-full one is asked
    for something new, and given it: so both have as many hits, misses and new items, and only one has to evict.
    """
    rounds = sizes.rounds * 2
    keys = [make_key(number) for number in zipf(0.99, sizes.small, sizes.small * 4).tolist()]
    part = len(keys) // (rounds + 2)
    pieces = [keys[at : at + part] for at in range(0, part * (rounds + 2), part)]
    value = make_value(1)
    record = record_size(len(encode_key(keys[0])) + len(msgpack.packb(value)) + 1)
    new = (make_key(number) for number in itertools.count(sizes.small))
    with ExitStack() as stack:
        full = stack.enter_context(sized_cache(sizes.small // 5, record))
        roomy = stack.enter_context(sized_cache(sizes.small * 3, record))
        for _ in range(3):  # until its logs have been written all over, as those of the full one
            roomy.set_many({make_key(number): value for number in range(sizes.small)})
        for key in keys:
            if full.get(key) is None:
                full.set(key, value)
        missed = [_read_through(full, pieces[0], value)[1]]

        def work_full(turn: Iterator[int]) -> float:
            seconds, misses = _read_through(full, pieces[next(turn) + 1], value)
            missed.append(misses)
            return seconds / part

        def work_roomy(turn: Iterator[int], *, misses: bool) -> float:
            number = next(turn)  # of the piece before the full one's: it is known what missed there
            piece = zip(pieces[number], missed[number], strict=True)
            asked = [next(new) if misses and miss else key for key, miss in piece]
            return _read_through(roomy, asked, value)[0] / part

        half, hits = "half full", "half full, all hits"
        works = {
            "full": partial(work_full, itertools.count()),
            half: partial(work_roomy, _turns(2), misses=True),
            hits: partial(work_roomy, itertools.count(), misses=False),
        }
        gc.collect()
        gc.freeze()
        samples = interleave(works, half, rounds)
        gc.unfreeze()
        filled = f"{len(roomy) / (sizes.small * 3):.0%} full in the end, {roomy.stats().evicted} evicted"
    share = sum(map(sum, missed)) / (part * len(missed))
    microseconds = {name: f"{samples.median(name) * 1e6:.2f} us" for name in works}
    yield Row(
        GROUP, "full cache, Zipf(0.99): speed / a half-full one's, as many hits, misses and sets",
        samples.ratio(half, "full"), "x", Bound(">=", 0.98), samples.noise(),
        f"{microseconds['full']} / {microseconds[half]} a request; {share:.0%} miss and are set; the other: {filled}",
        samples.seconds,
    )  # fmt: skip
    yield Row(
        GROUP, "full cache, Zipf(0.99): speed / a half-full one's, where nothing misses",
        samples.ratio(hits, "full"), "x", None, samples.noise(),
        f"{microseconds['full']} / {microseconds[hits]} a request: what the misses cost, too", samples.seconds,
    )  # fmt: skip


def _read_through(cache: Cache, keys: Sequence[str], value: object) -> tuple[float, list[bool]]:
    """Seconds for getting every key, and setting those that miss; and which did."""
    missed: list[bool] = []
    get, put, add = cache.get, cache.set, missed.append
    start = time.perf_counter()
    for key in keys:
        if get(key) is None:
            put(key, value)
            add(True)
        else:
            add(False)
    return time.perf_counter() - start, missed
