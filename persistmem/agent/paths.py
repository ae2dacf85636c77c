"""Where an agent has its socket, lock, state and log. Knows the environment; must not know who listens there."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from persistmem.errors import AgentError

SYSTEM: Final = Path("/run/persistmem")
"""Where the system's agent is. If it is there, everybody uses that one."""


def state_directory() -> Path:
    """Return where an agent leaves what the machine's next boot needs.

    It is ``$PERSISTMEM_STATE_DIR``, else ``/var/lib/persistmem`` for root, else ``$XDG_STATE_HOME/persistmem``, else
    ``~/.local/state/persistmem``.
    """
    if explicit := os.environ.get("PERSISTMEM_STATE_DIR"):
        return Path(explicit).absolute()
    if os.geteuid() == 0:
        return Path("/var/lib/persistmem")
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state"
    return Path(home).absolute() / "persistmem"


@dataclass(frozen=True, slots=True)
class RuntimeDirectory:
    """A directory of one agent: of a user's, mode 0700; or of the system's, root's, and open to all."""

    path: Path
    shared: bool = False

    @classmethod
    def of_system(cls) -> Self:
        """Return where the system's agent is, or would be."""
        return cls(SYSTEM, shared=True)

    @classmethod
    def of_user(cls) -> Self:
        """Return where this user's agent is, or would be.

        It is ``$PERSISTMEM_RUNTIME_DIR``, else the system's if there is one, else one of the user's own.
        """
        if not os.environ.get("PERSISTMEM_RUNTIME_DIR") and SYSTEM.is_dir():
            return cls.of_system()
        return cls.of_own()

    @classmethod
    def of_own(cls) -> Self:
        """Return where an agent of this user's own is, or would be.

        It is ``$PERSISTMEM_RUNTIME_DIR``, else ``$XDG_RUNTIME_DIR/persistmem``, else one in the temp directory.
        """
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
            AgentError: it cannot be made, or it is not a directory of ours that only we can enter; or the system's is
                not one of root's that only root can write to.

        """
        try:
            with suppress(FileExistsError):  # what it is then is looked at below
                self.path.mkdir(mode=0o755 if self.shared else 0o700)
            found = self.path.lstat()
        except OSError as error:
            raise AgentError(
                f"runtime directory {self.path}: {error.strerror}; make it, or set PERSISTMEM_RUNTIME_DIR to another"
            ) from error
        if not stat.S_ISDIR(found.st_mode):
            raise AgentError(f"runtime directory {self.path}: expected a directory, found something else; remove it")
        if self.shared:
            if found.st_uid != 0 or found.st_mode & 0o022:
                raise AgentError(
                    f"runtime directory {self.path}: expected root's, mode 0755, found uid {found.st_uid}, mode"
                    f" {stat.S_IMODE(found.st_mode):04o}; remove it, and start the system's agent again"
                )
            return
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
