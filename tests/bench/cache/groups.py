"""The groups of measurements of ``persistmem.Cache``: speed, hit ratios, ten million items."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from tests.bench.cache.hits import measure_hits
from tests.bench.cache.large import measure_large
from tests.bench.cache.speed import measure_speed
from tests.bench.harness import Row, Sizes

NAMES: Final = ("cache-speed", "cache-hits", "cache-large")


def groups(folder: Path) -> dict[str, Callable[[Sizes], Iterator[Row]]]:
    """Return what measures each. What is no row of a table, plots and hit ratios, is written into ``folder``."""
    measures = (measure_speed, lambda sizes: measure_hits(sizes, folder), lambda sizes: measure_large(sizes, folder))
    return dict(zip(NAMES, measures, strict=True))
