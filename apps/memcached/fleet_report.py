"""What an upgrade did to a fleet, in numbers and words, from what was counted. Measures nothing."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from apps.memcached.fleet_load import STEP, Step

PERSISTMEM: Final = "persistmem"
MEMCACHED: Final = "memcached"
NOTICED: Final = 0.02
"""What an upgrade may take from the hit ratio of a second before anybody would call it slow."""
_STEPS_IN_WINDOW: Final = round(1 / STEP)


@dataclass(frozen=True, slots=True)
class Upgrade:
    """One node of each fleet got a new kernel. Times are in seconds since the beginning."""

    node: int
    """Its number, from 0."""
    begun: float
    ended: float
    dark: Mapping[str, float]
    """By fleet: seconds from asking the server to stop until it listened again."""


@dataclass(frozen=True, slots=True)
class Summary:
    """What the upgrade of all nodes did to one fleet."""

    before: float
    """The hit ratio until the first node was stopped."""
    worst: float
    """The lowest hit ratio of a second after that."""
    away: int
    empty: int
    noticed: float
    """Seconds in which more than ``NOTICED`` of the requests were misses because of the upgrade."""
    recovered: float | None
    """Seconds from stopping the last node until that was over for good; None if it was not in the end."""

    @property
    def caused(self) -> int:
        """Calls of the backend that would not have been, had nobody upgraded."""
        return self.away + self.empty


def ratios(steps: Sequence[Step]) -> list[float]:
    """Return the hit ratio over the second that ends with each step; NaN if nobody asked for anything."""
    return [
        sum(step.hits for step in window) / asked if (asked := sum(step.requests for step in window)) else math.nan
        for window in _windows(steps)
    ]


def summarise(steps: Sequence[Step], upgrades: Sequence[Upgrade]) -> Summary:
    """Sum up whole ``steps`` of one fleet, the first of which ends before the first upgrade begins."""
    first, last = (int(upgrade.begun / STEP) for upgrade in (upgrades[0], upgrades[-1]))
    # The last step of each second in which it was noticed. A step without requests means that all of them waited.
    noticed = [
        index
        for index, window in enumerate(_windows(steps))
        if sum(step.caused for step in window) > NOTICED * sum(step.requests for step in window)
    ]
    over = max([last, *(index + 1 for index in noticed)])
    return Summary(
        before=sum(step.hits for step in steps[:first]) / sum(step.requests for step in steps[:first]),
        worst=min(ratio for ratio in ratios(steps)[first:] if not math.isnan(ratio)),
        away=sum(step.away for step in steps),
        empty=sum(step.empty for step in steps),
        noticed=len(noticed) * STEP,
        recovered=max(0.0, over * STEP - upgrades[-1].begun) if over < len(steps) else None,
    )


def table(summaries: Mapping[str, Summary], upgrades: Sequence[Upgrade]) -> str:
    """Return the numbers of all fleets side by side."""
    fleets = list(summaries)
    rows = [
        ("", fleets),
        ("hit ratio before the upgrade", [f"{summaries[fleet].before:.1%}" for fleet in fleets]),
        ("hit ratio in the worst second", [f"{summaries[fleet].worst:.1%}" for fleet in fleets]),
        ("dark time of a node, on average", [f"{_mean_dark(upgrades, fleet):.2f} s" for fleet in fleets]),
        ("backend calls due to the upgrade", [f"{summaries[fleet].caused:,}" for fleet in fleets]),
        ("   while a node was dark", [f"{summaries[fleet].away:,}" for fleet in fleets]),
        ("   because a node came back empty", [f"{summaries[fleet].empty:,}" for fleet in fleets]),
        (
            f"hit ratio more than {NOTICED * 100:.0f} points lower for",
            [f"{summaries[fleet].noticed:.1f} s" for fleet in fleets],
        ),
        ("recovered after the last node's stop in", [_recovery(summaries[fleet]) for fleet in fleets]),
    ]
    return "\n".join(f"{what:40}" + "".join(f"{value:>16}" for value in values) for what, values in rows)


def meaning(summaries: Mapping[str, Summary]) -> str:
    """Return what the numbers say, in a sentence for each fleet."""
    said = []
    for fleet, found in summaries.items():
        if found.empty <= 0.01 * found.caused:
            how = "came back full; the backend noticed only the dark times"
        else:
            how = f"came back empty; filling them again cost {found.empty:,} backend calls"
        said.append(f"{fleet}: the nodes {how}.")
    return "\n".join(said)


def _windows(steps: Sequence[Step]) -> list[Sequence[Step]]:
    """The second that ends with each step; less at the beginning."""
    return [steps[max(0, end - _STEPS_IN_WINDOW) : end] for end in range(1, len(steps) + 1)]


def _mean_dark(upgrades: Sequence[Upgrade], fleet: str) -> float:
    return sum(upgrade.dark[fleet] for upgrade in upgrades) / len(upgrades)


def _recovery(summary: Summary) -> str:
    return "not in this run" if summary.recovered is None else f"{summary.recovered:.1f} s"
