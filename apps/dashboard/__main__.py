"""``python -m apps.dashboard``: serves the dashboard on a loopback address, to one user of this machine."""

import argparse
import ipaddress
import os
import pwd
import socket
import sys
from datetime import UTC, datetime
from typing import Final, NamedTuple

import uvicorn

from apps.dashboard.guard import Guard
from apps.dashboard.peers import Address
from apps.dashboard.upgrading import Upgrader
from apps.dashboard.watching import Watcher
from apps.dashboard.web import Settings, make_app
from persistmem import ArgumentError
from persistmem.agent.paths import RuntimeDirectory
from persistmem.durations import seconds

LISTEN_DEFAULT: Final = "127.0.0.1:8765"
INTERVAL_DEFAULT: Final = "2s"
_CONNECTIONS_MAX: Final = 100


class Listen(NamedTuple):
    """Where to listen."""

    address: Address
    port: int
    """0 for one that is free."""


def parse_listen(text: str) -> Listen:
    """Return the loopback address that ``text`` says.

    Raises:
        argparse.ArgumentTypeError: it says none.
    """
    host, _, port = text.rpartition(":")
    try:
        address = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host.removeprefix("[").removesuffix("]"))
        number = int(port)
    except ValueError:
        address, number = None, -1
    if address is None or not 0 <= number <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r}: expected ADDRESS:PORT, such as {LISTEN_DEFAULT} or [::1]:8765")
    if not address.is_loopback:
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected a loopback address, such as 127.0.0.1 or [::1]. The dashboard has no passwords and no"
            f" TLS: it knows who asks because this machine's kernel does. From another machine, go through ssh -L"
            f" {number}:127.0.0.1:{number}"
        )
    return Listen(address, number)


def parse_duration(text: str) -> float:
    """Return the seconds that ``text`` says, 0.1 or more."""
    try:
        found = seconds(float(text) if text.replace(".", "", 1).isdecimal() else text)
    except ArgumentError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    if found < 0.1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected 100ms or more")
    return found


def parse_user(text: str) -> int:
    """Return the uid of a user."""
    try:
        return pwd.getpwnam(text).pw_uid
    except KeyError:
        raise argparse.ArgumentTypeError(f"{text!r}: there is no such user") from None


def name_of_user(uid: int) -> str:
    """Return what a user is called."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def make_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m apps.dashboard",
        description="Show arenas, caches, integrity and kernel upgrades in a browser on this machine. It looks, and"
        " changes nothing, unless started with --allow-actions. Only you and root can see it.",
    )
    parser.add_argument(
        "--listen", type=parse_listen, default=LISTEN_DEFAULT, metavar="ADDRESS:PORT",
        help="a loopback address; port 0 for any that is free (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--allow-actions", action="store_true", help="have buttons that verify, and that upgrade a simulated kernel"
    )
    parser.add_argument(
        "--interval", type=parse_duration, default=INTERVAL_DEFAULT, metavar="DURATION",
        help="how often to look (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--verify-every", type=parse_duration, metavar="DURATION",
        help="verify every arena at the start, and again after this time, such as 6h (default: never)",
    )  # fmt: skip
    parser.add_argument(
        "--user", type=parse_user, action="append", default=[], metavar="NAME",
        help="let this user of the machine see it, too, and do what you may; may be given several times",
    )  # fmt: skip
    return parser


def main() -> None:
    """Serve until told to stop."""
    arguments = make_parser().parse_args()
    listen: Listen = arguments.listen
    try:
        listener = socket.create_server(
            (str(listen.address), listen.port),
            family=socket.AF_INET6 if listen.address.version == 6 else socket.AF_INET,
        )
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else error
        sys.exit(f"dashboard: {listen.address} port {listen.port}: {reason}; choose another with --listen")
    port: int = listener.getsockname()[1]
    host = f"[{listen.address}]" if listen.address.version == 6 else str(listen.address)
    settings = Settings(
        host=os.uname().nodename,
        user=name_of_user(os.geteuid()),
        runtime=str(RuntimeDirectory.of_user().path),
        names=(host, "localhost", "127.0.0.1", "[::1]"),
        cookie=f"persistmem-dashboard-{port}",
        allow_actions=arguments.allow_actions,
    )
    watcher = Watcher(arguments.interval, _now, verify_every=arguments.verify_every)
    upgrader = Upgrader(_now, on_end=watcher.look_now)
    app = Guard(make_app(settings, watcher, upgrader, _now, name_of_user), uids={0, os.geteuid(), *arguments.user})
    server = uvicorn.Server(
        uvicorn.Config(
            app, http="h11", ws="none", loop="asyncio", lifespan="off", access_log=False, log_level="warning",
            # whoever is at the other end is who asks, whatever headers say
            proxy_headers=False, server_header=False,
            limit_concurrency=_CONNECTIONS_MAX, timeout_graceful_shutdown=1,
        )
    )  # fmt: skip
    watcher.start()
    mode = "with actions" if settings.allow_actions else "read-only"
    print(f"dashboard: http://{host}:{port}/ ({mode}); Ctrl-C ends it", flush=True)
    try:
        server.run(sockets=[listener])
    except KeyboardInterrupt:
        pass
    finally:
        watcher.stop()


def _now() -> datetime:
    return datetime.now(UTC)


if __name__ == "__main__":
    main()
