"""How large, and how often, the cache is measured."""

from dataclasses import dataclass

from tests.bench import harness


@dataclass(frozen=True, slots=True)
class CacheSizes:
    """Numbers of items and of repetitions."""

    small: int
    """Small values, and how many of larger ones take as much memory as is comfortable: a KiB and 64 KiB each."""
    kibibyte: int
    large: int
    rounds: int
    operations: int
    """In a round; a tenth of it for who asks a server."""
    requests: int
    """Of a made-up sequence, for hit ratios."""
    seconds: float
    """For which processes read side by side."""
    many: int
    """Items of the large cache."""
    rounds_process: int

    @classmethod
    def of(cls, sizes: harness.Sizes) -> "CacheSizes":
        """The ones that belong to those of the other groups."""
        return QUICK if sizes == harness.QUICK else FULL


FULL = CacheSizes(100_000, 20_000, 1_000, 11, 10_000, 100_000, 0.5, 10_000_000, 11)
QUICK = CacheSizes(2_000, 200, 20, 2, 1_000, 5_000, 0.1, 20_000, 2)
