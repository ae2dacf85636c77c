"""Reading the user's files whole, and writing them so that a failure leaves the old one. Knows bytes, not formats."""

import mmap
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from secrets import token_hex
from typing import BinaryIO, Final

from persistmem.cli.output import note, working

_PIECE: Final = 8 << 20


def is_standard(file: Path | None) -> bool:
    """Whether standard input or output is meant."""
    return file is None or str(file) == "-"


def read_file(file: Path | None) -> memoryview:
    """Return all that is in ``file``, or comes from standard input. Costs the memory that it takes, once."""
    if file is None or is_standard(file):
        if sys.stdin.isatty():
            note("reads from the terminal; end with Ctrl-D")
        return _read_stream(sys.stdin.buffer, "standard input")
    with file.open("rb") as source:
        found = os.fstat(source.fileno())
        if stat.S_ISREG(found.st_mode) and found.st_size:
            return _read_mapped(source, found.st_size, str(file))
        return _read_stream(source, str(file))


def write_file(file: Path | None, data: bytes | memoryview) -> None:
    """Write ``data`` to ``file``, which is replaced whole or not at all, or to standard output.

    What is no regular file (a pipe, ``/dev/null``) is written to directly.
    """
    if file is None or is_standard(file):
        # Not sys.stdout.buffer: under PYTHONUNBUFFERED that is a raw file, which may write a part and call it success.
        with os.fdopen(sys.stdout.fileno(), "wb", closefd=False) as target:
            _write(target, data, "standard output")
        return
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(file.stat().st_mode):
            with file.open("wb") as target:
                _write(target, data, str(file))
            return
    with _replacing(file.resolve()) as target:  # what a symbolic link points to is replaced, not the link
        _write(target, data, str(file))


@contextmanager
def _replacing(file: Path) -> Iterator[BinaryIO]:
    """A new file that takes the place, and the permissions, of ``file`` when the block ends well."""
    draft = file.with_name(f".{file.name[:200]}.{token_hex(4)}")
    try:
        with draft.open("xb") as target:
            with suppress(FileNotFoundError):
                os.fchmod(target.fileno(), stat.S_IMODE(file.stat().st_mode))
            yield target
        draft.replace(file)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def _read_mapped(source: BufferedReader, size: int, name: str) -> memoryview:
    """The first ``size`` bytes, or what there is. The memory is new: nothing touches it before the read itself does."""
    view, done = memoryview(mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)), 0
    with working(f"reading {name}", size) as work:
        while done < size and (count := source.readinto(view[done : done + _PIECE])):
            done += count
            work.advance(count)
    return view[:done]


def _read_stream(source: BinaryIO, name: str) -> memoryview:
    data = bytearray()
    with working(f"reading {name}") as work:
        while piece := source.read(_PIECE):
            data += piece
            work.advance(len(piece))
    return memoryview(data)


def _write(target: BinaryIO, data: bytes | memoryview, name: str) -> None:
    view = memoryview(data)
    with working(f"writing {name}", len(view)) as work:
        for start in range(0, len(view), _PIECE):
            piece = view[start : start + _PIECE]
            target.write(piece)
            work.advance(len(piece))
