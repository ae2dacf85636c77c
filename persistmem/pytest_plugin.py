"""The fixture that tests of applications use; pytest finds it where persistmem is installed."""

from collections.abc import Iterator

import pytest


@pytest.fixture
def simulated_kernel() -> Iterator[None]:
    """An agent of the test's own on a simulated kernel: see :func:`persistmem.testing.simulated_kernel`."""
    from persistmem import testing  # noqa: PLC0415 - pytest imports this module in every project

    with testing.simulated_kernel():
        yield
