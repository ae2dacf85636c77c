"""One simulated kernel upgrade at a time, in the background, and how the last one went. Knows no web."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from persistmem import Error
from persistmem.agent.records import Handover
from persistmem.attachment import simulate_reboot
from persistmem.threads import start_deaf


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an upgrade ended."""

    when: datetime
    handover: Handover | None
    failure: str = ""


class Upgrader:
    """Upgrades the simulated kernel when asked to."""

    def __init__(self, now: Callable[[], datetime], on_end: Callable[[], object]) -> None:
        """``on_end`` is called, in another thread, after each upgrade."""
        self._now = now
        self._on_end = on_end
        self._lock = threading.Lock()
        self.since: datetime | None = None
        """When the one that goes on began."""
        self.last: Outcome | None = None

    def begin(self, release: str | None) -> None:
        """Begin an upgrade, to a kernel called ``release`` or one whose name is made up, unless one goes on."""
        with self._lock:
            if self.since is not None:
                return
            self.since = self._now()
        start_deaf(threading.Thread(target=self._work, args=(release,), name="dashboard-upgrade", daemon=True))

    def _work(self, release: str | None) -> None:
        try:
            handover = simulate_reboot(release)
            outcome = Outcome(self._now(), handover)
        except (Error, OSError) as error:
            outcome = Outcome(self._now(), None, str(error))
        with self._lock:
            self.since, self.last = None, outcome
        self._on_end()
