"""A carrier: who keeps memfds when their process, or the kernel, ends. Four verbs; knows nothing of what is inside."""

from typing import Protocol


class Carrier(Protocol):
    """Keeps file descriptors by name. A name is a string of 1 to 52 bytes of UTF-8 without NUL."""

    def recover(self, name: str) -> int:
        """Return a descriptor (``FD_CLOEXEC`` set, the caller closes it) of what is kept under ``name``.

        Raises:
            NotFoundError: nothing is.

        """

    def keep(self, name: str, fd: int) -> None:
        """Keep what ``fd`` refers to; the caller may close ``fd``.

        Raises:
            ExistsError: something else is kept under this name.

        """

    def drop(self, name: str) -> None:
        """Let go of what is kept under ``name``.

        Raises:
            NotFoundError: nothing is.

        """

    def names(self) -> list[str]:
        """Return the names of all that is kept, sorted."""


class KexecCarrier(Carrier, Protocol):
    """A carrier that takes what it keeps to the next kernel."""

    @property
    def outlives_process(self) -> bool:
        """Whether what is kept stays when this process ends."""

    def preserve(self) -> None:
        """Get ready to cross the next kexec; what is written later crosses, too.

        Raises:
            LiveUpdateError: the kernel refuses, or there is too little memory; all is as before.
        """

    def abort(self) -> None:
        """Take :meth:`preserve` back."""

    def finish(self) -> None:
        """Take what was recovered out of the kernel's hands: only when all of it is checked and kept."""
