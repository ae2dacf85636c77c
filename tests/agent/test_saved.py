"""Arenas on disk: whenever a save is stopped, there is the last one or the new one, whole; and what the disk changed,
or somebody put there, is named, and never taken for an arena.
"""

import errno
import json
import os
import random
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import xxhash

from persistmem import errors
from persistmem.agent.records import ArenaRecord
from persistmem.agent.saved import Saved, SavedArenas
from persistmem.sizes import GIB, KIB, MIB
from tests.descriptors import open_descriptors

ID = UUID("12345678-1234-5678-1234-567812345678")
OTHER = UUID("87654321-4321-8765-4321-876543218765")
BOOT = UUID("00112233-4455-6677-8899-aabbccddeeff")
NOON = datetime(2026, 7, 1, 12, 0, 0, 123456, tzinfo=UTC)
NOON_MICROSECONDS = 1_782_907_200_123_456
SIZE = 3 * MIB + 64 * KIB
RECORD = ArenaRecord("carts", os.geteuid(), os.getegid(), 0o600, SIZE, ID, NOON, "7.2.13")

Contents = dict[int, bytes]
"""What is in a memfd: bytes by offset, and holes around them."""

OLD: Contents = {0: b"old" * 1000, 2 * MIB + 5: b"old too"}
NEW: Contents = {0: b"new" * 1000, MIB - 1: b"over the edge", SIZE - 3: b"end"}
NEWER: Contents = {MIB: b"newer"}


@contextmanager
def memfd(contents: Contents, size: int = SIZE) -> Iterator[int]:
    fd = os.memfd_create("test")
    try:
        os.truncate(fd, size)
        for offset, data in contents.items():
            os.pwritev(fd, [data], offset)
        yield fd
    finally:
        os.close(fd)


def flat(contents: Contents, size: int = SIZE) -> bytes:
    with memfd(contents, size) as fd:
        return os.pread(fd, size, 0)


OLD_BYTES, NEW_BYTES, NEWER_BYTES = flat(OLD), flat(NEW), flat(NEWER)


def save(store: SavedArenas, contents: Contents, record: ArenaRecord = RECORD, when: datetime = NOON) -> Saved:
    with memfd(contents, record.size) as fd:
        return store.save(record, fd, kernel="7.3.4", boot=BOOT, when=when)


def taken_in(store: SavedArenas, saved: Saved) -> bytes:
    fd = store.take_in(saved)
    try:
        return os.pread(fd, saved.record.size, 0)
    finally:
        os.close(fd)


def only(store: SavedArenas) -> Saved:
    """The one arena that is saved; and nothing is wrong."""
    found, problems = store.find()
    assert problems == []
    assert len(found) == 1
    return found[0]


def files(store: SavedArenas) -> list[str]:
    return sorted(path.name for path in store.directory.iterdir())


def clean(saved: Saved) -> list[str]:
    """What is in the directory when nothing else is left."""
    return sorted([f"{saved.record.uuid}.json", f"{saved.record.uuid}.{saved.save}.arena"])


@pytest.fixture
def store(tmp_path: Path) -> SavedArenas:
    return SavedArenas(tmp_path / "saved")


@pytest.fixture
def saved(store: SavedArenas) -> Saved:
    return save(store, NEW)


