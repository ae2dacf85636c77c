"""Arenas on disk: where memory cannot go to the next kernel, they go, and come back once. Knows files and records.

An arena is two files. ``UUID.json`` says what it is and names ``UUID.SAVE.arena``, its bytes; it is renamed into place
when all of that is on disk, and so it publishes. Whatever is stopped at any instant leaves the last save or the new
one. What is in the directory is hostile until checked.
"""

import errno
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final
from uuid import UUID, uuid4

import xxhash

from persistmem.agent.fields import COUNT, INSTANT, KERNEL, UUID_TEXT, Kind, integer, record
from persistmem.agent.records import ARENA, ArenaRecord
from persistmem.arena.memfd import create_memfd
from persistmem.errors import CorruptError, Error, StorageError
from persistmem.sizes import format_size

FORMAT: Final = 1
CHUNK: Final = 1 << 20
"""Bytes that are read, hashed and written at a time; those that are all zero are left out."""

_ZEROS: Final = bytes(CHUNK)
_DESCRIPTION_BYTES_MAX: Final = 64 << 10
_DESCRIPTION: Final = re.compile(r"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})\.json", re.ASCII)
_TAKEN: Final = ".taken"
"""What a description's name ends in once its arena was taken in: it is found no more, but the bytes are there still."""


@dataclass(frozen=True, slots=True)
class Saved:
    """One saved arena, as its description says; its bytes were not looked at."""

    format: int
    record: ArenaRecord
    kernel: str
    """Release of the kernel that it was saved from."""
    boot: UUID
    """The boot that it was saved in."""
    when: datetime
    save: UUID
    """Which save this is: part of the name of the file with its bytes."""
    written: int
    """Bytes of its chunks that are not all zero."""
    checksum: str
    """XXH3-128, in hexadecimal, of each of these chunks after its number, 8 bytes little-endian."""

    @property
    def bytes_name(self) -> str:
        """The file with its bytes."""
        return f"{self.record.uuid}.{self.save}.arena"


