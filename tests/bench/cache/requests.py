"""Sequences of requests for objects, made up or recorded; the same ones for everybody. Knows no cache."""

import os
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

Requests = NDArray[np.uint64]
"""Ids of objects, in the order in which they are asked for."""

TRACE_VARIABLE: Final = "PERSISTMEM_BENCH_TRACE"
"""Names a recorded trace in libCacheSim's format oracleGeneral; without it none is measured."""

ORACLE: Final = np.dtype([("time", "<u4"), ("id", "<u8"), ("size", "<u4"), ("next", "<i8")])
"""A record of that format; ``next`` is when the same object is asked for again, -1 for never."""

_SCANNED: Final = 1 << 40
_LOOPED: Final = 1 << 41


def zipf(alpha: float, objects: int, count: int, seed: int = 1) -> Requests:
    """Requests of which the object of rank r gets a part that falls as r ** -alpha; ranks and ids are unrelated."""
    random = np.random.default_rng(seed)
    cumulated = np.cumsum(np.arange(1, objects + 1, dtype=np.float64) ** -alpha)
    ranks = np.searchsorted(cumulated, random.random(count) * cumulated[-1])
    ids: Requests = random.permutation(objects).astype(np.uint64)
    chosen: Requests = ids[ranks]
    return chosen


def scan_and_loop(objects: int, count: int, seed: int = 1) -> Requests:
    """Zipf(0.99), broken into by scans of objects that nobody asks for again, and by short loops over the same ones.

    Of twenty requests twelve are Zipf's, three belong to a scan, five to a loop, which goes twice over a tenth as many
    objects as there are, a part of them at a time.
    """
    pieces: list[Requests] = []
    popular = zipf(0.99, objects, count, seed)
    piece = max(20, objects // 5)
    scanned = 0
    looped = 0
    while sum(map(len, pieces)) < count:
        pieces.append(popular[:piece])
        popular = popular[piece:]
        pieces.append(np.arange(scanned, scanned + piece // 4, dtype=np.uint64) + np.uint64(_SCANNED))
        scanned += piece // 4
        loop = np.arange(looped, looped + piece // 5, dtype=np.uint64) % np.uint64(max(1, objects // 10))
        pieces.extend([loop + np.uint64(_LOOPED)] * 2)
        looped += piece // 5
    return np.concatenate(pieces)[:count]


def recorded(path: Path) -> Requests:
    """The requests of a trace."""
    found: Requests = np.fromfile(path, dtype=ORACLE)["id"].astype(np.uint64)
    return found


def recorded_path() -> Path | None:
    """Where there is a trace, by the environment."""
    found = os.environ.get(TRACE_VARIABLE)
    return Path(found) if found else None


def write_oracle(requests: Requests, path: Path) -> None:
    """Write requests for objects of size 1, with when each is asked for again, as the simulator reads them."""
    count = len(requests)
    _, ids = np.unique(requests, return_inverse=True)
    order = np.lexsort((np.arange(count), ids))
    again = np.full(count, -1, dtype=np.int64)
    same = ids[order[:-1]] == ids[order[1:]]
    again[order[:-1][same]] = order[1:][same]
    records = np.zeros(count, dtype=ORACLE)
    records["time"] = np.arange(count) // 1000
    records["id"] = requests
    records["size"] = 1
    records["next"] = again
    records.tofile(path)
