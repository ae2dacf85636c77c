"""A server from its start to its end: puts the parts together, listens, and stops when it is told to.

Knows every part by its name; must not know what any of them does.
"""

import asyncio
import resource
import signal
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final, NamedTuple

import persistmem
from apps.memcached.actions import Actions
from apps.memcached.answers import Answers
from apps.memcached.conversation import Conversation
from apps.memcached.counts import Counts
from apps.memcached.listening import Address, bind_unix, saying_where
from apps.memcached.protocol import Parser
from apps.memcached.reports import Reports
from apps.memcached.server import Connection
from apps.memcached.storage import Storage

_BACKLOG: Final = 1024
"""Connections that wait to be taken."""
_FILES_BESIDE: Final = 64
"""Files that are open beside connections."""
_LOOK: Final = 0.1
"""Seconds between looks whether the kernel is still the same."""


class Settings(NamedTuple):
    """What a server is told when it starts."""

    name: str
    size: int | None
    addresses: list[Address]
    paths: list[Path]
    connections: int
    """Most connections at a time."""
    item_size_max: int
    """Most bytes of an item's data."""


class Service:
    """One cache, and everybody who asks for it."""

    def __init__(self, settings: Settings) -> None:
        """Open the cache.

        Raises:
            as :class:`Storage`.
        """
        self._settings = settings
        self._counts = Counts(max_connections=settings.connections)
        self._storage = Storage(settings.name, settings.size)
        actions = Actions(self._storage, self._counts, settings.item_size_max)
        self._answers = Answers(actions, Reports(self._storage, self._counts, self._told()))

    def close(self) -> None:
        """Let go of the cache, which stays."""
        self._storage.close()

    async def serve(self, announce: Callable[[str], None]) -> None:
        """Serve until SIGTERM or SIGINT; tell ``announce`` each address as soon as it answers.

        Raises:
            ListenError: it cannot listen there.
        """
        _allow_files(self._settings.connections + _FILES_BESIDE)
        loop, stopped = asyncio.get_running_loop(), asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopped.set)
        with ExitStack() as listening:
            for address in self._settings.addresses:
                with saying_where(address):
                    server = await loop.create_server(self._connect, *address, backlog=_BACKLOG)
                listening.callback(server.close)
                for sock in server.sockets:
                    announce(str(Address(*sock.getsockname()[:2])))
            for path in self._settings.paths:
                with saying_where(path):
                    sock = bind_unix(path)
                listening.callback(path.unlink, missing_ok=True)
                server = await loop.create_unix_server(self._connect, sock=sock, backlog=_BACKLOG)
                listening.callback(server.close)
                announce(str(path))
            while not stopped.is_set():
                self._look_after()
                with suppress(TimeoutError):
                    await asyncio.wait_for(stopped.wait(), _LOOK)

    def _connect(self) -> Connection:
        return Connection(Conversation(Parser(self._settings.item_size_max), self._answers), self._counts)

    def _look_after(self) -> None:
        with suppress(persistmem.Error):  # who asks for something is told
            self._storage.check()

    def _told(self) -> dict[str, int | str]:
        settings = self._settings
        return {
            "maxbytes": self._storage.size,
            "maxconns": settings.connections,
            "tcpport": settings.addresses[0][1] if settings.addresses else 0,
            "udpport": 0,
            "inter": ",".join(host for host, _ in settings.addresses) or "NULL",
            "evictions": "on",
            "domain_socket": ",".join(map(str, settings.paths)) or "NULL",
            "num_threads": 1,
            "cas_enabled": "yes",
            "tcp_backlog": _BACKLOG,
            "binding_protocol": "ascii",
            "item_size_max": settings.item_size_max,
            "flush_enabled": "yes",
        }


def _allow_files(number: int) -> None:
    """Have this process open so many files, if it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = number if hard == resource.RLIM_INFINITY else min(number, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
