"""Waiting for descriptors of any number: select(2) knows none from 1024 on, and a worker of many tests has such."""

import select
from typing import Protocol, TypeVar


class _HasFileno(Protocol):
    def fileno(self) -> int: ...


F = TypeVar("F", bound="int | _HasFileno")


def readable(*files: F, seconds: float) -> list[F]:
    """Those that can be read, or have come to their end, once one of them can; none if that takes longer."""
    poll = select.poll()
    by_number = {file if isinstance(file, int) else file.fileno(): file for file in files}
    for number in by_number:
        poll.register(number, select.POLLIN)
    return [by_number[number] for number, _ in poll.poll(seconds * 1000)]
