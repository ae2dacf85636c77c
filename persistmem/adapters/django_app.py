"""A Django application whose state stays: an AppConfig that starts a :class:`persistmem.App`. Knows Django's signals.

::

    class LeaderboardConfig(PersistmemConfig):  # leaderboard/apps.py
        name = "leaderboard"
        persistmem = leaderboard.state.app

It starts with the process's first request, so that management commands, and the parent processes of servers, which
serve none, do not become the one that saves. Where a server has several workers give the App ``others="read"``.
"""

import atexit
import threading
from typing import ClassVar

from django.apps import AppConfig
from django.core.signals import request_started

from persistmem.app import App


class PersistmemConfig(AppConfig):  # type: ignore[misc]  # Django has no types
    """Starts ``persistmem`` before the first request is handled, and stops it as the process ends."""

    persistmem: ClassVar[App]

    def ready(self) -> None:
        """Wait for the first request."""
        self._starting = threading.Lock()
        request_started.connect(self._start, dispatch_uid=("persistmem", self.label))

    def _start(self, **_: object) -> None:
        with self._starting:
            if request_started.disconnect(dispatch_uid=("persistmem", self.label)):
                self.persistmem.start()
                atexit.register(self.persistmem.stop)
