"""An application between start and stop: its arena, its state, and the one way in which that is saved.

Knows neither why it is saved now nor what the program is; must not be used after :meth:`Running.stop`.
"""

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

from persistmem.app.child import Child
from persistmem.app.declaration import Declaration
from persistmem.app.found import Found
from persistmem.app.loading import SNAPSHOT, Loaded, StateDamage, load_state
from persistmem.app.logs import Troubles
from persistmem.app.termination import Termination
from persistmem.app.watched import CONTAINERS_MAX, Changes
from persistmem.app.writer import WriterClaim
from persistmem.arena import Arena, Generation
from persistmem.errors import BusyError, Error, RefusedError, StaleArenaError

R = TypeVar("R")

Packing = Literal["here", "child"]
"""Who packs what is saved at an interval: this process, or a forked child while this one goes on."""

Others = Literal["refuse", "read"]
"""What a process does that finds another one saving this application's state."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What an application was told about itself."""

    name: str
    interval: float
    packing: Packing
    others: Others
    keep: int
    timeout: float
    attach: Callable[[], Arena]


class Running:
    """One started application."""

    def __init__(
        self,
        settings: Settings,
        declaration: Declaration,
        on_corrupt: Callable[[StateDamage], object] | None,
        lock: threading.RLock,
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
        self._newest: int | None = None
        """The generation that holds what was saved, or loaded, last."""
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
        return self._claim is not None

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
        with self.termination.deferred(), self._lock:
            self._check_writer()
            self._settle_child()
            self._stay_attached()
            generation = self._noting_what_changes(self._snapshot)
            self._newest = generation.number
            self._troubles.over()
            return generation

    def save_if_changed(self) -> Callable[[], None] | None:
        """Save the state if it may have changed; what fails is logged. Return what is left to do without the lock.

        Cost: under a microsecond if nobody changed a state that notices its changes.
        """
        if not self.changes.possible or not self.is_writer:
            return None
        if self._settings.packing == "here":
            self._log_failure("save", self.save)
            return None
        with self._lock:
            self._settle_child()
            self._child = self._log_failure("save", self._fork)
        return self._settle_child

    def try_to_save(self, what: str) -> bool:
        """Save the state, and return whether that worked; what fails is logged as ``what``."""
        return self._log_failure(what, self.save) is not None

    def refresh(self) -> bool:
        """Load what the writer has saved since, and return whether there was anything. For readers."""
        with self._lock:
            if self.is_writer:
                return False
            if SNAPSHOT not in self._arena.snapshots() or self._arena.history(SNAPSHOT)[0].number == self._newest:
                return False
            self.found = self._load()
            return True

    def be_forked(self, lock: threading.RLock) -> None:
        """Be in a forked child, where nothing is saved. A child that packs goes on with the claim until it ends."""
        self._lock = lock
        if self._child_is_packing:
            return
        if self._claim is not None:
            self._claim.give_up()
            self._claim = None
        self._child = None
        self.changes.refusal = self._refusal(f"forked from process {self._pid}, which saves it")

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

    # Inside

    _child_is_packing = False

    def _take_claim(self) -> WriterClaim | None:
        wait = self._settings.timeout if self._settings.others == "refuse" else 0.0
        claim = WriterClaim.take(self._arena, wait)
        if claim is None and self._settings.others == "refuse":
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
        self._newest = loaded.generation.number if loaded.generation is not None else None
        changes.unwatched = not self._declaration.is_watched(loaded.state, changes)
        # Otherwise the next start would have to migrate, or to do without the damaged ones, again.
        changes.changed = loaded.stored_version != self._declaration.version or bool(loaded.damage)
        if not self.is_writer:
            changes.refusal = self._refusal("started while another one saves it")

    def _refusal(self, why: str) -> str:
        return (
            f"app {self._settings.name}: this process only reads the state, for it was {why}; what is changed here"
            " would be lost"
        )

    def _check_writer(self) -> None:
        if not self.is_writer:
            raise RefusedError(self.changes.refusal or self._refusal("stopped"))

    def _snapshot(self) -> Generation:
        document = self._declaration.dump(self.state)
        return self._arena.snapshot(
            SNAPSHOT, document, keep=self._settings.keep, timeout=self._settings.timeout, skip_unchanged=True
        )

    def _fork(self) -> Child:
        self._stay_attached()
        self._child_is_packing = True
        try:
            return self._noting_what_changes(lambda: Child(lambda: self._snapshot().number))
        finally:
            self._child_is_packing = False

    def _noting_what_changes(self, save: Callable[[], R]) -> R:
        """Save by ``save``. What is changed from here on counts as changed afterwards."""
        changes = self.changes
        changes.changed = False
        if changes.unwatched and changes.watched < CONTAINERS_MAX:
            changes.unwatched = False
            if not self._declaration.is_watched(self.state, changes):
                changes.unwatched = True
        try:
            return save()
        except BaseException:
            changes.changed = True
            raise

    def _settle_child(self) -> None:
        """Wait for the child that packs, if there is one."""
        child = self._child
        if child is None:
            return
        outcome = child.wait()
        if self._child is not child:
            return
        self._child = None
        if isinstance(outcome, Error):
            self.changes.changed = True
            self._troubles.note("save", outcome)
        else:
            self._newest = outcome
            self._troubles.over()

    def _log_failure(self, what: str, function: Callable[[], R]) -> R | None:
        try:
            return function()
        except Exception as error:  # noqa: BLE001 - packing runs the user's code, and the application goes on
            self._troubles.note(what, error)
            return None

    def _stay_attached(self) -> None:
        """Attach the arena again after a simulated kexec, which this process survived."""
        try:
            self._arena.check()
        except StaleArenaError:
            self._move_to_next_kernel()

    def _move_to_next_kernel(self) -> None:
        arena = self._settings.attach()
        claim = WriterClaim.take(arena, 0.0)
        newest = arena.history(SNAPSHOT)[0].number if SNAPSHOT in arena.snapshots() else None
        if claim is None or newest != self._newest:
            if claim is not None:
                claim.give_up()
            arena.close()
            self._give_up_claim()
            self.changes.refusal = self._refusal("overtaken by another process after the kernel was replaced")
            raise RefusedError(self.changes.refusal)
        self._let_go()
        self._arena, self._claim = arena, claim

    def _give_up_claim(self) -> None:
        if self._claim is not None:
            self._claim.give_up()
            self._claim = None

    def _let_go(self) -> None:
        self._give_up_claim()
        self._arena.close()
