"""The arena: snapshots and regions in one memfd. Given a descriptor; knows nothing of who keeps it."""

import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import chain
from types import TracebackType
from typing import Any, Final, Literal, Self
from uuid import UUID, uuid4

from persistmem.arena.catalogue import Catalogue, GenerationRecord, RegionRecord, encode_catalogue
from persistmem.arena.checks import Progress, find_damage
from persistmem.arena.commits import Commits, State
from persistmem.arena.documents import DocumentDecoder, DocumentEncoder
from persistmem.arena.holds import Hold
from persistmem.arena.layout import (
    DATA_OFFSET,
    HEADER_OFFSET,
    HEADER_SIZE,
    Header,
    Offset,
    check_kernel,
    checksum,
    decode_header,
    encode_header,
)
from persistmem.arena.memfd import check_memfd, reopen
from persistmem.arena.memory import Memory
from persistmem.arena.regions import Region
from persistmem.arena.survey import Piece, Usage, VerifyReport, survey_pieces, survey_usage, verify_state
from persistmem.arena.transaction import Transaction
from persistmem.arena.types import TypeRegistry, registry
from persistmem.errors import (
    ArgumentError,
    BusyError,
    ClosedError,
    CorruptError,
    DamageWarning,
    ExistsError,
    NotFoundError,
)
from persistmem.folios import huge_bytes
from persistmem.names import check_name
from persistmem.origin import Origin

Verify = Literal["eager", "lazy"]
"""Check buffers before they are given out, or leave it to the reader (:func:`persistmem.verified`)."""

KEEP_DEFAULT: Final = 2
"""Generations kept of a snapshot."""

TIMEOUT_DEFAULT: Final = 10.0
"""Seconds to wait for another writer."""

_TRIES_MAX = 1000
_MISSING: Final = object()


@dataclass(frozen=True, slots=True)
class Generation:
    """One generation of a snapshot."""

    number: int
    created: datetime
    """When, in UTC, by the clock of the machine that took it."""
    kernel: str
    """Release of the kernel it was taken under."""
    size: int
    """Bytes of the document and its buffers; generations may share them."""
    buffers: int
    """How many buffers stand outside the document."""

    @classmethod
    def _of(cls, record: GenerationRecord) -> Self:
        size = sum(extent.length for extent in record.extents())
        return cls(record.number, _moment(record.created_ns), record.kernel, size, len(record.buffers))


