"""The arenas that an agent keeps: makes them, hands them out, takes them back, takes them to the next kernel.

Knows arenas, a carrier, the registry, the state file and saved arenas; must not know sockets, messages or processes.
"""

import logging
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import monotonic
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
from persistmem.agent.registry import KEY, Registry
from persistmem.agent.saved import Saved, SavedArenas
from persistmem.agent.statefile import FORMAT, AgentState, Boot, write_state
from persistmem.arena import Arena
from persistmem.arena.memfd import check_memfd, create_memfd
from persistmem.carriers.interface import KexecCarrier
from persistmem.errors import (
    AgentError,
    CorruptError,
    Error,
    ExistsError,
    LiveUpdateError,
    NewerFormatError,
    NotFoundError,
    RefusedError,
    StaleArenaError,
)
from persistmem.names import check_name
from persistmem.sizes import check_same_size, format_size

_MODE: Final = 0o600
_NOTHING_KNOWN: Final = RegistryDocument("unknown", (), (), None)
_NOT_PREPARED: Final = "the last kernel was left without 'persistmem reboot' or 'persistmem prepare'"
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
    boot: timedelta
    """From this kernel's first moment to then."""
    departed: RegistryDocument | None
    """What the last kernel's agent left on disk."""
    refused: str | None = None
    """Why this kernel took nothing at all, if it did not."""


@dataclass(frozen=True, slots=True)
class Quota:
    """The most that one user other than root can have, so that nobody fills up what is everybody's."""

    arenas: int = ARENAS_MAX
    size: int = 2**63 - 1
    """Bytes of all of a user's arenas, the holes included: a kexec fills them."""


NO_QUOTA: Final = Quota()


def utc_now() -> datetime:
    """Return the time."""
    return datetime.now(UTC)


_Key = tuple[int, str]


