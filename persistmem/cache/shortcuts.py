"""What this process remembers of where it found keys, so that it need not look again. Knows no record's layout."""

from collections.abc import Callable, Hashable
from typing import Final

SHORTCUTS_MAX: Final = 1 << 15
"""Some 15 MB in each process."""
_FORGONE_MAX: Final = 1 << 18
"""Shortcuts that found no room before all are given up, so that what is read now can have them."""

Shortcut = tuple[int, int, slice, int, int, float | None, Callable[[bytes], object]]
"""Number of the index's word, and that word; where the value is; its checksum, and the seed of that; when its time is
up; what decodes it.

Valid as long as the word is the same and the value has the same checksum: then it is the very record that was compared
with the key. A plain tuple, because it is taken apart at each read.
"""


class Shortcuts(dict[Hashable, Shortcut]):
    """Shortcuts by key. Keys that are equal have the same record, whatever their types."""

    forgone = 0

    def add(self, key: Hashable, shortcut: Shortcut) -> None:
        """Remember one, if there is room."""
        if len(self) < SHORTCUTS_MAX or key in self:
            self[key] = shortcut
            return
        self.forgone += 1
        if self.forgone > _FORGONE_MAX:
            self.forgone = 0
            self.clear()
