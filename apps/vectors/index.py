"""The index: a table in an arena's region, and the model that made its vectors. What the command line and tests use."""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from types import TracebackType
from typing import Final, Self

from apps.vectors.embedding import SNAPSHOT, Embedder, best_model, dimensions_of, open_embedder, room_for
from apps.vectors.layout import HEADER_SIZE, Geometry, decode_header
from apps.vectors.search import Answer, find_best
from apps.vectors.table import Damage, Row, Table
from persistmem import Arena, Origin, Region, attach
from persistmem.arena.locks import lock, unlock_all
from persistmem.errors import ArgumentError, BusyError, CorruptError, NotFoundError

ARENA: Final = "vectors"
REGION: Final = "table"
_NONE: Final = "there is no index yet: python -m apps.vectors build"
_MIB: Final = 1 << 20
_BATCH: Final = 512
"""Texts that are embedded before they are kept: what a killed builder loses at the most."""
_WRITER_LOCK: Final = 1 << 62
"""The byte that who writes locks: far beyond every arena's end."""


@dataclass(frozen=True, slots=True)
class Repair:
    """What became of an entry that was damaged."""

    damage: Damage
    rebuilt: bool
    """Whether its vector was computed again from its text; if not, the text is lost, and its entry is empty now."""


class Index:
    """Texts that are searched by what they mean. Any number of processes have it open; each may change it."""

    def __init__(self, arena: Arena) -> None:
        """Open the index in ``arena``. Costs the same for any size.

        Raises:
            NotFoundError: there is none.
            CorruptError, NewerFormatError: it cannot be used.
        """
        if REGION not in arena.regions():
            raise NotFoundError(_NONE)
        self._arena = arena
        self._region = arena.region(REGION)
        self._table = _open_table(self._region)

    @classmethod
    def attach(cls) -> Self:
        """Open the index that is kept for this user.

        Raises:
            NotFoundError: there is none.
        """
        try:
            arena = attach(ARENA)
        except NotFoundError as error:
            raise NotFoundError(_NONE) from error
        return cls(arena)

    @classmethod
    def make(cls, model: str | None, capacity: int) -> Self:
        """Open the index that is kept for this user, or make an empty one with room for ``capacity`` texts.

        Args:
            model: what makes its vectors; None for whatever does, or for the best that is installed.
            capacity: of a new one.

        Raises:
            ArgumentError: there is one, made with another model.
            MissingLibraryError: the model is not installed.
        """
        chosen = model or best_model()
        geometry = Geometry(dimensions_of(chosen), capacity, chosen, time.time_ns())
        try:
            arena = attach(ARENA)
        except NotFoundError:
            arena = attach(ARENA, -(-(geometry.size + room_for(chosen)) // _MIB) * _MIB)
        with _writing(arena):
            _make_table(arena, geometry)
        index = cls(arena)
        if model not in (None, found := index.geometry.model):
            index.close()
            raise ArgumentError(
                f"the index was made with the model {found}, not {model}; say --model {found}, or remove it first: "
                f"persistmem rm {ARENA}"
            )
        return index

    @property
    def geometry(self) -> Geometry:
        """What it was made for."""
        return self._table.geometry

    @property
    def origin(self) -> Origin:
        """How the arena came to this process."""
        return self._arena.origin

    @property
    def table(self) -> Table:
        """Its memory."""
        return self._table

    @cached_property
    def embedder(self) -> Embedder:
        """Its model, opened when it is first used."""
        try:
            return open_embedder(self.geometry.model, self._arena)
        except CorruptError as error:
            again = f"persistmem rm {ARENA}/{SNAPSHOT}, and it is read from its package again"
            raise CorruptError(f"the model: {error}; {again}") from error

    def __len__(self) -> int:
        return len(self._table)

    def build(self, texts: Mapping[str, str], progress: Callable[[int], object] = lambda _: None) -> int:
        """Embed and keep what of ``texts`` is not there yet, or is there with another text; what else is there stays.

        Killed at any moment, it goes on there the next time.

        Args:
            texts: by name.
            progress: told how many more texts are there.

        Returns:
            How many were missing.
        """
        there = {row.record.name: row.record.text for row in self._table.entries() if isinstance(row, Row)}
        wanted = [item for item in texts.items() if there.get(item[0]) != item[1]]
        wanted.sort(key=lambda item: (len(item[1]), item[1]))  # like lengths are embedded together, like texts once
        progress(len(texts) - len(wanted))
        for start in range(0, len(wanted), _BATCH):
            batch = dict(wanted[start : start + _BATCH])
            self._put(batch)
            progress(len(batch))
        return len(wanted)

    def add(self, name: str, text: str) -> bool:
        """Add a text, or replace the one of the same name; every process finds it from now on. True if it replaced one.

        Raises:
            SizeError, ArgumentError, ArenaFullError: it cannot be kept; nothing was changed.
        """
        return self._put({name: text})[0]

    def remove(self, name: str) -> None:
        """Remove a text; no process finds it from now on.

        Raises:
            NotFoundError: there is none of this name.
        """
        with _writing(self._arena):
            if not self._table.remove(name):
                raise NotFoundError(f"there is no text {name[:80]!r}")

    def search(self, query: str, count: int) -> Answer:
        """Find the ``count`` texts nearest to ``query``. Costs one pass over the matrix; waits for nobody.

        Raises:
            StaleArenaError: the kernel was replaced; open the index again.
        """
        self._arena.check()
        return find_best(self._table, self.embedder.embed([query])[0], count)

    def verify(self) -> list[Damage]:
        """Check every text and every vector, and return what fails. Some microseconds for each."""
        self._arena.check()
        return [found for found in self._table.entries() if isinstance(found, Damage)]

    def repair(self) -> list[Repair]:
        """Compute damaged vectors again from their texts, and give up the entries whose text is lost."""
        repairs = []
        for damage in self.verify():
            record = damage.record
            vector = self.embedder.embed([record.text])[0] if record is not None else None
            with _writing(self._arena):
                if self._table.read(damage.entry) != damage:
                    continue  # somebody has replaced or removed it since
                if record is not None and vector is not None:
                    self._table.put([(record.name, record.text, vector)], time.time_ns())
                else:
                    self._table.clear(damage.entry)
            repairs.append(Repair(damage, rebuilt=record is not None))
        return repairs

    def close(self) -> None:
        """Let go of it; a view of the matrix that is still in use keeps the memory."""
        del self._table
        with suppress(BusyError):
            self._region.close()
        self._arena.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _put(self, texts: Mapping[str, str]) -> list[bool]:
        different = list(dict.fromkeys(texts.values()))
        vectors = dict(zip(different, self.embedder.embed(different), strict=True))
        rows = [(name, text, vectors[text]) for name, text in texts.items()]
        with _writing(self._arena):
            return self._table.put(rows, time.time_ns())


@contextmanager
def _writing(arena: Arena) -> Iterator[None]:
    """Keep other writers out, in this process and in others; the kernel lets them in if this one dies."""
    fd = arena.descriptor()
    try:
        lock(fd, _WRITER_LOCK, 1)
        yield
    finally:
        unlock_all(fd)  # for a child that was forked meanwhile has it, too
        os.close(fd)


def _open_table(region: Region) -> Table:
    if (geometry := _geometry(region)) is None:
        raise NotFoundError("the making of the index was broken off: python -m apps.vectors build")
    return _table(region, geometry)


def _make_table(arena: Arena, geometry: Geometry) -> None:
    """Make an empty table, unless there is one; what was left of one that was not made to its end goes."""
    if REGION in arena.regions():
        with arena.region(REGION) as region:
            if _geometry(region) is not None:
                return
        arena.remove(REGION)
    with arena.region(REGION, geometry.size) as region:
        _table(region, geometry).format()


def _geometry(region: Region) -> Geometry | None:
    start = region.record.offset
    return decode_header(region.mapping[start : start + HEADER_SIZE], region.size)


def _table(region: Region, geometry: Geometry) -> Table:
    return Table(geometry, region.mapping, region.record.offset, region.view().cast("Q"))
