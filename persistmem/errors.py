"""Every error that persistmem raises; knows nothing of the rest of the package.

Each derives from :class:`Error` and from the standard exception that fits, so ``except KeyError`` and
``except persistmem.Error`` both work. The message says what was expected, what was found, and what to do.
"""

import errno


class Error(Exception):
    """Base of all errors of persistmem."""


class NotFoundError(Error, KeyError):
    """There is no arena, snapshot, generation or region of that name."""

    # KeyError shows the repr of its argument; a message is for people.
    __str__ = Exception.__str__


class ExistsError(Error, FileExistsError):
    """The name is taken."""


class InvalidNameError(Error, ValueError):
    """A name that arenas, snapshots or regions cannot have."""


class ArgumentError(Error, ValueError):
    """An argument that makes no sense, alone or beside the others."""


class SizeError(Error, ValueError):
    """A size that is out of range, or that cannot be read."""


class UnsupportedTypeError(Error, TypeError):
    """A document holds a value that cannot be stored; the message names the path to it."""


class CorruptError(Error, ValueError):
    """Memory that fails its check: a checksum, a length, an offset, or a value that cannot be."""


class NewerFormatError(Error, ValueError):
    """The arena was written by a newer persistmem, in a format that this one does not know. It was not touched."""


class NewerStateError(Error, ValueError):
    """An application's state was saved by a newer release of the application. It was not touched."""


class MigrationError(Error, ValueError):
    """An application's state cannot be made one of the version that the program knows. It was not touched."""


class SystemCallError(Error, OSError):
    """The operating system refused something; ``errno`` is its own."""

    def __str__(self) -> str:
        # OSError puts the number first; the message has its name.
        return str(self.strerror)


class ArenaFullError(SystemCallError):
    """The arena has no room. Nothing was changed."""

    def __init__(self, message: str) -> None:
        super().__init__(errno.ENOSPC, message)


class BusyError(Error, TimeoutError):
    """Somebody else holds what was asked for, and did not let go in time."""


class ClosedError(Error, ValueError):
    """The arena was closed in this process."""


class StaleArenaError(Error, ConnectionError):
    """The arena belongs to a kernel that is gone. Attach again to reach its successor."""


class AgentError(Error, ConnectionError):
    """The agent cannot be reached, cannot be started, or broke off."""


class ProtocolError(Error, ValueError):
    """A message that breaks the agent's protocol."""


class RefusedError(Error, PermissionError):
    """The agent refuses: not yours, or not now. The message says which."""


class CarrierError(Error, ConnectionError):
    """The service manager cannot be reached, or does not keep what it was given; the message says what to change."""


class LiveUpdateError(SystemCallError):
    """The live-update device refused a call."""


class KexecError(SystemCallError):
    """The kernel refused to load another one, or to jump into it."""


class KernelImageError(Error, ValueError):
    """A file that is no kernel image, or a damaged one."""


class MissingLibraryError(Error, ImportError):
    """What was asked for takes a library that is not installed; the message names the extra."""


class StorageError(SystemCallError):
    """An arena cannot be saved on disk, or not be read from there. What was saved before is as it was."""


class IncompatibleKernelError(Error, RuntimeError):
    """The state was handed over by a kernel whose ABI this one does not know."""


class DamageWarning(UserWarning):
    """Something in an arena fails its check; what was given instead is named."""


class UnpreservedWarning(UserWarning):
    """An arena outlives less than it could; the message says what to change."""