class Arena:
    """Checksummed snapshots, and raw regions, in a fixed-size memfd that any number of processes attach.

    One process writes at a time; readers neither wait nor are waited for. Safe to use from several threads, and in a
    forked child.
    """

    def __init__(
        self,
        fd: int,
        *,
        kernel: str,
        origin: Origin | None = None,
        guard: Callable[[], None] = lambda: None,
        clock: Callable[[], int] = time.time_ns,
        types: TypeRegistry = registry,
        memory: Callable[[int, int], Memory] = Memory,
    ) -> None:
        """Open the arena in memfd ``fd``, which stays the caller's to close. Costs the same for any size.

        Args:
            fd: a memfd sealed against growing and shrinking.
            kernel: release of the running kernel, recorded with each generation.
            origin: how the arena came here; "reattached" if nobody says.
            guard: called first in every operation; raises if the arena must not be used any more.
            clock: nanoseconds since 1970.
            types: the user's own types.
            memory: what maps a descriptor of so many bytes; every byte goes through it.

        Raises:
            CorruptError: this is no sound arena.
            NewerFormatError: it is one of a newer format.
        """
        self._kernel = check_kernel(kernel)
        size = check_memfd(fd)
        self._memory = memory(fd, size)
        try:
            header = decode_header(bytes(self._memory.read(HEADER_OFFSET, HEADER_SIZE)), size)
        except BaseException:
            self._memory.close()
            raise
        self._header = header
        self._commits = Commits(self._memory)
        self._encoders: list[DocumentEncoder] = []
        self._guard = guard
        self._clock = clock
        self._types = types
        self._closed = False
        self.origin = origin or Origin("reattached", None, kernel)

    @staticmethod
    def format(
        fd: int,
        *,
        kernel: str,
        clock: Callable[[], int] = time.time_ns,
        new_uuid: Callable[[], UUID] = uuid4,
        memory: Callable[[int, int], Memory] = Memory,
    ) -> None:
        """Make an empty arena in an empty memfd.

        Raises:
            CorruptError: the memfd is not sealed, or has a size that no arena has.
            ExistsError: there is something in it already.
        """
        mapped = memory(fd, check_memfd(fd))
        try:
            if any(mapped.read(HEADER_OFFSET, HEADER_SIZE)):
                raise ExistsError("the memfd is not empty; format a new one")
            packed = encode_catalogue(Catalogue())
            mapped.write(DATA_OFFSET, packed)
            Commits(mapped).publish(1, DATA_OFFSET, len(packed), checksum(packed))
            mapped.write(HEADER_OFFSET, encode_header(Header(mapped.size, new_uuid(), clock(), check_kernel(kernel))))
        finally:
            mapped.close()

    @property
    def uuid(self) -> UUID:
        """What tells this arena from every other, wherever it is carried."""
        return self._header.uuid

    @property
    def size(self) -> int:
        """Bytes of the whole arena."""
        return self._header.size

    @property
    def created(self) -> datetime:
        """When it was made, in UTC."""
        return _moment(self._header.created_ns)

    @property
    def created_by(self) -> str:
        """Release of the kernel it was made under."""
        return self._header.kernel

    def last_change(self) -> tuple[datetime, str]:
        """Return when something here was made last, by the clock of its machine (UTC), and under which kernel.

        What is written into a region is not seen. Cost: grows with the number of generations and regions.

        Raises:
            CorruptError: nobody can tell what is here.
        """
        catalogue = self._state().newest.catalogue
        generations = chain.from_iterable(catalogue.snapshots.values())
        made = [
            (self._header.created_ns, self._header.kernel),
            *((record.created_ns, record.kernel) for record in generations),
            *((region.created_ns, region.kernel) for region in catalogue.regions.values()),
        ]
        when, kernel = max(made)
        return _moment(when), kernel

    def snapshot(
        self,
        name: str,
        document: object,
        *,
        keep: int = KEEP_DEFAULT,
        timeout: float = TIMEOUT_DEFAULT,
        skip_unchanged: bool = False,
    ) -> Generation:
        """Store ``document`` as a new generation of snapshot ``name``: all of it, or, whatever happens, nothing.

        A document is anything msgpack can hold, and tuples, sets, dates and times, Decimal, UUID, complex, large
        ints, numpy arrays and scalars, and types given to :func:`persistmem.register_type`. Bytes-likes and arrays of
        4 KiB and more are copied once, straight to their place; what the arena holds already is shared, not copied.
        ``msgpack.ExtType`` is none: it would come back as one of these types, or not at all.

        Args:
            name: 1 to 200 bytes of UTF-8.
            document: what to store. It must not change meanwhile.
            keep: how many generations to keep, this one included.
            timeout: seconds to wait for another writer.
            skip_unchanged: return the newest generation if it is sound and holds the very same bytes.

        Raises:
            UnsupportedTypeError: the document holds something else; the message says where. Nothing was written.
            ArenaFullError: there is no room. The arena is as it was.
            BusyError: another process was writing all the time.

        >>> import persistmem.testing
        >>> arena = persistmem.testing.new_arena("64KiB")
        >>> arena.snapshot("profiles", {"ada": (36, "London")}).number
        1
        >>> arena.restore("profiles")
        {'ada': (36, 'London')}
        """
        check_name(name, "snapshot")
        if keep < 1:
            raise ArgumentError(f"keep: expected at least 1 generation, found {keep}")
        self._begin()
        with self._encoder() as encoder, encoder.encode(document) as encoded, self._transaction(timeout) as transaction:
            catalogue = transaction.catalogue
            if name in catalogue.regions:
                raise ExistsError(f"{name!r} is a region of this arena; choose another name, or remove it")
            record = GenerationRecord(
                catalogue.next_number(name),
                self._clock(),
                self._kernel,
                transaction.put(encoded.packed),
                tuple(transaction.put(buffer) for buffer in encoded.buffers),
            )
            newest = catalogue.snapshots.get(name, (None,))[0]
            if skip_unchanged and newest is not None and list(record.extents()) == list(newest.extents()):
                return Generation._of(newest)
            transaction.commit(catalogue.with_generation(name, record, keep))
        return Generation._of(record)

    def restore(
        self,
        name: str,
        *,
        generation: int | None = None,
        default: object = _MISSING,
        copy: bool = True,
        verify: Verify = "eager",
        threads: int = 1,
    ) -> Any:  # noqa: ANN401 - it is what the caller stored
        """Give back the newest sound generation of ``name``, verified, or the one asked for.

        If the newest is damaged, the next older one is given, with a :class:`persistmem.DamageWarning` that says so.

        Args:
            name: the snapshot.
            generation: a number from :meth:`history`; no other is given then.
            default: what to give if there is no such snapshot.
            copy: with False, large buffers are read-only views of the arena: memoryviews and arrays that copy nothing.
                Their bytes stay as they are for as long as a view of them lives, in any process.
            verify: "lazy" gives views out unchecked; check what you read with :func:`persistmem.verified`.
            threads: how many verify side by side; for large buffers, two take about two thirds of the time of one.

        Raises:
            NotFoundError: no such snapshot, and no default; or no such generation.
            CorruptError: what is there fails its check.
        """
        if verify == "lazy" and copy:
            raise ArgumentError("verify='lazy' gives out views: it needs copy=False")
        self._begin()
        load = partial(self._load, copy=copy, lazy=verify == "lazy", threads=threads)
        for _ in range(_TRIES_MAX):
            state = self._commits.read()
            if name not in state.newest.catalogue.snapshots and default is not _MISSING:
                _warn_of(state, f"snapshot {name!r} is not in what is left; the default is given", stacklevel=2)
                return default
            try:
                return self._first_sound(name, self._choose(state, name, generation), generation, state.damage, load)
            except _GoneError:
                continue
        raise BusyError(f"snapshot {name!r} is replaced faster than it can be read; try again")

    def history(self, name: str) -> list[Generation]:
        """The generations of ``name`` that are kept, newest first.

        Raises:
            NotFoundError: there is no such snapshot.
        """
        state = self._state()
        records = state.newest.catalogue.snapshots.get(name)
        if records is None:
            raise NotFoundError(_not_found(state, name))
        return [Generation._of(record) for record in records]

    def snapshots(self) -> list[str]:
        """Names of the snapshots, sorted."""
        return sorted(self._state().newest.catalogue.snapshots)

    def remove(self, name: str, *, timeout: float = TIMEOUT_DEFAULT) -> None:
        """Remove the snapshot or region ``name``. Who still views it keeps what is viewed.

        Raises:
            NotFoundError: there is nothing of that name.
        """
        self._begin()
        with self._transaction(timeout) as transaction:
            catalogue = transaction.catalogue
            if name not in catalogue.snapshots and name not in catalogue.regions:
                raise NotFoundError(_not_found(transaction.state, name))
            transaction.commit(catalogue.without(name), leave_room=False)

    def regions(self) -> dict[str, int]:
        """Names of the regions and their sizes in bytes."""
        regions = self._state().newest.catalogue.regions
        return {name: regions[name].length for name in sorted(regions)}

    def region(self, name: str, size: int | None = None, *, timeout: float = TIMEOUT_DEFAULT) -> Region:
        """Open the region ``name``; with ``size``, make it, all zero, if there is none yet.

        Raises:
            NotFoundError: there is none, and no size.
            ArgumentError: there is one of another size; see :meth:`resize_region`.
            ArenaFullError: there is no room for it.
        """
        check_name(name, "region")
        self._begin()
        region = self._open_region(name)
        if region is None:
            if size is None:
                raise NotFoundError(f"no region {name!r} in this arena; give a size to make it")
            if size < 1:
                raise ArgumentError(f"region {name!r}: expected a size of at least 1 byte, found {size}")
            with self._transaction(timeout) as transaction:
                if name in transaction.catalogue.snapshots:
                    raise ExistsError(f"{name!r} is a snapshot of this arena; choose another name, or remove it")
                if name not in transaction.catalogue.regions:
                    self._commit_region(transaction, name, transaction.reserve(size), size)
            region = self._open_region(name)
            if region is None:
                raise BusyError(f"region {name!r} was removed while it was being opened; try again")
        if size is not None and region.size != size:
            region.close()
            raise ArgumentError(f"region {name!r} has {region.size} bytes, not {size}; see Arena.resize_region")
        return region

    def resize_region(self, name: str, size: int, *, timeout: float = TIMEOUT_DEFAULT) -> None:
        """Give the region ``name`` another size, keeping its contents; new bytes are zero. Copies it.

        Raises:
            NotFoundError: there is no such region.
            BusyError: somebody has it open, in this process or in another.
            ArenaFullError: there is no room for old and new side by side.
        """
        self._begin()
        if size < 1:
            raise ArgumentError(f"region {name!r}: expected a size of at least 1 byte, found {size}")
        with self._transaction(timeout) as transaction:
            record = transaction.catalogue.regions.get(name)
            if record is None:
                raise NotFoundError(f"no region {name!r} in this arena")
            if not transaction.claim(record.offset, record.length):
                raise BusyError(f"region {name!r} is open, here or in another process; close it there first")
            offset = transaction.reserve(size)
            transaction.copy(record.offset, offset, min(size, record.length))
            self._commit_region(transaction, name, offset, size)

    def verify(self, name: str | None = None, *, threads: int = 1, progress: Progress | None = None) -> VerifyReport:
        """Check every byte of a snapshot, or of all, against its checksum. Costs one pass over them.

        Args:
            name: a snapshot; None checks all, and the commit slots.
            threads: how many work side by side.
            progress: told how many more bytes were done.

        Raises:
            NotFoundError: there is no such snapshot.
        """
        self._begin()
        state = Commits(self._memory).read()  # not the catalogues that this process read, and trusts, since long ago
        if name is not None and name not in state.newest.catalogue.snapshots:
            raise NotFoundError(_not_found(state, name))
        return verify_state(state, self._memory, self._held_if_there, name, threads=threads, progress=progress)

    def usage(self) -> Usage:
        """How full it is."""
        return survey_usage(self._state(), self._memory.size)

    def check(self) -> None:
        """Raise if the arena must not be used any more: it was closed, or its kernel is gone.

        Raises:
            ClosedError, StaleArenaError: that.
        """
        self._begin()

    def descriptor(self) -> int:
        """Return a new descriptor of the memfd, with locks and a position of its own; the caller closes it."""
        self._begin()
        return reopen(self._memory.fd, os.O_RDWR)

    def huge_bytes(self) -> int | None:
        """How many bytes lie in huge folios, which cross a kexec much faster; None if the kernel does not say.

        Cost: a page table entry for each folio. An administrator allows huge folios; see ``persistmem doctor``.
        """
        self._begin()
        return huge_bytes(self._memory.fd)

    def pieces(self) -> list[Piece]:
        """What lies where, in order, gaps included, and what readers hold at this moment."""
        return survey_pieces(self._state(), self._memory)

    def close(self) -> None:
        """Let go of the arena. Views and regions given out stay valid."""
        if not self._closed:
            self._closed = True
            self._memory.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _begin(self) -> None:
        if self._closed:
            raise ClosedError("the arena was closed in this process; attach it again")
        self._guard()

    def _state(self) -> State:
        self._begin()
        return self._commits.read()

    @contextmanager
    def _transaction(self, timeout: float) -> Iterator[Transaction]:
        with Transaction(self._memory, self._commits, timeout) as transaction:
            _warn_of(transaction.state, "what only that commit held is lost, and is now written over", stacklevel=4)
            yield transaction

    @contextmanager
    def _encoder(self) -> Iterator[DocumentEncoder]:
        try:
            encoder = self._encoders.pop()
        except IndexError:  # all are in use, by other threads
            encoder = DocumentEncoder(self._types)
        yield encoder
        self._encoders.append(encoder)

    def _choose(self, state: State, name: str, generation: int | None) -> Sequence[GenerationRecord]:
        """The generations to try, newest first."""
        records = state.newest.catalogue.snapshots.get(name)
        if records is None:
            raise NotFoundError(_not_found(state, name))
        if generation is None:
            return records
        chosen = [record for record in records if record.number == generation]
        if not chosen:
            kept = ", ".join(str(record.number) for record in records)
            raise NotFoundError(f"snapshot {name!r} has no generation {generation}; it keeps {kept}")
        return chosen

    def _first_sound(
        self,
        name: str,
        records: Sequence[GenerationRecord],
        asked: int | None,
        damage: Sequence[str],
        load: Callable[[GenerationRecord, Hold], object],
    ) -> object:
        problems = list(damage)
        for record in records:
            try:
                with self._held(name, record) as hold:
                    document = load(record, hold)
            except CorruptError as error:
                problems.append(f"generation {record.number}: {error}")
                continue
            if problems:
                given = f"generation {record.number}, of {_moment(record.created_ns):%Y-%m-%d %H:%M:%S} UTC, is given"
                warnings.warn(DamageWarning(f"snapshot {name!r}: {'; '.join(problems)}; {given}"), stacklevel=3)
            return document
        outcome = "no sound generation is left" if asked is None else "the generation asked for is damaged"
        raise CorruptError(f"snapshot {name!r}: {outcome} ({'; '.join(problems)})")

    @contextmanager
    def _held(self, name: str, record: GenerationRecord) -> Iterator[Hold]:
        """Keep everything in ``record`` from being reused.

        Raises:
            _GoneError: it was given up in the meantime.
        """
        with Hold(self._memory.fd) as hold:
            locked = hold.take((extent.offset, extent.end) for extent in record.extents())
            # Only what a commit still points at now, with the lock held, has certainly not been reused before.
            commits = self._commits.read().commits()
            if not locked or not any(record in commit.catalogue.snapshots.get(name, ()) for commit in commits):
                raise _GoneError
            yield hold

    @contextmanager
    def _held_if_there(self, name: str, record: GenerationRecord) -> Iterator[Hold | None]:
        with ExitStack() as stack:
            try:
                hold = stack.enter_context(self._held(name, record))
            except _GoneError:
                yield None
            else:
                yield hold

    def _load(self, record: GenerationRecord, hold: Hold, *, copy: bool, lazy: bool, threads: int) -> object:
        extents = [record.document] if lazy else list(record.extents())
        as_view = bool(record.buffers) and not copy
        source = memoryview(hold.map_views(self._memory.size, record.buffers)) if as_view else self._memory.whole
        # Views are checked through the mapping that they are given out on, which so is mapped in by several threads.
        if (damaged := find_damage(source, extents, threads=threads)) is not None:
            raise CorruptError(f"checksum mismatch at byte {damaged} of the arena")
        buffers = [source[extent.offset : extent.end] for extent in record.buffers]
        document = source[record.document.offset : record.document.end]
        return DocumentDecoder(self._types, buffers, copy=copy).decode(document)

    def _open_region(self, name: str) -> Region | None:
        for _ in range(_TRIES_MAX):
            record = self._commits.read().newest.catalogue.regions.get(name)
            if record is None:
                return None
            with Hold(self._memory.fd, writable=True) as hold:
                locked = hold.take([(record.offset, record.offset + record.length)])
                if locked and self._commits.read().newest.catalogue.regions.get(name) == record:
                    return Region(name, record, hold, self._memory.size)
        raise BusyError(f"region {name!r} is being resized; try again")

    def _commit_region(self, transaction: Transaction, name: str, offset: Offset, size: int) -> None:
        record = RegionRecord(offset, size, self._clock(), self._kernel)
        transaction.commit(transaction.catalogue.with_region(name, record))


class _GoneError(Exception):
    """A generation was given up between reading about it and locking it."""


def _not_found(state: State, name: str) -> str:
    there = ", ".join(sorted(state.newest.catalogue.snapshots)[:10]) or "none"
    lost = f"; one may be lost: {'; '.join(state.damage)}" if state.damage else ""
    return f"no snapshot {name!r} in this arena; there are: {there}{lost}"


def _warn_of(state: State, outcome: str, *, stacklevel: int) -> None:
    if state.damage:
        warnings.warn(DamageWarning(f"{'; '.join(state.damage)}; {outcome}"), stacklevel=stacklevel + 1)


def _moment(nanoseconds: int) -> datetime:
    return datetime.fromtimestamp(nanoseconds / 1e9, UTC)
