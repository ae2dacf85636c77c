"""What is measured of a cache beside the rows of the table; measures and prints nothing."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

OURS: Final = "persistmem"


@dataclass(frozen=True, slots=True)
class HitRatios:
    """What one workload gave: for each policy a ratio for each size."""

    workload: str
    requests: int
    objects: int
    sizes: tuple[int, ...]
    """In objects."""
    ratios: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True, slots=True)
class Reattached:
    """How long it took in new processes until the first value was there, of a store of many items."""

    store: str
    items: int
    seconds: list[float]
    note: str
