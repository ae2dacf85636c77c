"""A Django application whose state stays: an AppConfig that starts a :class:`persistmem.App`. Knows Django's signals.

::

    class LeaderboardConfig(PersistmemConfig):  # leaderboard/apps.py
        name = "leaderboard"
        persistmem = leaderboard.state.app

It starts with the process's first request, so that management commands, and the parent processes of servers, which
serve none, do not become the one that saves. Where a server has several workers give the App ``others="read"``, and
under an ASGI server use :func:`with_lifespan`.
"""

import atexit
import signal
import threading
import traceback
from collections.abc import Callable
from typing import ClassVar

from asgiref.typing import ASGI3Application, ASGIReceiveCallable, ASGISendCallable, Scope
from django.apps import AppConfig, apps
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import request_started

from persistmem.app import App
from persistmem.termination import Termination


class PersistmemConfig(AppConfig):  # type: ignore[misc]  # Django has no types
    """Starts ``persistmem`` before the first request is handled, and stops it as the process ends, also by SIGTERM."""

    persistmem: ClassVar[App]

    # Django takes the one config that it finds in apps.py, where this one is imported, too.
    default: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        cls.default = cls.__dict__.get("default", True)

    def ready(self) -> None:
        """Wait for the first request.

        Raises:
            ImproperlyConfigured: ``persistmem`` is no App.
        """
        if not isinstance(app := getattr(self, "persistmem", None), App):
            name = type(self).__qualname__
            raise ImproperlyConfigured(f"{name}.persistmem: expected a persistmem.App, found {app!r}")
        self._starting = threading.Lock()
        request_started.connect(self.start, dispatch_uid=("persistmem", self.label))
        atexit.register(self.stop)
        # Requests may come in threads, where nobody can handle signals any more.
        Termination().install(_terminate)

    def start(self, **_: object) -> None:
        """Start it, unless it is. Other threads' requests wait for that; if it fails, theirs try again."""
        if not self.persistmem.is_started:
            with self._starting:
                if not self.persistmem.is_started:
                    self.persistmem.start()

    def stop(self) -> None:
        """Save the state and stop, if it was started."""
        if self.persistmem.is_started:
            self.persistmem.stop()


def with_lifespan(application: ASGI3Application) -> ASGI3Application:
    """Start the states with an ASGI server, and stop them with it, before it lets SIGTERM kill the process.

    Django's own application leaves that part of ASGI out, and uvicorn ends so that nothing else is asked. In asgi.py::

        application = with_lifespan(get_asgi_application())
    """

    async def with_states(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        if scope["type"] != "lifespan":
            await application(scope, receive, send)
            return
        await receive()
        try:
            for config in _configs():
                config.start()
        except Exception:  # noqa: BLE001 - the server tells it, and ends
            await send({"type": "lifespan.startup.failed", "message": traceback.format_exc()})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        try:
            for config in _configs():
                config.stop()
        except Exception:  # noqa: BLE001 - as above
            await send({"type": "lifespan.shutdown.failed", "message": traceback.format_exc()})
            return
        await send({"type": "lifespan.shutdown.complete"})

    return with_states


def _configs() -> list[PersistmemConfig]:
    return [config for config in apps.get_app_configs() if isinstance(config, PersistmemConfig)]


def _terminate(exit_process: Callable[[], None]) -> None:
    """End in an orderly way if there is something to save; otherwise as if nobody had handled SIGTERM."""
    if any(config.persistmem.is_started for config in _configs()):
        exit_process()
    else:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.raise_signal(signal.SIGTERM)
