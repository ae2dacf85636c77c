"""The words of a region, and counting in them; knows not what they count."""

from typing import Final, Protocol

WORD_MAX: Final = (1 << 64) - 1


class Words(Protocol):
    """Aligned 8-byte words, each read and written at once."""

    def __getitem__(self, number: int, /) -> int: ...
    def __setitem__(self, number: int, value: int, /) -> None: ...


def count_up(words: Words, number: int, by: int = 1) -> None:
    """Add to a counter, which somebody may have scribbled in: it goes round at its end."""
    words[number] = words[number] + by & WORD_MAX
