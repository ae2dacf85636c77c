"""The command line as its users have it: real processes with arguments, files, pipes and terminals."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import persistmem

PATIENCE = 30.0
COMMAND = [sys.executable, "-m", "persistmem"]


@dataclass(frozen=True)
class Answer:
    """What a command left behind."""

    status: int
    out: bytes
    err: str

    @property
    def text(self) -> str:
        return self.out.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class CommandLine:
    """Runs ``persistmem`` in a directory of its own, with an agent of its own."""

    def __init__(self, directory: Path, runtime: Path) -> None:
        self.directory = directory
        self.runtime = runtime

    def environment(self, **more: str) -> dict[str, str]:
        package = str(Path(persistmem.__file__).parents[1])
        kept = {
            name: value
            for name, value in os.environ.items()
            if name not in ("FORCE_COLOR", "COLUMNS", "PYTHONUNBUFFERED")
        }
        return {**kept, "PERSISTMEM_RUNTIME_DIR": str(self.runtime), "PYTHONPATH": package, **more}

    def __call__(
        self, *arguments: str | Path, stdin: bytes | IO[bytes] = b"", environment: Mapping[str, str] | None = None
    ) -> Answer:
        """Run a command to its end."""
        given: dict[str, Any] = {"input": stdin} if isinstance(stdin, bytes) else {"stdin": stdin}
        done = subprocess.run(
            [*COMMAND, *map(str, arguments)],
            capture_output=True,
            cwd=self.directory,
            env=self.environment(**(environment or {})),
            timeout=PATIENCE,
            check=False,
            **given,
        )
        return Answer(done.returncode, done.stdout, done.stderr.decode())

    def python(self, code: str) -> str:
        """Run a program that can attach the same arenas, and return what it prints."""
        done = subprocess.run(
            [sys.executable, "-c", f"from persistmem.attachment import attach\n{code}"],
            capture_output=True,
            cwd=self.directory,
            env=self.environment(),
            timeout=PATIENCE,
            check=False,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def file(self, name: str, content: bytes | str) -> Path:
        path = self.directory / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def agent_pid(self) -> int | None:
        pid = self("status", "--json").json.get("pid")
        assert pid is None or isinstance(pid, int)
        return pid

    def damage(self, arena: str, offset: int) -> None:
        """Flip a byte of an arena behind everybody's back, through the agent's own descriptor."""
        for link in Path(f"/proc/{self.agent_pid()}/fd").iterdir():
            if str(link.readlink()).startswith(f"/memfd:persistmem:{arena}"):
                with link.open("r+b", buffering=0) as memory:
                    byte = os.pread(memory.fileno(), 1, offset)[0]
                    os.pwrite(memory.fileno(), bytes([byte ^ 1]), offset)
                return
        raise AssertionError(f"the agent has no memfd of {arena}")
