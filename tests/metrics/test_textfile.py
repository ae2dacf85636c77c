"""``persistmem metrics --textfile``: a file that node_exporter may read at any moment."""

import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.cli.support import COMMAND, PATIENCE, CommandLine

from .support import Metrics, make_shop

LAST = re.compile(rb"persistmem_scrape_errors \d+\.0\n\Z")
"""How a file ends that is whole."""


def test_the_file_is_what_the_command_prints(cli: CommandLine) -> None:
    make_shop()
    answer = cli("metrics", "--textfile", "persistmem.prom")
    assert (answer.status, answer.out, answer.err) == (0, b"", "")
    (written,) = cli.directory.glob("*.prom*")
    assert Metrics.of(written.read_bytes()).names() == Metrics.of(cli("metrics").out).names()
    assert written.stat().st_mode & 0o444 == 0o444


def test_a_file_that_cannot_be_written_is_named_and_leaves_nothing(cli: CommandLine) -> None:
    (cli.directory / "taken.prom").mkdir()
    for path, reason in (("missing/a.prom", "No such file or directory"), ("taken.prom", "Is a directory")):
        answer = cli("metrics", "--textfile", path)
        assert (answer.status, answer.out) == (1, b"")
        assert re.fullmatch(rf"persistmem: error: {path}.*{reason}.*\n", answer.err)
    assert [path.name for path in cli.directory.glob("*.prom*")] == ["taken.prom"]


@contextmanager
def writing(cli: CommandLine, path: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [*COMMAND, "metrics", "--textfile", str(path), "--every", "100ms"]
    with subprocess.Popen(command, cwd=cli.directory, env=cli.environment(), stderr=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def versions(path: Path, count: int) -> Iterator[bytes]:
    """What is in a file, each time that another one has its place."""
    seen: set[tuple[int, int]] = set()
    deadline = time.monotonic() + PATIENCE
    while len(seen) < count:
        assert time.monotonic() < deadline, f"{len(seen)} versions of {path} in {PATIENCE} s"
        try:
            with path.open("rb") as file:
                found = Path(f"/proc/self/fd/{file.fileno()}").stat()
                content = file.read()
        except FileNotFoundError:
            continue
        if (found.st_ino, found.st_mtime_ns) not in seen:
            seen.add((found.st_ino, found.st_mtime_ns))
            yield content


def test_it_is_written_again_and_again_and_always_whole(cli: CommandLine) -> None:
    path = cli.directory / "persistmem.prom"
    with writing(cli, path) as process:
        up = []
        for content in versions(path, 6):
            assert LAST.search(content)
            up.append(Metrics.of(content)["persistmem_agent_up"])
            if len(up) == 2:
                make_shop()
        assert (up[0], up[-1]) == (0, 1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
        assert process.stderr is not None
        assert process.stderr.read() == b""
    assert LAST.search(path.read_bytes())
    assert list(cli.directory.glob("persistmem.prom*")) == [path]
