"""What a service manager tells a service of its file descriptor store when it starts it: variables, and no more.

Speaks to nobody, and takes no descriptor; so every process can ask, and few have to go on.
"""

from collections.abc import Mapping


def store_max(environment: Mapping[str, str]) -> int | None:
    """Return how many descriptors this service may store, as its manager says in ``$FDSTORE`` (from systemd 254 on).

    >>> store_max({"FDSTORE": "16"}), store_max({})
    (16, None)
    """
    text = environment.get("FDSTORE", "")
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 10 else None


def has_store(environment: Mapping[str, str]) -> bool:
    """Whether this process is a service's whose manager says that it keeps descriptors for it."""
    if not environment.get("NOTIFY_SOCKET"):
        return False
    from persistmem.carriers.fdnames import from_fdname  # noqa: PLC0415 - most processes are no service's

    stored = any(from_fdname(name) is not None for name in environment.get("LISTEN_FDNAMES", "").split(":"))
    return bool(store_max(environment)) or stored
