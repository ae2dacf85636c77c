"""A service manager of its own for each test that asks for one."""

from collections.abc import Iterator

import pytest

from .manager import CannotRunError, ServiceManager


@pytest.fixture
def manager() -> Iterator[ServiceManager]:
    """A real one, in which nothing runs; skips where there can be none."""
    one = ServiceManager()
    try:
        one.start()
    except CannotRunError as error:
        pytest.skip(f"no service manager can run here: {error}")
    yield one
    one.stop()
