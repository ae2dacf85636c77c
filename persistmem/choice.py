"""Which carrier keeps an application's arenas, and why that one. Knows the environment; talks to nobody."""

import os
from collections.abc import Mapping
from typing import Final, Literal, NamedTuple, cast, get_args

from persistmem.agent.paths import SYSTEM, RuntimeDirectory
from persistmem.carriers.environment import has_store, store_max
from persistmem.errors import ArgumentError

CarrierName = Literal["systemd", "system", "user"]
"""The service's own file descriptor store; the system's agent; an agent of the user's own."""

VARIABLE: Final = "PERSISTMEM_CARRIER"


class Choice(NamedTuple):
    """A carrier, and what spoke for it."""

    carrier: CarrierName
    why: str

    def runtime(self) -> RuntimeDirectory:
        """Return where the agent is, or would be; the one that a service with a store of its own does without, too."""
        match self.carrier:
            case "system":
                return RuntimeDirectory.of_system()
            case "user":
                return RuntimeDirectory.of_own()
            case "systemd":
                return RuntimeDirectory.of_user()


def choose(carrier: str | None = None, environment: Mapping[str, str] = os.environ) -> Choice:
    """Choose: what is asked for, else the service's own store, else the system's agent, else an agent of one's own.

    Args:
        carrier: what is asked for; None for ``$PERSISTMEM_CARRIER``, and if that is not set either, what there is.
            ``$PERSISTMEM_RUNTIME_DIR`` names an agent of one's own, so it asks for that.
        environment: the process's.

    Raises:
        ArgumentError: there is no such carrier.

    >>> choose("user").carrier, choose(environment={"NOTIFY_SOCKET": "/run/notify", "FDSTORE": "16"}).carrier
    ('user', 'systemd')
    """
    if carrier is not None:
        return Choice(_checked(carrier, "carrier"), "the program asks for it")
    if asked := environment.get(VARIABLE):
        return Choice(_checked(asked, f"${VARIABLE}"), f"${VARIABLE} asks for it")
    if environment.get("PERSISTMEM_RUNTIME_DIR"):
        return Choice("user", "$PERSISTMEM_RUNTIME_DIR says where")
    if has_store(environment):
        room = store_max(environment)
        return Choice("systemd", f"this service has a file descriptor store{f' for {room}' if room else ''}")
    if SYSTEM.is_dir():
        return Choice("system", f"{SYSTEM} is there")
    return Choice("user", "this is no service with a file descriptor store, and the system has no agent")


def _checked(carrier: str, what: str) -> CarrierName:
    if carrier not in get_args(CarrierName):
        raise ArgumentError(f"{what}: expected one of {', '.join(get_args(CarrierName))}, found {carrier[:40]!r}")
    return cast("CarrierName", carrier)
