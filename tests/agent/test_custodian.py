"""What becomes of arenas that arrive from the last kernel otherwise than they left it, or by way of the disk.

What was saved on disk is taken in once, never twice, and never in place of what came through memory.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from persistmem import errors
from persistmem.agent import custodian
from persistmem.agent.custodian import Arrival, Custodian, Owner
from persistmem.agent.records import ArenaRecord, Handover, RegistryDocument
from persistmem.agent.saved import Saved, SavedArenas
from persistmem.agent.statefile import Boot, machine_boot, read_state
from persistmem.arena import Arena
from persistmem.carriers.luo import LuoCarrier
from persistmem.liveupdate.simulator import SimulatedKernel

OWNER = Owner(os.geteuid(), os.getegid())
NOON = datetime(2026, 7, 1, 12, tzinfo=UTC)
LATER = datetime(2026, 7, 1, 12, 0, 3, tzinfo=UTC)


class Kernels:
    """Two kernels on one carrier: what is between them is done to the carrier by hand."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.saved = SavedArenas(path.parent / "saved")
        self.carrier = LuoCarrier(SimulatedKernel.fresh("7.3.4").open_device())
        self.old = self.custodian("7.2.13", NOON)
        self.old.commit()

    def custodian(self, kernel: str, now: datetime, before: RegistryDocument | None = None) -> Custodian:
        boot = Boot(machine_boot(), uuid4(), kernel, "luo-v5")
        return Custodian(self.carrier, boot, self.path, self.saved, before=before, clock=lambda: now)

    def make(self, name: str) -> ArenaRecord:
        fd, record, _ = self.old.attach(OWNER, name, 65536)
        os.close(fd)
        return record

    def boot(self, **arrival: Any) -> tuple[Custodian, Handover]:
        self.old.depart(0.5)
        return self.arrive(**arrival)

    def arrive(self, **arrival: Any) -> tuple[Custodian, Handover]:
        new = self.custodian("7.3.4", LATER)
        state = read_state(self.path)
        assert state is not None
        found: dict[str, Any] = {"began": NOON, "boot": timedelta(seconds=2), "departed": state.registry} | arrival
        handover = new.arrive(Arrival(**found))
        assert handover is not None
        return new, handover


@pytest.fixture
def kernels(tmp_path: Path) -> Kernels:
    return Kernels(tmp_path / "state")


def test_what_arrives_whole_is_given_out_as_its_owner_left_it(kernels: Kernels) -> None:
    record = kernels.make("carts")
    fd = kernels.carrier.recover(str(record.uuid))
    os.fchmod(fd, 0o777)  # as a kernel does that retrieves it
    new, handover = kernels.boot()
    arrived, found, made = new.attach(OWNER, "carts", None)
    assert (found.uuid, found.created, found.kernel_from, made) == (record.uuid, record.created, "7.2.13", False)
    assert os.fstat(arrived).st_mode & 0o777 == 0o600
    assert (handover.arenas, handover.lost_count, handover.preserve) == (1, 0, 0.5)
    assert (handover.dark, handover.boot, handover.retrieve) == (3.0, 2.0, 3.0)
    os.close(arrived)
    os.close(fd)


def test_what_arrives_damaged_is_neither_given_out_nor_thrown_away(kernels: Kernels) -> None:
    key = str(kernels.make("carts").uuid)
    kernels.make("other")
    fd = kernels.carrier.recover(key)
    os.pwrite(fd, b"\xff" * 8, 0)
    os.close(fd)
    new, handover = kernels.boot()
    assert [(loss.name, loss.uid) for loss in handover.lost] == [("carts", OWNER.uid)]
    for size in (None, 65536):
        with pytest.raises(errors.CorruptError, match="arrived damaged"):
            new.attach(OWNER, "carts", size)
    assert key in kernels.carrier.names()
    assert [record.name for record in new.records(OWNER, None, 10)[0]] == ["other"]
    new.drop(OWNER, "carts")
    fd, _, made = new.attach(OWNER, "carts", 65536)
    os.close(fd)
    assert made


def test_another_arena_in_its_place_is_not_taken_for_it(kernels: Kernels) -> None:
    keys = [str(kernels.make(name).uuid) for name in ("a", "b")]
    fds = [kernels.carrier.recover(key) for key in keys]
    for key, fd in zip(keys, reversed(fds), strict=True):
        kernels.carrier.drop(key)
        kernels.carrier.keep(key, fd)
        os.close(fd)
    new, handover = kernels.boot()
    assert handover.lost_count == 2
    assert "expected" in handover.lost[0].why
    with pytest.raises(errors.CorruptError):
        new.attach(OWNER, "a", None)


