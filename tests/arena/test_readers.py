"""Readers beside a writer: never blocked, never shown a mixture, never taken back to an older state."""

import os
from collections.abc import Iterable
from multiprocessing.connection import Connection
from typing import cast

import msgpack
import pytest

from persistmem.arena import Arena
from persistmem.arena.catalogue import RegionRecord
from persistmem.arena.holds import Hold
from persistmem.arena.layout import SLOT_OFFSETS, SLOT_SIZE
from persistmem.arena.memory import Memory
from persistmem.arena.transaction import Transaction
from persistmem.errors import BusyError

from .recording import RecordingMemory, replay
from .support import arena_of, bytes_of, child, open_arena, pipe

ANSWER_SECONDS = 30


class TornMemory(Memory):
    """A memory whose commit slots are, once, read partly earlier than the rest."""

    torn_slots: bytes | None = None

    def read(self, offset: int, length: int) -> memoryview:
        if offset == SLOT_OFFSETS[0] and self.torn_slots is not None:
            once, self.torn_slots = self.torn_slots, None
            return memoryview(once)
        return super().read(offset, length)


def slots_of(memory: bytes) -> tuple[bytes, bytes]:
    first, second = SLOT_OFFSETS
    return memory[first : first + SLOT_SIZE], memory[second : second + SLOT_SIZE]


def test_reader_stopped_between_the_two_slots_goes_on_with_a_state_that_was_published_meanwhile() -> None:
    with arena_of() as (fd, arena), arena_of() as (scratch, _):
        arena.snapshot("count", 0)
        base = bytes_of(fd)
        with open_arena(fd, RecordingMemory) as writer:
            for count in range(1, 5):
                writer.snapshot("count", count)
            stores = cast("RecordingMemory", writer._memory).stores

        images, published = [], []
        for done in range(len(stores) + 1):
            replay(scratch, base, stores[:done])
            images.append(bytes_of(scratch))
            with open_arena(scratch) as reader:
                published.append(cast("int", reader.restore("count")))

        for before in range(len(images)):
            for after in range(before, len(images)):
                earlier, later = slots_of(images[before]), slots_of(images[after])
                for torn in (earlier[0] + later[1], later[0] + earlier[1]):
                    os.pwrite(scratch, images[before], 0)
                    with open_arena(scratch, TornMemory) as reader:
                        assert reader.restore("count") == published[before]
                        os.pwrite(scratch, images[after], 0)
                        cast("TornMemory", reader._memory).torn_slots = torn
                        assert published[before] <= reader.restore("count") <= published[after]


def test_attached_reader_sees_the_old_state_until_the_last_store_and_then_the_new_one() -> None:
    with arena_of() as (fd, arena), arena_of() as (scratch, _):
        arena.snapshot("state", ["old", bytes(5000)])
        base = bytes_of(fd)
        with open_arena(fd, RecordingMemory) as writer:
            writer.snapshot("state", ["new", bytes(6000)])
            stores = cast("RecordingMemory", writer._memory).stores
        os.pwrite(scratch, base, 0)
        with open_arena(scratch) as reader:
            for store in stores:
                assert reader.restore("state") == ["old", bytes(5000)]
                os.pwrite(scratch, store.data, store.offset)
            assert reader.restore("state") == ["new", bytes(6000)]


def hold_transaction(arena: Arena, fill: int, ready: Connection) -> None:
    """Be the writer, with as much claimed as fits, until told to stop."""
    with Transaction(arena._memory, arena._commits, 1.0) as transaction:
        for _ in range(fill):
            transaction.put(memoryview(os.urandom(64)))
        ready.send("holding")
        ready.recv()


@pytest.mark.parametrize("rounds", range(1, 6))
@pytest.mark.parametrize("copy", [True, False])
def test_reader_overtaken_before_it_holds_what_it_chose_gives_what_was_published_meanwhile(
    rounds: int, copy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with arena_of() as (fd, arena), open_arena(fd) as writer:
        arena.snapshot("state", [0, bytes([0]) * 5000], keep=1)
        overtakings = list(range(rounds, 0, -1))
        take = Hold.take

        def overtaken(hold: Hold, spans: Iterable[tuple[int, int]]) -> bool:
            for _ in range(3 if overtakings else 0):
                writer.snapshot("state", [overtakings[-1], bytes([overtakings[-1]]) * 5000], keep=1)
            if overtakings:
                overtakings.pop()
            return take(hold, spans)

        monkeypatch.setattr(Hold, "take", overtaken)
        assert arena.restore("state", copy=copy) == [rounds, bytes([rounds]) * 5000]
        assert overtakings == []


def publish_and_stop(arena: Arena, ready: Connection) -> None:
    """Be a writer that is stopped between the last store and letting go."""
    with Transaction(arena._memory, arena._commits, 1.0) as transaction:
        (record, *_) = transaction.catalogue.snapshots["state"]
        document = transaction.put(memoryview(msgpack.packb("new")))
        region = RegionRecord(transaction.reserve(5000), 5000, 1, "k")
        catalogue = transaction.catalogue.with_region("ring", region)
        transaction.commit(catalogue.with_generation("state", record._replace(number=2, document=document), 2))
        ready.send("published")
        ready.recv()


def test_reader_is_not_blocked_by_a_writer_that_is_stopped_after_its_last_store() -> None:
    with arena_of() as (_, arena):
        arena.snapshot("state", "old")
        here, there = pipe()
        with child(publish_and_stop, arena, there):
            assert here.poll(ANSWER_SECONDS)
            here.recv()
            assert arena.restore("state") == "new"
            assert arena.restore("state", generation=1) == "old"
            arena.region("ring").close()


@pytest.mark.parametrize("buffers", [[], [4100] * 8], ids=["small", "buffers with gaps between them"])
def test_reader_is_not_blocked_by_a_writer_that_never_finishes(buffers: list[int]) -> None:
    document = {"users": 7, "images": [bytes([index]) * length for index, length in enumerate(buffers)]}
    with arena_of(128 << 10) as (_, arena):
        arena.snapshot("state", document)
        arena.region("ring", 100).close()
        here, there = pipe()
        # Enough to reach into every gap that the allocator can use.
        with child(hold_transaction, arena, 400, there):
            assert here.poll(ANSWER_SECONDS)
            here.recv()
            assert arena.restore("state") == document
            assert arena.restore("state", copy=False)["users"] == 7
            assert arena.verify().ok
            assert len(arena.history("state")) == 1
            arena.region("ring").close()
            with pytest.raises(BusyError, match=r"another process is writing.*0\.01 s"):
                arena.snapshot("state", "other", timeout=0.01)
            with pytest.raises(BusyError):
                arena.remove("state", timeout=0)
        assert arena.snapshot("state", "other").number == 2
