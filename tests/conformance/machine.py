"""What a case is given, and how cases are found and run. Needs no test framework: it also runs as the first process."""

import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Literal

from persistmem.errors import Error, LiveUpdateError
from persistmem.liveupdate.interface import Device, Session, Token

Stage = Literal["before", "after"]
STAGES: tuple[Stage, Stage] = ("before", "after")


@dataclass
class Machine:
    """A machine that can kexec, in one of its two kernels."""

    device: Device
    open_device: Callable[[], Device]
    carries_seals: bool
    """Whether its kernels speak memfd-v2."""
    enforces: bool
    """Whether it is a kernel that does what no process can do to another: see ``kernels_alone``."""
    tmpfs: Path = Path("/dev/shm")
    _held: list[Session] = field(default_factory=list)

    def session(self, name: str) -> Session:
        """A new session, which stays open until the kexec."""
        session = self.device.create_session(name)
        self._held.append(session)
        return session


Case = Callable[[Machine], None]


def kernels_alone(case: Case) -> Case:
    """Mark a case that only a kernel can fulfil; a simulator skips it."""
    case.__dict__["kernels_alone"] = True
    return case


def is_kernels_alone(case: Case) -> bool:
    return bool(case.__dict__.get("kernels_alone"))


def cases(stage: Stage, *modules: ModuleType) -> dict[str, Case]:
    """The cases of that stage, by name."""
    prefix = f"{stage}_"
    return {
        name.removeprefix(prefix): case
        for module in modules
        for name, case in vars(module).items()
        if name.startswith(prefix)
    }


def run_stage(machine: Machine, found: dict[str, Case], report: Callable[[str, str | None], None]) -> None:
    """Run all cases, and report for each its name and None, or what went wrong."""
    for name, case in found.items():
        if is_kernels_alone(case) and not machine.enforces:
            continue
        try:
            case(machine)
        except (AssertionError, OSError, Error):
            report(name, traceback.format_exc())
        else:
            report(name, None)


@contextmanager
def refused(number: int, by: type[OSError] = LiveUpdateError) -> Iterator[None]:
    """The device refuses what is done here, with that errno."""
    try:
        yield
    except by as error:
        if error.errno != number:
            raise AssertionError(f"expected {os.strerror(number)}, found {error}") from error
    else:
        raise AssertionError(f"expected {os.strerror(number)}, found success")


def memfd(content: bytes = b"x", *, flags: int = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING) -> int:
    """A memfd that holds ``content``, at position 0."""
    fd = os.memfd_create("conformance", flags)
    os.pwrite(fd, content, 0)
    return fd


def content_of(fd: int) -> bytes:
    return os.pread(fd, os.fstat(fd).st_size + 1, 0)


ONE, TWO = Token(1), Token(2)
