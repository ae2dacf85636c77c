"""How an arena came to this process; knows nothing of who brought it."""

from dataclasses import dataclass
from typing import Literal, Self

OriginKind = Literal["created", "reattached", "carried over"]


@dataclass(frozen=True, slots=True)
class Origin:
    """How an arena came to this process, and between which kernels.

    >>> print(Origin("carried over", kernel_from="7.2.13", kernel_to="7.3.4"))
    carried over from kernel 7.2.13 to 7.3.4
    """

    kind: OriginKind
    kernel_from: str | None
    """Release of the kernel that handed the arena over; None unless it was carried over."""
    kernel_to: str
    """Release of the kernel that the arena is in now."""

    @classmethod
    def created(cls, kernel: str) -> Self:
        """An arena that was made just now."""
        return cls("created", None, kernel)

    def __str__(self) -> str:
        if self.kind == "carried over":
            return f"carried over from kernel {self.kernel_from} to {self.kernel_to}"
        return f"{self.kind} on kernel {self.kernel_to}"
