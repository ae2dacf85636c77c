"""``make demo-fleet`` shows what it says: with persistmem the backend pays for dark nodes, and not for empty ones."""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path

import pytest
from pymemcache.client.base import Client

from apps.memcached.fleet_load import PAGES, STEP, Step, Visitors, connect, requests
from apps.memcached.fleet_nodes import FleetError, MemcachedNode, PersistmemNode
from apps.memcached.fleet_report import Upgrade, summarise, table

PATIENCE = 30.0
ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "apps.memcached.fleet"]

beside_memcached = pytest.mark.skipif(
    shutil.which("memcached") is None, reason="what persistmem is compared with is missing: apt install memcached"
)


class Place:
    """Where a demonstration runs: its working directory, and its directory for temporary files."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.temporary = directory / "temporary"
        self.temporary.mkdir()

    def environment(self, **more: str) -> dict[str, str]:
        return {**os.environ, "TMPDIR": str(self.temporary), "PYTHONPATH": str(ROOT), **more}

    def run(self, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*COMMAND, *arguments], cwd=self.directory, env=self.environment(**more), capture_output=True,
            text=True, timeout=4 * PATIENCE, check=False,
        )  # fmt: skip

    def is_left(self) -> bool:
        """Whether a file or a process of the demonstration is still there."""
        return any(self.temporary.iterdir()) or any(self._processes())

    def _processes(self) -> Iterator[Path]:
        for process in Path("/proc").glob("[0-9]*/environ"):
            try:
                if f"TMPDIR={self.temporary}".encode() in process.read_bytes().split(b"\0"):
                    yield process
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[list[MemcachedNode]]:
    """Two memcached servers, which listen."""
    with ExitStack() as stack:
        started = []
        for name in ("one", "two"):
            node = MemcachedNode(name, tmp_path / name)
            stack.callback(node.discard)
            node.start()
            started.append(node)
        yield started


def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.005)


def row(told: str, label: str) -> list[str]:
    """The values of a row of the table, one for each fleet."""
    [line] = [line for line in told.splitlines() if line.strip().startswith(label)]
    return re.split(r"\s{2,}", line.strip().removeprefix(label).strip())


def counts(told: str, label: str) -> list[int]:
    return [int(value.replace(",", "")) for value in row(told, label)]


@beside_memcached
def test_nodes_come_back_full_with_persistmem_and_empty_without(place: Place) -> None:
    done = place.run("--seconds", "5")

    assert done.returncode == 0, done.stderr
    assert re.findall(r"node (\d) has a new kernel", done.stderr) == ["1", "2", "3"]
    before = row(done.stdout, "hit ratio before the upgrade")
    assert all(float(ratio.rstrip("%")) > 90 for ratio in before)
    dark, other_dark = counts(done.stdout, "while a node was dark")
    kept, lost = counts(done.stdout, "because a node came back empty")
    assert dark > 0
    assert other_dark > 0
    assert lost > 300
    assert kept < 0.02 * lost
    assert counts(done.stdout, "backend calls due to the upgrade") == [dark + kept, other_dark + lost]
    assert "persistmem: the nodes came back full" in done.stdout
    assert "memcached: the nodes came back empty" in done.stdout
    until(lambda: not place.is_left(), "something of the fleets is left")


def test_without_memcached_persistmem_is_shown_alone(place: Place) -> None:
    done = place.run("--seconds", "4", "--nodes", "1", PATH=str(place.temporary))

    assert done.returncode == 0, done.stderr
    assert "memcached is not installed (Debian: apt install memcached)" in done.stderr
    assert len(row(done.stdout, "because a node came back empty")) == 1
    assert "memcached" not in done.stdout


def test_ctrl_c_ends_the_fleets_and_leaves_nothing_behind(place: Place) -> None:
    demo = subprocess.Popen(
        [*COMMAND, "--nodes", "2", "--seconds", "8"], cwd=place.directory, env=place.environment(),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0,
    )  # fmt: skip
    try:
        assert demo.stderr is not None
        said: list[str] = []
        while "node 1 has a new kernel" not in (line := demo.stderr.readline()):
            assert line, f"it ended before anything was upgraded: {said}"
            said.append(line)
        assert place.is_left()
        os.killpg(demo.pid, signal.SIGINT)
        out, err = demo.communicate(timeout=PATIENCE)
    finally:
        demo.kill()
        demo.wait()
    assert demo.returncode == 128 + signal.SIGINT
    assert err.splitlines()[-1] == "fleet: stopped; nothing of the fleets is left"
    assert out == ""
    until(lambda: not place.is_left(), "something of the fleets is left")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--nodes", "0"], "expected 1 to 9 nodes, found 0"),
        (["--seconds", "nan"], "expected 4 to 3600 seconds, found nan"),
        (["--plot", "fleet.txt"], "expected a name that ends with one of .png, .svg, .pdf, found fleet.txt"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_started(place: Place, arguments: list[str], told: str) -> None:
    done = place.run(*arguments)
    assert done.returncode == 2
    assert told in done.stderr


def test_a_server_that_does_not_start_is_reported_with_what_it_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    node = PersistmemNode("node 1", tmp_path / "node")
    runtime = tmp_path / "node" / "run"
    runtime.mkdir(mode=0o755)
    try:
        with pytest.raises(FleetError, match=r"node 1: its server does not listen; .*expected mode 0700, found 0755"):
            node.start()
    finally:
        runtime.chmod(0o700)
        node.discard()


@beside_memcached
def test_pages_of_a_node_that_was_down_stay_its_own(nodes: list[MemcachedNode]) -> None:
    client = connect([node.address for node in nodes])
    key = next(f"page:{number}" for number in range(100) if client.hasher.number(f"page:{number}") == 0)
    assert client.set(key, b"before", noreply=False)
    nodes[0].stop()
    # Long enough for four connections to be refused: pymemcache gives a node up after three.
    given_up = time.monotonic() + 0.5
    while time.monotonic() < given_up:
        assert client.get(key) is None
        client.set(key, b"while it was down", noreply=False)
        time.sleep(0.01)
    nodes[0].start()
    until(lambda: client.set(key, b"after", noreply=False), "the node is not used again")
    stored = []
    for node in nodes:
        alone = Client(node.address)
        stored.append(alone.get(key))
        alone.close()
    client.close()
    assert stored == [b"after", None]


@beside_memcached
def test_an_answer_that_is_not_what_was_stored_is_counted(nodes: list[MemcachedNode]) -> None:
    visitors = Visitors([node.address for node in nodes], seed=1)
    visitors.warm_up()
    favourite = next(request.key for request in requests(1) if request.known)
    tampering = connect([node.address for node in nodes])
    assert tampering.set(favourite, b"something else", noreply=False)
    tampering.close()
    stop, begun = threading.Event(), time.monotonic()
    thread = threading.Thread(target=visitors.visit, args=(lambda: time.monotonic() - begun, stop))
    thread.start()
    until(lambda: visitors.wrong or not thread.is_alive(), "nobody asks")
    stop.set()
    thread.join()
    visitors.close()
    assert visitors.wrong > 0


@beside_memcached
def test_a_fleet_that_does_not_store_every_page_is_not_taken_for_warm(nodes: list[MemcachedNode]) -> None:
    visitors = Visitors([node.address for node in nodes], seed=1)
    nodes[1].stop()
    with pytest.raises(FleetError, match=f"expected a warm fleet with {PAGES:,} pages, found "):
        visitors.warm_up()
    visitors.close()


def test_the_same_seed_asks_for_the_same_pages_which_follow_zipf() -> None:
    asked = list(islice(requests(7), 50_000))
    assert asked == list(islice(requests(7), 50_000))
    assert asked != list(islice(requests(8), 50_000))
    known = Counter(request.key for request in asked if request.known)
    new = [request.key for request in asked if not request.known]
    assert len(set(new)) == len(new)
    assert len(new) == pytest.approx(0.04 * 50_000, rel=0.1)
    assert known["page:1"] / known["page:10"] == pytest.approx(10**0.99, rel=0.1)


def quiet(seconds: float) -> list[Step]:
    return [Step(requests=1000, new=40) for _ in range(round(seconds / STEP))]


UPGRADES = [Upgrade(0, 5.0, 6.0, {"fleet": 1.0}), Upgrade(1, 10.2, 11.0, {"fleet": 0.5})]


def test_the_summary_tells_dark_nodes_from_empty_ones_and_says_when_it_was_over() -> None:
    steps = quiet(20)
    steps[10] = Step(requests=1000, new=40, away=400)
    steps[21] = Step(requests=1000, new=40, empty=300)
    for index in range(22, 30):
        steps[index] = Step(requests=1000, new=40, empty=30)
    found = summarise(steps, UPGRADES)
    assert found.before == pytest.approx(0.96)
    assert found.worst == pytest.approx((0.96 + 0.56) / 2)
    assert (found.away, found.empty, found.caused) == (400, 540, 940)
    # Each of the two times half a second longer than the steps, because a second is looked at.
    assert found.noticed == pytest.approx(1.0 + 4.5)
    assert found.recovered == pytest.approx(15.0 - 10.2)
    assert row(table({"fleet": found}, UPGRADES), "dark time of a node, on average") == ["0.75 s"]


def test_a_fleet_that_never_noticed_recovered_at_once_and_one_that_still_suffers_did_not() -> None:
    assert summarise(quiet(20), UPGRADES).recovered == 0
    steps = quiet(20)
    steps[-1] = Step(requests=1000, new=40, empty=100)
    assert summarise(steps, UPGRADES).recovered is None


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pictures are drawn by matplotlib: pip install matplotlib")
    from apps.memcached.fleet_plot import draw

    steps = {"persistmem": quiet(20), "memcached": [*quiet(10), Step(), *quiet(9.5)]}
    upgrades = [Upgrade(0, 5.0, 6.0, {"persistmem": 1.0, "memcached": 1.0})]
    draw(steps, {name: summarise(counted, upgrades) for name, counted in steps.items()}, upgrades, tmp_path / "a.svg")
    drawn = (tmp_path / "a.svg").read_text()
    assert "<svg" in drawn