class Custodian:
    """Keeps arenas, each by its owner and name. Its methods raise errors that a client can be told.

    ``before`` is what the state file says of the last agent in this boot, if there was one: its arenas are missing
    until :meth:`resume` finds them at the carrier, or their holders hand them back. ``discreet`` if memfds are not to
    bear the names of arenas: a service manager tells anybody what is in its stores.
    """

    def __init__(
        self,
        carrier: KexecCarrier,
        boot: Boot,
        state_path: Path,
        saved: SavedArenas,
        *,
        before: RegistryDocument | None = None,
        quota: Quota = NO_QUOTA,
        discreet: bool = False,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self.boot = boot
        self.handovers: list[Handover] = list(before.handovers) if before else []
        self._carrier = carrier
        self._state_path = state_path
        self._saved = saved
        self._quota = quota
        self._discreet = discreet
        self._clock = clock
        self._kept: dict[_Key, ArenaRecord] = {}
        self._missing: dict[_Key, ArenaRecord] = {_key(record): record for record in before.arenas} if before else {}
        self._quarantined: dict[_Key, tuple[ArenaRecord, str]] = {}
        """What arrived and failed its check, and why: not given out, and not thrown away unless its owner drops it."""
        self._registry: Registry | None = None
        self._departure: Departure | None = None

    def count(self, owner: Owner | None = None) -> int:
        """Return how many arenas are kept; those of ``owner``, or all."""
        return sum(_is_of(owner, record) for record in self._kept.values())

    def size(self, owner: Owner | None = None) -> int:
        """Return the bytes of what is kept, the holes included; of ``owner``'s, or of all."""
        return sum(record.size for record in self._kept.values() if _is_of(owner, record))

    @property
    def is_empty(self) -> bool:
        """Whether there is no memory that would be lost with the agent."""
        return not self._kept and not self._quarantined

    def missing(self, owner: Owner | None = None) -> int:
        """Return how many arenas nobody has handed back yet; of ``owner``'s, or of all."""
        return sum(_is_of(owner, record) for record in self._missing.values())

    def is_missing(self, owner: Owner, name: str) -> bool:
        """Tell whether a holder may still hand this arena back."""
        return (owner.uid, name) in self._missing

    def give_up(self, owner: Owner, name: str) -> None:
        """Wait for this arena no longer: nobody who had it is left. If it was saved on disk, take it in from there."""
        if (lost := self._missing.pop((owner.uid, name), None)) is not None:
            _log.warning("arena %r (%s) was lost with the agent that was killed: nobody held it", name, lost.uuid)
            self.take_in_saved()

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
                raise NotFoundError(f"there is no arena {name!r}; look at 'persistmem ls', or give a size to make it")
            return *self._make(owner, name, size), True
        check_same_size(name, record.size, size)
        return self._carrier.recover(_carrier_key(record)), record, False

    def records(self, owner: Owner, after: str | None, most: int) -> tuple[tuple[ArenaRecord, ...], bool]:
        """Return at most ``most`` records of this owner by name, after ``after``, and whether there are more."""
        names = sorted(name for uid, name in self._kept if uid == owner.uid and (after is None or name > after))
        return tuple(self._kept[owner.uid, name] for name in names[:most]), len(names) > most

    def everyone(self, after: tuple[int, str] | None, most: int) -> tuple[tuple[ArenaRecord, ...], bool]:
        """Return at most ``most`` records of all users, after that uid and name, and whether there are more."""
        keys = sorted(key for key in self._kept if after is None or key > after)
        return tuple(self._kept[key] for key in keys[:most]), len(keys) > most

    def lend(self, uid: int, name: str) -> tuple[int, ArenaRecord]:
        """Return a descriptor (the caller closes it) and the record of any user's arena.

        Raises:
            NotFoundError: there is none.
        """
        record = self._kept.get((uid, name))
        if record is None:
            raise NotFoundError(f"uid {uid} has no arena {name!r}; it may have been dropped")
        return self._carrier.recover(_carrier_key(record)), record

    def drop(self, owner: Owner, name: str) -> UUID:
        """Let go of an arena, on disk too, and return which it was.

        Raises:
            NotFoundError: there is none of this name.
        """
        key = (owner.uid, name)
        record = self._everything().get(key)
        if record is None:
            raise NotFoundError(f"there is no arena {name!r}; persistmem ls lists those that there are")
        self._let_go(record)
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

    def arrive(self, arrival: Arrival) -> Handover | None:
        """Take over what came from the last kernel, through memory or else by the disk, and write down how that went.

        What fails its check is kept, but not given out. None if there is nothing to tell: nothing came, and nothing
        was expected.
        """
        self._saved.clear()
        expected = self._load_registry(arrival.departed)
        why = arrival.refused or ("it was not handed over" if expected.departure else _NOT_PREPARED)
        lost: dict[_Key, str] = {}
        for record in expected.arenas:
            if problem := self._take_over(record._replace(kernel_from=expected.kernel), why):
                lost[_key(record)] = problem
        copies = self._find_saved()
        taken = [copy for copy in copies if self._take_in(copy, lost)]
        for (uid, name), problem in lost.items():
            _log.warning("arena %r of uid %d did not arrive: %s", name, uid, problem)
        handover = None
        if expected.arenas or taken or expected.departure:
            handover = self._tell(arrival, expected, len(taken), lost)
            self.handovers = [*expected.handovers, handover][-HANDOVERS_MAX:]
        else:
            self.handovers = list(expected.handovers)
        self.commit()
        self._set_aside(copies)
        return handover

    def resume(self) -> None:
        """Go on where the last agent of this boot ended, with what the carrier still has and what was saved on disk."""
        there = set(self._carrier.names())
        if KEY in there:
            self._registry = self._recover_registry()
        for key, record in list(self._missing.items()):
            if _carrier_key(record) in there:
                del self._missing[key]
                self._take_over(record, "the carrier does not have it")
        self._forget_unborn(there)
        self.take_in_saved()

    def take_in_saved(self) -> None:
        """Take in what was saved on disk and is neither kept nor may be handed back."""
        copies = [copy for copy in self._find_saved() if _key(copy.record) not in self._missing]
        lost: dict[_Key, str] = {}
        for copy in copies:
            self._take_in(copy, lost)
        for (uid, name), problem in lost.items():
            _log.warning("saved arena %r of uid %d was not taken in: %s", name, uid, problem)
        self.commit()
        self._set_aside(copies)

    def discard(self) -> None:
        """Let go of everything."""
        for record in self._everything().values():
            self._let_go(record)
        self._write()

    def preserve(self) -> float:
        """Mark everything to cross the next kexec, and return how many seconds that took. Late writes cross, too.

        Raises:
            LiveUpdateError: it cannot be; nothing has changed.
        """
        began = monotonic()
        self._carrier.preserve()
        return monotonic() - began

    def depart(self, preserve: float) -> None:
        """Write down that the kernel is left now, after so many seconds of preserving.

        Raises:
            AgentError: it cannot be written.
        """
        self._departure = Departure(self._clock(), preserve)
        self.commit()

    def stay(self) -> None:
        """Take back what :meth:`preserve` and :meth:`depart` did.

        Raises:
            AgentError: it cannot be written down.
        """
        self._carrier.abort()
        if self._departure is not None:
            self._departure = None
            self.commit()

    def commit(self) -> None:
        """Write down what is kept: on disk for an agent after this one, and in the registry for the next kernel.

        Raises:
            AgentError: it cannot be written.
        """
        self._write()
        if self._registry is None:
            self._registry = Registry.create(self._carrier, kernel=self.boot.kernel)
        self._registry.store(self._document())

    def _recover_registry(self) -> Registry | None:
        try:
            return Registry.recover(self._carrier, kernel=self.boot.kernel)
        except (CorruptError, NewerFormatError) as error:
            _log.warning("the registry is made anew: %s", error)
            return None

    def _forget_unborn(self, there: Iterable[str]) -> None:
        """Drop what an agent kept and was killed before it wrote that down: nobody was given it, so it is empty."""
        known = {KEY, *map(_carrier_key, self._everything().values())}
        for name in sorted(set(there) - known):
            fd = self._carrier.recover(name)
            try:
                with Arena(fd, kernel=self.boot.kernel) as arena:
                    is_empty = not arena.snapshots() and not arena.regions()
            except (CorruptError, NewerFormatError):
                is_empty = False
            finally:
                os.close(fd)
            if is_empty:
                self._carrier.drop(name)
            else:
                _log.warning("the carrier keeps %s, which nothing was written down about; it is left there", name)

    def _load_registry(self, departed: RegistryDocument | None) -> RegistryDocument:
        try:
            self._registry = Registry.recover(self._carrier, kernel=self.boot.kernel)
            return self._registry.load()
        except (NotFoundError, CorruptError, NewerFormatError, LiveUpdateError) as error:
            self._registry = None
            if departed is None:
                _log.info("nothing came from another kernel, and nothing was expected")
                return _NOTHING_KNOWN
            _log.warning("the registry did not arrive (%s); what was on disk says what should have arrived", error)
            return departed

    def _take_over(self, record: ArenaRecord, otherwise: str) -> str:
        """Keep what arrived, and return what is wrong with it, or ``otherwise`` if it did not; empty if all is well."""
        try:
            fd = self._carrier.recover(_carrier_key(record))
        except NotFoundError:
            return otherwise
        except LiveUpdateError as error:
            self._quarantined[_key(record)] = record, str(error)
            return str(error)
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

    def _find_saved(self) -> list[Saved]:
        copies, problems = self._saved.find()
        for problem in problems:
            _log.warning("%s", problem)
        return copies

    def _take_in(self, copy: Saved, lost: dict[_Key, str]) -> bool:
        """Keep a saved arena unless it came through memory; strike it off ``lost``, or add what is wrong with it."""
        key = _key(copy.record)
        if key in self._kept:
            return False
        record = copy.record._replace(kernel_from=copy.kernel)
        try:
            if len(self._everything().keys() - {key}) >= ARENAS_MAX:
                raise RefusedError(f"the agent keeps {ARENAS_MAX} arenas, which is its limit; drop some first")
            fd = self._saved.take_in(copy)
            try:
                self._check(record, fd)
                _set_owner(fd, record.uid, record.gid, record.mode)
                if key in self._quarantined:
                    self._forget(self._quarantined[key][0])
                self._carrier.keep(_carrier_key(record), fd)
            finally:
                os.close(fd)
        except (Error, OSError) as error:
            lost[key] = f"{lost[key]}; on disk: {error}" if key in lost else str(error)
            return False
        self._kept[key] = record
        if (problem := lost.pop(key, None)) is not None:
            _log.info("arena %r of uid %d: %s; taken in as it was saved at %s", key[1], key[0], problem, copy.when)
        return True

    def _set_aside(self, copies: Iterable[Saved]) -> None:
        """Never take these in again. Those that could not be taken in stay where they are."""
        for copy in copies:
            if _key(copy.record) in self._kept:
                self._saved.set_aside(copy)

    def _tell(self, arrival: Arrival, expected: RegistryDocument, saved: int, lost: dict[_Key, str]) -> Handover:
        departure, now = expected.departure, self._clock()
        dark = max(0.0, (now - departure.left).total_seconds()) if departure else 0.0
        losses = [Loss(name, uid, problem) for (uid, name), problem in lost.items()]
        return Handover(
            number=expected.handovers[-1].number + 1 if expected.handovers else 1,
            kernel_from=expected.kernel,
            kernel_to=self.boot.kernel,
            left=departure.left if departure else None,
            arenas=self.count(),
            saved=saved,
            size=self.size(),
            preserve=departure.preserve if departure else 0.0,
            dark=dark,
            boot=min(dark, arrival.boot.total_seconds()),
            retrieve=max(0.0, (now - arrival.began).total_seconds()),
            lost=tuple(losses[:LOSSES_MAX]),
            lost_count=len(losses),
        )

    def _let_go(self, record: ArenaRecord) -> None:
        self._forget(record)
        self._saved.forget(record.uuid)

    def _forget(self, record: ArenaRecord) -> None:
        # A carrier that cannot let go now must not be contradicted by what is written down.
        with suppress(NotFoundError):  # it is missing
            self._carrier.drop(_carrier_key(record))
        for group in (self._kept, self._missing, self._quarantined):
            group.pop(_key(record), None)

    def _write(self) -> None:
        state = AgentState(FORMAT, self.boot, self._document())
        try:
            write_state(self._state_path, state)
        except OSError as error:
            raise AgentError(f"state file {self._state_path}: {error.strerror}; make room, and try again") from error

    def _document(self) -> RegistryDocument:
        everything = self._everything()
        records = tuple(everything[key] for key in sorted(everything))
        return RegistryDocument(self.boot.kernel, records, tuple(self.handovers), self._departure)

    def _everything(self) -> dict[_Key, ArenaRecord]:
        return {**self._missing, **{key: record for key, (record, _) in self._quarantined.items()}, **self._kept}

    def _make(self, owner: Owner, name: str, size: int) -> tuple[int, ArenaRecord]:
        self._check_quota(owner, name, size)
        check_name(name)
        fd = create_memfd("arena" if self._discreet else name, size)
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

    def _check_quota(self, owner: Owner, name: str, size: int) -> None:
        everything = self._everything()
        if len(everything) >= ARENAS_MAX:
            raise RefusedError(
                f"arena {name!r}: the agent keeps {ARENAS_MAX} arenas, which is its limit; drop some first"
            )
        if owner.uid == 0:
            return
        own = [record.size for record in everything.values() if record.uid == owner.uid]
        if len(own) >= self._quota.arenas:
            raise RefusedError(f"arena {name!r}: you have {len(own)} arenas, which is your limit; drop some first")
        if sum(own) + size > self._quota.size:
            raise RefusedError(
                f"arena {name!r}: {format_size(size)} would make it {format_size(sum(own) + size)}, and"
                f" {format_size(self._quota.size)} is your limit; drop some first, or ask for less"
            )

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


def _is_of(owner: Owner | None, record: ArenaRecord) -> bool:
    return owner is None or record.uid == owner.uid


def _carrier_key(record: ArenaRecord) -> str:
    return str(record.uuid)


def _set_owner(fd: int, uid: int, gid: int, mode: int) -> None:
    # A kernel that retrieves a memfd gives it to the task that did, with mode 0777.
    if os.fstat(fd).st_uid != os.geteuid() != 0:
        return  # root retrieved it for a user's agent, to whom it is as good as theirs: it has no name anywhere
    os.fchmod(fd, mode)
    found = os.fstat(fd)
    if (found.st_uid, found.st_gid) != (uid, gid):
        os.fchown(fd, uid, gid)
