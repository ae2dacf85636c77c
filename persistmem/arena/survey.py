"""Reports about an arena: how full, what lies where, what is damaged. Reads; changes nothing."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

from persistmem.arena.catalogue import Extent, GenerationRecord
from persistmem.arena.checks import Progress, find_damage
from persistmem.arena.commits import State
from persistmem.arena.holds import Hold
from persistmem.arena.layout import DATA_OFFSET, EXTENT_ALIGNMENT, align
from persistmem.arena.locks import conflict
from persistmem.arena.memory import Memory

PieceKind = Literal["header", "catalogue", "document", "buffer", "region", "reusable", "free"]


@dataclass(frozen=True, slots=True)
class Usage:
    """How full an arena is, in bytes."""

    size: int
    live: int
    """What the newest commit points at."""
    reusable: int
    """What only the commit before it points at: given up when room is needed."""
    free: int
    snapshots: int
    generations: int
    regions: int


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of an arena, and what it is."""

    offset: int
    length: int
    kind: PieceKind
    name: str | None = None
    """Snapshot or region."""
    generations: tuple[int, ...] = ()
    """Generations of the snapshot that share it."""
    held: bool = False
    """A reader or a view holds it now."""


@dataclass(frozen=True, slots=True)
class Damage:
    """Something that fails its check."""

    snapshot: str | None
    """None: the commit slots or a catalogue."""
    generation: int | None
    reason: str


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What a verification found."""

    bytes_checked: int
    damaged: tuple[Damage, ...]

    @property
    def ok(self) -> bool:
        """Whether everything is sound."""
        return not self.damaged


Held = Callable[[str, GenerationRecord], AbstractContextManager[Hold | None]]
"""Holds a generation while it is being read; yields None if it was given up in the meantime."""


def verify_state(
    state: State, memory: Memory, held: Held, name: str | None, *, threads: int, progress: Progress | None
) -> VerifyReport:
    """Check the generations of snapshot ``name``, or everything. Shared extents are read once."""
    damaged = [Damage(None, None, reason) for reason in state.damage] if name is None else []
    checked: dict[Extent, int | None] = {}
    total = 0
    for snapshot, record in _records(state):
        if name is not None and snapshot != name:
            continue
        with held(snapshot, record) as hold:
            if hold is None:
                continue
            for extent in record.extents():
                if extent not in checked:
                    checked[extent] = find_damage(memory.whole, [extent], threads=threads, progress=progress)
                    total += extent.length
                if (at := checked[extent]) is not None:
                    reason = f"checksum mismatch at byte {at} of the arena"
                    damaged.append(Damage(snapshot, record.number, reason))
    return VerifyReport(total, tuple(damaged))


def survey_usage(state: State, size: int) -> Usage:
    """Add it up. Costs what the number of extents does, whatever their size."""
    catalogue = state.newest.catalogue
    live = _covered({state.newest.catalogue_span, *catalogue.spans()})
    used = _covered(state.spans())
    return Usage(
        size, live, used - live, size - DATA_OFFSET - used,
        len(catalogue.snapshots), sum(len(kept) for kept in catalogue.snapshots.values()), len(catalogue.regions),
    )  # fmt: skip


def survey_pieces(state: State, memory: Memory) -> list[Piece]:
    """The whole arena in order, gaps included."""
    pieces: list[Piece] = []
    end = 0
    for piece in [*sorted(_pieces(state, memory), key=lambda piece: piece.offset), Piece(memory.size, 0, "free")]:
        if piece.offset > end:
            pieces.append(Piece(end, piece.offset - end, "free"))
        if piece.length:
            pieces.append(piece)
        end = align(piece.offset + piece.length, EXTENT_ALIGNMENT)
    return pieces


def _pieces(state: State, memory: Memory) -> Iterator[Piece]:
    yield Piece(0, DATA_OFFSET, "header")
    live: set[tuple[int, int]] = set()

    def piece(span: tuple[int, int], kind: PieceKind, name: str | None = None, numbers: tuple[int, ...] = ()) -> Piece:
        live.add(span)
        start, stop = span
        return Piece(
            start, stop - start, kind, name, numbers, held=conflict(memory.fd, start, stop - start) is not None
        )

    catalogue = state.newest.catalogue
    yield piece(state.newest.catalogue_span, "catalogue")
    for name, region in catalogue.regions.items():
        yield piece((region.offset, region.offset + region.length), "region", name)
    for name, kept in catalogue.snapshots.items():
        numbers: dict[tuple[int, int], tuple[PieceKind, list[int]]] = {}
        for record in kept:
            for extent in record.extents():
                kind: PieceKind = "document" if extent is record.document else "buffer"
                numbers.setdefault((extent.offset, extent.end), (kind, []))[1].append(record.number)
        for span, (kind, sharing) in numbers.items():
            if span not in live:
                yield piece(span, kind, name, tuple(sharing))
    for span in state.spans() - live:
        yield piece(span, "reusable")


def _records(state: State) -> Iterator[tuple[str, GenerationRecord]]:
    for name, records in state.newest.catalogue.snapshots.items():
        for record in records:
            yield name, record


def _covered(spans: set[tuple[int, int]]) -> int:
    return sum(align(stop, EXTENT_ALIGNMENT) - start for start, stop in spans)
