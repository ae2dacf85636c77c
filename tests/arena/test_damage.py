"""Flipped bits are found or harmless: never a wrong value, a crash or a hang, and never silence."""

import os
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum, auto
from typing import cast

import pytest

from persistmem.arena import Arena, verified
from persistmem.errors import CorruptError, DamageWarning, NotFoundError

from .support import arena_of, open_arena

HEADER_AND_SLOTS = range(384)
RANDOM_FLIPS = 1500

OLD: dict[str, object] = {"number": 1, "big": b"\x01" * 5000}
NEW: dict[str, object] = {"number": 2, "big": b"\x02" * 5000}


class Outcome(Enum):
    NEW = auto()
    OLD_WITH_WARNING = auto()
    ERROR = auto()


@contextmanager
def two_generations() -> Iterator[tuple[int, Arena]]:
    with arena_of() as (fd, arena):
        arena.snapshot("state", OLD)
        arena.snapshot("state", NEW)
        yield fd, arena


@contextmanager
def flipped(fd: int, byte: int, bit: int) -> Iterator[None]:
    before = os.pread(fd, 1, byte)
    os.pwrite(fd, bytes([before[0] ^ 1 << bit]), byte)
    yield
    os.pwrite(fd, before, byte)


def outcome_of(arena: Arena, *, copy: bool = True) -> Outcome:
    """What a reader gets, after checking that it is nothing else."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            value = arena.restore("state", copy=copy)
        except CorruptError:
            return Outcome.ERROR
    assert all(warning.category is DamageWarning for warning in caught)
    if value == NEW:
        return Outcome.NEW
    assert value == OLD
    assert caught, "an older generation, and no word about it"
    return Outcome.OLD_WITH_WARNING


def fresh_outcome(fd: int) -> tuple[Outcome, bool]:
    """What a process that attaches now gets, and whether verification finds damage."""
    try:
        with open_arena(fd) as arena:
            outcome = outcome_of(arena)
            return outcome, not arena.verify().ok
    except CorruptError:
        return Outcome.ERROR, True


def test_every_bit_flip_in_header_and_slots_is_found_or_harmless() -> None:
    with two_generations() as (fd, attached):
        assert outcome_of(attached) is Outcome.NEW
        found = 0
        for byte in HEADER_AND_SLOTS:
            for bit in range(8):
                with flipped(fd, byte, bit):
                    outcome, reported = fresh_outcome(fd)
                    assert reported, f"bit {bit} of byte {byte}"
                    assert outcome is not Outcome.ERROR or byte < 256, "one sound slot is left"
                    found += outcome is not Outcome.NEW
                    outcome_of(attached)
        assert found > 256 * 8
        assert fresh_outcome(fd) == (Outcome.NEW, False)


def test_every_bit_flip_in_a_catalogue_is_found() -> None:
    with two_generations() as (fd, attached):
        catalogues = [p for p in attached.pieces() if p.kind == "catalogue"]
        assert len(catalogues) == 1
        for byte in range(catalogues[0].offset, catalogues[0].offset + catalogues[0].length):
            for bit in range(8):
                with flipped(fd, byte, bit):
                    assert fresh_outcome(fd) == (Outcome.OLD_WITH_WARNING, True), f"bit {bit} of byte {byte}"
                    assert not attached.verify().ok, "an arena that was attached before finds it too"


def test_random_bit_flips_in_the_data_are_found_or_harmless() -> None:
    rng = random.Random(1500)
    with two_generations() as (fd, attached):
        pieces = [range(p.offset, p.offset + p.length) for p in attached.pieces() if p.kind in ("document", "buffer")]
        outcomes = dict.fromkeys(Outcome, 0)
        for _ in range(RANDOM_FLIPS):
            byte, bit = rng.choice(rng.choice([*pieces, range(384, attached.size)])), rng.randrange(8)
            with flipped(fd, byte, bit):
                outcome, reported = fresh_outcome(fd)
                in_data = any(byte in piece for piece in pieces)
                assert reported or not in_data
                assert outcome is Outcome.NEW or reported
                assert outcome_of(attached, copy=False) is outcome or not in_data
                outcomes[outcome] += 1
        assert outcomes[Outcome.NEW] > 100
        assert outcomes[Outcome.OLD_WITH_WARNING] > 100


def test_burst_of_flips_never_gives_a_wrong_value() -> None:
    rng = random.Random(1501)
    with two_generations() as (fd, _):
        sound = os.pread(fd, 1 << 16, 0)
        for _ in range(300):
            os.pwrite(fd, sound, 0)
            for _ in range(rng.randrange(2, 40)):
                at = rng.choice((rng.randrange(256, 384), rng.randrange(4096, 24_000)))
                os.pwrite(fd, rng.randbytes(1), at)
            fresh_outcome(fd)


def damage(fd: int, arena: Arena, name: str, generation: int, kind: str = "document") -> int:
    """Flip a bit in that generation; where."""
    piece = next(p for p in arena.pieces() if p.name == name and p.kind == kind and p.generations == (generation,))
    before = os.pread(fd, 1, piece.offset)
    os.pwrite(fd, bytes([before[0] ^ 1]), piece.offset)
    return piece.offset


def test_damaged_newest_generation_gives_the_next_older_one_and_says_so() -> None:
    with arena_of() as (fd, arena):
        for number in range(1, 4):
            arena.snapshot("state", {"n": number}, keep=3)
        at = damage(fd, arena, "state", 3)
        with pytest.warns(DamageWarning, match=rf"'state': generation 3: .* byte {at}.*generation 2, of .* is given"):
            assert arena.restore("state") == {"n": 2}
        assert arena.restore("state", generation=2) == {"n": 2}
        with pytest.raises(CorruptError, match="generation 3"):
            arena.restore("state", generation=3)
        report = arena.verify()
        assert [(d.snapshot, d.generation) for d in report.damaged] == [("state", 3)]
        assert str(at) in report.damaged[0].reason
        assert not report.ok

        damage(fd, arena, "state", 2)
        damage(fd, arena, "state", 1)
        with pytest.raises(
            CorruptError, match=r"no sound generation is left.*generation 3.*generation 2.*generation 1"
        ):
            arena.restore("state", default=None)


def test_damage_to_one_snapshot_is_no_matter_to_another() -> None:
    with arena_of() as (fd, arena):
        arena.snapshot("sound", 1)
        arena.snapshot("broken", 2)
        damage(fd, arena, "broken", 1)
        assert arena.restore("sound") == 1
        assert arena.verify("sound").ok
        assert not arena.verify("broken").ok
        with pytest.raises(NotFoundError):
            arena.verify("absent")


def damage_newest_slot(fd: int, commits: int) -> None:
    """Flip a bit in the slot of that commit; the first is the one that made the arena."""
    at = (256, 320)[commits % 2]
    os.pwrite(fd, bytes([os.pread(fd, 1, at)[0] ^ 0x80]), at)


def test_snapshot_that_a_damaged_slot_lost_is_not_passed_over_in_silence() -> None:
    with arena_of() as (fd, arena):
        arena.snapshot("other", 1)
        arena.snapshot("state", {"n": 1})
        damage_newest_slot(fd, 3)
        with pytest.warns(DamageWarning, match=r"commit slot 1.*default"):
            assert arena.restore("state", default="fresh") == "fresh"
        with pytest.raises(NotFoundError, match="commit slot 1"):
            arena.restore("state")
        with pytest.raises(NotFoundError, match="commit slot 1"):
            arena.history("state")


def test_writer_that_overwrites_a_damaged_commit_says_so() -> None:
    with arena_of() as (fd, arena):
        arena.snapshot("state", 1)
        arena.snapshot("state", 2)
        damage_newest_slot(fd, 3)
        with pytest.warns(DamageWarning, match="commit slot 1"):
            arena.snapshot("state", 3)
        assert arena.restore("state") == 3
        assert arena.verify().ok


def test_both_slots_damaged_is_an_error_and_no_empty_arena() -> None:
    with two_generations() as (fd, arena):
        damage_newest_slot(fd, 2)
        damage_newest_slot(fd, 3)
        for use in (arena.snapshots, arena.verify, arena.usage, lambda: arena.restore("state", default=0)):
            with pytest.raises(CorruptError, match=r"no sound commit.*slot 0.*slot 1"):
                use()
        with pytest.raises(CorruptError, match="no sound commit"):
            arena.snapshot("state", 3)


def test_damaged_bytes_are_not_shared_with_a_new_generation() -> None:
    with arena_of() as (fd, arena):
        arena.snapshot("state", OLD)
        damage(fd, arena, "state", 1, "buffer")
        arena.snapshot("state", OLD)
        assert arena.restore("state") == OLD


def test_lazy_views_are_checked_when_they_are_asked_for_and_only_where() -> None:
    chunk = 1 << 20
    with arena_of(8 << 20) as (fd, arena):
        arena.snapshot("state", {"big": bytes(2 * chunk), "other": b"x" * 5000})
        piece = next(p for p in arena.pieces() if p.kind == "buffer" and p.length == 2 * chunk)
        os.pwrite(fd, b"\1", piece.offset + chunk + 5)
        view = arena.restore("state", copy=False, verify="lazy")
        assert verified(view["other"]) == b"x" * 5000
        assert verified(view["big"][:chunk]) == bytes(chunk)
        with pytest.raises(CorruptError, match=f"byte {piece.offset + chunk}"):
            verified(view["big"][chunk - 1 : chunk + 1])
        with pytest.raises(CorruptError):
            verified(view["big"])
        for threads in (1, 2):
            with pytest.raises(CorruptError, match=f"byte {piece.offset + chunk}"):
                arena.restore("state", copy=False, threads=threads)


def test_verification_reads_every_byte_once_and_reports_its_progress() -> None:
    with arena_of(8 << 20) as (_, arena):
        shared = random.Random(1).randbytes(3 << 20)
        arena.snapshot("state", [1, shared])
        arena.snapshot("state", [2, shared])
        for threads in (1, 2):
            done: list[int] = []
            report = arena.verify(threads=threads, progress=done.append)
            assert report.ok
            assert sum(done) == report.bytes_checked
            sizes = [p.length for p in arena.pieces() if p.kind in ("document", "buffer")]
            assert report.bytes_checked == sum(sizes)
            assert cast("int", sum(sizes)) < 4 << 20
