"""Asking for huge folios costs nothing where the machine gives none, and filling holes changes no byte.

That arenas get them where it does is shown on real kernels: ``tests/vm/test_folios.py``.
"""

import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from persistmem import folios
from persistmem.arena.memfd import create_memfd

SIZE = 4 << 20


@pytest.fixture
def fd() -> Iterator[int]:
    fd = create_memfd("folios", SIZE)
    yield fd
    os.close(fd)


@pytest.mark.parametrize(
    ("says", "given"),
    [
        ("always within_size [advise] never deny force\n", True),
        ("[always] within_size advise never deny force\n", True),
        ("always within_size advise [never] deny force\n", False),
        ("always within_size advise never [deny] force\n", False),
        ("", False),
    ],
)
def test_the_administrators_policy_is_understood(tmp_path: Path, says: str, given: bool) -> None:
    policy = tmp_path / "shmem_enabled"
    policy.write_text(says)
    assert folios.are_given(policy) is given


def test_a_kernel_without_transparent_huge_pages_gives_none(tmp_path: Path) -> None:
    assert folios.are_given(tmp_path / "shmem_enabled") is False


def test_holes_are_given_memory_where_asked_and_what_was_written_stays(fd: int) -> None:
    os.pwrite(fd, b"kept", SIZE // 2 + 100)
    before = os.fstat(fd).st_blocks * 512
    with mmap.mmap(fd, SIZE) as mapping:
        folios.ask(mapping)
        folios.populate(mapping, SIZE // 2 + 50, 3 * mmap.PAGESIZE)
    assert before < os.fstat(fd).st_blocks * 512
    assert os.pread(fd, 4, SIZE // 2 + 100) == b"kept"
    assert os.pread(fd, 50, SIZE // 2 + 50) == bytes(50)


@pytest.mark.skipif(folios.are_given(), reason="this machine gives huge folios")
def test_where_none_are_given_holes_are_left_to_the_kernel(fd: int) -> None:
    folios.fill(fd)
    assert os.fstat(fd).st_blocks == 0


@pytest.mark.skipif(not folios.are_given(), reason="this machine gives no huge folios")
def test_where_they_are_given_holes_are_filled(fd: int) -> None:
    folios.fill(fd)
    assert os.fstat(fd).st_blocks * 512 == SIZE


def test_what_lies_in_small_folios_is_not_counted_as_huge(fd: int) -> None:
    os.pwrite(fd, b"x" * mmap.PAGESIZE, 0)
    assert folios.huge_bytes(fd) in (0, None)
