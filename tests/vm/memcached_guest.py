"""A user runs the memcached app; a client fills it under one kernel, and finds everything under the next one.

The server is not stopped before the kernel is left: it is as if it were killed.
"""

import hashlib
import subprocess
import sys
import tempfile
from contextlib import closing

from pymemcache.client.base import Client

from . import guest
from .guest import SystemAgent

USER = 1001
ITEMS = 2000
BATCHES = [range(start, start + 100) for start in range(0, ITEMS, 100)]
HOST, PORT = "127.0.0.1", 11211
DAY, HOUR = 86400, 3600
KEYS = [f"page:{number}" for number in range(ITEMS)]

Item = tuple[bytes, int]
"""A value and its flags."""


def item(number: int) -> Item:
    """What is kept under ``KEYS[number]``: lines, NULs and nothing, with flags of up to 32 bits."""
    return b"%d\r\n\0" % number * (number % 50), number * 2_147_483 % 2**32


class Flagged:
    """Has the client take and give a value's flags beside it."""

    def serialize(self, key: str, value: Item) -> Item:
        return value

    def deserialize(self, key: str, value: bytes, flags: int) -> Item:
        return value, flags


def start_server() -> None:
    """Start it as a service manager would; return when it says that it listens."""
    process = subprocess.Popen(
        [
            *[sys.executable, "-m", "apps.memcached", "--name", "sessions", "--size", "64MiB"],
            *["--listen", f"{HOST}:{PORT}"],
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        user=USER,
        group=USER,
        extra_groups=[],
        cwd=tempfile.gettempdir(),
    )
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(line)
        if f"{HOST}:{PORT}" in line:
            return
    raise AssertionError(f"the server ended: {''.join(said)}")


def fill(client: Client) -> None:
    """Put everything in, half of it for a day."""
    for batch in BATCHES:
        for expire, numbers in [(0, batch[::2]), (DAY, batch[1::2])]:
            client.set_many({KEYS[number]: item(number) for number in numbers}, expire, noreply=False)
    client.set("brief", (b"soon gone", 0), 1, noreply=False)
    client.set("long", (b"for an hour", 0), HOUR, noreply=False)
    client.set("visits", (b"41", 0), noreply=False)
    client.set("cart", (b"apples", 7), noreply=False)
    _, token = client.gets("cart")
    client.set("cart:token", (token, 0), noreply=False)


def tell_items(client: Client) -> None:
    """Report how many items are as they were set, what the server counted, and how many cas tokens, and which."""
    found: dict[str, tuple[Item, bytes]] = {}
    for batch in BATCHES:
        found |= client.gets_many([KEYS[number] for number in batch])
    stats = client.stats()
    guest.tell("sound", sum(found.get(key, (None,))[0] == item(number) for number, key in enumerate(KEYS)))
    guest.tell("hits and misses", [stats[b"get_hits"], stats[b"get_misses"]])
    tokens = {key: token for key, (_, token) in found.items()}
    digest = hashlib.sha256(repr(sorted(tokens.items())).encode()).hexdigest()
    guest.tell("tokens", [len(set(tokens.values())), digest])


def go_on(client: Client) -> None:
    """Use what was left by the last kernel's client, and report how that went."""
    guest.tell("brief", client.get("brief") is not None)
    guest.tell("long", client.raw_command("mg long t").decode())
    guest.tell("visits", client.incr("visits", 1))
    token, _ = client.get("cart:token")
    guest.tell("cas", [client.cas("cart", (fruit, 8), token) for fruit in (b"pears", b"plums")])
    (fruit, flags), now = client.gets("cart")
    guest.tell("cart", [fruit.decode(), flags])
    guest.tell("token is another", now != token)
    guest.tell("added", [client.add(key, (b"new", 0), noreply=False) for key in ("page:0", "page:new")])


def main() -> None:
    subprocess.run(["busybox", "ip", "link", "set", "lo", "up"], check=True)
    SystemAgent()
    start_server()
    with closing(Client((HOST, PORT), serde=Flagged(), timeout=60)) as client:
        if guest.stage() == 0:
            fill(client)
        tell_items(client)
        if guest.stage() == 1:
            go_on(client)
    guest.tell_history()
    if guest.stage() + 1 < guest.kernels():
        guest.tell_command("stayed", guest.reboot())


if __name__ == "__main__":
    main()
