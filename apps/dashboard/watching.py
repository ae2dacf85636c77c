"""The thread that looks, every so often, so that no request ever waits for an agent. Keeps the newest picture.

Knows pictures, series and the verifier; must not know who is shown what it sees.
"""

import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from time import monotonic
from typing import Final

from apps.dashboard.looking import Picture, look
from apps.dashboard.series import SAMPLES_MAX, CacheKey, Series
from apps.dashboard.verifying import Verifier
from persistmem.threads import start_deaf

_FIRST_LOOK: Final = 1.0
"""Seconds that a start waits for the first picture: an agent that does not answer is no reason to show nothing."""


class Watcher:
    """Looks at everything again and again."""

    def __init__(self, interval: float, now: Callable[[], datetime], *, verify_every: float | None = None) -> None:
        """Be ready to look every ``interval`` seconds, and to verify every arena every ``verify_every``, if given."""
        self.interval = interval
        self.series = Series(shortest=interval / 2)
        self.verifier = Verifier(now, on_end=self.look_now)
        self._verify_every = timedelta(seconds=verify_every) if verify_every is not None else None
        self._now = now
        self._picture = Picture(now(), None, trouble="nothing has been looked at yet")
        self._looked = threading.Event()
        self._wake = threading.Event()
        self._ended = False
        self._thread = threading.Thread(target=self._work, name="dashboard-watch", daemon=True)

    @property
    def picture(self) -> Picture:
        """What was seen last."""
        return self._picture

    @property
    def span(self) -> float:
        """Seconds that the series of a cache go back."""
        return SAMPLES_MAX * self.interval

    def start(self) -> None:
        """Begin, and wait a moment for the first picture."""
        self.verifier.start()
        start_deaf(self._thread)
        self._looked.wait(_FIRST_LOOK)

    def stop(self) -> None:
        """End; do not wait for it."""
        self._ended = True
        self._wake.set()
        self.verifier.stop()

    def look_now(self) -> None:
        """Look before the interval is over: something has changed."""
        self._wake.set()

    def _work(self) -> None:
        while not self._ended:
            self._look()
            self._looked.set()
            self._wake.wait(self.interval)
            self._wake.clear()

    def _look(self) -> None:
        picture = look(self._now)
        self.series.add(
            (
                (CacheKey(arena.record.uuid, cache.namespace), cache.reading)
                for arena in picture.arenas
                if arena.contents is not None
                for cache in arena.contents.caches
            ),
            at=picture.taken.timestamp(),
            monotonic=monotonic(),
            keep=self.span,
        )
        if not picture.trouble:
            self.verifier.forget_all_but({arena.record.uuid for arena in picture.arenas})
        if self._verify_every is not None:
            for arena in picture.arenas:
                last = self.verifier.standing(arena.record.uuid).last
                if last is None or picture.taken - last.when >= self._verify_every:
                    self.verifier.ask(arena.record)
        self._picture = picture
