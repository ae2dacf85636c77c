"""Since when the agent and its kernel have been running. Knows /proc and handovers."""

import os
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from apps.dashboard.looking import Picture

_START_TIME = 22
"""Field of /proc/PID/stat, proc_pid_stat(5): when the process started, in ticks since boot."""


def seconds_of_process(pid: int) -> float | None:
    """Return how long a process has been running, the time that the machine was asleep included; None if it is gone.

    >>> 0 <= seconds_of_process(os.getpid()) < 1e9
    True
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text("ascii", "replace")
    except OSError:
        return None
    after_name = text.rpartition(")")[2].split()  # the name may hold anything; what follows it begins with field 3
    return seconds_of_machine() - int(after_name[_START_TIME - 3]) / os.sysconf("SC_CLK_TCK")


def seconds_of_machine() -> float:
    """Return how long the machine's kernel has been running."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def seconds_of_kernel(picture: Picture, process: Callable[[int], float | None] = seconds_of_process) -> float | None:
    """Return how long the kernel that the agent speaks of has been running; None if nobody can tell.

    A simulated one since its handover; the first one as long as its agent, which may have taken the place of another.
    """
    if picture.agent is None:
        return None
    if not picture.is_simulated:
        return seconds_of_machine()
    last = picture.handovers[-1] if picture.handovers else None
    if last is None or last.left is None:
        return process(picture.agent.pid)
    return max(0.0, (picture.taken - last.left - timedelta(seconds=last.dark)).total_seconds())
