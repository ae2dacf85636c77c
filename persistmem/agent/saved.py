"""Arenas on disk: where memory cannot go to the next kernel, they go, and come back once. Knows files and records.

An arena is two files. ``UUID.json`` says what it is and names ``UUID.SAVE.arena``, its bytes; it is renamed into place
when all of that is on disk, and so it publishes. Whatever is stopped at any instant leaves the last save or the new
one. What is in the directory is hostile until checked.
"""

import errno
import fcntl
import json
import os
import re
import stat
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
_TAKEN: Final = ".taken"
"""What a description's name ends in once its arena was taken in: it is found no more, but the bytes are there still."""
_DRAFT: Final = ".new"
_UUID: Final = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_DESCRIPTION: Final = re.compile(rf"({_UUID})\.json", re.ASCII)
_OURS: Final = re.compile(rf"({_UUID})\.(?:json(?:{_TAKEN}|{_DRAFT})?|{_UUID}\.arena)", re.ASCII)


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
        description, name = f"{arena.uuid}.json", f"{arena.uuid}.{save}.arena"
        with self._refusing(f"save arena {arena.name!r}"), self._locked(fcntl.LOCK_SH):
            self._sweep(arena.uuid, description, description + _TAKEN)  # what was broken off takes room
            self._check_room(os.fstat(fd).st_blocks * 512)
            try:
                written, checksum = self._write(name, arena, fd, progress)
                saved = Saved(FORMAT, arena, kernel, boot, when, save, written, checksum)
                self._write_draft(description + _DRAFT, saved)
            except BaseException:
                for left in (name, description + _DRAFT):
                    (self.directory / left).unlink(missing_ok=True)
                raise
            # From here on the description may name the new bytes, whatever is raised.
            self._sync_directory()  # the bytes have their name on disk before anything refers to them
            (self.directory / (description + _DRAFT)).replace(self.directory / description)
            self._sync_directory()
            self._sweep(arena.uuid, description)
        return saved

    def find(self) -> tuple[list[Saved], list[Error]]:
        """Return what is saved, by uid and name, and what is wrong with descriptions that cannot be used.

        Of several arenas with one name, which can only be one after the other, the newest save comes first.

        Cost: reads the descriptions, not the bytes.

        Raises:
            StorageError: the directory is not for us alone, or cannot be read.
        """
        if not self._is_there():
            return [], []
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
        found.sort(key=lambda saved: (saved.record.uid, saved.record.name, -saved.when.timestamp()))
        return found, problems

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
        """Remove what was set aside, and what saves that were broken off have left; nothing while somebody saves.

        Raises:
            StorageError: the directory is not for us alone, or the disk refuses.
        """
        if not self._is_there():
            return
        with self._refusing("remove what was taken in before"), self._locked(fcntl.LOCK_EX | fcntl.LOCK_NB) as alone:
            if alone:
                for uuid in {ours[1] for path in self.directory.iterdir() if (ours := _OURS.fullmatch(path.name))}:
                    self._sweep(UUID(uuid), f"{uuid}.json")

    def forget(self, uuid: UUID) -> None:
        """Remove every save of this arena."""
        if self._is_there():
            with self._refusing(f"forget the saved arena {uuid}"):
                self._sweep(uuid)

    def _ensure(self) -> None:
        if not self._is_there():
            with self._refusing("make it"):
                missing = [path for path in (self.directory, *self.directory.parents) if not path.exists()]
                self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
                for path in missing:
                    _sync_directory(path.parent)
            self._is_there()

    def _is_there(self) -> bool:
        """Whether there is a directory; one that is not for us alone is a StorageError."""
        with self._refusing("look at it"):
            try:
                found = self.directory.lstat()
            except FileNotFoundError:
                return False
        if not stat.S_ISDIR(found.st_mode):
            raise StorageError(
                errno.ENOTDIR, f"directory {self.directory}: expected a directory, found something else; remove it"
            )
        if found.st_uid not in (0, os.geteuid()) or found.st_mode & 0o077:
            raise StorageError(
                None,
                f"directory {self.directory}: expected one of uid {os.geteuid()}, mode 0700, found uid {found.st_uid},"
                f" mode {found.st_mode & 0o7777:04o}; see what is in it, and mend that with chown and chmod",
            )
        return True

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

    def _write_draft(self, name: str, saved: Saved) -> None:
        draft = self._open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        with os.fdopen(draft, "w", encoding="utf-8") as file:
            file.write(json.dumps(_SAVED.pack(saved), indent=1))
            file.flush()
            os.fsync(draft)

    def _read_description(self, name: str, uuid: UUID) -> Saved:
        fd = self._open(name, os.O_RDONLY)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise ValueError("expected a file, found something else")
            content = os.pread(fd, _DESCRIPTION_BYTES_MAX + 1, 0)
        finally:
            os.close(fd)
        if len(content) > _DESCRIPTION_BYTES_MAX:
            raise ValueError(f"expected at most {_DESCRIPTION_BYTES_MAX} bytes, found more")
        try:
            value = json.loads(content)
            json.dumps(value, ensure_ascii=False).encode()  # JSON can say halves of characters, which nothing else can
        except RecursionError as error:
            raise ValueError("expected one map, found lists within lists") from error
        saved = _SAVED.unpack(value)
        if saved.record.uuid != uuid:
            raise ValueError(f"expected arena {uuid}, found {saved.record.uuid}")
        return saved

    def _sweep(self, uuid: UUID, *descriptions: str) -> None:
        """Remove everything of this arena but these descriptions, and the bytes that they name."""
        kept = {*descriptions}
        for name in descriptions:
            try:
                kept.add(self._read_description(name, uuid).bytes_name)
            except FileNotFoundError:
                continue
            except (OSError, ValueError):
                return  # nobody knows which bytes it names
        # A description goes before its bytes.
        doomed = [path for path in self.directory.glob(f"{uuid}.*") if path.name not in kept]
        for path in sorted(doomed, key=lambda path: path.suffix != ".json"):
            path.unlink(missing_ok=True)
        if doomed:
            self._sync_directory()

    @contextmanager
    def _locked(self, how: int) -> Iterator[bool]:
        """Keep those who clear away from those who save, where the file system has flock(2); give whether that is."""
        directory = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            try:
                fcntl.flock(directory, how)
            except OSError:
                locked = False
            else:
                locked = True
            yield locked
        finally:
            os.close(directory)

    def _open(self, name: str, flags: int) -> int:
        # Without O_NONBLOCK a named pipe in place of a file would be waited at.
        return os.open(self.directory / name, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)

    def _sync_directory(self) -> None:
        _sync_directory(self.directory)

    @contextmanager
    def _refusing(self, what: str) -> Iterator[None]:
        try:
            yield
        except Error:
            raise
        except OSError as error:
            raise StorageError(error.errno, f"directory {self.directory}: {what}: {error.strerror}") from error


def _sync_directory(path: Path) -> None:
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


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
