"""A place of its own for each test that needs one, and one server for all those that only talk to it."""

from collections.abc import Iterator

import pytest

from .support import House, Memcached, Server, Wire


@pytest.fixture
def house() -> Iterator[House]:
    with House() as found:
        yield found


@pytest.fixture(scope="session")
def lasting() -> Iterator[Server]:
    with House() as house:
        yield house.serve("lasting", "--size", "64MiB")


@pytest.fixture
def server(lasting: Server) -> Server:
    """A server with nothing in it."""
    assert lasting.process.poll() is None, "an earlier test has brought it down"
    with lasting.wire() as wire:
        assert wire.ask(b"flush_all\r\n") == b"OK\r\n"
    return lasting


@pytest.fixture
def wire(server: Server) -> Iterator[Wire]:
    with server.wire() as found:
        yield found


@pytest.fixture(scope="session")
def lasting_memcached() -> Iterator[Memcached]:
    found = Memcached()
    yield found
    found.stop()


@pytest.fixture
def memcached(lasting_memcached: Memcached) -> Memcached:
    """A real one with nothing in it."""
    with lasting_memcached.wire() as wire:
        assert wire.ask(b"flush_all\r\n") == b"OK\r\n"
    return lasting_memcached
