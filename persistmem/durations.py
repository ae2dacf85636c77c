"""Spans of time as people write them; knows nothing of what lasts so long."""

import re
from datetime import timedelta
from typing import Final

from persistmem.errors import ArgumentError

Duration = float | str | timedelta
"""Seconds, or a string such as ``"90s"``, ``"1.5h"``, ``"250ms"``, ``"7d"``, or a timedelta."""

_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_TEXT: Final = re.compile(r"\s*(\d{1,12}(?:\.\d{1,6})?)\s*([a-z]+)\s*", re.ASCII)
_MAX: Final = 1e11  # three thousand years: times beyond it are mistakes


def seconds(duration: Duration) -> float:
    """Return the seconds of a duration, 0 or more.

    Raises:
        ArgumentError: it cannot be read, or is negative.

    >>> seconds("1.5h"), seconds(30), seconds(timedelta(days=1))
    (5400.0, 30.0, 86400.0)
    """
    if isinstance(duration, timedelta):
        found = duration.total_seconds()
    elif isinstance(duration, str):
        match = _TEXT.fullmatch(duration)
        if match is None or match[2] not in _UNITS:
            raise ArgumentError(f"duration {duration[:40]!r}: expected a number with ms, s, m, h, d or w, as in 90s")
        found = float(match[1]) * _UNITS[match[2]]
    else:
        found = float(duration)
    if not 0 <= found <= _MAX:
        raise ArgumentError(f"duration {duration!r:.40}: expected 0 to {_MAX:.0f} seconds")
    return found
