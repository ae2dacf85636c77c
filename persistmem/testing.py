"""For tests and examples: arenas that nobody keeps, and an agent of one's own on a simulated kernel."""

import os
import select
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from persistmem.app.app import started_apps
from persistmem.arena import Arena, Origin
from persistmem.arena.layout import BUFFER_ALIGNMENT, align
from persistmem.arena.memfd import create_memfd
from persistmem.attachment import agent_status, stop_agent
from persistmem.choice import VARIABLE
from persistmem.errors import Error
from persistmem.sizes import parse_size

_DIRECTORIES: Final = ("PERSISTMEM_RUNTIME_DIR", "PERSISTMEM_STATE_DIR")
_PATIENCE: Final = 30.0


def new_arena(size: int | str = "1MiB") -> Arena:
    """A new, empty arena that nobody keeps.

    >>> new_arena("64KiB").snapshots()
    []
    """
    kernel = os.uname().release
    fd = create_memfd("testing", align(parse_size(size), BUFFER_ALIGNMENT))
    try:
        Arena.format(fd, kernel=kernel)
        return Arena(fd, kernel=kernel, origin=Origin.created(kernel))
    finally:
        os.close(fd)


@contextmanager
def simulated_kernel() -> Iterator[None]:
    """Have this process, and those it starts, use an agent of their own, which is gone with all it kept in the end.

    It is a real one, in a process of its own, on a simulated kernel; nothing that the user has elsewhere is touched.
    Applications that were started meanwhile, and not stopped, as by a server's first request, are stopped.

    As a pytest fixture it is called ``simulated_kernel``, too. Cost: starting the agent at the first use, which takes
    some tenths of a second. Not for two at once in one process: it sets environment variables.

    >>> import persistmem
    >>> with simulated_kernel():
    ...     persistmem.attach("shop", "1MiB").origin.kind
    'created'
    """
    before = {name: os.environ.get(name) for name in (*_DIRECTORIES, VARIABLE)}
    directory = Path(tempfile.mkdtemp(prefix="persistmem-"))
    os.environ.update(
        {name: str(directory / name.split("_")[1].lower()) for name in _DIRECTORIES}, **{VARIABLE: "user"}
    )
    theirs = started_apps()
    try:
        (directory / "runtime").mkdir(mode=0o700)
        yield
    finally:
        try:
            for app in started_apps() - theirs:
                with suppress(Error):  # nobody will miss what cannot be saved
                    app.stop()
            _end_agent()
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value
            shutil.rmtree(directory, ignore_errors=True)


def _end_agent() -> None:
    status = agent_status()
    if status is None:
        return
    agent = os.pidfd_open(status.pid)
    try:
        stop_agent(discard=True)
        poll = select.poll()
        poll.register(agent, select.POLLIN)
        poll.poll(_PATIENCE * 1000)
    finally:
        os.close(agent)
