"""``persistmem.App``: an application says what its state is; when it is loaded and saved is not its business.

Puts declaration, running state, schedule and signals together, and is the only module here that applications import.
"""

import dataclasses
import os
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, Final, NoReturn, Self, TypeVar, cast

from persistmem.agent.records import Handover
from persistmem.app.attributes import watch_attributes
from persistmem.app.declaration import Declaration, M
from persistmem.app.found import Found
from persistmem.app.logs import tell, warn
from persistmem.app.running import Others, Packing, Running, Settings
from persistmem.app.schedules import LoopSchedule, Schedule, ThreadSchedule
from persistmem.app.watched import Changes
from persistmem.arena import Generation
from persistmem.arena.arena import KEEP_DEFAULT, TIMEOUT_DEFAULT
from persistmem.attachment import attach, simulate_reboot, watch_kexec
from persistmem.durations import Duration, seconds
from persistmem.errors import ArgumentError, ClosedError
from persistmem.names import check_name
from persistmem.termination import StateLock

T = TypeVar("T", bound=Callable[..., object])
F = TypeVar("F", bound=Callable[..., object])

INTERVAL_DEFAULT: Final = 60.0
"""Seconds between two looks at whether the state has changed."""


class App:
    """An application whose state survives the process and the kernel.

    The state is loaded, checked and migrated when the application starts, and saved when it stops, on SIGTERM, when a
    kernel upgrade is being prepared, at every ``interval``, and when asked; never twice if nobody changed it.

    A dict, list or set that the state was loaded with, or began with, notices its changes (a fifth of a microsecond
    each), and so do the attributes of a dataclass; as long as the state holds nothing else that can change, an interval
    in which nothing did costs nothing. What the program puts in itself, other than plain values, and arrays, and more
    than 100 000 containers, are looked at: packed, and compared with what was saved last. ``heapq`` and other
    extensions in C that go past a list's methods are noticed by the last save alone, which always looks.

    One process saves the state. Children that it forks only read it, and so do others that start with
    ``others="read"``: changing it there is an error. Changes that belong together go inside ``with app.lock``, for
    the intervals are those of another thread; between two awaits of a coroutine they need nothing. Containers that the
    program put in itself are changed there, too: what changes while it is packed may not be saved.

    >>> import dataclasses, persistmem.testing
    >>> app = App("leaderboard", size="1MiB")
    >>> @app.state(version=1)
    ... @dataclasses.dataclass
    ... class Board:
    ...     scores: dict[str, int] = dataclasses.field(default_factory=dict)
    >>> with persistmem.testing.simulated_kernel():
    ...     with app:
    ...         app.state.scores["ada"] = 3
    ...     with app:
    ...         print(app.found.state, app.state)
    restored Board(scores={'ada': 3})
    """

    def __init__(
        self,
        name: str,
        size: int | str | None = None,
        *,
        interval: Duration = INTERVAL_DEFAULT,
        packing: Packing = "here",
        others: Others = "refuse",
        keep: int = KEEP_DEFAULT,
        timeout: float = TIMEOUT_DEFAULT,
    ) -> None:
        """Name the application; nothing is attached yet.

        Args:
            name: of its arena.
            size: of that, if it is to be made; see :func:`persistmem.attach`.
            interval: between two looks at whether the state has changed; 0 for none.
            packing: "child" has a forked child pack what is saved at an interval, while this process goes on: it
                stands still for the fork alone, not for packing. For states of more than some ten MiB.
            others: "read" lets a process start while another one saves this state, as a pre-forking server's workers
                do: it gets what was saved last, and its changes are refused.
            keep: generations that are kept.
            timeout: seconds to wait for another process that saves this state to end, and for other writers.

        Raises:
            InvalidNameError, ArgumentError: no arena can be called that; no interval is negative.
        """
        self.interval = seconds(interval)
        self.lock = StateLock()
        """Held while the state is packed: changes made inside ``with app.lock`` are saved together or not at all.

        SIGTERM waits until the main thread has let go of it."""
        check_name(name)
        self._settings = Settings(name, self.interval, packing, others, keep, timeout, partial(attach, name, size))
        self._declaration: Declaration | None = None
        self._hooks: dict[str, Callable[..., object]] = {}
        self._running: Running | None = None
        self._schedule: Schedule | None = None
        self._stop_watching: Callable[[], None] | None = None
        self._is_simulating = False
        _apps.add(self)

    # Declaring

    @property
    def state(self) -> Any:  # noqa: ANN401 - the state is what the application declared
        """The state, once the application was started; before that, what declares it: ``@app.state(version=1)``."""
        if self._running is not None:
            return self._running.state
        return _Declarer(self)

    @state.setter
    def state(self, state: Any) -> None:  # noqa: ANN401 - as above; object is what type checkers would see in it then
        self._started().set_state(state)

    def migrate(self, version: int) -> Callable[[M], M]:
        """Return a decorator for what makes a state of ``version`` one of the next. ``Board.migrate`` is the same.

        It gets what was stored, for a dataclass a dict of its fields, and returns the same for the next version. It
        runs in the next start that finds such a state, before anything is changed.

        Raises:
            ArgumentError: no state is declared yet, or there is a migration from this version.
        """
        return self._declared().migrate(version)

    def on_restore(self, hook: F) -> F:
        """Have ``hook`` called with a :class:`persistmem.app.Found` when the state has been loaded."""
        return self._hook("on_restore", hook)

    def on_prepare(self, hook: F) -> F:
        """Have ``hook`` called before the last save when a kernel upgrade is being prepared."""
        return self._hook("on_prepare", hook)

    def on_corrupt(self, hook: F) -> F:
        """Have ``hook`` called with a :class:`persistmem.app.StateDamage` when something saved fails its check.

        If no sound generation is left, the application starts with a fresh state once it has returned; without a hook
        it does not start.
        """
        return self._hook("on_corrupt", hook)

    # Running

    def start(self) -> Found:
        """Attach, load, migrate, and begin to save. ``with app`` does this, and :meth:`stop`.

        Cost: with an agent running, two milliseconds, and reading the state.

        Raises:
            BusyError: another process saves this state.
            NewerStateError, MigrationError: it was saved by a newer program, or cannot be made this one's.
            CorruptError: no sound generation is left, and there is no ``on_corrupt``.
            and what :func:`persistmem.attach` raises. Nothing was changed.
        """
        return self._start(ThreadSchedule)

    def stop(self) -> None:
        """Save, and let go of everything.

        Raises:
            as :meth:`save`; it is stopped all the same.
        """
        self._stop(save=True)

    def save(self) -> Generation:
        """Save the state now, unless it is what was saved last. Return the generation that holds it.

        Cost: packing, and for what has changed a copy; ``app.lock`` is held.

        Raises:
            RefusedError: another process saves this state.
            UnsupportedTypeError: it holds what cannot be stored; the message says where.
            ArenaFullError, BusyError: as for :meth:`persistmem.Arena.snapshot`. What was saved before stays.
        """
        return self._started().save()

    def refresh(self) -> bool:
        """Load what the writer has saved since; return whether there was anything. In the writer there never is.

        If the writer has ended, this process takes its place, and its state is loaded anew; so it does at the next
        interval. A forked child does not.
        """
        self._started()
        return self._succeed() or self._started().refresh()

    @property
    def is_started(self) -> bool:
        """Whether it was started, hooks included, and not stopped yet."""
        return self._schedule is not None

    @property
    def found(self) -> Found:
        """What was found when it was started."""
        return self._started().found

    @property
    def is_writer(self) -> bool:
        """Whether this process saves the state."""
        return self._started().is_writer

    def simulate_kexec(self, release: str | None = None) -> Handover:
        """Replace the simulated kernel, and the state by what the next process would find. For tests.

        What happens is what a kernel upgrade does: the state is saved as it is prepared, the arena crosses, and nothing
        else of the application does. A real kernel refuses: ``persistmem reboot`` is for that.

        Args:
            release: of the next kernel; made up if None.

        Raises:
            RefusedError: this is no simulated kernel.
        """
        self._started()
        schedule = self._schedule
        assert schedule is not None
        self._is_simulating = True
        try:
            schedule.call(self._prepare)
            handover = simulate_reboot(release)
            schedule.call(self._restart)
        finally:
            self._is_simulating = False
        return handover

    @asynccontextmanager
    async def lifespan(self, _: object = None) -> AsyncIterator[None]:
        """Be started as long as a Starlette or FastAPI application is: ``FastAPI(lifespan=app.lifespan)``."""
        async with self:
            yield

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.stop()
        finally:
            if self._running is not None:  # SIGTERM came before it had begun
                self.stop()

    async def __aenter__(self) -> Self:
        self._start(LoopSchedule)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.stop()

    # Inside

    def _hook(self, name: str, hook: F) -> F:
        self._hooks[name] = hook
        return hook

    def _declare(self, make: T, version: int) -> T:
        if self._declaration is not None:
            raise ArgumentError(f"app {self._settings.name}: its state is declared already; it has one")
        if isinstance(make, type):
            if getattr(make, "__annotations__", None) and not dataclasses.is_dataclass(make):
                make = cast("T", dataclasses.dataclass(make))
            if dataclasses.is_dataclass(make):
                watch_attributes(cast("type", make), self._changes_of)
        declaration = self._declaration = Declaration(make, version)
        with suppress(AttributeError, TypeError):  # of what takes no attributes, such as dict
            make.migrate = declaration.migrate  # type: ignore[attr-defined]
        return make

    def _changes_of(self, instance: object) -> Changes | None:
        running = self._running
        return running.changes if running is not None and running.state is instance else None

    def _declared(self) -> Declaration:
        if self._declaration is None:
            raise ArgumentError(f"app {self._settings.name}: declare its state first, with @app.state(version=1)")
        return self._declaration

    def _started(self) -> Running:
        if self._running is None:
            raise ClosedError(f"app {self._settings.name} is not started; do this inside of `with app:`")
        return self._running

    def _start(self, schedule: Callable[[float, Any], Schedule]) -> Found:
        with self.lock:
            if self._running is not None:
                raise ArgumentError(f"app {self._settings.name} is started already; stop it first")
            running = Running(self._settings, self._declared(), self._hooks.get("on_corrupt"), self.lock)
            self._running = running
        try:
            self._tell_what_was_found(running.found)
            if running.is_writer:
                self._stop_watching = watch_kexec(self._on_kexec)
            self._schedule = schedule(self.interval, self._tick)
            running.termination.install(self._schedule.call_soon)
        except BaseException:
            self._stop(save=False)
            raise
        return running.found

    def _tell_what_was_found(self, found: Found) -> None:
        (warn if found.damage else tell)(str(found))
        if (hook := self._hooks.get("on_restore")) is not None:
            hook(found)

    def _tick(self) -> Callable[[], object] | None:
        running = self._running
        if running is None or self._is_simulating:
            return None
        if running.is_writer:
            return running.save_if_changed()
        running.log_failure("succeed", self._succeed)
        return None

    def _succeed(self) -> bool:
        """Take the writer's place if it has ended, and return whether that was so."""
        with self.lock:
            running = self._running
            if running is None or not running.succeed():
                return False
            self._stop_watching = watch_kexec(self._on_kexec)
            self._tell_what_was_found(running.found)
            return True

    def _restart(self) -> None:
        schedule = cast("Callable[[float, Any], Schedule]", type(self._schedule))
        self._stop(save=False)
        self._start(schedule)

    def _stop(self, *, save: bool) -> None:
        with self.lock:
            running = self._started()
            try:
                if self._schedule is not None:
                    self._schedule.stop()
                if self._stop_watching is not None:
                    self._stop_watching()
                running.stop(save=save)
            finally:
                self._running = self._schedule = self._stop_watching = None
                running.termination.uninstall()

    def _on_kexec(self) -> None:
        schedule = self._schedule
        if schedule is not None and not self._is_simulating:
            schedule.call(self._prepare)

    def _prepare(self) -> None:
        if self._running is None:
            return
        try:
            if (hook := self._hooks.get("on_prepare")) is not None:
                hook()
        finally:
            if (running := self._running) is not None and running.is_writer:
                running.save()

    def be_forked(self) -> None:
        """Be in a forked child: the parent goes on saving, this one does not."""
        self.lock = StateLock()
        if self._stop_watching is not None:
            self._stop_watching()
        if self._running is not None:
            self._running.be_forked(self.lock)


class _Declarer:
    """``app.state`` before the application is started."""

    __slots__ = ("_app",)
    _app: App

    def __init__(self, app: App) -> None:
        object.__setattr__(self, "_app", app)

    def __call__(self, *, version: int) -> Callable[[T], T]:
        """Return a decorator for a class, made a dataclass if it has annotations, or for what makes the first state."""
        return partial(self._app._declare, version=version)

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        self._refuse()

    def _refuse(self, *_: object) -> NoReturn:
        self._app._started()
        raise AssertionError

    __setattr__ = __getitem__ = __setitem__ = __delitem__ = __contains__ = __iter__ = __len__ = _refuse


_apps: "weakref.WeakSet[App]" = weakref.WeakSet()
"""Of this process: what a fork makes of them is no secret of theirs."""


def started_apps() -> set[App]:
    """Those of this process that are started."""
    return {app for app in list(_apps) if app.is_started}


def _after_fork() -> None:
    for app in list(_apps):
        app.be_forked()


os.register_at_fork(after_in_child=_after_fork)
