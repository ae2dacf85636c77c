"""What an agent's administrator may do with everybody's arenas: see them, and let go of one.

Asks the agent; must not know messages' bytes, nor what is in a memfd.
"""

from collections.abc import Iterator

from persistmem.agent.client import Connection
from persistmem.agent.holder import holder_of
from persistmem.agent.protocol import Arenas, Dropped, Evict, ListAll
from persistmem.agent.records import ArenaRecord
from persistmem.choice import choose
from persistmem.errors import NotFoundError
from persistmem.names import check_name


def list_all_arenas() -> list[ArenaRecord]:
    """Return what the agent keeps for all users, by uid and name; nothing if there is no agent.

    Raises:
        RefusedError: it is not yours to see: on the system's agent root decides, on a user's that user and root.
    """
    connection = _agent()
    return [] if connection is None else [*every_arena(connection)]


def every_arena(connection: Connection) -> Iterator[ArenaRecord]:
    """Give what an agent keeps for all users, by uid and name.

    Raises:
        RefusedError: it is not yours to see.
    """
    page = Arenas((), more=True)
    while page.more:
        last = page.arenas[-1] if page.arenas else None
        page, _ = connection.ask(ListAll(last.uid if last else None, last.name if last else None), Arenas)
        yield from page.arenas


def evict_arena(uid: int, name: str) -> None:
    """Let go of an arena of this user. Processes that have it attached are told at their next operation on it.

    Raises:
        NotFoundError: they have none of this name.
        RefusedError: it is not yours to decide; or a kexec is being prepared.
    """
    check_name(name)
    connection = _agent()
    if connection is None:
        raise NotFoundError(f"uid {uid} has no arena {name!r}, for no agent runs")
    connection.ask(Evict(uid, name), Dropped)


def _agent() -> Connection | None:
    return holder_of(choose().runtime()).connection(start=False)