class TestFormat:
    """What lies on disk is what docs and other versions rely on."""

    def test_the_description_says_what_is_saved_in_plain_json(self, store: SavedArenas, saved: Saved) -> None:
        content = NEW_BYTES
        chunks = [(0, content[:MIB]), (1, content[MIB : 2 * MIB]), (3, content[3 * MIB :])]
        checksum = xxhash.xxh3_128_hexdigest(b"".join(n.to_bytes(8, "little") + chunk for n, chunk in chunks))
        assert json.loads((store.directory / f"{ID}.json").read_bytes()) == {
            "format": 1,
            "record": {
                "name": "carts",
                "uid": os.geteuid(),
                "gid": os.getegid(),
                "mode": 0o600,
                "size": SIZE,
                "uuid": "12345678-1234-5678-1234-567812345678",
                "created": NOON_MICROSECONDS,
                "kernel_from": "7.2.13",
            },
            "kernel": "7.3.4",
            "boot": "00112233-4455-6677-8899-aabbccddeeff",
            "when": NOON_MICROSECONDS,
            "save": str(saved.save),
            "written": 2 * MIB + 64 * KIB,
            "checksum": checksum,
        }
        assert (store.directory / f"{ID}.{saved.save}.arena").read_bytes() == content

    def test_what_another_version_wrote_in_this_format_is_taken_in(self, store: SavedArenas) -> None:
        store.directory.mkdir(mode=0o700)
        content = b"\1" + bytes(64 * KIB - 1)
        (store.directory / f"{ID}.{OTHER}.arena").write_bytes(content)
        (store.directory / f"{ID}.json").write_text(
            '{"record": {"uuid": "12345678-1234-5678-1234-567812345678", "name": "W\\u00e4schekorb", "uid": 1000,'
            ' "gid": 100, "mode": 384, "size": 65536, "created": 0, "kernel_from": null}, "format": 1, "kernel": "7.3",'
            ' "boot": "00112233-4455-6677-8899-aabbccddeeff", "when": 1, "written": 65536,'
            ' "save": "87654321-4321-8765-4321-876543218765",'
            f' "checksum": "{xxhash.xxh3_128_hexdigest(bytes(8) + content)}"}}'
        )
        found = only(store)
        assert (found.record.name, found.record.uid, found.record.kernel_from) == ("Wäschekorb", 1000, None)
        assert found.when == datetime(1970, 1, 1, 0, 0, 0, 1, tzinfo=UTC)
        assert taken_in(store, found) == content

    @pytest.mark.parametrize("format_", [0, 2])
    def test_another_format_is_refused(self, store: SavedArenas, saved: Saved, format_: int) -> None:
        description = store.directory / f"{ID}.json"
        description.write_text(json.dumps(json.loads(description.read_text()) | {"format": format_}))
        found, (problem,) = store.find()
        assert found == []
        assert "format: expected" in str(problem)

    def test_chunks_of_zeros_are_holes_on_disk(self, store: SavedArenas) -> None:
        record = RECORD._replace(size=4 * GIB)
        written = save(store, {0: b"x", MIB: bytes(MIB), 3 * GIB: b"y"}, record)
        status = (store.directory / written.bytes_name).stat()
        assert written.written == 2 * MIB
        assert status.st_size == 4 * GIB
        assert status.st_blocks * 512 <= 64 * MIB
        fd = store.take_in(only(store))
        assert (os.pread(fd, 2, 0), os.pread(fd, 1, 3 * GIB)) == (b"x\0", b"y")
        assert os.fstat(fd).st_blocks * 512 <= 4 * MIB
        os.close(fd)

    def test_an_arena_of_nothing_but_zeros_is_saved(self, store: SavedArenas) -> None:
        assert save(store, {}).written == 0
        assert taken_in(store, only(store)) == bytes(SIZE)

    def test_progress_comes_to_the_size(self, store: SavedArenas) -> None:
        told: list[int] = []
        with memfd({MIB: b"x"}) as fd:
            store.save(RECORD, fd, kernel="7.3.4", boot=BOOT, when=NOON, progress=told.append)
        assert sum(told) == SIZE
        assert all(count >= 0 for count in told)

    def test_nobody_else_can_read_it(self, store: SavedArenas, saved: Saved) -> None:
        assert store.directory.stat().st_mode & 0o777 == 0o700
        assert all(path.stat().st_mode & 0o777 == 0o600 for path in store.directory.iterdir())

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
    def test_root_keeps_owner_and_mode(self, store: SavedArenas) -> None:
        saved = save(store, NEW, RECORD._replace(uid=65534, gid=65533, mode=0o640))
        status = (store.directory / saved.bytes_name).stat()
        assert (status.st_uid, status.st_gid, status.st_mode & 0o7777) == (65534, 65533, 0o640)
        assert taken_in(store, only(store)) == NEW_BYTES


class Stopped(BaseException):
    """Whatever ends a save from outside, such as Ctrl-C."""


CHANGES = ("open", "mkdir", "ftruncate", "pwrite", "fchmod", "fchown", "fsync", "replace", "unlink")
"""Every function of os by which saved arenas reach the disk."""

Step = Callable[[str, Callable[[], Any], tuple[Any, ...]], Any]


