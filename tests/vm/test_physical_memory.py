"""The structs of ``abi`` are those that a real kernel writes: memfds are found and read in its physical memory."""

import pytest

from .machine import Job, Run

pytestmark = pytest.mark.vm

JOBS = [Job("tests.vm.physical_guest", (version,)) for version in ("7.2.13", "7.3.4")]
SHAPES = {
    "small": [768, 3, 1],
    "arena": [2048, 8, 1],
    "huge": [4, 1, 1],
    "several_chunks": [131072, 512, 2],
}
"""Folios, pages of their table at 256 a page, and chunks of the list of these pages at 511 a chunk."""


@pytest.mark.parametrize("run", JOBS, indirect=True, ids=lambda job: job.kernels[0])
@pytest.mark.parametrize("name", SHAPES)
def test_a_preserved_memfd_is_decoded_from_the_bytes_that_the_kernel_wrote(run: Run, name: str) -> None:
    found = [report[1:] for report in run.reports if report[0] == name]
    assert found, "it was not found in physical memory"
    for file, decoded, shape in found:
        assert decoded == file
        assert shape == SHAPES[name]
