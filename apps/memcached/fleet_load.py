"""Visitors who come whether the cache works or not: a Zipf workload, read through a fleet from a slow backend.

Knows the client, and counts what it got; must not know what the servers are or how they are upgraded.
"""

import enum
import itertools
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from pymemcache.client.hash import HashClient
from pymemcache.client.rendezvous import RendezvousHash

from apps.memcached.fleet_nodes import FleetError

PAGES: Final = 5_000
EXPONENT: Final = 0.99
NEW_SHARE: Final = 0.04
"""Of the requests: for a page that nobody has asked for before, which no cache can have."""
RATE: Final = 1500
"""Requests per second, to each fleet."""
BACKEND_SECONDS: Final = 0.02
"""From asking the backend for a page until it is there; it has no limit of how many it computes at a time."""
STEP: Final = 0.5
"""Seconds, in which requests are counted together."""
_PAGE_BYTES: Final = 1000
_BATCH: Final = 500


class Request(NamedTuple):
    """A page that somebody asks for."""

    key: str
    known: bool
    """Whether it was in the cache before any node was upgraded."""


def requests(seed: int) -> Iterator[Request]:
    """Give requests for ever: the same for the same ``seed``."""
    chance = random.Random(seed)  # noqa: S311 - visitors, not secrets
    weights = list(itertools.accumulate(rank**-EXPONENT for rank in range(1, PAGES + 1)))
    for number in itertools.count(1):
        if chance.random() < NEW_SHARE:
            yield Request(f"new:{number}", known=False)
        else:
            yield Request(_page(chance.choices(range(PAGES), cum_weights=weights)[0]), known=True)


def content(key: str) -> bytes:
    """What the backend computes for ``key``."""
    line = f"{key}\n".encode()
    return (line * (_PAGE_BYTES // len(line) + 1))[:_PAGE_BYTES]


def _page(rank: int) -> str:
    return f"page:{rank + 1}"


class ShardsByNumber:
    """pymemcache's rendezvous hashing, over the numbers of nodes instead of their addresses.

    The ports of this fleet are others in every run. By number, every fleet and every run gives the same pages to the
    same node.
    """

    def __init__(self) -> None:
        self._addresses: list[str] = []
        self._shards = RendezvousHash()

    def add_node(self, node: str) -> None:
        """Take a node in: the first is number 0. One that was removed has its number back."""
        if node not in self._addresses:
            self._addresses.append(node)
        self._shards.add_node(str(self._addresses.index(node)))

    def remove_node(self, node: str) -> None:
        """Give its pages to the others."""
        self._shards.remove_node(str(self._addresses.index(node)))

    def get_node(self, key: str) -> str | None:
        """Return the address of the node that has ``key``; None if all are removed."""
        return self._addresses[self.number(key)] if self._shards.nodes else None

    def number(self, key: str) -> int:
        """Return the number of the node that has ``key``."""
        return int(self._shards.get_node(key))


def connect(addresses: Sequence[str]) -> Any:  # noqa: ANN401 - pymemcache's HashClient, which has no types
    """Return a client that shards over ``addresses``, to which a node that is down is a miss.

    After ``retry_attempts`` pymemcache would give up a node, move its pages to the others for ``dead_timeout``, which
    is 60 s, and then back, to whatever the node had kept of them. But a node that is upgraded comes back soon, and
    warm. So none is given up; one that is down is tried again every ``retry_timeout`` seconds, and meanwhile its pages
    are misses at once.
    """
    return HashClient(
        addresses,
        hasher=ShardsByNumber,
        ignore_exc=True,
        retry_attempts=1 << 62,
        retry_timeout=0.1,
        connect_timeout=1,
        timeout=1,
        no_delay=True,
    )


@dataclass(slots=True)
class Step:
    """What became of the requests in ``STEP`` seconds. A request that was no hit was a call of the backend."""

    requests: int = 0
    new: int = 0
    """Misses of pages that no cache could have."""
    away: int = 0
    """Misses of known pages while their node did not answer."""
    empty: int = 0
    """Misses of known pages that their node, which answered, did not have any more."""

    @property
    def backend_calls(self) -> int:
        """All misses."""
        return self.new + self.away + self.empty

    @property
    def caused(self) -> int:
        """Misses that would have been hits, had nobody upgraded."""
        return self.away + self.empty

    @property
    def hits(self) -> int:
        """What was no miss."""
        return self.requests - self.backend_calls


class State(enum.Enum):
    """A node, as its visitors see it: up, then down, then started, and up with its first answer."""

    UP = enum.auto()
    DOWN = enum.auto()
    STARTED = enum.auto()


class Visitors:
    """All visitors of one fleet, in a thread; what the operator says about nodes comes from another."""

    def __init__(self, addresses: Sequence[str], seed: int) -> None:
        self._client = connect(addresses)
        self._shards: ShardsByNumber = self._client.hasher
        self._seed = seed
        self._computing: deque[tuple[float, str]] = deque()
        self.states = [State.UP] * len(addresses)
        self.steps: list[Step] = []
        self.wrong = 0
        """Answers that were not what the backend had computed."""
        self.late = 0.0
        """Seconds that a request was made after it was due, at worst."""

    def warm_up(self) -> None:
        """Store every known page.

        Raises:
            FleetError: the fleet does not have all of them then.

        """
        keys = [_page(rank) for rank in range(PAGES)]
        for start in range(0, PAGES, _BATCH):
            self._client.set_many({key: content(key) for key in keys[start : start + _BATCH]}, noreply=False)
        # Not what set_many returned: with ignore_exc it takes a node that failed for one that stored everything.
        stored = sum(len(self._client.get_many(keys[start : start + _BATCH])) for start in range(0, PAGES, _BATCH))
        if stored < PAGES:
            raise FleetError(f"expected a warm fleet with {PAGES:,} pages, found {stored:,}")

    def visit(self, clock: Callable[[], float], stop: threading.Event) -> None:
        """Make requests, when each is due, until ``stop``; ``clock`` gives seconds since the beginning."""
        for number, request in enumerate(requests(self._seed)):
            due = number / RATE
            while (wait := due - clock()) > 0:
                time.sleep(wait)
            self.late = max(self.late, -wait)
            if stop.is_set():
                break
            self._store_computed(clock())
            self._ask(request, clock())

    def close(self) -> None:
        """Close their connections; not while they make requests."""
        self._client.close()

    def node_stops(self, number: int) -> None:
        """Hear that a node is about to go down."""
        self.states[number] = State.DOWN

    def node_starts(self, number: int) -> None:
        """Hear that a node listens again; it is up when it has answered."""
        self.states[number] = State.STARTED

    def _ask(self, request: Request, now: float) -> None:
        found = self._client.get(request.key)
        step = self._step(now)
        step.requests += 1
        if found is not None:
            self._answered(request.key)
            self.wrong += found != content(request.key)
            return
        if not request.known:
            step.new += 1
        elif self.states[self._shards.number(request.key)] is State.UP:
            step.empty += 1
        else:
            step.away += 1
        self._computing.append((now + BACKEND_SECONDS, request.key))

    def _store_computed(self, now: float) -> None:
        while self._computing and self._computing[0][0] <= now:
            key = self._computing.popleft()[1]
            if self._client.set(key, content(key), noreply=False):
                self._answered(key)

    def _answered(self, key: str) -> None:
        if State.STARTED in self.states:
            number = self._shards.number(key)
            if self.states[number] is State.STARTED:
                self.states[number] = State.UP

    def _step(self, now: float) -> Step:
        while len(self.steps) <= now / STEP:
            self.steps.append(Step())
        return self.steps[int(now / STEP)]