@contextmanager
def watched(step: Step) -> Iterator[None]:
    """Have ``step`` called, with a function's name, itself and its arguments, in place of each change to the disk."""

    def watching(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *arguments, **more: step(name, lambda: real(*arguments, **more), arguments)

    with pytest.MonkeyPatch.context() as patch:
        for name in CHANGES:
            patch.setattr(os, name, watching(name, getattr(os, name)))
        yield


@contextmanager
def stopping_at(number: int, stop: Callable[[str, Callable[[], Any], tuple[Any, ...]], Any]) -> Iterator[list[str]]:
    """Have ``stop`` called in place of the ``number``-th change; give the names of all changes."""
    done: list[str] = []

    def step(name: str, real: Callable[[], Any], arguments: tuple[Any, ...]) -> Any:
        done.append(name)
        if len(done) - 1 == number:
            return stop(name, real, arguments)
        return None if name == "fsync" else real()  # a process that ends needs no fsync to be read by the next

    with watched(step):
        yield done


def before(name: str, real: Callable[[], Any], arguments: tuple[Any, ...]) -> Any:
    raise Stopped


def after(name: str, real: Callable[[], Any], arguments: tuple[Any, ...]) -> Any:
    real()
    raise Stopped


def refused(name: str, real: Callable[[], Any], arguments: tuple[Any, ...]) -> Any:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def killed(name: str, real: Callable[[], Any], arguments: tuple[Any, ...]) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def killed_within(name: str, real: Callable[[], Any], arguments: tuple[Any, ...]) -> Any:
    """As far as a write can be half done, it is."""
    if name == "pwrite":
        fd, data, offset = arguments
        os.posix_fallocate(fd, offset, len(data) // 2)
        os.pwritev(fd, [data[: len(data) // 2]], offset)
    os.kill(os.getpid(), signal.SIGKILL)


def run_and_stop(action: Callable[[], object], number: int, stop: Any) -> bool:
    """Run ``action`` until its ``number``-th change, and stop it there in that way; whether it came to its end."""
    if stop not in (killed, killed_within):
        with stopping_at(number, stop) as done, suppress(Stopped, errors.StorageError):
            action()
        return len(done) <= number
    child = os.fork()
    if child == 0:
        try:
            with stopping_at(number, stop):
                action()
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL)
    return status == 0


def every_stop(directory: Path, action: Callable[[SavedArenas], object], stop: Any) -> Iterator[SavedArenas]:
    """Stop ``action`` at every change that it makes, and at last not at all; each time from the same beginning."""
    for number in range(1000):
        copy = directory.with_name(f"{directory.name}-{number}")
        if directory.exists():
            shutil.copytree(directory, copy)
        store = SavedArenas(copy)
        ended = run_and_stop(lambda store=store: action(store), number, stop)  # type: ignore[misc]
        yield store
        if copy.exists():
            shutil.rmtree(copy)
        if ended:
            return
    raise AssertionError("it does not end")


every_way = pytest.mark.parametrize("stop", [before, after, refused, killed, killed_within])


class TestStopped:
    """Whatever is stopped at any instant leaves the last save or the new one, and soon nothing else."""

    @every_way
    def test_a_first_save_is_there_whole_or_not_at_all(self, store: SavedArenas, stop: Any) -> None:
        outcomes = []
        for stopped in every_stop(store.directory, lambda store: save(store, NEW), stop):
            found, problems = stopped.find()
            assert problems == []
            outcomes.append([taken_in(stopped, each) for each in found])
            stopped.clear()
            assert not stopped.directory.exists() or files(stopped) == [name for each in found for name in clean(each)]
        assert set(map(len, outcomes)) == {0, 1}
        assert outcomes[-1] == [NEW_BYTES]
        assert all(outcome in ([], [NEW_BYTES]) for outcome in outcomes)

    @every_way
    def test_a_later_save_leaves_the_last_one_or_the_new_one_whole(self, store: SavedArenas, stop: Any) -> None:
        save(store, OLD)
        outcomes = []
        for stopped in every_stop(store.directory, lambda store: save(store, NEW), stop):
            outcomes.append(taken_in(stopped, only(stopped)))
            again = save(stopped, NEWER)
            assert files(stopped) == clean(again)
            assert taken_in(stopped, only(stopped)) == NEWER_BYTES
        assert set(outcomes) == {OLD_BYTES, NEW_BYTES}
        assert outcomes[-1] == NEW_BYTES
        if stop in (killed, killed_within):
            became_new = outcomes.index(NEW_BYTES)
            assert outcomes[became_new:] == [NEW_BYTES] * (len(outcomes) - became_new)

    @every_way
    def test_what_a_stopped_save_left_is_cleared(self, store: SavedArenas, stop: Any) -> None:
        save(store, OLD)
        for stopped in every_stop(store.directory, lambda store: save(store, NEW), stop):
            stopped.clear()
            assert files(stopped) == clean(only(stopped))
            taken_in(stopped, only(stopped))

    @every_way
    def test_set_aside_it_is_found_whole_or_no_more_and_its_bytes_stay(self, store: SavedArenas, stop: Any) -> None:
        saved = save(store, NEW)
        outcomes = []
        for stopped in every_stop(store.directory, lambda store: store.set_aside(saved), stop):
            found, problems = stopped.find()
            assert problems == []
            assert all(taken_in(stopped, each) == NEW_BYTES for each in found)
            assert (stopped.directory / saved.bytes_name).read_bytes() == NEW_BYTES
            outcomes.append(len(found))
            stopped.clear()
            assert files(stopped) == (clean(saved) if found else [])
        assert outcomes[-1] == 0

    @every_way
    def test_clearing_never_brings_back_what_was_set_aside_and_leaves_the_rest(
        self, store: SavedArenas, stop: Any
    ) -> None:
        store.set_aside(save(store, OLD))
        other = save(store, NEW, RECORD._replace(name="other", uuid=OTHER))
        for stopped in every_stop(store.directory, lambda store: store.clear(), stop):
            assert taken_in(stopped, only(stopped)) == NEW_BYTES
            stopped.clear()
            assert files(stopped) == clean(other)

    @every_way
    def test_forgotten_it_is_found_whole_or_no_more(self, store: SavedArenas, stop: Any) -> None:
        saved = save(store, NEW)
        outcomes = []
        for stopped in every_stop(store.directory, lambda store: store.forget(ID), stop):
            found, problems = stopped.find()
            assert problems == []
            assert all(taken_in(stopped, each) == NEW_BYTES for each in found)
            outcomes.append(len(found))
            stopped.clear()
            assert files(stopped) == (clean(saved) if found else [])
            stopped.forget(ID)
            assert files(stopped) == []
        assert outcomes[-1] == 0

    @every_way
    def test_saved_anew_over_what_was_set_aside(self, store: SavedArenas, stop: Any) -> None:
        aside = save(store, OLD)
        store.set_aside(aside)
        for stopped in every_stop(store.directory, lambda store: save(store, NEW), stop):
            found, problems = stopped.find()
            assert problems == []
            assert all(taken_in(stopped, each) == NEW_BYTES for each in found)
            if not found:
                assert (stopped.directory / aside.bytes_name).read_bytes() == OLD_BYTES
            stopped.clear()
            assert files(stopped) == (clean(found[0]) if found else [])

    def test_a_save_that_is_under_way_is_not_cleared(self, store: SavedArenas) -> None:
        store.set_aside(save(store, OLD, RECORD._replace(uuid=OTHER)))
        clearing = SavedArenas(store.directory)
        with memfd(NEW) as fd:
            store.save(RECORD, fd, kernel="7.3.4", boot=BOOT, when=NOON, progress=lambda _: clearing.clear())
        assert taken_in(store, only(store)) == NEW_BYTES
        clearing.clear()
        assert files(store) == clean(only(store))

    def test_no_descriptors_are_left_open(self, store: SavedArenas) -> None:
        save(store, OLD)
        open_before = open_descriptors()
        for stopped in every_stop(store.directory, lambda store: save(store, NEW), refused):
            taken_in(stopped, only(stopped))
        assert open_descriptors() == open_before


class TestDurable:
    """Nothing refers to bytes that a power cut could take back."""

    def record(self, action: Callable[[], object]) -> list[tuple[str, str]]:
        """The changes that ``action`` makes: what, and to which path."""
        done: list[tuple[str, str]] = []

        def step(name: str, real: Callable[[], Any], arguments: tuple[Any, ...]) -> Any:
            target = arguments[0]
            done.append((name, str(Path(f"/proc/self/fd/{target}").readlink() if type(target) is int else target)))
            return real()

        with watched(step):
            action()
        return done

    def test_the_description_is_published_when_all_that_it_says_is_on_disk(self, store: SavedArenas) -> None:
        old = save(store, OLD)
        done = self.record(lambda: save(store, NEW))
        content = str(store.directory / only(store).bytes_name)
        draft, directory = str(store.directory / f"{ID}.json.new"), str(store.directory)
        published = done.index(("replace", draft))
        assert done.count(("replace", draft)) == 1
        last_change = max(index for index, (name, path) in enumerate(done) if path == content and name != "fsync")
        synced = done.index(("fsync", content))
        assert last_change < synced < published
        assert done.index(("open", draft)) < done.index(("fsync", draft)) < published
        assert ("fsync", directory) in done[max(synced, done.index(("open", draft))) : published]
        removed = done.index(("unlink", str(store.directory / old.bytes_name)))
        assert ("fsync", directory) in done[published:removed]
        assert done[-1] == ("open", directory) or ("fsync", directory) in done[removed:]

    def test_a_directory_that_is_made_is_on_disk_before_anything_is_in_it(self, tmp_path: Path) -> None:
        store = SavedArenas(tmp_path / "a" / "b")
        done = self.record(lambda: save(store, NEW))
        content = done.index(("open", str(store.directory / only(store).bytes_name)))
        for made in (tmp_path / "a", tmp_path / "a" / "b"):
            assert done.index(("mkdir", str(made))) < done.index(("fsync", str(made.parent))) < content

    def test_what_was_set_aside_is_so_on_disk(self, store: SavedArenas, saved: Saved) -> None:
        done = self.record(lambda: store.set_aside(saved))
        assert done[0] == ("replace", str(store.directory / f"{ID}.json"))
        assert ("fsync", str(store.directory)) in done[1:]

    def test_what_was_forgotten_is_so_on_disk_and_its_description_first(self, store: SavedArenas, saved: Saved) -> None:
        done = self.record(lambda: store.forget(ID))
        unlinked = [path for name, path in done if name == "unlink"]
        assert unlinked == [str(store.directory / name) for name in (f"{ID}.json", saved.bytes_name)]
        assert done[-1] == ("fsync", str(store.directory))


class TestRefused:
    """A disk that refuses is an error that says so, and the last save stays."""

    def test_a_disk_that_says_yes_and_writes_something_else_is_found_out(self, store: SavedArenas) -> None:
        save(store, OLD)
        real = os.pwrite

        def lying(fd: int, data: Any, offset: int) -> int:
            return real(fd, bytes([data[0] ^ 1]) + bytes(data[1:]), offset)

        with pytest.MonkeyPatch.context() as patch, memfd(NEW) as fd:
            patch.setattr(os, "pwrite", lying)
            with pytest.raises(errors.StorageError, match="read back is not what was written"):
                store.save(RECORD, fd, kernel="7.3.4", boot=BOOT, when=NOON)
        assert taken_in(store, only(store)) == OLD_BYTES
        assert files(store) == clean(only(store))

    def test_writes_that_the_kernel_does_in_parts_are_whole_in_the_end(self, store: SavedArenas) -> None:
        real = os.pwrite
        with pytest.MonkeyPatch.context() as patch, memfd(NEW) as fd:
            patch.setattr(os, "pwrite", lambda fd, data, offset: real(fd, data[:100_000], offset))
            store.save(RECORD, fd, kernel="7.3.4", boot=BOOT, when=NOON)
        assert taken_in(store, only(store)) == NEW_BYTES

    def test_a_limit_on_the_size_of_files_is_named_and_the_last_save_stays(self, store: SavedArenas) -> None:
        save(store, OLD)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        with memfd(NEW) as fd:
            resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, hard))
            try:
                with pytest.raises(errors.StorageError, match="save arena 'carts': File too large") as refusal:
                    store.save(RECORD, fd, kernel="7.3.4", boot=BOOT, when=NOON)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert refusal.value.errno == errno.EFBIG
        assert taken_in(store, only(store)) == OLD_BYTES
        assert files(store) == clean(only(store))

    @pytest.fixture
    def small_disk(self, tmp_path: Path) -> Iterator[SavedArenas]:
        """A disk of 4 MiB, a third of which is full."""
        (tmp_path / "disk").mkdir()
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=4m,mode=0700", "none", tmp_path / "disk"],
            capture_output=True,
            check=False,
        )
        if mounted.returncode:
            pytest.skip("nothing can be mounted here")
        try:
            store = SavedArenas(tmp_path / "disk")
            save(store, OLD, RECORD._replace(size=8 * MIB))
            yield store
        finally:
            subprocess.run(["umount", tmp_path / "disk"], check=True)

    def test_a_disk_that_is_too_small_is_not_begun_with(self, small_disk: SavedArenas) -> None:
        with pytest.raises(errors.StorageError, match="expected room for 8 MiB, found 2 MiB; make room"):
            save(small_disk, {0: b"x" * 8 * MIB}, RECORD._replace(size=8 * MIB))
        assert taken_in(small_disk, only(small_disk)) == flat(OLD, 8 * MIB)
        assert files(small_disk) == clean(only(small_disk))

    def test_a_disk_that_becomes_full_keeps_the_last_save_and_nothing_else(self, small_disk: SavedArenas) -> None:
        # Little in memory, for it is one page of each chunk; on disk it is every chunk.
        scattered = dict.fromkeys(range(0, 8 * MIB, MIB), b"x")
        for _ in range(2):
            with pytest.raises(errors.StorageError, match="No space left on device") as refusal:
                save(small_disk, scattered, RECORD._replace(size=8 * MIB))
            assert refusal.value.errno == errno.ENOSPC
            assert taken_in(small_disk, only(small_disk)) == flat(OLD, 8 * MIB)
            assert files(small_disk) == clean(only(small_disk))

    def test_what_a_killed_save_left_does_not_keep_the_next_from_having_room(self, small_disk: SavedArenas) -> None:
        (small_disk.directory / f"{ID}.{OTHER}.arena").write_bytes(b"x" * (2 * MIB - 64 * KIB))
        saved = save(small_disk, NEWER, RECORD._replace(size=8 * MIB))
        assert files(small_disk) == clean(saved)

    @pytest.mark.parametrize("mode", [0o755, 0o770, 0o701])
    def test_a_directory_that_others_can_enter_is_refused_with_what_to_do(
        self, store: SavedArenas, saved: Saved, mode: int
    ) -> None:
        store.directory.chmod(mode)
        for action in (
            lambda: save(store, NEWER),
            store.find,
            store.clear,
            lambda: store.forget(ID),
        ):
            with pytest.raises(errors.StorageError, match=rf"mode 0700, found uid \d+, mode {mode:04o}; .*chmod"):
                action()
        store.directory.chmod(0o700)
        assert taken_in(store, only(store)) == NEW_BYTES

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
    def test_a_directory_of_another_user_is_refused(self, store: SavedArenas, saved: Saved) -> None:
        os.chown(store.directory, 65534, 65534)
        with pytest.raises(errors.StorageError, match="expected one of uid 0, mode 0700, found uid 65534"):
            store.find()

    @pytest.mark.parametrize("kind", ["file", "link", "dangling link"])
    def test_something_else_in_place_of_the_directory_is_refused(
        self, store: SavedArenas, tmp_path: Path, kind: str
    ) -> None:
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        if kind == "file":
            store.directory.write_text("")
        else:
            store.directory.symlink_to("elsewhere" if kind == "link" else "nowhere")
        for action in (lambda: save(store, NEW), store.find, store.clear):
            with pytest.raises(errors.StorageError, match="expected a directory"):
                action()
        assert list((tmp_path / "elsewhere").iterdir()) == []

    def test_a_directory_that_cannot_be_made_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(errors.StorageError, match=r"file/saved: .*Not a directory"):
            save(SavedArenas(tmp_path / "file" / "saved"), NEW)

    def test_where_nothing_was_ever_saved_there_is_nothing_to_do(self, store: SavedArenas) -> None:
        assert store.find() == ([], [])
        store.clear()
        store.forget(ID)
        assert not store.directory.exists()


class TestFound:
    """What is found, and in which order."""

    def test_arenas_are_found_by_owner_and_name(self, store: SavedArenas) -> None:
        for number, (uid, name) in enumerate([(1, "b"), (0, "c"), (1, "a")]):
            save(store, NEWER, RECORD._replace(uuid=UUID(int=number), uid=uid, name=name))
        assert [(each.record.uid, each.record.name) for each in store.find()[0]] == [(0, "c"), (1, "a"), (1, "b")]

    def test_of_two_arenas_that_had_one_name_the_newer_save_comes_first(self, store: SavedArenas) -> None:
        for number, hours in enumerate([1, 3, 2]):
            save(store, NEWER, RECORD._replace(uuid=UUID(int=number)), NOON + timedelta(hours=hours))
        assert [each.record.uuid.int for each in store.find()[0]] == [1, 2, 0]

    def test_other_files_are_left_alone(self, store: SavedArenas, saved: Saved) -> None:
        others = ["README", f"{ID}", "x.json", f"{str(BOOT).upper()}.json.taken", "lost+found"]
        for name in others:
            (store.directory / name).write_text("x")
        assert only(store) == saved
        store.clear()
        assert files(store) == sorted([*others, *clean(saved)])


def tampered(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ 0x10]))


