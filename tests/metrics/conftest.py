"""A command line with an agent of its own, and a metrics endpoint of it."""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.cli.conftest import cli
from tests.cli.support import CommandLine

from .support import Endpoint, StartEndpoint

__all__ = ["cli"]


@pytest.fixture
def endpoint(cli: CommandLine) -> Iterator[StartEndpoint]:
    """Starts ``persistmem metrics --listen``, and ends it."""
    with ExitStack() as stack:
        yield lambda address="0": stack.enter_context(Endpoint(cli, address))
