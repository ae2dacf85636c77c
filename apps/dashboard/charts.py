"""A cache's samples as the coordinates of a drawing: hit ratio above, reads a second below. Pure; knows no markup."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from apps.dashboard.series import Sample

WIDTH: Final = 720
RATIO_TOP: Final = 8
RATIO_HEIGHT: Final = 84
READS_TOP: Final = 102
READS_HEIGHT: Final = 26


@dataclass(frozen=True, slots=True)
class Mark:
    """A moment that matters."""

    x: float
    label: str


@dataclass(frozen=True, slots=True)
class Chart:
    """A drawing of :data:`WIDTH` units; paths in the words of SVG."""

    ratio: str
    """A line, broken where nothing was read."""
    reads: str
    """A stroke for each sample, from the ground up."""
    reads_peak: float
    """The highest, a second."""
    marks: tuple[Mark, ...]


def plot(
    samples: Sequence[Sample], events: Iterable[tuple[float, str]], *, end: float, span: float, every: float
) -> Chart:
    """Draw the ``span`` seconds up to ``end``.

    Args:
        samples: oldest first.
        events: moments, in seconds since 1970, and what to call them.
        end: the right edge, in seconds since 1970.
        span: seconds from edge to edge.
        every: seconds between two samples: where there is no sample for much longer, the line is broken.
    """
    begin = end - span
    shown = [sample for sample in samples if sample.at >= begin]
    peak = max((sample.activity.reads for sample in shown), default=0.0)

    def x(at: float) -> float:
        return (at - begin) / span * WIDTH

    ratio, reads = [], []
    drawn_at = None
    for sample in shown:
        activity = sample.activity
        if activity.hit_ratio is not None:
            y = RATIO_TOP + (1 - activity.hit_ratio) * RATIO_HEIGHT
            joined = drawn_at is not None and sample.at - drawn_at < 3 * every
            # a line of no length, for a sample that stands alone; round caps make it a dot
            ratio.append(f"L{x(sample.at):.1f} {y:.1f}" if joined else f"M{x(sample.at):.1f} {y:.1f}h0")
            drawn_at = sample.at
        else:
            drawn_at = None
        if activity.reads > 0:
            height = max(1.0, activity.reads / peak * READS_HEIGHT)
            reads.append(f"M{x(sample.at):.1f} {READS_TOP + READS_HEIGHT}v-{height:.1f}")
    marks = tuple(Mark(round(x(at), 1), label) for at, label in events if begin <= at <= end)
    return Chart("".join(ratio), "".join(reads), peak, marks)