class TestHostile:
    """What is in the directory is checked before it is used, and is refused by an error that names it."""

    @pytest.mark.parametrize("offset", [0, 1, MIB - 1, MIB, 2 * MIB, 2 * MIB + 12345, 3 * MIB, SIZE - 1])
    def test_a_bit_that_the_disk_changed_is_found(self, store: SavedArenas, saved: Saved, offset: int) -> None:
        tampered(store.directory / saved.bytes_name, offset)
        with pytest.raises(errors.CorruptError, match=r"checksum .* the disk has changed what was saved"):
            store.take_in(only(store))
        assert files(store) == clean(saved)

    @pytest.mark.parametrize("size", [0, 1, MIB, SIZE - 1, SIZE + 1, 2 * SIZE])
    def test_another_length_is_found(self, store: SavedArenas, saved: Saved, size: int) -> None:
        os.truncate(store.directory / saved.bytes_name, size)
        with pytest.raises(errors.CorruptError, match=f"expected {SIZE} bytes, found {size}"):
            store.take_in(only(store))

    def test_chunks_that_changed_places_are_found(self, store: SavedArenas) -> None:
        saved = save(store, {0: b"a", MIB: b"b"})
        path = store.directory / saved.bytes_name
        content = path.read_bytes()
        path.write_bytes(content[MIB : 2 * MIB] + content[:MIB] + content[2 * MIB :])
        with pytest.raises(errors.CorruptError, match="checksum"):
            store.take_in(saved)

    def test_bytes_of_another_save_are_not_taken_for_these(self, store: SavedArenas, saved: Saved) -> None:
        other = save(store, OLD, RECORD._replace(uuid=OTHER))
        (store.directory / other.bytes_name).replace(store.directory / saved.bytes_name)
        with pytest.raises(errors.CorruptError, match="checksum"):
            store.take_in(saved)

    def test_bytes_that_are_not_there_are_missed(self, store: SavedArenas, saved: Saved) -> None:
        (store.directory / saved.bytes_name).unlink()
        with pytest.raises(errors.StorageError, match="take in arena 'carts': No such file"):
            store.take_in(only(store))

    @pytest.mark.parametrize("kind", ["link", "pipe", "directory", "device"])
    def test_something_else_in_place_of_the_bytes_is_refused(
        self, store: SavedArenas, saved: Saved, tmp_path: Path, kind: str
    ) -> None:
        put(store.directory / saved.bytes_name, kind, tmp_path)
        with pytest.raises((errors.StorageError, errors.CorruptError), match=r"carts|expected"):
            store.take_in(only(store))

    @pytest.mark.parametrize("kind", ["link", "pipe", "directory", "device"])
    def test_something_else_in_place_of_the_description_is_reported(
        self, store: SavedArenas, saved: Saved, tmp_path: Path, kind: str
    ) -> None:
        other = save(store, OLD, RECORD._replace(uuid=OTHER))
        description = store.directory / f"{ID}.json"
        put(description, kind, tmp_path)
        found, problems = store.find()
        assert found == [other]
        assert [type(problem) for problem in problems] == [errors.CorruptError]
        assert str(description) in str(problems[0])

    @pytest.mark.parametrize("name", [f"{ID}.json", f"{ID}.json.new"])
    def test_a_link_is_not_written_through(self, store: SavedArenas, saved: Saved, tmp_path: Path, name: str) -> None:
        put(store.directory / name, "link", tmp_path)
        target = tmp_path / "target"
        content = target.read_bytes()
        with suppress(errors.StorageError):
            save(store, NEWER)
        assert target.read_bytes() == content

    def test_a_description_of_another_arena_is_refused(self, store: SavedArenas, saved: Saved) -> None:
        (store.directory / f"{ID}.json").rename(store.directory / f"{OTHER}.json")
        found, (problem,) = store.find()
        assert found == []
        assert f"expected arena {OTHER}, found {ID}" in str(problem)

    @pytest.mark.parametrize(
        ("content", "why"),
        [
            (b"", "Expecting value"),
            (b"\xff\xff", "decode"),
            (b"null", "expected a map"),
            (b"[]", "expected a map"),
            (b"{}", "expected a map"),
            (b"{" * 65536, "Expecting"),
            (b"[" * 65536, "lists within lists"),
            (b'{"a":' * 10000, "lists within lists"),
            (b" " * 65537, "at most 65536 bytes"),
            (b"1" * 60000, "digits"),
        ],
    )
    def test_a_description_that_is_none_is_reported_and_the_others_are_found(
        self, store: SavedArenas, saved: Saved, content: bytes, why: str
    ) -> None:
        (store.directory / f"{OTHER}.json").write_bytes(content)
        found, problems = store.find()
        assert found == [saved]
        assert [type(problem) for problem in problems] == [errors.CorruptError]
        assert why in str(problems[0])

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("size", -1), ("size", 1 << 63), ("size", 1e6), ("size", True), ("size", "65536"), ("size", float("inf")),
            ("uid", -1), ("uid", (1 << 32) - 1), ("gid", None), ("mode", 0o1000), ("mode", -1),
            ("name", ""), ("name", "../../etc/passwd"), ("name", "a\0b"), ("name", "x" * 201), ("name", "\ud800"),
            ("uuid", "../" + "0" * 33), ("created", -1), ("created", 1 << 62), ("kernel_from", "x" * 101),
            ("kernel_from", "\ud800"), ("kernel_from", 7),
        ],
    )  # fmt: skip
    def test_a_value_that_no_arena_has_is_refused_by_field(
        self, store: SavedArenas, saved: Saved, field: str, value: object
    ) -> None:
        description = store.directory / f"{ID}.json"
        document = json.loads(description.read_text())
        document["record"][field] = value
        description.write_text(json.dumps(document))
        found, problems = store.find()
        assert found == []
        assert [type(problem) for problem in problems] == [errors.CorruptError]
        assert field in str(problems[0]) or "surrogates" in str(problems[0])

    @pytest.mark.parametrize("size", [0, 1, 65535, 65537, 65 << 40])
    def test_a_size_that_no_arena_has_is_refused_though_the_bytes_have_it(
        self, store: SavedArenas, saved: Saved, size: int
    ) -> None:
        description = store.directory / f"{ID}.json"
        document = json.loads(description.read_text())
        document["record"]["size"] = size
        description.write_text(json.dumps(document))
        with suppress(OSError):  # a file system that cannot have such a file has none to take in
            os.truncate(store.directory / saved.bytes_name, size)
        with pytest.raises((errors.SizeError, errors.CorruptError)):
            store.take_in(only(store))

    def test_a_save_named_like_a_path_is_refused(self, store: SavedArenas, saved: Saved) -> None:
        description = store.directory / f"{ID}.json"
        outside = "../../../../../../../../etc/passwd\0"
        description.write_text(json.dumps(json.loads(description.read_text()) | {"save": outside}))
        found, (problem,) = store.find()
        assert found == []
        assert "save: expected a UUID" in str(problem)

    def test_a_description_that_cannot_be_read_costs_no_bytes(self, store: SavedArenas, saved: Saved) -> None:
        (store.directory / f"{ID}.json").write_text("{")
        store.clear()
        assert files(store) == clean(saved)
        again = save(store, NEWER)
        assert files(store) == clean(again)

    def test_no_damage_to_a_description_does_anything_but_be_refused(self, store: SavedArenas, saved: Saved) -> None:
        rng = random.Random(1)
        description = store.directory / f"{ID}.json"
        sound = description.read_bytes()
        refusals = 0
        for _ in range(500):
            description.write_bytes(damaged(sound, rng) if rng.random() < 0.5 else changed(sound, rng))
            found, problems = store.find()
            assert len(found) + len(problems) == 1
            try:
                for each in found:
                    taken_in(store, each)
            except errors.Error:
                refusals += 1
            refusals += len(problems)
        assert refusals > 300


