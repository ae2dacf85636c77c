"""Who is kept out: other users of the machine, other sites in the user's browser, and names made to point here."""

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator

import httpx
import pytest

from apps.dashboard.peers import uid_of_peer
from persistmem.attachment import agent_status
from tests.cli.support import CommandLine

from .support import PATIENCE, Dashboard, StartDashboard, keep

NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user: run the tests as root")


@pytest.fixture(scope="module")
def untouched(shared: Dashboard) -> Dashboard:
    """A dashboard with buttons, and an arena that nobody verifies."""
    keep("shop", carts=1)
    shared.until("shop made")
    return shared


@pytest.fixture
def dashboard(untouched: Dashboard) -> Iterator[Dashboard]:
    """One that shows an arena and a kernel to which nothing is done, whatever a test tries."""
    yield untouched
    status = agent_status()
    assert status is not None
    assert status.handovers == 0
    assert untouched.page().says("shop made .* not verified yet")


def test_everything_that_is_answered_forbids_what_browsers_can_forbid(dashboard: Dashboard) -> None:
    answers = {
        200: dashboard.client.get("/"),
        404: dashboard.client.get("/nothing"),
        405: dashboard.client.get("/upgrade"),
        403: dashboard.client.post("/upgrade"),
        400: dashboard.client.get("/", headers={"Host": "evil.example"}),
    }
    for status, answer in [*answers.items(), (200, dashboard.client.get("/static/page.js"))]:
        assert answer.status_code == status
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert answer.headers["cache-control"] == "no-store"
        assert "access-control-allow-origin" not in answer.headers
        assert "server" not in answer.headers


def test_pages_use_nothing_from_elsewhere_and_nothing_inline(dashboard: Dashboard) -> None:
    for path in ("/", dashboard.arena("shop"), "/nothing"):
        html = dashboard.client.get(path).text
        page = dashboard.page(path)
        assert all(str(each["src"]).startswith("/static/") for each in page.attributes("script"))
        assert all(str(each["href"]).startswith("/static/") for each in page.attributes("link"))
        assert not page.attributes("style")
        assert not any("style" in attributes for _, attributes in page.elements)
        assert not re.search(r"https?://", html)


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:8765", "localhost.", "", "[::2]", "10.0.0.1"])
def test_a_name_that_was_made_to_point_here_is_refused(dashboard: Dashboard, host: str) -> None:
    answer = dashboard.client.get("/", headers={"Host": host})
    assert answer.status_code == 400
    assert "shop" not in answer.text


@pytest.mark.parametrize("host", ["localhost:9000", "127.0.0.1", "[::1]:1"])
def test_the_machines_own_names_are_answered_through_whatever_port(dashboard: Dashboard, host: str) -> None:
    assert dashboard.client.get("/", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "{url}", "Sec-Fetch-Site": "cross-site"},
        {"Origin": "{url}", "Sec-Fetch-Site": "same-site"},
        {"Origin": "{url}.evil.example"},
        {"Sec-Fetch-Site": "none"},
    ],
    ids=str,
)
def test_a_form_of_another_site_does_nothing_even_with_the_cookie_and_the_token(
    dashboard: Dashboard, headers: dict[str, str]
) -> None:
    form = {"token": dashboard.token()}
    told = {name: value.format(url=dashboard.url) for name, value in headers.items()}
    for path in ("/upgrade", "/verify", f"{dashboard.arena('shop')}/verify"):
        answer = dashboard.client.post(path, data=form, headers=told)
        assert answer.status_code == 403
        assert "nothing was done" in answer.text


def test_a_form_needs_the_token_of_its_own_session(dashboard: Dashboard) -> None:
    token = dashboard.token()
    origin = {"Origin": dashboard.url}
    with httpx.Client(base_url=dashboard.url, verify=False) as other:
        assert other.post("/upgrade", data={"token": token}, headers=origin).status_code == 403
        other.get("/")
        assert other.post("/upgrade", data={"token": token}, headers=origin).status_code == 403
    for form in ({"release": ""}, {"token": ""}, {"token": token[:-1]}, {"token": "é"}):
        answer = dashboard.client.post("/upgrade", data=form, headers=origin)
        assert answer.status_code == 403, form


