"""Numbers and times as the pages say them, where the command line has no word for them. Pure."""

from datetime import datetime

from persistmem.agent.records import Handover
from persistmem.cli.output import counted, duration
from persistmem.sizes import format_size


def span(seconds: float | None) -> str:
    """Return a span of time in its two largest units.

    >>> span(8.7), span(192), span(7500), span(200_000), span(None)
    ('8 s', '3 min 12 s', '2 h 5 min', '2 d 7 h', 'unknown')
    """
    if seconds is None:
        return "unknown"
    left = int(seconds)
    for larger, name, smaller, rest in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if left >= larger:
            return f"{left // larger} {name} {left % larger // smaller} {rest}"
    return f"{left} s"


def ago(when: datetime, now: datetime) -> str:
    """Return how long ago something was.

    >>> from datetime import timedelta
    >>> now = datetime(2026, 7, 1)
    >>> ago(now, now), ago(now - timedelta(seconds=70), now)
    ('just now', '1 min 10 s ago')
    """
    seconds = (now - when).total_seconds()
    return f"{span(seconds)} ago" if seconds >= 1 else "just now"


def arrival(handover: Handover) -> str:
    """Return how the arenas got to the next kernel, in one sentence."""
    lost = f"{counted(handover.lost_count, 'arena')} lost" if handover.lost_count else "nothing lost"
    return (
        f"{handover.kernel_from} → {handover.kernel_to}: {counted(handover.arenas, 'arena')},"
        f" {format_size(handover.size)}, arrived; dark for {duration(handover.dark)}; {lost}"
    )