def put(path: Path, kind: str, elsewhere: Path) -> None:
    """Replace the file by something else; a link leads to what the file was."""
    path.rename(elsewhere / "target") if path.exists() else (elsewhere / "target").write_text("target")
    if kind == "link":
        path.symlink_to(elsewhere / "target")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    else:
        try:
            os.mknod(path, 0o020600, os.makedev(1, 5))  # /dev/zero
        except PermissionError:
            pytest.skip("only root makes devices")


def damaged(sound: bytes, rng: random.Random) -> bytes:
    """Some bytes changed, cut out or put in."""
    data = bytearray(sound)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(data))
        match rng.randrange(3):
            case 0:
                data[at] = rng.randrange(256)
            case 1:
                del data[at : at + rng.randrange(1, 20)]
            case _:
                data[at:at] = rng.randbytes(rng.randrange(1, 5))
    return bytes(data)


def changed(sound: bytes, rng: random.Random) -> bytes:
    """A value replaced by one of another type or size, a key too many or too few."""
    document = json.loads(sound)
    target = document["record"] if rng.random() < 0.5 else document
    key = rng.choice(sorted(target))
    values: list[object] = [
        None, True, False, 0, -1, 1, 65536, SIZE, 1 << 31, 1 << 62, 1 << 63, 1 << 200, 0.5, float("nan"), float("inf"),
        "", "a", "0" * 32, str(OTHER), "\ud800", "é" * 300, [], [1], {}, {"uuid": str(ID)}, [[[]]],
    ]  # fmt: skip
    match rng.randrange(4):
        case 0:
            del target[key]
        case 1:
            target[rng.choice(["", "extra", "Format", key + " "])] = rng.choice(values)
        case _:
            target[key] = rng.choice(values)
    return json.dumps(document).encode()
