"""Hit ratios of a real ``Cache`` beside those of other policies, simulated by libCacheSim on the same requests.

All objects have the same size, and a size is how many of them fit. For our cache that is what its logs hold, with what
they keep free and what is dead in them; its index, like the simulated caches' own, is not counted.
"""

import json
import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Final

import numpy as np

from persistmem import Cache
from persistmem.cache.layout import Geometry, record_size
from persistmem.testing import new_arena
from tests.bench.cache.plots import plot_hits, print_hits
from tests.bench.cache.requests import Requests, recorded, recorded_path, scan_and_loop, write_oracle, zipf
from tests.bench.cache.results import OURS, HitRatios
from tests.bench.cache.sizes import CacheSizes
from tests.bench.harness import Row, Sizes

GROUP: Final = "cache: hit ratio"

SIMULATED: Final = {
    "LRU": "LRU",
    "CLOCK": "Clock",
    "ARC": "ARC",
    "SIEVE": "Sieve",
    "S3-FIFO": "S3FIFO",
    "Belady": "Belady",
}
"""Names of policies, and of their classes in libcachesim. Belady's knows the future: no policy does better."""

FRACTIONS: Final = (0.005, 0.02, 0.05, 0.1, 0.2, 0.4)
"""Sizes, as parts of how many objects are asked for at all."""

_KEY: Final = "{:016x}"
_KEY_BYTES: Final = 20
_RECORD_LARGE: Final = 1024
_RECORD: Final = 64
_HASH_POWER: Final = 16


def measure_hits(sizes: Sizes, folder: Path) -> Iterator[Row]:
    """A row for each workload; prints all ratios, and writes them, and a plot of them, into ``folder``."""
    found = [_measure(name, requests) for name, requests in _workloads(sizes).items()]
    for ratios in found:
        print_hits(ratios)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "hits.json").write_text(json.dumps([asdict(ratios) for ratios in found], indent=1) + "\n")
    plot_hits(found, folder / "hits.png")
    sys.stdout.write(f"{folder}/hits.json, {folder}/hits.png\n")
    for ratios in found:
        yield from _rows(ratios)


def _workloads(sizes: Sizes) -> dict[str, Requests]:
    count = CacheSizes.of(sizes).requests
    objects = count // 5
    workloads = {f"Zipf({alpha})": zipf(alpha, objects, count) for alpha in (0.6, 0.8, 0.99, 1.2)}
    workloads["scans and loops"] = scan_and_loop(objects, count)
    if (path := recorded_path()) is not None:
        workloads["recorded trace"] = recorded(path)
    else:
        sys.stderr.write("hit ratios of a recorded trace are not measured: none is named (--trace)\n")
    return workloads


def _rows(found: HitRatios) -> Iterator[Row]:
    """Our ratio over that of others, by the median of the sizes."""
    for policy in ("LRU", "S3-FIFO"):
        if policy in found.ratios:
            compared = [ours / theirs for ours, theirs in zip(found.ratios[OURS], found.ratios[policy], strict=True)]
            yield Row(
                GROUP, f"{found.workload}: persistmem / {policy}", statistics.median(compared), "x", None, None,
                f"{min(compared):.3f} to {max(compared):.3f} by size, from {FRACTIONS[0]:.1%} to {FRACTIONS[-1]:.0%}",
            )  # fmt: skip


def _measure(workload: str, requests: Requests) -> HitRatios:
    objects = len(np.unique(requests))
    sizes = tuple(sorted({max(20, int(objects * fraction)) for fraction in FRACTIONS}))
    sys.stderr.write(f"hit ratios: {workload}: {len(requests):,} requests for {objects:,} objects ...\n")
    keys = [_KEY.format(number) for number in requests.tolist()]
    ratios = {OURS: tuple(hit_ratio(keys, size) for size in sizes)}
    try:
        ratios |= simulate(requests, sizes)
    except ImportError:
        sys.stderr.write("libcachesim is not installed: the other policies are left out\n")
    return HitRatios(workload, len(requests), objects, sizes, ratios)


@contextmanager
def sized_cache(items: int, record: int) -> Iterator[Cache]:
    """A cache whose logs hold ``items`` records of ``record`` bytes each, were they packed as densely as can be."""
    index = Geometry.plan(1 << 40, items, 0, 0).small_at
    size = index + items * record
    with new_arena(size + (64 << 10)) as arena, Cache(arena, size, items=items) as cache:
        yield cache


def hit_ratio(keys: list[str], size: int) -> float:
    """Of a cache for ``size`` objects that is asked for ``keys`` in order, and given each that it does not have."""
    record = _RECORD if size >= 1000 else _RECORD_LARGE
    value = bytes(record - record_size(_KEY_BYTES + 1))
    hits = 0
    with sized_cache(size, record) as cache:
        get, put = cache.get, cache.set
        for key in keys:
            if get(key) is None:
                put(key, value)
            else:
                hits += 1
    return hits / len(keys)


def simulate(requests: Requests, sizes: tuple[int, ...]) -> dict[str, tuple[float, ...]]:
    """The ratios of the other policies."""
    import libcachesim

    with tempfile.TemporaryDirectory(prefix="persistmem-bench-") as folder:
        path = Path(folder) / "requests.oracleGeneral"
        write_oracle(requests, path)

        def ratio(policy: str, size: int) -> float:
            reader = libcachesim.TraceReader(
                str(path), libcachesim.TraceType.ORACLE_GENERAL_TRACE, libcachesim.ReaderInitParam()
            )
            cache = getattr(libcachesim, policy)(size, hashpower=_HASH_POWER)
            return 1 - float(cache.process_trace(reader)[0])

        return {name: tuple(ratio(policy, size) for size in sizes) for name, policy in SIMULATED.items()}
