"""Real processes: programs that attach, and agents that are killed."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from persistmem import attachment
from persistmem.agent.command import environment
from persistmem.agent.protocol import Status
from tests.waiting import readable

PATIENCE = 30.0
"""Seconds after which a test fails instead of waiting on."""


class Program:
    """A Python process that runs lines of code on command, and answers with what an expression is worth."""

    _LOOP = """
import json, os, sys
import persistmem
from persistmem.attachment import *
for line in sys.stdin:
    code = json.loads(line)
    try:
        try:
            value = eval(code, globals())
        except SyntaxError:
            value = exec(code, globals())
        answer = {"value": value if isinstance(value, (int, str, bool, list, dict)) else None}
    except persistmem.Error as error:
        answer = {"error": type(error).__name__, "message": str(error)}
    print(json.dumps(answer), flush=True)
"""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", self._LOOP],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(),
        )

    def begin(self, code: str) -> None:
        """Run ``code``, and do not wait for it."""
        assert self.process.stdin
        self.process.stdin.write(json.dumps(code) + "\n")
        self.process.stdin.flush()

    def answer(self) -> Any:
        """What the last code gave, or ``"ErrorClass: message"``."""
        assert self.process.stdout
        assert readable(self.process.stdout, seconds=PATIENCE), "the program does not answer"
        answer = json.loads(self.process.stdout.readline())
        return f"{answer['error']}: {answer['message']}" if "error" in answer else answer["value"]

    def run(self, code: str) -> Any:
        """Run ``code`` and wait for it."""
        self.begin(code)
        return self.answer()

    def end(self) -> None:
        """Let it end, and wait for that."""
        with self.process:
            assert self.process.stdin
            self.process.stdin.close()


StartProgram = Callable[[], Program]


def wait_for_exit(pid: int, timeout: float = PATIENCE) -> None:
    """Wait until a process that is not a child has ended."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert readable(pidfd, seconds=timeout), f"process {pid} does not end"
    finally:
        os.close(pidfd)


def running_agent() -> Status:
    """What the agent that runs says of itself."""
    status = attachment.agent_status()
    assert status is not None, "no agent runs"
    return status


def kill_agent() -> int:
    """Kill the agent as the kernel would when memory is short; returns the pid it had."""
    status = running_agent()
    os.kill(status.pid, signal.SIGKILL)
    wait_for_exit(status.pid)
    return status.pid
