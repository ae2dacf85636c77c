"""``persistmem metrics --listen``: what a client is served, for how long, and to whom."""

import gzip
import os
import re
import signal
import socket
import subprocess
import urllib.error
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics

from persistmem.agent.command import InBackground, Settings, start_command
from persistmem.agent.paths import RuntimeDirectory
from persistmem.arena.layout import HEADER_OFFSET
from persistmem.attachment import agent_status, attach, drop_arena, simulate_reboot, stop_agent
from tests.cli.support import PATIENCE, CommandLine
from tests.waiting import readable

from .support import Metrics, StartEndpoint, flip, make_shop


def test_each_client_gets_the_format_that_it_asks_for(cli: CommandLine, endpoint: StartEndpoint) -> None:
    make_shop()
    simulate_reboot()
    served = endpoint()

    headers, plain = served.get()
    assert headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert Metrics.of(plain).value("persistmem_cache_hits_total", arena="shop", cache="cache") == 3

    headers, text = served.get(Accept="application/openmetrics-text; version=1.0.0, text/plain; q=0.5")
    assert headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0; charset=utf-8")
    open_metrics = Metrics(parse_openmetrics(text.decode()))  # type: ignore[no-untyped-call]  # the library has none
    assert open_metrics.names() == Metrics.of(plain).names()
    assert {family.name: (family.type, family.unit) for family in open_metrics.families}.items() >= {
        ("persistmem_arena_size_bytes", ("gauge", "bytes")),
        ("persistmem_last_handover_duration_seconds", ("gauge", "seconds")),
        ("persistmem_cache_hits", ("counter", "")),
        ("persistmem_agent", ("info", "")),
    }

    headers, packed = served.get(Accept_Encoding="gzip")
    assert headers["Content-Encoding"] == "gzip"
    assert Metrics.of(gzip.decompress(packed)).names() == Metrics.of(plain).names()

    chosen = served.get("?name[]=persistmem_arenas&name[]=persistmem_cache_hits_total")[1]
    assert Metrics.of(chosen).names() == {"persistmem_arenas", "persistmem_cache_hits_total"}

    with pytest.raises(urllib.error.HTTPError, match="405") as refused:
        served.get(method="POST")
    refused.value.close()


def test_every_scrape_tells_how_it_is_then(cli: CommandLine, endpoint: StartEndpoint) -> None:
    served = endpoint()
    assert served.metrics()["persistmem_agent_up"] == 0
    with attach("shop", "1MiB") as arena:
        arena.snapshot("carts", [1])
        assert served.metrics().value("persistmem_arena_generations", arena="shop") == 1
        arena.snapshot("carts", [2])
        assert served.metrics().value("persistmem_arena_generations", arena="shop") == 2
    simulate_reboot(release="9.9.9")
    found = served.metrics()
    assert [labels["kernel"] for labels in found.labels("persistmem_agent_info")] == ["9.9.9"]
    assert [labels["origin"] for labels in found.labels("persistmem_arena_info")] == ["carried over"]
    assert found["persistmem_handovers_total"] == 1
    drop_arena("shop")
    assert served.metrics()["persistmem_arenas"] == 0
    # It keeps no agent from being stopped, and starts none after it.
    assert stop_agent()
    assert served.metrics()["persistmem_agent_up"] == 0
    assert served.metrics()["persistmem_agent_up"] == 0
    assert agent_status() is None


def test_an_agent_that_keeps_nothing_ends_although_it_is_scraped(cli: CommandLine, endpoint: StartEndpoint) -> None:
    ready, writable = os.pipe()
    settings = Settings(RuntimeDirectory(cli.runtime), 3.0, cli.directory)  # time enough to be asked, and scraped
    command = start_command(settings, InBackground(writable))
    subprocess.run(command, pass_fds=[writable], env=cli.environment(), check=True, timeout=PATIENCE)
    os.close(writable)
    assert os.read(ready, 100) == b"ready"
    os.close(ready)
    status = agent_status()
    assert status is not None
    agent = os.pidfd_open(status.pid)
    served = endpoint()
    scrapes = 0
    while not readable(agent, seconds=0.02):
        served.get()
        scrapes += 1
        assert scrapes < 50 * PATIENCE
    os.close(agent)
    assert served.metrics()["persistmem_agent_up"] == 0


def test_what_is_damaged_is_named_once_and_again_when_it_is_damaged_anew(
    cli: CommandLine, endpoint: StartEndpoint
) -> None:
    make_shop()
    served = endpoint()
    with attach("carts") as arena:
        fd = arena.descriptor()
    for change, damaged in ((True, 1), (False, 1), (True, 0), (True, 1)):
        if change:
            flip(fd, HEADER_OFFSET + 40)
        found = served.metrics()
        assert found.value("persistmem_arena_damaged", arena="carts") == damaged
        assert found["persistmem_scrape_errors"] == damaged
    os.close(fd)
    served.process.send_signal(signal.SIGTERM)
    assert served.process.stderr is not None
    assert [line.split(b": ")[:2] for line in served.process.stderr] == [[b"persistmem", b"arena carts"]] * 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_when_it_is_told_to(cli: CommandLine, endpoint: StartEndpoint, number: signal.Signals) -> None:
    served = endpoint()
    served.process.send_signal(number)
    assert served.process.wait(PATIENCE) == 0
    assert served.process.stderr is not None
    assert served.process.stderr.read() == b""


def listeners(pid: int, family: str = "tcp") -> list[str]:
    """Addresses in hexadecimal on which a process's machine listens, of the sockets that the process has."""
    mine = {str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()}
    rows = [line.split() for line in Path(f"/proc/{pid}/net/{family}").read_text().splitlines()[1:]]
    return [row[1].partition(":")[0] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in mine]


@pytest.mark.parametrize("address", ["0", ":0", "127.0.0.1:0", "localhost:0"])
def test_only_this_machine_is_served_unless_one_says_otherwise(
    cli: CommandLine, endpoint: StartEndpoint, address: str
) -> None:
    served = endpoint(address)
    assert re.fullmatch(r"http://(127\.0\.0\.1|localhost):\d+/metrics", served.url)
    on = [*listeners(served.process.pid), *listeners(served.process.pid, "tcp6")]
    assert on in (["0100007F"], ["00000000000000000000000001000000"])


def test_an_address_of_ipv6_is_written_as_in_urls(cli: CommandLine, endpoint: StartEndpoint) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError as error:
        pytest.skip(f"this machine has no IPv6 loopback: {error}")
    assert endpoint("[::1]:0").metrics()["persistmem_agent_up"] == 0


def test_an_address_that_is_taken_is_named(cli: CommandLine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        answer = cli("metrics", "--listen", str(port))
    assert (answer.status, answer.out) == (1, b"")
    assert re.fullmatch(rf"persistmem: error: .*127\.0\.0\.1, port {port}: Address already in use.*\n", answer.err)
