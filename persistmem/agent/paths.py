"""Where a user's agent has its socket, lock, state and log. Knows the environment; must not know who listens there."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from persistmem.errors import AgentError


@dataclass(frozen=True, slots=True)
class RuntimeDirectory:
    """A directory of one agent, mode 0700, owned by its user."""

    path: Path

    @classmethod
    def of_user(cls) -> Self:
        """Return ``$PERSISTMEM_RUNTIME_DIR``, else ``$XDG_RUNTIME_DIR/persistmem``, else one in the temp directory."""
        if explicit := os.environ.get("PERSISTMEM_RUNTIME_DIR"):
            return cls(Path(explicit).absolute())
        if xdg := os.environ.get("XDG_RUNTIME_DIR"):
            return cls(Path(xdg).absolute() / "persistmem")
        import tempfile  # noqa: PLC0415 - slow to import, and few users have no runtime directory

        return cls(Path(tempfile.gettempdir()) / f"persistmem-{os.geteuid()}")

    @property
    def socket(self) -> Path:
        """Where the agent listens."""
        return self.path / "agent.socket"

    @contextmanager
    def socket_address(self) -> Iterator[str]:
        """Give the socket's address, for as long as the ``with``: short enough for unix(7), whatever the path.

        Raises:
            FileNotFoundError: there is no such directory.
        """
        directory = os.open(self.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield f"/proc/self/fd/{directory}/{self.socket.name}"
        finally:
            os.close(directory)

    @property
    def lock(self) -> Path:
        """Locked by the one agent for its life."""
        return self.path / "agent.lock"

    @property
    def state(self) -> Path:
        """What a next agent has to know if this one is killed."""
        return self.path / "agent.state"

    @property
    def log(self) -> Path:
        """What an agent that runs in the background has to say."""
        return self.path / "agent.log"

    def ensure(self) -> None:
        """Make the directory if it is not there, and check that nobody else can reach into it.

        Raises:
            AgentError: it cannot be made, or it is not a directory of ours that only we can enter.

        """
        try:
            self.path.mkdir(mode=0o700, exist_ok=True)
            found = self.path.lstat()
        except OSError as error:
            raise AgentError(
                f"runtime directory {self.path}: {error.strerror}; make it, or set PERSISTMEM_RUNTIME_DIR to another"
            ) from error
        if not stat.S_ISDIR(found.st_mode):
            raise AgentError(f"runtime directory {self.path}: expected a directory, found something else; remove it")
        # root may use the directory of a user, whose agent answers root
        if found.st_uid != os.geteuid() and os.geteuid() != 0:
            raise AgentError(
                f"runtime directory {self.path}: expected it to belong to uid {os.geteuid()}, found uid {found.st_uid};"
                " set PERSISTMEM_RUNTIME_DIR to a directory of your own"
            )
        if found.st_mode & 0o077:
            raise AgentError(
                f"runtime directory {self.path}: expected mode 0700, found {stat.S_IMODE(found.st_mode):04o};"
                f" run chmod 0700 {self.path}"
            )
