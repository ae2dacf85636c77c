"""What this process remembers of where it found keys, so that it need not look again. Knows no record's layout."""

from collections.abc import Callable, Hashable
from typing import Final

SHORTCUTS_DEFAULT: Final = 1 << 17
"""Most keys that a process remembers the place of, unless it says otherwise: some 400 bytes each."""

Shortcut = tuple[int, int, slice, int, float | None, Callable[[bytes], object] | None]
"""Number of the index's word, and that word; where the value is, and its XXH3-64; when its time is up; what decodes it,
None for bytes as they are.

Valid as long as the word is the same and the value hashes to the same: then it is the value of the very record that was
compared with the key. A plain tuple, because it is taken apart at each read.
"""


class Shortcuts(dict[Hashable, Shortcut]):
    """Shortcuts by key, up to a number. Keys that are equal have the same record, whatever their types."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most
        self._forgone = 0

    def add(self, key: Hashable, shortcut: Shortcut) -> None:
        """Remember one, if there is room; if there was none for long, all others give way to what is read now."""
        try:
            if len(self) < self._most or key in self:
                self[key] = shortcut
                return
        except TypeError:
            return  # it has no hash
        self._forgone += 1
        if self._forgone > 8 * self._most:
            self._forgone = 0
            self.clear()
