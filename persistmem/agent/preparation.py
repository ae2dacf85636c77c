"""A kexec that is being prepared: who asked, for whom it waits, and until when. Knows no message and no kernel."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

P = TypeVar("P")


@dataclass(slots=True, eq=False)
class Preparation(Generic[P]):
    """Waits for applications until all are ready or time is up; then it is complete, until it is taken back.

    >>> done = []
    >>> preparation = Preparation("tool", lasting=False, began=0.0, ends=5.0, waiting={"a", "b"}, complete=done.append)
    >>> preparation.is_due(1.0), preparation.waiting.discard("a"), preparation.is_due(5.0)
    (False, None, True)
    """

    requester: P
    lasting: bool
    """Whether it outlives the requester."""
    began: float
    ends: float
    waiting: set[P]
    """Who was told, and is not ready."""
    complete: "Callable[[Preparation[P]], None]"
    """What follows."""
    told: int = 0
    failed: int = 0
    """How many of those who were told said that they could not get ready."""
    is_complete: bool = False
    preserve: float = 0.0
    """Seconds that preserving took."""

    def __post_init__(self) -> None:
        self.told = len(self.waiting)

    @property
    def unready(self) -> int:
        """How many of those who were told failed, or are not ready yet."""
        return self.failed + len(self.waiting)

    def is_due(self, now: float) -> bool:
        """Whether there is nothing left to wait for."""
        return not self.is_complete and (not self.waiting or now >= self.ends)
