"""The two commit slots: reading what was published, publishing the next. Knows catalogues, not what they list."""

from typing import NamedTuple

from persistmem.arena.catalogue import Catalogue, decode_catalogue
from persistmem.arena.layout import (
    EMPTY_SLOT,
    EXTENT_ALIGNMENT,
    SLOT_CHECKSUM_AT,
    SLOT_OFFSETS,
    SLOT_SIZE,
    Checksum,
    Offset,
    Slot,
    align,
    checksum,
    decode_slot,
    encode_slot,
)
from persistmem.arena.memory import Memory
from persistmem.errors import CorruptError

_READS_MAX = 1000


class Commit(NamedTuple):
    """A slot and the catalogue it points at, both verified."""

    slot: Slot
    catalogue: Catalogue

    @property
    def catalogue_span(self) -> tuple[int, int]:
        """Start and end of the catalogue's extent."""
        return self.slot.catalogue_offset, self.slot.catalogue_offset + self.slot.catalogue_length


class State(NamedTuple):
    """What the slots say: the newest commit, the one before it, and what failed its check."""

    newest: Commit
    older: Commit | None
    damage: tuple[str, ...]

    def commits(self) -> tuple[Commit, ...]:
        """The sound commits, newest first. Nothing they point at may be overwritten."""
        return (self.newest,) if self.older is None else (self.newest, self.older)

    def spans(self) -> set[tuple[int, int]]:
        """Start and end of everything that is in use."""
        spans = {commit.catalogue_span for commit in self.commits()}
        for commit in self.commits():
            spans.update(commit.catalogue.spans())
        return spans


class Commits:
    """The commit slots of one arena."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._cached: tuple[bytes, State] | None = None

    def read(self) -> State:
        """What is published now. Costs 128 bytes, and a catalogue when there is a new one.

        Raises:
            CorruptError: neither slot holds a sound commit.
        """
        cached = self._cached
        for _ in range(_READS_MAX):
            raw = self._raw()
            if cached is not None and raw == cached[0]:
                return cached[1]
            commits, damage = self._decode(raw, cached[1].commits() if cached else ())
            # A writer may have published twice in the meantime: damage that stays is damage. And two slots copied one
            # after the other can be two that never stood side by side.
            if self._raw() == raw:
                break
        if not commits:
            raise CorruptError(f"the arena has no sound commit: {'; '.join(damage) or 'both slots are empty'}")
        commits.sort(key=lambda commit: commit.slot.sequence, reverse=True)
        state = State(commits[0], commits[1] if len(commits) > 1 else None, tuple(damage))
        self._cached = raw, state
        return state

    def publish(self, sequence: int, offset: Offset, packed_length: int, packed_checksum: Checksum) -> None:
        """Make the catalogue at ``offset`` the newest. Its bytes and all they point at are written already.

        Until the last store a reader finds the other slot's commit, from then on this one.
        """
        slot = Slot(sequence, offset, packed_length, packed_checksum)
        body, word = encode_slot(slot)
        at = SLOT_OFFSETS[slot.parity]
        self._memory.store(at + SLOT_CHECKSUM_AT, EMPTY_SLOT)
        self._memory.write(at, body)
        self._memory.store(at + SLOT_CHECKSUM_AT, word)

    def _raw(self) -> bytes:
        return bytes(self._memory.read(SLOT_OFFSETS[0], 2 * SLOT_SIZE))

    def _decode(self, raw: bytes, known: tuple[Commit, ...]) -> tuple[list[Commit], list[str]]:
        commits, damage = [], []
        for index in range(2):
            try:
                slot = decode_slot(raw[index * SLOT_SIZE : (index + 1) * SLOT_SIZE], index, self._memory.size)
                if slot is not None:
                    commits.append(next((c for c in known if c.slot == slot), None) or self._commit(slot))
            except CorruptError as error:
                damage.append(str(error))
        return commits, damage

    def _commit(self, slot: Slot) -> Commit:
        packed = bytes(self._memory.read(slot.catalogue_offset, slot.catalogue_length))
        if checksum(packed) != slot.catalogue_checksum:
            raise CorruptError(f"catalogue of commit {slot.sequence}: its checksum does not match")
        catalogue = decode_catalogue(packed, self._memory.size)
        start, end = slot.catalogue_offset, align(slot.catalogue_offset + slot.catalogue_length, EXTENT_ALIGNMENT)
        if any(start < stop and begin < end for begin, stop in catalogue.spans()):
            raise CorruptError(f"catalogue of commit {slot.sequence}: it lies over what it lists")
        return Commit(slot, catalogue)
