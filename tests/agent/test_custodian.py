"""What becomes of arenas that arrive from the last kernel otherwise than they left it."""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from persistmem import errors
from persistmem.agent.custodian import Arrival, Custodian, Owner
from persistmem.agent.records import ArenaRecord, Handover
from persistmem.agent.saved import SavedArenas
from persistmem.agent.statefile import Boot, machine_boot, read_state
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

    def custodian(self, kernel: str, now: datetime) -> Custodian:
        boot = Boot(machine_boot(), uuid4(), kernel, "luo-v5")
        return Custodian(self.carrier, boot, self.path, self.saved, clock=lambda: now)

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
