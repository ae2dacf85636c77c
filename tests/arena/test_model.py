"""The arena beside a plain model of it: whatever is done in whatever order, both say the same."""

import os
import random
from dataclasses import dataclass, field

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from persistmem.arena import Arena
from persistmem.errors import ArenaFullError, BusyError, ExistsError, NotFoundError

from .support import KERNEL, contents, new_memfd, open_arena

SIZE = 128 << 10
NAMES = st.sampled_from(["a", "b", "c", "the/fourth name"])
REGIONS = st.sampled_from(["r", "s"])
MISSING = object()


def buffer(seed: int, length: int) -> bytes:
    return random.Random(seed).randbytes(length)


BUFFERS = st.builds(buffer, st.integers(0, 3), st.sampled_from([4095, 4096, 9000, 30_000]))
DOCUMENTS = st.one_of(
    st.integers(),
    st.tuples(st.text(max_size=9), st.none()),
    BUFFERS,
    st.lists(BUFFERS, max_size=2),
    st.fixed_dictionaries({"n": st.integers(), "big": BUFFERS, "again": BUFFERS}),
)


@dataclass
class Model:
    """What an arena should hold: generations newest first, and regions."""

    snapshots: dict[str, list[tuple[int, object]]] = field(default_factory=dict)
    regions: dict[str, bytes] = field(default_factory=dict)

    def contents(self) -> dict[str, object]:
        held: dict[str, object] = {
            f"{name} generation {number}": value for name, kept in self.snapshots.items() for number, value in kept
        }
        return held | {f"region {name}": data for name, data in self.regions.items()}


class ArenaBesideModel(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.fd = new_memfd(SIZE)
        self.arena: Arena = open_arena(self.fd)
        self.other: Arena = open_arena(self.fd)
        self.model = Model()
        self.views: list[tuple[object, object]] = []

    @initialize()
    def is_empty(self) -> None:
        assert self.arena.snapshots() == []
        assert self.arena.regions() == {}

    @rule(name=NAMES, document=DOCUMENTS, keep=st.integers(1, 4))
    def snapshot(self, name: str, document: object, keep: int) -> None:
        try:
            generation = self.arena.snapshot(name, document, keep=keep)
        except ArenaFullError:
            return
        kept = self.model.snapshots.get(name, [])
        expected = kept[0][0] + 1 if kept else 1
        assert generation.number == expected
        assert generation.kernel == KERNEL
        self.model.snapshots[name] = [(expected, document), *kept][:keep]

    @rule(name=NAMES, copy=st.booleans(), lazy=st.booleans())
    def restore(self, name: str, copy: bool, lazy: bool) -> None:
        verify = "lazy" if lazy and not copy else "eager"
        found = self.other.restore(name, default=MISSING, copy=copy, verify=verify)  # type: ignore[arg-type]
        kept = self.model.snapshots.get(name)
        assert found == kept[0][1] if kept else found is MISSING
        if kept and not copy and len(self.views) < 3:
            self.views.append((found, kept[0][1]))

    @rule(name=NAMES, number=st.integers(0, 12))
    def restore_generation(self, name: str, number: int) -> None:
        kept = dict(self.model.snapshots.get(name, []))
        try:
            assert self.other.restore(name, generation=number) == kept[number]
        except NotFoundError:
            assert number not in kept

    @rule(name=NAMES | REGIONS)
    def remove(self, name: str) -> None:
        try:
            self.arena.remove(name)
        except NotFoundError:
            assert name not in self.model.snapshots
            assert name not in self.model.regions
        except ArenaFullError:
            assert self.views, "an arena that nobody views can always be emptied"
        else:
            self.model.snapshots.pop(name, None)
            self.model.regions.pop(name, None)

    @rule(name=REGIONS, size=st.sampled_from([1, 64, 5000, 20_000]), seed=st.integers(0, 9))
    def write_region(self, name: str, size: int, seed: int) -> None:
        try:
            with self.arena.region(name, None if name in self.model.regions else size) as region:
                assert bytes(region.view()) == self.model.regions.get(name, bytes(size))
                region.view()[:] = buffer(seed, region.size)
                self.model.regions[name] = buffer(seed, region.size)
        except ArenaFullError:
            assert name not in self.model.regions

    @rule(name=REGIONS, size=st.sampled_from([1, 64, 5000, 20_000]))
    def resize_region(self, name: str, size: int) -> None:
        try:
            self.arena.resize_region(name, size)
        except NotFoundError:
            assert name not in self.model.regions
        except ArenaFullError:
            return
        else:
            self.model.regions[name] = self.model.regions[name][:size].ljust(size, b"\0")

    @rule(name=REGIONS)
    def resize_open_region(self, name: str) -> None:
        if name in self.model.regions:
            with self.other.region(name):
                try:
                    self.arena.resize_region(name, 10)
                except BusyError:
                    return
                raise AssertionError("a region was resized under somebody's hands")

    @rule(name=REGIONS)
    def take_a_regions_name(self, name: str) -> None:
        if name in self.model.regions:
            try:
                self.arena.snapshot(name, 1)
            except ExistsError:
                return
            raise AssertionError("a snapshot took the name of a region")

    @rule()
    def attach_again(self) -> None:
        self.arena.close()
        self.arena = open_arena(self.fd)

    @rule()
    def change_roles(self) -> None:
        self.arena, self.other = self.other, self.arena

    @precondition(lambda self: self.views)
    @rule()
    def drop_a_view(self) -> None:
        self.views.pop(0)

    @invariant()
    def holds_what_the_model_holds(self) -> None:
        assert contents(self.other) == self.model.contents()
        assert self.other.snapshots() == sorted(self.model.snapshots)
        for name, kept in self.model.snapshots.items():
            assert [generation.number for generation in self.other.history(name)] == [number for number, _ in kept]

    @invariant()
    def is_sound_and_adds_up(self) -> None:
        assert self.other.verify().ok
        usage = self.other.usage()
        assert usage.live + usage.reusable + usage.free == SIZE - 4096

    @invariant()
    def views_are_as_they_were(self) -> None:
        for view, expected in self.views:
            assert view == expected

    def teardown(self) -> None:
        self.views.clear()
        self.arena.close()
        self.other.close()
        os.close(self.fd)


TestArenaBesideModel = ArenaBesideModel.TestCase
TestArenaBesideModel.settings = settings(max_examples=100, stateful_step_count=50)
