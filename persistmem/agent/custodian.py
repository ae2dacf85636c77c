"""The arenas that an agent keeps: makes them, hands them out, takes them back, takes them to the next kernel.

Knows arenas, a carrier, the registry and the state file; must not know sockets, messages or processes.
"""

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Final
from uuid import UUID

from persistmem.agent.records import (
    ARENAS_MAX,
    HANDOVERS_MAX,
    LOSSES_MAX,
    ArenaRecord,
    Departure,
    Handover,
    Loss,
    RegistryDocument,
)
from persistmem.agent.registry import KEY as REGISTRY_KEY
from persistmem.agent.registry import Registry
from persistmem.agent.statefile import FORMAT, AgentState, Boot, write_state
from persistmem.arena import Arena
from persistmem.arena.memfd import check_memfd, create_memfd
from persistmem.carriers.interface import Carrier
from persistmem.errors import (
    AgentError,
    CorruptError,
    Error,
    ExistsError,
    NewerFormatError,
    NotFoundError,
    RefusedError,
    SizeError,
    StaleArenaError,
)
from persistmem.names import check_name
from persistmem.sizes import format_size

_MODE: Final = 0o600
_UNKNOWN_KERNEL: Final = "unknown"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose arenas: one user's are not there for another."""

    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class Arrival:
    """How this kernel's agent finds things after a kexec."""

    began: datetime
    """When it began to retrieve."""
    departed: AgentState | None
    """What the last kernel's agent left on disk."""
    lost: Mapping[str, str]
    """Names that the carrier lost, and why."""
    refused: str | None
    """Why this kernel took nothing at all, if it did not."""


_Key = tuple[int, str]