def test_the_cookie_is_for_this_site_and_not_for_scripts(dashboard: Dashboard) -> None:
    cookie = httpx.get(dashboard.url, verify=False).headers["set-cookie"]
    assert re.fullmatch(r"persistmem-dashboard-\d+=[\w-]{43}; HttpOnly; Path=/; SameSite=strict", cookie)
    assert "set-cookie" not in dashboard.client.get(dashboard.arena("shop")).headers


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_things_are_done_by_post_and_seen_by_get_alone(dashboard: Dashboard, method: str) -> None:
    origin, token = {"Origin": dashboard.url}, dashboard.token()
    for path in ("/upgrade", "/verify", f"{dashboard.arena('shop')}/verify"):
        answer = dashboard.client.request(method, path, params={"token": token}, headers=origin)
        assert answer.status_code == 405
    wanted = 200 if method in ("GET", "HEAD") else 405
    assert dashboard.client.request(method, "/", headers=origin).status_code == wanted


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"token=" + b"x" * 5000, "application/x-www-form-urlencoded", 413),
        (b"&".join(b"a=b" for _ in range(100)), "application/x-www-form-urlencoded", 400),
        (b"\xff=\xff", "application/x-www-form-urlencoded", 400),
        (b"{}", "application/json", 415),
        (b"token=x", "text/plain", 415),
    ],
)
def test_what_is_no_form_is_refused(dashboard: Dashboard, content: bytes, kind: str, status: int) -> None:
    headers = {"Origin": dashboard.url, "Content-Type": kind}
    answer = dashboard.client.post("/upgrade", content=content, headers=headers)
    assert answer.status_code == status


def test_a_read_only_dashboard_has_no_buttons_and_does_nothing(start: StartDashboard, cli: CommandLine) -> None:
    keep("shop", carts=1)
    dashboard = start()
    path = dashboard.arena("shop")
    for each in ("/", path):
        page = dashboard.page(each)
        assert not page.attributes("form")
        assert not page.attributes("button")
        assert "set-cookie" not in dashboard.client.get(each).headers
    for each in ("/upgrade", "/verify", f"{path}/verify"):
        answer = dashboard.client.post(each, data={"token": ""}, headers={"Origin": dashboard.url})
        assert answer.status_code == 403
        assert "--allow-actions" in answer.text
    assert cli("status", "--json").json["handovers"] == 0


ASK = """
import http.client, sys
connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=30)
connection.request("GET", "/", headers={"X-Forwarded-For": "127.0.0.1", "Forwarded": "for=127.0.0.1"})
answer = connection.getresponse()
print(answer.status, answer.read().decode())
"""


def ask_as_nobody(dashboard: Dashboard) -> str:
    port = dashboard.url.rpartition(":")[2]
    done = subprocess.run(
        ["/usr/bin/python3", "-I", "-c", ASK, port] if os.access("/usr/bin/python3", os.X_OK) else
        [sys.executable, "-I", "-c", ASK, port],
        user=NOBODY, group=NOBODY, extra_groups=[], cwd="/",
        capture_output=True, text=True, timeout=PATIENCE, check=True,
    )  # fmt: skip
    return done.stdout


@as_root
def test_another_user_of_the_machine_sees_nothing_unless_invited(start: StartDashboard) -> None:
    keep("shop", carts=1)
    refused = ask_as_nobody(start("--allow-actions"))
    assert refused.startswith(f"403 You are uid {NOBODY}, and this dashboard is for uid 0.")
    assert "shop" not in refused
    invited = ask_as_nobody(start("--user", "nobody"))
    assert invited.startswith("200 ")
    assert "shop" in invited


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "::ffff:127.0.0.1"])
def test_a_connection_belongs_to_the_user_who_has_its_other_end_and_to_nobody_once_that_is_closed(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listen_on = "::1" if host == "::1" else "127.0.0.1"
    try:
        listener = socket.create_server((listen_on, 0), family=socket.AF_INET6 if host == "::1" else socket.AF_INET)
    except OSError:
        pytest.skip("this machine has no IPv6: give lo the address ::1")
    with listener, socket.socket(family) as client:
        client.connect((host, listener.getsockname()[1]))
        accepted, peer = listener.accept()
        with accepted:
            ends = peer[:2], accepted.getsockname()[:2]
            assert uid_of_peer(*ends) == os.geteuid()
            assert uid_of_peer((peer[0], peer[1] % 65535 + 1), ends[1]) is None
            client.close()
            assert accepted.recv(1) == b""
            assert uid_of_peer(*ends) is None
