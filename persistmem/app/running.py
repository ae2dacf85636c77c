"""An application between start and stop: its arena, its state, and the one way in which that is saved.

Knows neither why it is saved now nor what the program is; must not be used after :meth:`Running.stop`.
"""

import os
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime
from typing import Any, Literal, NamedTuple, Self, TypeVar

from persistmem.app.child import Child
from persistmem.app.declaration import Declaration
from persistmem.app.found import Found
from persistmem.app.loading import SNAPSHOT, Loaded, StateDamage, load_state
from persistmem.app.logs import Troubles
from persistmem.app.watched import CONTAINERS_MAX, Changes
from persistmem.app.writer import WriterClaim
from persistmem.arena import Arena, Generation
from persistmem.errors import BusyError, Error, RefusedError, StaleArenaError
from persistmem.termination import StateLock, Termination

R = TypeVar("R")

Packing = Literal["here", "child"]
"""Who packs what is saved at an interval: this process, or a forked child while this one goes on."""

Others = Literal["refuse", "read"]
"""What a process does that finds another one saving this application's state."""


class Settings(NamedTuple):
    """What an application was told about itself."""

    name: str
    interval: float
    packing: Packing
    others: Others
    keep: int
    timeout: float
    attach: Callable[[], Arena]


class Mark(NamedTuple):
    """What tells a generation from one of the same number that another process saved, under another kernel.

    >>> from datetime import UTC
    >>> mark = Mark(3, datetime(2026, 7, 4, tzinfo=UTC))
    >>> Mark.parse(str(mark)) == mark
    True
    """

    number: int
    created: datetime

    @classmethod
    def of(cls, generation: Generation) -> Self:
        """Of that generation."""
        return cls(generation.number, generation.created)

    @classmethod
    def of_newest(cls, arena: Arena) -> Self | None:
        """Of the newest state in ``arena``; None if there is none."""
        return cls.of(arena.history(SNAPSHOT)[0]) if SNAPSHOT in arena.snapshots() else None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what ``str`` makes of one."""
        number, created = text.split()
        return cls(int(number), datetime.fromisoformat(created))

    def __str__(self) -> str:
        return f"{self.number} {self.created.isoformat()}"


class Running:
    """One started application."""

    def __init__(
        self,
        settings: Settings,
        declaration: Declaration,
        on_corrupt: Callable[[StateDamage], object] | None,
        lock: StateLock,
    ) -> None:
        """Attach the arena, claim to be its writer, and load the state.

        Raises:
            BusyError: another process saves this state, and ``others`` is "refuse".
            and what attaching, and :func:`persistmem.app.loading.load_state`, raise.
        """
        began = time.perf_counter()
        self._settings = settings
        self._declaration = declaration
        self._on_corrupt = on_corrupt
        self._lock = lock
        self._troubles = Troubles(settings.name)
        self._child: Child | None = None
        self._pid = os.getpid()
        self.termination = Termination()
        self.changes = Changes()
        self.state: Any = None
        self._newest: Mark | None = None
        """The generation that holds what was saved, or loaded, last."""
        self._is_damaged = False
        """What was found in the arena is to be written over, whatever it is."""
        self._arena = settings.attach()
        self._claim: WriterClaim | None = None
        try:
            self._claim = self._take_claim()
            found = self._load()
        except BaseException:
            self._let_go()
            raise
        self.found = replace(found, seconds=time.perf_counter() - began)

    @property
    def is_writer(self) -> bool:
        """Whether this process saves the state."""
        return self._claim is not None and self._claim.held

    def set_state(self, state: object) -> None:
        """Put another state in place of this one."""
        self._declaration.check(state)
        self.changes.check_allowed()
        self.state = state
        self.changes.changed = self.changes.unwatched = True

    def save(self) -> Generation:
        """Save the state here and now, unless it is what was saved last, and return the generation that holds it.

        Raises:
            RefusedError: this process is no writer, or another one was, since the kernel was replaced.
            UnsupportedTypeError, ArenaFullError, BusyError: as :meth:`persistmem.Arena.snapshot`.
        """
        with self._lock:
            self._check_writer()
            self._settle_child()
            generation = self._noting_what_changes(self._snapshot_here)
            self._be_saved(Mark.of(generation))
            return generation

    def save_if_changed(self) -> Callable[[], None] | None:
        """Save the state if it may have changed; what fails is logged. Return what is left to do without the lock.

        Cost: under a microsecond if nobody changed a state that notices its changes.
        """
        if not self.changes.possible:
            return None
        with self._lock:
            if not self.is_writer:  # it was stopped meanwhile
                return None
            if self._settings.packing == "here":
                self.log_failure("save", self.save)
                return None
            self._settle_child()
            self._child = self.log_failure("save", self._fork)
        return self._await_child

    def refresh(self) -> bool:
        """Load what the writer has saved since, and return whether there was anything. For readers."""
        with self._lock:
            if self.is_writer:
                return False
            self._stay_attached()
            if (newest := Mark.of_newest(self._arena)) is None or newest == self._newest:
                return False
            self.found = self._load()
            return True

    def succeed(self) -> bool:
        """Be the writer from here on, with what was saved last, if the one there was has ended; return whether it is.

        Never in a forked child. Cost: a fcntl(2) as long as there is a writer, and loading once there is none.

        Raises:
            as :func:`persistmem.app.loading.load_state`; this process goes on reading, then.
        """
        with self._lock:
            if self._claim is None or self._claim.held:
                return False
            self._stay_attached()
            if not self._claim.take(0.0):
                return False
            if self._claim.arena is not self._arena:  # nobody writes to the one of the kernel that was any more
                self._claim.give_up()
                self._claim = WriterClaim(self._arena)
                if not self._claim.take(0.0):
                    return False
            try:
                self.found = self._load()
            except BaseException:
                self._claim.put_back()
                raise
            return True

    def be_forked(self, lock: StateLock) -> None:
        """Be in a forked child, where nothing is saved. A child that packs goes on with the claim until it ends."""
        self._lock = lock
        if self._packing_thread == threading.get_ident():
            return
        self._give_up_claim()
        self._child = None
        self._only_reads(f"forked from process {self._pid}, which saves it")

    def stop(self, *, save: bool) -> None:
        """Save the state if this process is the writer, and let go of everything.

        Raises:
            as :meth:`save`; everything is let go of all the same.
        """
        try:
            if save and self.is_writer:
                self.save()
        finally:
            with self._lock:
                self._settle_child()
                self._let_go()
            self.changes.refusal = f"app {self._settings.name}: it was stopped; what is changed now is not saved"

    def log_failure(self, what: str, function: Callable[[], R]) -> R | None:
        """Return what ``function`` returns; if it fails, log that as ``what``, and return None."""
        try:
            return function()
        except Exception as error:  # noqa: BLE001 - packing runs the user's code, and the application goes on
            self._troubles.note(what, error)
            return None

    # Inside

    _why_it_reads = "started while another one saves it"
    _packing_thread: int | None = None
    """The thread whose fork makes a child that packs; another's, meanwhile, makes one of the program's own."""

    def _take_claim(self) -> WriterClaim:
        claim = WriterClaim(self._arena)
        wait = self._settings.timeout if self._settings.others == "refuse" else 0.0
        if not claim.take(wait) and self._settings.others == "refuse":
            claim.give_up()
            raise BusyError(
                f"app {self._settings.name}: expected to be the one process that saves this state, found another that"
                f" did not end within {wait:g} s; end it, or start this one with others='read'"
            )
        return claim

    def _load(self) -> Found:
        changes = Changes()
        loaded = load_state(self._arena, self._declaration, changes, self._on_corrupt)
        self._use(loaded, changes)
        declared, stored = self._declaration.version, loaded.stored_version
        generation = loaded.generation
        return Found(
            self._settings.name,
            self._arena.origin,
            "writer" if self.is_writer else "reader",
            declared,
            generation.number if generation is not None else None,
            generation.created if generation is not None else None,
            generation.kernel if generation is not None else None,
            stored if stored != declared else None,
            loaded.damage,
        )

    def _use(self, loaded: Loaded, changes: Changes) -> None:
        self.state = loaded.state
        self.changes = changes
        self._newest = Mark.of(loaded.generation) if loaded.generation is not None else None
        self._is_damaged = bool(loaded.damage)
        changes.unwatched = not self._declaration.is_watched(loaded.state, changes)
        # Otherwise the next start would have to migrate, or to do without the damaged ones, again.
        changes.changed = loaded.stored_version != self._declaration.version or bool(loaded.damage)
        if not self.is_writer:
            self._only_reads(self._why_it_reads)

    def _only_reads(self, why: str) -> None:
        self._why_it_reads = why
        self.changes.refusal = self._refusal(why)

    def _refusal(self, why: str) -> str:
        return (
            f"app {self._settings.name}: this process only reads the state, for it was {why}; what is changed here"
            " would be lost"
        )

    def _check_writer(self) -> None:
        if not self.is_writer:
            raise RefusedError(self.changes.refusal or self._refusal("stopped"))

    def _snapshot_here(self) -> Generation:
        while True:
            self._stay_attached()
            try:
                return self._snapshot()
            except StaleArenaError:
                continue  # the kernel was replaced just now

    def _snapshot(self) -> Generation:
        document = self._declaration.dump(self.state)
        return self._arena.snapshot(
            SNAPSHOT,
            document,
            keep=self._settings.keep,
            timeout=self._settings.timeout,
            skip_unchanged=not self._is_damaged,
        )

    def _be_saved(self, newest: "Mark") -> None:
        self._newest = newest
        self._is_damaged = False
        self._troubles.over()

    def _fork(self) -> Child:
        self._stay_attached()
        self._packing_thread = threading.get_ident()
        try:
            return self._noting_what_changes(lambda: Child(lambda: str(Mark.of(self._snapshot()))))
        finally:
            self._packing_thread = None

    def _noting_what_changes(self, save: Callable[[], R]) -> R:
        """Save by ``save``. What is changed from here on counts as changed afterwards."""
        changes = self.changes
        changes.changed = False
        try:
            if changes.unwatched and changes.watched < CONTAINERS_MAX:
                changes.unwatched = False
                if not self._declaration.is_watched(self.state, changes):
                    changes.unwatched = True
            return save()
        except BaseException:
            changes.changed = True
            raise

    def _settle_child(self) -> None:
        """Wait for the child that packs, if there is one, and take notice of how it went; with the lock held."""
        child, self._child = self._child, None
        if child is None:
            return
        outcome = child.wait()
        if isinstance(outcome, Error):
            self.changes.changed = True
            self._troubles.note("save", outcome)
        else:
            self._be_saved(Mark.parse(outcome))

    def _await_child(self) -> None:
        """The same, and let others have the lock meanwhile."""
        if (child := self._child) is not None:
            child.wait()
        with self._lock:
            self._settle_child()

    def _stay_attached(self) -> None:
        """Attach the arena again after a simulated kexec, which this process survived."""
        try:
            self._arena.check()
        except StaleArenaError:
            if self.is_writer:
                self._move_to_next_kernel()
            else:
                # The claim stays the old one: it tells whether a writer that has not moved yet is still there.
                stale, self._arena = self._arena, self._settings.attach()
                stale.close()

    def _move_to_next_kernel(self) -> None:
        with ExitStack() as stack:
            arena = stack.enter_context(self._settings.attach())
            claim = WriterClaim(arena)
            stack.callback(claim.give_up)
            if not claim.take(0.0) or not self._is_ours(Mark.of_newest(arena)):
                self._give_up_claim()
                self._only_reads("overtaken by another process after the kernel was replaced")
                raise RefusedError(self._refusal(self._why_it_reads))
            stack.pop_all()
        stale, given_up = self._arena, self._claim
        self._arena, self._claim = arena, claim
        stale.close()
        if given_up is not None:
            given_up.give_up()

    def _is_ours(self, newest: "Mark | None") -> bool:
        """Whether what is in the next kernel's arena was there when it was handed over, or was lost altogether.

        What this process saved after that, to the kernel that was, is not there; a real one would have stopped it.
        """
        if newest is None:
            return True
        known = self._newest
        return known is not None and newest.number <= known.number and newest.created <= known.created

    def _give_up_claim(self) -> None:
        if self._claim is not None:
            self._claim.give_up()
            self._claim = None

    def _let_go(self) -> None:
        self._give_up_claim()
        self._arena.close()