def test_what_does_not_arrive_is_named_with_the_reason(kernels: Kernels) -> None:
    kernels.carrier.drop(str(kernels.make("a").uuid))
    _, handover = kernels.boot()
    assert [(loss.name, loss.why) for loss in handover.lost] == [("a", "it was not handed over")]


def test_a_kernel_that_takes_nothing_says_why(kernels: Kernels) -> None:
    kernels.carrier.drop(str(kernels.make("a").uuid))
    _, handover = kernels.boot(refused="another ABI")
    assert [loss.why for loss in handover.lost] == ["another ABI"]


def test_what_was_left_without_preparing_says_so(kernels: Kernels) -> None:
    kernels.carrier.drop(str(kernels.make("a").uuid))
    _, handover = kernels.arrive()
    assert [loss.why for loss in handover.lost] == [
        "the last kernel was left without 'persistmem reboot' or 'persistmem prepare'"
    ]
    assert (handover.left, handover.dark, handover.preserve) == (None, 0.0, 0.0)


def test_a_first_boot_has_no_handover_to_tell_of(kernels: Kernels) -> None:
    new = kernels.custodian("7.3.4", LATER)
    kernels.carrier.drop("registry")
    assert new.arrive(Arrival(NOON, timedelta(), None)) is None
    assert new.handovers == []


def test_a_kernel_that_was_not_left_after_all_is_not_told_of_as_left(kernels: Kernels) -> None:
    kernels.make("a")
    kernels.old.preserve()
    kernels.old.depart(0.5)
    kernels.old.stay()
    _, handover = kernels.arrive()
    assert handover.left is None


@pytest.mark.parametrize("damage", ["lost", "overwritten"])
def test_without_the_registry_the_disk_says_what_there_was(kernels: Kernels, damage: str) -> None:
    kernels.make("carts")
    kernels.old.depart(0.5)
    fd = kernels.carrier.recover("registry")
    if damage == "lost":
        kernels.carrier.drop("registry")
    else:
        os.pwrite(fd, b"\xff" * 65536, 0)
    os.close(fd)
    new, handover = kernels.arrive()
    assert (handover.arenas, handover.kernel_from, handover.preserve) == (1, "7.2.13", 0.5)
    fd, _, made = new.attach(OWNER, "carts", None)
    os.close(fd)
    assert not made


def test_without_what_was_on_disk_the_registry_says_what_there_was(kernels: Kernels) -> None:
    kernels.make("carts")
    new, handover = kernels.boot(departed=None)
    assert (handover.arenas, handover.kernel_from, handover.dark) == (1, "7.2.13", 3.0)
    fd, _, _ = new.attach(OWNER, "carts", None)
    os.close(fd)


def keep(agent: Custodian, name: str, value: str) -> ArenaRecord:
    """Keep ``value`` in the arena of this name, which is made if it is not there."""
    fd, record, _ = agent.attach(OWNER, name, 65536)
    with Arena(fd, kernel="7.2.13") as arena:
        arena.snapshot("value", value)
    os.close(fd)
    return record


def kept(agent: Custodian, name: str) -> Any:
    fd, _, _ = agent.attach(OWNER, name, None)
    try:
        with Arena(fd, kernel="7.3.4") as arena:
            return arena.restore("value")
    finally:
        os.close(fd)


class Disk(Kernels):
    """Kernels whose arenas are saved, and whose memory can be lost."""

    def save(self, record: ArenaRecord, when: datetime = NOON) -> Saved:
        fd = self.carrier.recover(str(record.uuid))
        try:
            return self.saved.save(record, fd, kernel="7.2.13", boot=self.old.boot.id, when=when)
        finally:
            os.close(fd)

    def lose(self, *records: ArenaRecord) -> None:
        for record in records:
            self.carrier.drop(str(record.uuid))

    def after_a_kill(self) -> Custodian:
        """The next agent of the same boot: what the last one kept is missing."""
        for name in self.carrier.names():
            self.carrier.drop(name)
        state = read_state(self.path)
        assert state is not None
        again = self.custodian("7.3.4", LATER, state.registry)
        again.take_in_saved()
        return again

    def found(self) -> list[str]:
        saved, problems = self.saved.find()
        assert problems == []
        return [each.record.name for each in saved]


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk(tmp_path / "state")


class Stopped(BaseException):
    """The agent is killed."""