class Custodian:
    """Keeps arenas, each by its owner and name. Its methods raise errors that a client can be told.

    ``before`` is what the state file says of the last agent in this boot, if there was one: its arenas are missing
    until their holders hand them back.
    """

    def __init__(self, carrier: Carrier, boot: Boot, state_path: Path, before: RegistryDocument | None = None) -> None:
        self.boot = boot
        self.handovers: list[Handover] = list(before.handovers) if before else []
        self._carrier = carrier
        self._state_path = state_path
        self._kept: dict[_Key, ArenaRecord] = {}
        self._missing: dict[_Key, ArenaRecord] = {_key(record): record for record in before.arenas} if before else {}
        self._quarantined: dict[_Key, tuple[ArenaRecord, str]] = {}
        """What arrived and failed its check, and why: not given out, and not thrown away unless its owner drops it."""
        self._registry: Registry | None = None

    @property
    def count(self) -> int:
        """How many arenas are kept."""
        return len(self._kept)

    @property
    def size(self) -> int:
        """Bytes of all that are kept, the holes included."""
        return sum(record.size for record in self._kept.values())

    @property
    def is_empty(self) -> bool:
        """Whether there is no memory that would be lost with the agent."""
        return not self._kept and not self._quarantined

    @property
    def missing(self) -> int:
        """How many arenas nobody has handed back yet."""
        return len(self._missing)

    def is_missing(self, owner: Owner, name: str) -> bool:
        """Tell whether a holder may still hand this arena back."""
        return (owner.uid, name) in self._missing

    def give_up(self, owner: Owner, name: str) -> None:
        """Wait for this arena no longer: nobody who had it is left."""
        if (lost := self._missing.pop((owner.uid, name), None)) is not None:
            _log.warning("arena %r (%s) was lost with the agent that was killed: nobody held it", name, lost.uuid)
            self.commit()

    def attach(self, owner: Owner, name: str, size: int | None) -> tuple[int, ArenaRecord, bool]:
        """Return a descriptor (the caller closes it), the record, and whether the arena was made for this call.

        Cost: none that grows with the arena.

        Raises:
            NotFoundError: it is not there and no size was given.
            SizeError: it is there with another size; or no arena can have this size.
            RefusedError: there are too many arenas.
            CorruptError: it is there, but it did not arrive whole from the last kernel.
        """
        key = (owner.uid, name)
        if key in self._quarantined:
            raise CorruptError(
                f"arena {name!r} arrived damaged: {self._quarantined[key][1]}; drop it to reuse the name"
            )
        record = self._kept.get(key)
        if record is None:
            if size is None:
                raise NotFoundError(f"there is no arena {name!r}; give a size to make it")
            return *self._make(owner, name, size), True
        if size is not None and size != record.size:
            raise SizeError(
                f"arena {name!r}: it has {format_size(record.size)} ({record.size} bytes), asked for were"
                f" {format_size(size)} ({size} bytes); attach it without a size, or drop it first"
            )
        return self._carrier.recover(_carrier_key(record)), record, False

    def records(self, owner: Owner, after: str | None, most: int) -> tuple[tuple[ArenaRecord, ...], bool]:
        """Return at most ``most`` records of this owner by name, after ``after``, and whether there are more."""
        names = sorted(name for uid, name in self._kept if uid == owner.uid and (after is None or name > after))
        return tuple(self._kept[owner.uid, name] for name in names[:most]), len(names) > most

    def drop(self, owner: Owner, name: str) -> UUID:
        """Let go of an arena, and return which it was.

        Raises:
            NotFoundError: there is none of this name.
        """
        key = (owner.uid, name)
        record = self._everything().get(key)
        if record is None:
            raise NotFoundError(f"there is no arena {name!r}; persistmem ls lists those that there are")
        for group in (self._kept, self._missing, self._quarantined):
            group.pop(key, None)
        if _carrier_key(record) in self._carrier.names():
            self._carrier.drop(_carrier_key(record))
        self.commit()
        return record.uuid

    def take_back(self, owner: Owner, name: str, uuid: UUID, boot: UUID | None, fd: int) -> None:
        """Keep an arena again that a killed agent had kept; the caller closes ``fd``.

        Raises:
            StaleArenaError: it is from another boot.
            ExistsError: another arena has the name by now.
            RefusedError: no agent kept it, or it was dropped.
            CorruptError: the memfd is not what it claims.
        """
        if boot != self.boot.id:
            raise StaleArenaError(f"arena {name!r} is from boot {boot}, this is {self.boot.id}: attach again")
        key = (owner.uid, name)
        if (kept := self._kept.get(key)) is not None:
            if kept.uuid != uuid:
                raise ExistsError(f"arena {name!r} was made anew in the meantime: attach again")
            return
        record = self._missing.get(key)
        if record is None or record.uuid != uuid:
            raise RefusedError(
                f"arena {name!r} ({uuid}) is not one that an agent kept, or it was dropped: attach again"
            )
        self._check(record, fd)
        self._carrier.keep(_carrier_key(record), fd)
        self._kept[key] = self._missing.pop(key)
        self.commit()

    def arrive(self, arrival: Arrival, clock: Callable[[], datetime]) -> Handover:
        """Take over what the carrier brought from the last kernel: check it, and write the handover down.

        What fails its check is kept, but not given out. The caller lets the carrier finish afterwards.
        """
        expected, before = self._load_registry(arrival.departed), arrival.departed
        kernel_from = before.boot.kernel if before else _UNKNOWN_KERNEL
        lost: list[Loss] = []
        for record in expected.arenas:
            key = _carrier_key(record)
            problem = arrival.lost.get(key) or arrival.refused or "it was not handed over"
            if key in self._carrier.names():
                problem = self._take_over(replace(record, kernel_from=kernel_from))
            if problem:
                _log.warning("arena %r of uid %d did not arrive: %s", record.name, record.uid, problem)
                lost.append(Loss(record.name, record.uid, problem))
        known = {REGISTRY_KEY, *map(_carrier_key, expected.arenas)}
        for stranger in sorted(set(self._carrier.names()) - known):
            _log.warning("%r arrived, but the registry does not know it: it stays with the carrier", stranger)
        now = clock()
        departure = before.departure if before and before.departure else Departure(self.boot.kernel, now, 0.0)
        handover = Handover(
            number=expected.handovers[-1].number + 1 if expected.handovers else 1,
            kernel_from=kernel_from,
            kernel_to=self.boot.kernel,
            left=departure.left,
            arenas=self.count,
            size=self.size,
            preserve=departure.preserve,
            dark=max(0.0, (now - departure.left).total_seconds()),
            retrieve=max(0.0, (now - arrival.began).total_seconds()),
            lost=tuple(lost[:LOSSES_MAX]),
            lost_count=len(lost),
        )
        self.handovers = [*expected.handovers, handover][-HANDOVERS_MAX:]
        self.commit()
        return handover

    def discard(self) -> None:
        """Let go of everything."""
        for record in self._everything().values():
            if _carrier_key(record) in self._carrier.names():
                self._carrier.drop(_carrier_key(record))
        for group in (self._kept, self._missing, self._quarantined):
            group.clear()
        self._write(None)

    def depart(self, departure: Departure) -> None:
        """Write down that all this goes to the next kernel."""
        self._write(departure)

    def commit(self) -> None:
        """Write down what is kept: on disk for an agent after this one, and in the registry for the next kernel.

        Raises:
            AgentError: it cannot be written.
        """
        self._write(None)
        if self._registry is None:
            self._registry = Registry.create(self._carrier, kernel=self.boot.kernel)
        self._registry.store(self._document())

    def _load_registry(self, departed: AgentState | None) -> RegistryDocument:
        try:
            self._registry = Registry.recover(self._carrier, kernel=self.boot.kernel)
            return self._registry.load()
        except (NotFoundError, CorruptError, NewerFormatError) as error:
            _log.warning("the registry did not arrive (%s); what was on disk says what should have arrived", error)
            self._registry = None
            return departed.registry if departed else RegistryDocument((), ())

    def _take_over(self, record: ArenaRecord) -> str:
        """Keep what arrived, and return what is wrong with it: an empty string if nothing is."""
        fd = self._carrier.recover(_carrier_key(record))
        try:
            self._check(record, fd)
            _set_owner(fd, record.uid, record.gid, record.mode)
        except (Error, OSError) as error:
            self._quarantined[_key(record)] = record, str(error)
            return str(error)
        finally:
            os.close(fd)
        self._kept[_key(record)] = record
        return ""

    def _write(self, departure: Departure | None) -> None:
        state = AgentState(FORMAT, self.boot, self._document(), departure)
        try:
            write_state(self._state_path, state)
        except OSError as error:
            raise AgentError(f"state file {self._state_path}: {error.strerror}; make room, and try again") from error

    def _document(self) -> RegistryDocument:
        everything = self._everything()
        return RegistryDocument(tuple(everything[key] for key in sorted(everything)), tuple(self.handovers))

    def _everything(self) -> dict[_Key, ArenaRecord]:
        return {**self._missing, **{key: record for key, (record, _) in self._quarantined.items()}, **self._kept}

    def _make(self, owner: Owner, name: str, size: int) -> tuple[int, ArenaRecord]:
        if len(self._everything()) >= ARENAS_MAX:
            raise RefusedError(
                f"arena {name!r}: the agent keeps {ARENAS_MAX} arenas, which is its limit; drop some first"
            )
        fd = create_memfd(check_name(name), size)
        try:
            Arena.format(fd, kernel=self.boot.kernel)
            _set_owner(fd, owner.uid, owner.gid, _MODE)
            with Arena(fd, kernel=self.boot.kernel) as arena:
                record = ArenaRecord(name, owner.uid, owner.gid, _MODE, size, arena.uuid, arena.created, None)
            self._carrier.keep(_carrier_key(record), fd)
            self._kept[_key(record)] = record
            try:
                self.commit()
            except BaseException:
                del self._kept[_key(record)]
                self._carrier.drop(_carrier_key(record))
                raise
        except BaseException:
            os.close(fd)
            raise
        return fd, record

    def _check(self, record: ArenaRecord, fd: int) -> None:
        size = check_memfd(fd)
        with Arena(fd, kernel=self.boot.kernel) as arena:
            uuid = arena.uuid
        if (size, uuid) != (record.size, record.uuid):
            raise CorruptError(
                f"arena {record.name!r}: expected {record.uuid} of {record.size} bytes, found {uuid} of {size} bytes"
            )


def _key(record: ArenaRecord) -> _Key:
    return record.uid, record.name


def _carrier_key(record: ArenaRecord) -> str:
    return f"{record.uid}/{record.name}"


def _set_owner(fd: int, uid: int, gid: int, mode: int) -> None:
    # A kernel that retrieves a memfd gives it to the task that did, with mode 0777.
    os.fchmod(fd, mode)
    found = os.fstat(fd)
    if (found.st_uid, found.st_gid) != (uid, gid):
        os.fchown(fd, uid, gid)
