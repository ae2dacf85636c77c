"""A process that reads beside others: ``python -m tests.bench.cache.worker cache|dict ARENA ITEMS SECONDS``.

It says when it is ready, is told when to start (``CLOCK_MONOTONIC``), and prints how many reads it did a second.
"""

import random
import sys
import time

import msgpack

from persistmem import Cache
from tests.bench.cache.speed import make_key, make_value

_PIECE = 500


def main() -> None:
    """Read keys in random order, of a cache, or of a dict that nobody shares."""
    what, arena, items, seconds = sys.argv[1:]
    order = random.Random().sample(range(int(items)), int(items))
    keys = [make_key(number) for number in order]
    if what == "cache":
        get = Cache(arena).get
    else:
        kept = {make_key(number): msgpack.packb(make_value(number)) for number in range(int(items))}

        def get(key: str) -> object:  # type: ignore[misc]
            return msgpack.unpackb(kept[key])

    for key in keys:
        get(key)
    print("ready", flush=True)
    start = float(sys.stdin.readline())
    while time.monotonic() < start:
        pass
    begun = time.monotonic()
    done = at = 0
    while (now := time.monotonic()) < start + float(seconds):
        for key in keys[at : at + _PIECE]:
            get(key)
        done += len(keys[at : at + _PIECE])
        at = (at + _PIECE) % len(keys)
    print(done / (now - begun))


if __name__ == "__main__":
    main()
