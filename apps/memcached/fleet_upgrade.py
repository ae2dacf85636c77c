"""The operator of all fleets: starts them, upgrades node by node while visitors ask, and ends everything.

Knows nodes and visitors; must not know terminals, pictures or signals. Stopping early is an event that others set.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Final

from apps.memcached.fleet_display import Display
from apps.memcached.fleet_load import STEP, Step, Visitors
from apps.memcached.fleet_nodes import MemcachedNode, Node, PersistmemNode
from apps.memcached.fleet_report import MEMCACHED, PERSISTMEM, Upgrade

_KINDS: Final[Mapping[str, type[Node]]] = {PERSISTMEM: PersistmemNode, MEMCACHED: MemcachedNode}
_BEFORE: Final = 0.13
"""Of the time: until the first node is upgraded; but not less than a second."""
_UPGRADING: Final = 0.37
"""Of the time: in which upgrades begin, evenly."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was seen while every node was upgraded."""

    steps: Mapping[str, Sequence[Step]]
    """By fleet: whole steps only."""
    upgrades: Sequence[Upgrade]
    wrong: Mapping[str, int]
    """By fleet: answers that were not what had been stored."""
    late: Mapping[str, float]
    """By fleet: seconds between the time when a request should have been made and when it was, at worst."""


class Operator:
    """Runs fleets of ``count`` nodes, which all get a new kernel within ``seconds``, until ``stop`` has something."""

    def __init__(self, display: Display, stop: SimpleQueue[None], count: int, seconds: float, seed: int) -> None:
        self._display = display
        self._stop = stop
        self._count = count
        self._seconds = seconds
        self._seed = seed

    def run(self, names: Sequence[str], folder: Path) -> Outcome | None:
        """Do it all, with machines in ``folder``; nothing of them runs any more afterwards.

        Returns:
            None if it was stopped before the end.

        Raises:
            FleetError: a machine did not do what it was told to.

        """
        with ExitStack() as machines:
            fleets: dict[str, list[Node]] = {name: [] for name in names}
            for name, nodes in fleets.items():
                for number in range(1, self._count + 1):
                    node = _KINDS[name](f"{name} node {number}", folder / f"{name}-{number}")
                    machines.callback(node.discard)
                    if not self._stop.empty():
                        return None
                    node.start()
                    nodes.append(node)
            visitors = {name: Visitors([node.address for node in nodes], self._seed) for name, nodes in fleets.items()}
            for each in visitors.values():
                machines.callback(each.close)
                each.warm_up()
            upgrades = self._upgrade_while_visited(fleets, visitors)
        if upgrades is None:
            return None
        return Outcome(
            {name: each.steps for name, each in visitors.items()},
            upgrades,
            {name: each.wrong for name, each in visitors.items()},
            {name: each.late for name, each in visitors.items()},
        )

    def _upgrade_while_visited(
        self, fleets: Mapping[str, Sequence[Node]], visitors: Mapping[str, Visitors]
    ) -> list[Upgrade] | None:
        begun = time.monotonic()

        def clock() -> float:
            return time.monotonic() - begun

        upgrades: list[Upgrade] = []
        with _visited(visitors, clock), self._display.watch(visitors, clock):
            for node in range(self._count):
                moment = self._seconds * (_BEFORE + _UPGRADING * node / self._count)
                if self._until(max(1.0, moment), clock):
                    return None
                upgrades.append(self._upgrade(node, fleets, visitors, clock))
            # However long it took, something is seen of the time after it.
            if self._until(max(self._seconds, clock() + 2 * STEP), clock):
                return None
            whole = int(clock() / STEP)
        for each in visitors.values():
            del each.steps[whole:]
        return upgrades

    def _until(self, moment: float, clock: Callable[[], float]) -> bool:
        """Wait; whether it is to be stopped."""
        self._display.doing = "visitors ask; all nodes are up"
        try:
            self._stop.get(timeout=max(0.0, moment - clock()))
        except Empty:
            return False
        return True

    def _upgrade(
        self,
        node: int,
        fleets: Mapping[str, Sequence[Node]],
        visitors: Mapping[str, Visitors],
        clock: Callable[[], float],
    ) -> Upgrade:
        """Give a node of each fleet a new kernel, at the same time.

        A node of one fleet is started when that of the other is up: what is compared is what they kept, not how fast
        they start.
        """
        stopped, dark = {}, {}
        for name, nodes in fleets.items():
            self._display.doing = f"node {node + 1}: stopping the server"
            stopped[name] = clock()
            visitors[name].node_stops(node)
            nodes[node].stop()
        self._display.doing = f"node {node + 1}: replacing the kernel"
        for nodes in fleets.values():
            nodes[node].replace_kernel()
        for name, nodes in fleets.items():
            self._display.doing = f"node {node + 1}: starting the server"
            nodes[node].start()
            visitors[name].node_starts(node)
            dark[name] = clock() - stopped[name]
        told = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in dark.items())
        self._display.say(f"node {node + 1} has a new kernel; dark: {told}")
        return Upgrade(node, min(stopped.values()), clock(), dark)


@contextmanager
def _visited(visitors: Mapping[str, Visitors], clock: Callable[[], float]) -> Iterator[None]:
    """Let visitors ask, a thread for each fleet, until the ``with`` ends."""
    leave = threading.Event()
    with ThreadPoolExecutor(len(visitors)) as threads:
        running = [threads.submit(each.visit, clock, leave) for each in visitors.values()]
        try:
            yield
        finally:
            leave.set()
        for each in running:
            each.result()
