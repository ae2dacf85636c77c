"""Interleaved measurements, and rows of results with their bounds. Knows nothing of what is measured.

A machine's speed drifts from minute to minute, so two works are only compared within a round that ran both: a ratio is
the median of the rounds' ratios, and stands beside the ratio of one work to itself, measured in the same rounds.
"""

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

Work = Callable[[], float]
"""Runs once, and gives back the seconds that count: what comes before and after them is not timed."""

CONTROL = " (again)"


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large, and how often."""

    records: int
    array_bytes: int
    rounds: int
    rounds_array: int
    rounds_process: int
    attach_bytes: tuple[int, int]


FULL = Sizes(200_000, 1 << 30, 15, 7, 15, (64 << 20, 16 << 30))
QUICK = Sizes(5_000, 16 << 20, 3, 3, 3, (1 << 20, 1 << 30))


@dataclass(frozen=True, slots=True)
class Bound:
    """What a row promises."""

    relation: Literal["<=", "<", ">="]
    limit: float

    def met(self, value: float) -> bool:
        """Whether ``value`` keeps it."""
        match self.relation:
            case "<=":
                return value <= self.limit
            case "<":
                return value < self.limit
            case ">=":
                return value >= self.limit


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the results."""

    group: str
    work: str
    value: float
    unit: Literal["x", "ms", "bytes", "MiB", "modules"]
    bound: Bound | None = None
    noise: tuple[float, float] | None = None
    """Ratio of the reference to itself in the same rounds: its 10th and 90th percentile."""
    note: str = ""
    seconds: dict[str, list[float]] = field(default_factory=dict)
    """Everything that was timed for it, round by round."""

    @property
    def met(self) -> bool | None:
        """Whether the bound is kept; None without one."""
        return None if self.bound is None else self.bound.met(self.value)


@dataclass(frozen=True, slots=True)
class Samples:
    """Seconds of each work, round by round."""

    seconds: dict[str, list[float]]
    reference: str

    def median(self, work: str) -> float:
        """Seconds, by the median of the rounds."""
        return statistics.median(self.seconds[work])

    def ratio(self, work: str, to: str | None = None) -> float:
        """Time of ``work`` over that of another one, the reference if none is named; by the median of the rounds."""
        return statistics.median(self._ratios(work, to or self.reference))

    def noise(self) -> tuple[float, float]:
        """10th and 90th percentile of the reference's ratio to itself."""
        ratios = self._ratios(self.reference + CONTROL, self.reference)
        if len(ratios) < 2:
            return ratios[0], ratios[0]
        deciles = statistics.quantiles(ratios, n=10, method="inclusive")
        return deciles[0], deciles[-1]

    def _ratios(self, work: str, other: str) -> list[float]:
        return [mine / theirs for mine, theirs in zip(self.seconds[work], self.seconds[other], strict=True)]


def interleave(works: Mapping[str, Work], reference: str, rounds: int) -> Samples:
    """Run every work once a round, and the reference twice; the first round warms up and does not count.

    The order turns with each round, so that no work always follows the same one.
    """
    order = [*works.items(), (reference + CONTROL, works[reference])]
    seconds: dict[str, list[float]] = {name: [] for name, _ in order}
    for number in range(rounds + 1):
        turn = number % len(order)
        for name, work in order[turn:] + order[:turn]:
            taken = work()
            if number:
                seconds[name].append(taken)
    return Samples(seconds, reference)


def timed(call: Callable[[], object]) -> float:
    """Seconds that ``call`` takes; freeing what it gives back does not count."""
    start = time.perf_counter()
    result = call()
    taken = time.perf_counter() - start
    del result
    return taken


def any_missed(rows: Iterable[Row]) -> bool:
    """Whether a bound was not kept."""
    return any(row.met is False for row in rows)