def _unpack_checksum(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[0-9a-f]{32}", value, re.ASCII):
        raise ValueError("expected 32 hexadecimal digits")
    return value


_SAVED: Final = record(
    Saved,
    format=integer(FORMAT, FORMAT),
    record=ARENA,
    kernel=KERNEL,
    boot=UUID_TEXT,
    when=INSTANT,
    save=UUID_TEXT,
    written=COUNT,
    checksum=Kind(str, _unpack_checksum),
)


class SavedArenas:
    """The saved arenas in one directory, which only its owner can enter. It is made at the first save."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def save(
        self,
        arena: ArenaRecord,
        fd: int,
        *,
        kernel: str,
        boot: UUID,
        when: datetime,
        progress: Callable[[int], None] = lambda _: None,
    ) -> Saved:
        """Write the arena in memfd ``fd``, in place of an older save of it, and read it back.

        The caller sees to it that nobody writes meanwhile (:func:`persistmem.arena.freeze`). Owner and mode are those
        of ``arena`` if we are root. ``progress`` is told how many more bytes of ``arena.size`` were done. Cost: one
        read and one write of what was ever written, fsync, and one read.

        Raises:
            StorageError: the directory is not for us alone, or the disk refuses; the older save stays.
        """
        self._ensure()
        save = uuid4()
        name = f"{arena.uuid}.{save}.arena"
        with self._refusing(f"save arena {arena.name!r}"):
            self._check_room(os.fstat(fd).st_blocks * 512)
            try:
                written, checksum = self._write(name, arena, fd, progress)
                saved = Saved(FORMAT, arena, kernel, boot, when, save, written, checksum)
                self._publish(saved)
            except BaseException:
                self._unlink(name)
                raise
            self._sweep(arena.uuid, keep=save)
        return saved

    def find(self) -> tuple[list[Saved], list[Error]]:
        """Return what is saved, by uid and name, and what is wrong with descriptions that cannot be used.

        Cost: reads the descriptions, not the bytes.

        Raises:
            StorageError: the directory is not for us alone, or cannot be read.
        """
        if not self.directory.exists():
            return [], []
        self._check()
        found: list[Saved] = []
        problems: list[Error] = []
        with self._refusing("look for saved arenas"):
            names = sorted(path.name for path in self.directory.iterdir())
        for name in names:
            if (described := _DESCRIPTION.fullmatch(name)) is not None:
                try:
                    found.append(self._read_description(name, UUID(described[1])))
                except (OSError, ValueError) as error:
                    problems.append(CorruptError(f"saved arena {self.directory / name}: {error}"))
        return sorted(found, key=lambda saved: (saved.record.uid, saved.record.name, saved.when)), problems

    def take_in(self, saved: Saved) -> int:
        """Return a new memfd, which the caller closes, with the bytes of a saved arena. The files stay.

        Cost: one read of what was ever written, and memory for it.

        Raises:
            CorruptError: it is not what was saved.
            StorageError: it cannot be read.
        """
        what = f"saved arena {self.directory / saved.bytes_name}"
        with self._refusing(f"take in arena {saved.record.name!r}"):
            source = self._open(saved.bytes_name, os.O_RDONLY)
            try:
                size = os.fstat(source).st_size
                if size != saved.record.size:
                    raise CorruptError(f"{what}: expected {saved.record.size} bytes, found {size}")
                fd = create_memfd(saved.record.name, size)
                try:
                    written, checksum = _copy(source, fd, size)
                    if (written, checksum) != (saved.written, saved.checksum):
                        raise CorruptError(
                            f"{what}: expected {saved.written} bytes with checksum {saved.checksum}, found"
                            f" {written} with {checksum}; the disk has changed what was saved"
                        )
                except BaseException:
                    os.close(fd)
                    raise
                return fd
            finally:
                os.close(source)

    def set_aside(self, saved: Saved) -> None:
        """Never find this save again; its bytes stay until :meth:`clear`, or until the arena is saved anew."""
        description = f"{saved.record.uuid}.json"
        with self._refusing(f"set the saved arena {saved.record.name!r} aside"):
            with suppress(FileNotFoundError):
                (self.directory / description).replace(self.directory / (description + _TAKEN))
            self._sync_directory()

    def clear(self) -> None:
        """Remove what was set aside.

        Raises:
            StorageError: the directory is not for us alone, or the disk refuses.
        """
        if not self.directory.exists():
            return
        self._check()
        with self._refusing("remove what was taken in before"):
            for path in [*self.directory.glob(f"*.json{_TAKEN}")]:
                described = _DESCRIPTION.fullmatch(path.name.removesuffix(_TAKEN))
                path.unlink(missing_ok=True)
                if described is not None and not path.with_name(described[0]).exists():
                    self._sweep(UUID(described[1]), keep=None)

    def forget(self, uuid: UUID) -> None:
        """Remove every save of this arena."""
        if self.directory.exists():
            self._check()
            with self._refusing(f"forget the saved arena {uuid}"):
                self._unlink(f"{uuid}.json")
                self._sweep(uuid, keep=None)

    def _ensure(self) -> None:
        with self._refusing("make it"):
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._check()

    def _check(self) -> None:
        with self._refusing("look at it"):
            found = self.directory.lstat()
        if found.st_uid not in (0, os.geteuid()) or found.st_mode & 0o170077 != 0o040000:
            raise StorageError(
                None,
                f"directory {self.directory}: expected one of uid {os.geteuid()}, mode 0700, found uid {found.st_uid},"
                f" mode {found.st_mode & 0o7777:04o}; see what is in it, and mend that with chown and chmod",
            )

    def _check_room(self, needed: int) -> None:
        room = os.statvfs(self.directory)
        if needed > room.f_bavail * room.f_frsize:
            raise StorageError(
                None,
                f"directory {self.directory}: expected room for {format_size(needed)}, found"
                f" {format_size(room.f_bavail * room.f_frsize)}; make room, or save to another disk (--to)",
            )

    def _write(self, name: str, arena: ArenaRecord, fd: int, progress: Callable[[int], None]) -> tuple[int, str]:
        target = self._open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        try:
            os.ftruncate(target, arena.size)
            written, checksum = _copy(fd, target, arena.size, progress)
            os.fchmod(target, arena.mode)
            if os.geteuid() == 0:
                os.fchown(target, arena.uid, arena.gid)
            os.fsync(target)
            if _checksum(target, arena.size) != (written, checksum):
                raise StorageError(None, f"{self.directory / name}: what was read back is not what was written")
            return written, checksum
        finally:
            os.close(target)

    def _publish(self, saved: Saved) -> None:
        name = f"{saved.record.uuid}.json"
        draft = self._open(f"{name}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        with os.fdopen(draft, "w", encoding="utf-8") as file:
            file.write(json.dumps(_SAVED.pack(saved), indent=1))
            file.flush()
            os.fsync(draft)
        self._sync_directory()  # the bytes have their name on disk before anything refers to them
        (self.directory / f"{name}.new").replace(self.directory / name)
        self._sync_directory()

    def _read_description(self, name: str, uuid: UUID) -> Saved:
        with os.fdopen(self._open(name, os.O_RDONLY), "rb") as file:
            content = file.read(_DESCRIPTION_BYTES_MAX + 1)
        if len(content) > _DESCRIPTION_BYTES_MAX:
            raise ValueError(f"expected at most {_DESCRIPTION_BYTES_MAX} bytes, found more")
        saved = _SAVED.unpack(json.loads(content))
        if saved.record.uuid != uuid:
            raise ValueError(f"expected arena {uuid}, found {saved.record.uuid}")
        return saved

    def _sweep(self, uuid: UUID, keep: UUID | None) -> None:
        """Remove what older saves, and ones that were broken off, have left of this arena."""
        kept = {f"{uuid}.json", f"{uuid}.{keep}.arena"}
        for path in [*self.directory.glob(f"{uuid}.*")]:
            if path.name not in kept:
                path.unlink(missing_ok=True)
        self._sync_directory()

    def _open(self, name: str, flags: int) -> int:
        return os.open(self.directory / name, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)

    def _unlink(self, name: str) -> None:
        (self.directory / name).unlink(missing_ok=True)

    def _sync_directory(self) -> None:
        directory = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    @contextmanager
    def _refusing(self, what: str) -> Iterator[None]:
        try:
            yield
        except Error:
            raise
        except OSError as error:
            raise StorageError(error.errno, f"directory {self.directory}: {what}: {error.strerror}") from error


def _chunks(fd: int, size: int) -> Iterator[tuple[int, bytes]]:
    """Give each chunk that is not all zero, with its offset. Cost: none for holes."""
    offset = 0
    while offset < size:
        try:
            offset = os.lseek(fd, offset, os.SEEK_DATA) // CHUNK * CHUNK
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole up to the end
                return
            raise
        chunk = os.pread(fd, min(CHUNK, size - offset), offset)
        if len(chunk) != min(CHUNK, size - offset):
            raise CorruptError(f"expected {size} bytes, found fewer")
        if chunk != (_ZEROS if len(chunk) == CHUNK else bytes(len(chunk))):
            yield offset, chunk
        offset += CHUNK


def _copy(source: int, target: int, size: int, progress: Callable[[int], None] = lambda _: None) -> tuple[int, str]:
    """Copy what is not zero, and return how many bytes that were, and their checksum."""
    done = written = 0
    digest = xxhash.xxh3_128()
    for offset, chunk in _chunks(source, size):
        view = memoryview(chunk)
        while view:
            count = os.pwrite(target, view, offset + len(chunk) - len(view))
            view = view[count:]
        _update(digest, offset, chunk)
        written += len(chunk)
        progress(offset + len(chunk) - done)
        done = offset + len(chunk)
    progress(size - done)
    return written, digest.hexdigest()


def _checksum(fd: int, size: int) -> tuple[int, str]:
    written = 0
    digest = xxhash.xxh3_128()
    for offset, chunk in _chunks(fd, size):
        _update(digest, offset, chunk)
        written += len(chunk)
    return written, digest.hexdigest()


def _update(digest: xxhash.xxh3_128, offset: int, chunk: bytes) -> None:
    digest.update((offset // CHUNK).to_bytes(8, "little"))
    digest.update(chunk)
