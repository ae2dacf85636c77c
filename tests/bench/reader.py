"""A process that opens a store, has its state back, and says when: ``python -m tests.bench.reader STORE FOLDER``."""

import json
import sys
import time
from pathlib import Path

from tests.bench.stores import STORES


def main() -> None:
    """Print when the state was usable (``CLOCK_MONOTONIC``, seconds), and the seconds since the imports."""
    name, folder = sys.argv[1:]
    begun = time.monotonic()
    store = STORES[name](Path(folder))
    state = store.get()
    ready = time.monotonic()
    assert state is not None
    sys.stdout.write(json.dumps({"ready": ready, "load": ready - begun}))


if __name__ == "__main__":
    main()