@contextmanager
def stopped_in(target: object, function: str, calls: int = 0) -> Iterator[None]:
    """End what runs at that call of a function."""
    real, left = getattr(target, function), iter(range(calls))

    def stop(*arguments: Any, **more: Any) -> Any:
        if next(left, None) is None:
            raise Stopped
        return real(*arguments, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(target, function, stop)
        try:
            yield
        except Stopped:
            return
    raise AssertionError(f"{function} was not called so often")


def test_what_memory_lost_comes_back_from_the_disk(disk: Disk) -> None:
    record = keep(disk.old, "carts", "saved")
    disk.save(record)
    disk.lose(record)
    new, handover = disk.boot()
    assert (handover.arenas, handover.saved, handover.lost_count) == (1, 1, 0)
    assert kept(new, "carts") == "saved"
    (arrived,), _ = new.records(OWNER, None, 10)
    assert (arrived.uuid, arrived.kernel_from, arrived.created) == (record.uuid, "7.2.13", record.created)
    assert disk.carrier.names() == sorted(["registry", str(record.uuid)])


def test_what_came_through_memory_is_newer_than_what_was_saved(disk: Disk) -> None:
    disk.save(keep(disk.old, "carts", "saved"))
    keep(disk.old, "carts", "newer")
    new, handover = disk.boot()
    assert (handover.arenas, handover.saved) == (1, 0)
    assert kept(new, "carts") == "newer"
    assert disk.found() == []


def test_another_arena_of_the_same_name_that_came_through_memory_stays(disk: Disk) -> None:
    older = keep(disk.old, "carts", "older")
    disk.save(older)
    disk.saved.directory.rename(disk.path.parent / "away")
    disk.old.drop(OWNER, "carts")
    (disk.path.parent / "away").rename(disk.saved.directory)
    assert disk.found() == ["carts"]
    keep(disk.old, "carts", "anew")
    new, handover = disk.boot()
    assert (handover.arenas, handover.saved, kept(new, "carts")) == (1, 0, "anew")
    assert disk.found() == []


def test_what_was_taken_in_is_not_taken_in_again(disk: Disk) -> None:
    record = keep(disk.old, "carts", "saved")
    disk.save(record)
    disk.lose(record)
    disk.boot()
    assert disk.found() == []
    disk.lose(record)
    _, handover = disk.arrive()
    assert (handover.arenas, handover.saved, handover.lost_count) == (0, 0, 1)
    assert list(disk.saved.directory.iterdir()) == []


def test_what_was_saved_before_anybody_knew_of_it_is_taken_in_at_a_first_boot(disk: Disk) -> None:
    record = keep(disk.old, "carts", "saved")
    disk.save(record)
    disk.lose(record)
    disk.carrier.drop("registry")
    new, handover = disk.arrive(departed=None)
    assert (handover.arenas, handover.saved, kept(new, "carts")) == (1, 1, "saved")


def test_of_two_saved_arenas_of_one_name_the_newer_is_taken_in(disk: Disk) -> None:
    older = keep(disk.old, "carts", "older")
    disk.save(older)
    disk.saved.directory.rename(disk.path.parent / "away")
    disk.old.drop(OWNER, "carts")
    (disk.path.parent / "away").rename(disk.saved.directory)
    newer = keep(disk.old, "carts", "newer")
    disk.save(newer, LATER)
    assert disk.found() == ["carts", "carts"]
    disk.lose(newer)
    new, handover = disk.boot()
    assert (handover.arenas, handover.saved, kept(new, "carts")) == (1, 1, "newer")
    assert disk.found() == []


def test_what_arrived_damaged_is_taken_from_the_disk(disk: Disk) -> None:
    record = keep(disk.old, "carts", "saved")
    disk.save(record)
    fd = disk.carrier.recover(str(record.uuid))
    os.pwrite(fd, b"\xff" * 8, 0)
    os.close(fd)
    new, handover = disk.boot()
    assert (handover.arenas, handover.saved, handover.lost_count) == (1, 1, 0)
    assert kept(new, "carts") == "saved"


def test_what_the_disk_changed_is_told_as_lost_and_not_thrown_away(disk: Disk) -> None:
    records = [keep(disk.old, name, name) for name in ("a", "b")]
    broken, _ = (disk.save(record) for record in records)
    os.truncate(disk.saved.directory / broken.bytes_name, 1)
    disk.lose(*records)
    new, handover = disk.boot()
    assert (handover.arenas, handover.saved, kept(new, "b")) == (1, 1, "b")
    (loss,) = handover.lost
    assert loss.name == "a"
    assert loss.why.startswith("it was not handed over; on disk: saved arena ")
    assert "expected 65536 bytes, found 1" in loss.why
    with pytest.raises(errors.NotFoundError):
        kept(new, "a")
    assert disk.found() == ["a"]
    disk.saved.clear()
    assert (disk.saved.directory / broken.bytes_name).exists()


def test_what_is_whole_but_no_arena_is_not_taken_in(disk: Disk) -> None:
    record = keep(disk.old, "carts", "x")
    fd = disk.carrier.recover(str(record.uuid))
    os.pwrite(fd, b"\xff" * 8, 0)
    os.close(fd)
    disk.save(record)
    disk.lose(record)
    new, handover = disk.boot()
    assert (handover.arenas, handover.saved, handover.lost_count) == (0, 0, 1)
    assert new.is_empty


def test_what_is_dropped_is_dropped_on_disk_too(disk: Disk) -> None:
    disk.save(keep(disk.old, "carts", "x"))
    disk.old.drop(OWNER, "carts")
    assert list(disk.saved.directory.iterdir()) == []


def test_more_arenas_than_an_agent_can_keep_are_not_taken_in(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    records = [keep(disk.old, name, name) for name in "abc"]
    for record in records:
        disk.save(record)
    disk.lose(*records)
    disk.carrier.drop("registry")
    monkeypatch.setattr(custodian, "ARENAS_MAX", 2)
    new, handover = disk.arrive(departed=None)
    assert (handover.arenas, handover.saved, handover.lost_count) == (2, 2, 1)
    assert "keeps 2 arenas, which is its limit" in handover.lost[0].why
    assert [record.name for record in new.records(OWNER, None, 10)[0]] == ["a", "b"]
    assert disk.found() == ["c"]


class TestKilled:
    """An agent that is killed while it takes in what was saved loses nothing of it, and takes nothing in twice."""

    @pytest.fixture
    def saved(self, disk: Disk) -> ArenaRecord:
        """An arena that is on disk and nowhere else."""
        record = keep(disk.old, "carts", "saved")
        disk.save(record)
        disk.lose(record)
        disk.old.depart(0.5)
        return record

    def test_before_it_is_written_down_the_next_agent_takes_it_in(self, disk: Disk, saved: ArenaRecord) -> None:
        with stopped_in(custodian, "write_state"):
            disk.arrive()
        disk.lose(saved)
        new, handover = disk.arrive()
        assert (handover.saved, kept(new, "carts")) == (1, "saved")
        assert disk.found() == []

    def test_before_it_is_set_aside_nothing_is_lost_when_nobody_hands_it_back(
        self, disk: Disk, saved: ArenaRecord
    ) -> None:
        with stopped_in(disk.saved, "set_aside"):
            disk.arrive()
        again = disk.after_a_kill()
        assert again.is_missing(OWNER, "carts")
        again.give_up(OWNER, "carts")
        assert kept(again, "carts") == "saved"
        assert disk.found() == []

    def test_what_was_killed_between_two_loses_neither(self, disk: Disk, saved: ArenaRecord) -> None:
        other = keep(disk.old, "other", "too")
        disk.save(other)
        disk.lose(other)
        disk.old.depart(0.5)
        with stopped_in(disk.saved, "set_aside", 1):
            disk.arrive()
        assert disk.found() == ["other"]
        again = disk.after_a_kill()
        again.give_up(OWNER, "other")
        assert kept(again, "other") == "too"

    def test_what_its_holder_hands_back_is_newer_than_what_was_saved(self, disk: Disk) -> None:
        record = keep(disk.old, "carts", "saved")
        disk.save(record)
        keep(disk.old, "carts", "newer")
        held = disk.carrier.recover(str(record.uuid))
        again = disk.after_a_kill()
        again.take_back(OWNER, "carts", record.uuid, again.boot.id, held)
        os.close(held)
        assert kept(again, "carts") == "newer"
        new, handover = disk.arrive()
        assert (handover.saved, kept(new, "carts")) == (0, "newer")
        assert disk.found() == []

    def test_what_nobody_handed_back_is_as_it_was_saved_and_not_made_anew(self, disk: Disk) -> None:
        disk.save(keep(disk.old, "carts", "saved"))
        again = disk.after_a_kill()
        again.give_up(OWNER, "carts")
        fd, _, made = again.attach(OWNER, "carts", 65536)
        os.close(fd)
        assert not made
        assert kept(again, "carts") == "saved"

    def test_an_agent_that_starts_again_takes_in_what_was_saved_meanwhile(self, disk: Disk) -> None:
        record = keep(disk.old, "carts", "saved")
        disk.save(record)
        disk.saved.directory.rename(disk.path.parent / "away")
        disk.old.drop(OWNER, "carts")
        (disk.path.parent / "away").rename(disk.saved.directory)
        again = disk.after_a_kill()
        assert kept(again, "carts") == "saved"
        assert disk.found() == []
