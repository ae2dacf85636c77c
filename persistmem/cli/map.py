"""An arena drawn as a map of characters: what is where, which generations, what readers hold. Pure; prints nothing."""

import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final

from persistmem.arena import Piece

ROWS: Final = 8
CELLS_MIN: Final = 16
"""Fewest cells in a row, however narrow the terminal."""

_LABEL: Final = 11
_FIXED: Final = {"header": "#", "catalogue": "#", "reusable": "-", "free": "."}
_TEXTS: Final = {"#": "header and catalogue", "-": "reusable", ".": "free"}
_REST: Final = "+"
_COLOURS: Final = ("cyan", "magenta", "yellow", "green", "blue", "red")


@dataclass(frozen=True, slots=True)
class Mark:
    """One kind of cell: how it looks, and what the legend says of it."""

    symbol: str
    what: str
    generations: str
    style: str
    """For :class:`rich.text.Text`."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One character of the map."""

    mark: Mark
    held: bool

    @property
    def symbol(self) -> str:
        """The mark's symbol; a capital if a reader holds something here."""
        return self.mark.symbol.upper() if self.held else self.mark.symbol

    @property
    def style(self) -> str:
        """The mark's style."""
        return self.mark.style


@dataclass(frozen=True, slots=True)
class LegendEntry:
    """What one mark stands for."""

    mark: Mark
    size: int
    """Bytes, in the whole arena."""
    held: int
    """Bytes of them that readers hold."""


@dataclass(frozen=True, slots=True)
class Map:
    """The drawing."""

    rows: tuple[tuple[int, tuple[Cell, ...]], ...]
    """Each with the offset of its first byte."""
    cell_size: int
    """Bytes that one cell stands for, about."""
    legend: tuple[LegendEntry, ...]


def draw(pieces: Sequence[Piece], size: int, width: int) -> Map:
    """Draw an arena of ``size`` bytes on ``width`` columns.

    A cell shows what most of it is. Only what is free all over is drawn as free, so that nothing small disappears
    because there is room around it.
    """
    marks = _marks(pieces)
    across = max(CELLS_MIN, width - _LABEL)
    count = across * ROWS
    cells = _cells(pieces, marks, size, count)
    rows = tuple((start * size // count, tuple(cells[start : start + across])) for start in range(0, count, across))
    return Map(rows, size // count, tuple(_legend(pieces, marks)))


_Marks = dict[tuple[str, str | None, tuple[int, ...]], Mark]


def _key(piece: Piece) -> tuple[str, str | None, tuple[int, ...]]:
    kind = "snapshot" if piece.kind in ("document", "buffer") else piece.kind
    return kind, piece.name, piece.generations


def _marks(pieces: Sequence[Piece]) -> _Marks:
    """A letter for each set of generations that share memory, newest first, and for each region."""
    marks: _Marks = {(kind, None, ()): Mark(symbol, _TEXTS[symbol], "", "dim") for kind, symbol in _FIXED.items()}
    named = sorted(
        {_key(piece) for piece in pieces if piece.name is not None},
        key=lambda key: (key[1] or "", [-number for number in key[2]]),
    )
    letters = iter(string.ascii_lowercase)
    for index, (name, keys) in enumerate(groupby(named, key=lambda key: key[1])):
        colour = _COLOURS[index % len(_COLOURS)]
        newest = None
        for kind, _, generations in keys:
            newest = newest if newest is not None else max(generations, default=0)
            symbol = next(letters, _REST)
            what = f"region {name}" if kind == "region" else str(name)
            style = f"black on {colour}" if not generations or newest in generations else colour
            numbers = ", ".join(map(str, sorted(generations, reverse=True)))
            marks[kind, name, generations] = (
                Mark(_REST, "everything else", "", "reverse") if symbol == _REST else Mark(symbol, what, numbers, style)
            )
    return marks


def _cells(pieces: Sequence[Piece], marks: _Marks, size: int, count: int) -> list[Cell]:
    free = Cell(marks["free", None, ()], held=False)
    cells, covered = [free] * count, [0] * count
    for piece in pieces:
        if piece.kind == "free":
            continue
        mark, end = marks[_key(piece)], piece.offset + piece.length
        for index in range(piece.offset * count // size, -(-end * count // size)):
            overlap = min(end, (index + 1) * size // count) - max(piece.offset, index * size // count)
            if overlap > covered[index] or cells[index] is free:
                cells[index], covered[index] = Cell(mark, piece.held), overlap
    return cells


def _legend(pieces: Sequence[Piece], marks: _Marks) -> Iterator[LegendEntry]:
    sizes: dict[Mark, int] = {}
    held: dict[Mark, int] = {}
    for piece in pieces:
        mark = marks[_key(piece)]
        sizes[mark] = sizes.get(mark, 0) + piece.length
        held[mark] = held.get(mark, 0) + piece.length * piece.held
    for mark in dict.fromkeys([marks["header", None, ()], *marks.values()]):
        if mark in sizes and mark.symbol not in "-.":
            yield LegendEntry(mark, sizes[mark], held[mark])
    for mark in (marks["reusable", None, ()], marks["free", None, ()]):
        if mark in sizes:
            yield LegendEntry(mark, sizes[mark], held[mark])
