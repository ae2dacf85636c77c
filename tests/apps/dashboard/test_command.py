"""Starting and ending it: on loopback addresses alone, with errors that say what to do."""

import re
import signal
import socket
import subprocess

import httpx
import pytest

from apps.dashboard.__main__ import make_parser

from .support import COMMAND, PATIENCE, ROOT, StartDashboard, run


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as ended:
        make_parser().parse_args(arguments)
    assert ended.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("address", ["0.0.0.0:8765", "192.0.2.1:8765", "[::]:8765", "[::ffff:10.0.0.1]:1"])
def test_an_address_that_others_could_reach_is_refused_and_the_way_round_is_named(
    capsys: pytest.CaptureFixture[str], address: str
) -> None:
    told = refusal(capsys, "--listen", address)
    assert "expected a loopback address" in told
    assert "ssh -L" in told


@pytest.mark.parametrize(
    "arguments",
    [
        ["--listen", "8765"],
        ["--listen", "127.0.0.1:65536"],
        ["--listen", "example.org:80"],
        ["--interval", "0"],
        ["--interval", "soon"],
        ["--user", "nobody whom we know"],
    ],
    ids=str,
)
def test_wrong_usage_is_said_in_one_line(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert re.search(rf"\n.*error: argument {arguments[0]}: .+\n$", refusal(capsys, *arguments))


def test_nothing_is_served_on_all_addresses() -> None:
    done = run("--listen", "0.0.0.0:0")
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr


def test_a_port_that_is_taken_is_said_to_be_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = run("--listen", f"127.0.0.1:{taken.getsockname()[1]}")
    assert done.returncode == 1
    assert re.fullmatch(r"dashboard: 127\.0\.0\.1 port \d+: Address already in use; choose .*--listen\n", done.stderr)


@pytest.mark.parametrize(("by", "status"), [(signal.SIGINT, 0), (signal.SIGTERM, -signal.SIGTERM)])
def test_it_ends_when_it_is_told_to(start: StartDashboard, by: signal.Signals, status: int) -> None:
    dashboard = start()
    dashboard.page()
    assert dashboard.end(by) == status


def test_it_listens_on_ipv6_as_well() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6: give lo the address ::1")
    with subprocess.Popen(
        [*COMMAND, "--listen", "[::1]:0"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        found = re.search(r"http://\[::1\]:\d+/", process.stdout.readline())
        assert found
        assert httpx.get(found[0], timeout=PATIENCE, verify=False).status_code == 200
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=PATIENCE)[1] == ""
