"""Starting an agent in the background, on demand. Knows its command line and its first word.

Must not know the conversation that follows, nor what is kept.
"""

import os
import select
import subprocess
from time import monotonic
from typing import Final

from persistmem.agent.command import InBackground, Settings, environment, start_command
from persistmem.agent.paths import RuntimeDirectory, state_directory
from persistmem.agent.protocol import OTHER_AGENT, READY
from persistmem.errors import AgentError

IDLE: Final = 600.0
"""Seconds with nothing kept, until an agent that was started on demand ends."""


def start_agent(runtime: RuntimeDirectory, deadline: float) -> None:
    """Start an agent in the background, and wait until it listens, or another one turns out to be there.

    Args:
        runtime: its directory.
        deadline: until when to wait, on the monotonic clock.

    Raises:
        AgentError: this one is not ours to start, or it did not start; the message says why.
        OSError: it could not be executed.
    """
    if runtime.shared:
        raise AgentError(
            f"no agent of the system's runs in {runtime.path}: as root, 'persistmem agent install' has systemd run it,"
            " 'systemctl start persistmem.socket' starts it; or set PERSISTMEM_CARRIER=user, for an agent of your own"
        )
    if runtime.path.stat().st_uid != os.geteuid():
        raise AgentError(f"no agent runs in {runtime.path}, which is another user's: they have to start theirs")
    readable, writable = os.pipe2(os.O_CLOEXEC)
    log = os.open(runtime.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(readable, "rb", buffering=0) as said:
        try:
            started = subprocess.Popen(
                start_command(Settings(runtime, IDLE, state_directory() / "saved"), InBackground(writable)),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[writable],
                env=environment(),
            )
        finally:
            os.close(writable)
            os.close(log)
        # It forks, and this is the parent's end; the agent itself is the child.
        started.wait()
        poll = select.poll()
        poll.register(said, select.POLLIN)
        word = said.read(1000) if poll.poll(max(0.0, deadline - monotonic()) * 1000) else b"it took too long"
    if word not in (READY, OTHER_AGENT):
        reason = (word or b"it ended without a word").decode(errors="replace")
        raise AgentError(f"an agent could not be started in {runtime.path}: {reason}; see {runtime.log}")
