"""Verifying arenas in the background, one at a time, and remembering what was found. Knows arenas; no web."""

import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from datetime import datetime
from queue import SimpleQueue
from time import monotonic
from typing import Final
from uuid import UUID

from apps.dashboard.looking import open_same, snapshots_of
from persistmem import Arena, CorruptError, Error, VerifyReport
from persistmem.agent.records import ArenaRecord
from persistmem.cli.keeper import THREADS
from persistmem.threads import start_deaf

GenerationKey = tuple[str, int]
"""A snapshot's name, and a number."""


@dataclass(frozen=True, slots=True)
class Progress:
    """A verification that is asked for, or goes on."""

    done: int = 0
    total: int | None = None
    """Bytes; None while it waits for others."""


@dataclass(frozen=True, slots=True)
class Result:
    """How a verification ended."""

    when: datetime
    seconds: float
    kernel: str
    """Release of the kernel that the arena was in; empty if it could not even be opened."""
    report: VerifyReport | None
    """None if it came to no end."""
    covered: frozenset[GenerationKey] = frozenset()
    """The generations that were certainly looked at."""
    unreadable: str = ""
    """Why nothing in it can be read: it is damaged as a whole."""
    failure: str = ""
    """Why it came to no end, which says nothing about the arena."""

    @property
    def is_sound(self) -> bool:
        """Whether everything was looked at, and is as it was stored."""
        return self.report is not None and self.report.ok

    @property
    def reasons(self) -> tuple[str, ...]:
        """What is damaged, for people."""
        if self.report is None:
            return (self.unreadable,) if self.unreadable else ()
        return tuple(
            f"{'arena' if damage.snapshot is None else f'{damage.snapshot}, generation {damage.generation}'}:"
            f" {damage.reason}"
            for damage in self.report.damaged
        )

    def of(self, snapshot: str, generation: int) -> str:
        """Return ``sound`` or ``damaged`` for a generation that was looked at, and an empty string for another."""
        if self.report is None or (snapshot, generation) not in self.covered:
            return ""
        damaged = {(damage.snapshot, damage.generation) for damage in self.report.damaged}
        return "damaged" if (snapshot, generation) in damaged else "sound"


@dataclass(frozen=True, slots=True)
class Standing:
    """What is known of an arena's integrity."""

    under_way: Progress | None = None
    last: Result | None = None


UNKNOWN: Final = Standing()


class _EndedError(Exception):
    """The program ends, and does not wait for a verification."""


class Verifier:
    """Verifies what it is asked to. Safe to use from several threads."""

    def __init__(self, now: Callable[[], datetime], on_end: Callable[[], object]) -> None:
        """``on_end`` is called, in another thread, after each verification."""
        self._now = now
        self._on_end = on_end
        self._asked: SimpleQueue[ArenaRecord | None] = SimpleQueue()
        self._standings: dict[UUID, Standing] = {}
        self._lock = threading.Lock()
        self._ended = False
        self._thread = threading.Thread(target=self._work, name="dashboard-verify", daemon=True)

    def start(self) -> None:
        """Begin."""
        start_deaf(self._thread)

    def stop(self) -> None:
        """Leave off, in the middle if need be; do not wait for it."""
        self._ended = True
        self._asked.put(None)

    def ask(self, record: ArenaRecord) -> None:
        """Have an arena verified soon, unless it is about to be."""
        with self._lock:
            before = self._standings.get(record.uuid, UNKNOWN)
            if before.under_way is not None:
                return
            self._standings[record.uuid] = Standing(Progress(), before.last)
        self._asked.put(record)

    def standing(self, uuid: UUID) -> Standing:
        """Return what is known of an arena."""
        return self._standings.get(uuid, UNKNOWN)

    def forget_all_but(self, uuids: Collection[UUID]) -> None:
        """Forget results about arenas that are not there any more."""
        with self._lock:
            for uuid in [uuid for uuid, known in self._standings.items() if uuid not in uuids]:
                if self._standings[uuid].under_way is None:
                    del self._standings[uuid]

    def _work(self) -> None:
        while (record := self._asked.get()) is not None:
            began = monotonic()
            try:
                result = self._verify(record, began)
            except _EndedError:
                return
            except CorruptError as error:
                result = Result(self._now(), monotonic() - began, "", None, unreadable=str(error))
            except (Error, OSError) as error:
                result = Result(self._now(), monotonic() - began, "", None, failure=str(error))
            with self._lock:
                self._standings[record.uuid] = Standing(None, result)
            self._on_end()

    def _verify(self, record: ArenaRecord, began: float) -> Result:
        with open_same(record) as arena:
            total = sum(piece.length for piece in arena.pieces() if piece.kind in ("document", "buffer"))
            self._show(record.uuid, Progress(0, total))

            def advance(count: int) -> None:
                if self._ended:
                    raise _EndedError
                self._advance(record.uuid, count)

            before = _generations(arena)
            report = arena.verify(threads=THREADS, progress=advance)
            # What was there before and is there after was there in between.
            covered = frozenset(before & _generations(arena))
            return Result(self._now(), monotonic() - began, arena.origin.kernel_to, report, covered)

    def _show(self, uuid: UUID, progress: Progress) -> None:
        with self._lock:
            self._standings[uuid] = replace(self._standings[uuid], under_way=progress)

    def _advance(self, uuid: UUID, count: int) -> None:
        with self._lock:
            standing = self._standings[uuid]
            assert standing.under_way is not None
            progress = replace(standing.under_way, done=standing.under_way.done + count)
            self._standings[uuid] = replace(standing, under_way=progress)


def _generations(arena: Arena) -> set[GenerationKey]:
    return {
        (snapshot.name, generation.number)
        for snapshot in snapshots_of(arena, arena.snapshots())
        for generation in snapshot.generations
    }
