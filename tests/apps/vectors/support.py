"""The app's commands and processes, tables in memory of the test's own, and texts to search in."""

import mmap
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from apps.vectors.layout import Geometry
from apps.vectors.ngrams import Ngrams
from apps.vectors.table import Damage, Row, Table
from persistmem import attach
from tests.cli.support import PATIENCE, Answer, CommandLine

TEXTS = {
    "ferry": "a boat that carries people and vehicles across a river",
    "kayak": "a narrow boat that is moved with a double paddle",
    "telescope": "an instrument that makes distant stars look near",
    "barometer": "an instrument that measures the pressure of the air",
    "homesick": "longing to return home",
    "zebra": "a striped animal of the African plains",
}


class App:
    """Runs ``python -m apps.vectors`` in the directory of a command line, with its agent."""

    def __init__(self, cli: CommandLine) -> None:
        self.cli = cli
        self.environment = cli.environment(VECTORS_MODEL="ngrams", OPENBLAS_NUM_THREADS="1")

    def __call__(self, *arguments: str | Path) -> Answer:
        """Run a command to its end."""
        done = subprocess.run(
            [sys.executable, "-m", "apps.vectors", *map(str, arguments)],
            capture_output=True, cwd=self.cli.directory, env=self.environment, timeout=PATIENCE, check=False,
        )  # fmt: skip
        return Answer(done.returncode, done.stdout, done.stderr.decode())

    @contextmanager
    def start(self, *command: str | Path) -> Iterator["subprocess.Popen[str]"]:
        """Start ``python`` with these arguments; it is ended in the end."""
        with subprocess.Popen(
            [sys.executable, *map(str, command)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8",
            cwd=self.cli.directory, env=self.environment,
        ) as process:  # fmt: skip
            try:
                yield process
            finally:
                process.kill()

    def file(self, texts: Mapping[str, str]) -> Path:
        """A file of texts, as the app reads it."""
        return self.cli.file("texts.tsv", "".join(f"{name}\t{text}\n" for name, text in texts.items()))

    def build(self, texts: Mapping[str, str], *options: str) -> Answer:
        """Build the index of ``texts``."""
        answer = self("build", self.file(texts), *options)
        assert answer.status == 0, answer.err
        return answer

    def found(self, query: str, count: int = 3) -> list[str]:
        """The names of what a search prints."""
        answer = self("search", query, "-k", str(count))
        assert answer.status == 0, answer.err
        return [line.split(maxsplit=1)[1].partition(":")[0] for line in answer.text.splitlines()]


def many_texts(count: int) -> dict[str, str]:
    """As many different texts as one likes."""
    kinds = list(TEXTS.values())
    return {f"text {number}": f"{kinds[number % len(kinds)]}, number {number}" for number in range(count)}


def new_table(entries: int = 8, dimensions: int = Ngrams.dimensions) -> tuple[Table, mmap.mmap]:
    """An empty table, and the memory that is all of it."""
    geometry = Geometry(dimensions, entries, "ngrams", 1)
    memory = mmap.mmap(-1, geometry.size)
    table = table_in(memory, geometry)
    table.format()
    return table, memory


def table_in(memory: mmap.mmap, geometry: Geometry) -> Table:
    """The table that ``memory`` holds, as another process would have it."""
    return Table(geometry, memory, 0, memoryview(memory).cast("Q"))


def put(table: Table, texts: Mapping[str, str]) -> None:
    """Embed and put texts."""
    vectors = Ngrams().embed(list(texts.values()))
    table.put([(name, text, vector) for (name, text), vector in zip(texts.items(), vectors, strict=True)], 1)


def rows_of(table: Table) -> dict[str, Row]:
    """All texts by name; fails if one is damaged or there twice."""
    rows = list(table.entries())
    assert not [row for row in rows if isinstance(row, Damage)]
    sound = [row for row in rows if isinstance(row, Row)]
    named = {row.record.name: row for row in sound}
    assert len(named) == len(sound) == len(table)
    return named


def flip_bit(at: int) -> None:
    """Damage the arena's memory behind everybody's back."""
    with attach("vectors") as arena:
        fd = arena.descriptor()
    byte = os.pread(fd, 1, at)[0]
    os.pwrite(fd, bytes([byte ^ 1]), at)
    os.close(fd)
