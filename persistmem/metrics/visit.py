"""One short conversation with the agent that runs: starts none, and leaves nothing that an agent would have to be for.

A Holder hands back what it holds when an agent is killed, and starts another for that; who only looks must not.
"""

import socket
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self, TypeVar

from persistmem.agent import datagrams
from persistmem.agent.paths import RuntimeDirectory
from persistmem.agent.protocol import (
    Arenas,
    AskHandover,
    AskStatus,
    Attach,
    Attached,
    Conversation,
    Gone,
    HandoverAnswer,
    Hello,
    List,
    Preparing,
    Refusal,
    Request,
    Status,
    Welcome,
    refused,
)
from persistmem.agent.records import ArenaRecord, Handover
from persistmem.errors import AgentError, Error, ProtocolError

_POLL: Final = 0.001
R = TypeVar("R")


class VisitEndedError(AgentError):
    """The agent ended, or took too long: nothing more can be asked."""


class Visit:
    """A connection that ends with a ``with``, or at its deadline. For one thread."""

    def __init__(self, sock: socket.socket, clock: Callable[[], float], deadline: float) -> None:
        """Greet the agent at the other end of ``sock``. Use :func:`visit`."""
        self._sock = sock
        self._clock = clock
        self._deadline = deadline
        self._conversation = Conversation("client")
        self.kernel = self._ask(Hello(None), Welcome)[0].kernel

    def status(self) -> Status:
        """Return what the agent is and has."""
        return self._ask(AskStatus(), Status)[0]

    def arenas(self) -> list[ArenaRecord]:
        """Return what the agent keeps for this user, by name."""
        found: list[ArenaRecord] = []
        more = True
        while more:
            page, _ = self._ask(List(found[-1].name if found else None), Arenas)
            found.extend(page.arenas)
            more = page.more and bool(page.arenas)
        return found

    def borrow(self, name: str) -> tuple[ArenaRecord, int]:
        """Return an arena's record, and a descriptor that the caller closes.

        Raises:
            NotFoundError: there is none of this name.
        """
        answer, fds = self._ask(Attach(name, None), Attached)
        return answer.arena, fds[0]

    def handover(self, number: int) -> Handover:
        """Return the handover of that number.

        Raises:
            NotFoundError: there is none, or no longer.
        """
        return self._ask(AskHandover(number), HandoverAnswer)[0].handover

    def _ask(self, request: Request, expected: type[R]) -> tuple[R, list[int]]:
        """Return the answer with its descriptors.

        Raises:
            VisitEndedError: the agent ended, or did not answer before the deadline.
            Error: the agent refused, and this is why.
        """
        try:
            self._sock.settimeout(self._left())
            datagrams.send(self._sock, self._conversation.send(request))
            message, fds = self._receive()
            while isinstance(message, Gone | Preparing):  # others drop arenas, or leave the kernel, meanwhile
                message, fds = self._receive()
        except Error:
            raise
        except TimeoutError as error:
            raise VisitEndedError("the agent does not answer; see its log") from error
        except OSError as error:
            raise VisitEndedError(f"the agent ended before it answered ({error.strerror})") from error
        if isinstance(message, Refusal):
            raise refused(message)
        if isinstance(message, expected):
            return message, fds
        datagrams.close_all(fds)
        raise ProtocolError(f"expected {expected.__name__} from the agent, found {type(message).__name__}")

    def _receive(self) -> tuple[object, list[int]]:
        self._sock.settimeout(self._left())
        data, fds = datagrams.receive(self._sock)
        if not data:
            datagrams.close_all(fds)
            raise VisitEndedError("the agent ended before it answered")
        try:
            return self._conversation.receive(data, fds=len(fds)), fds
        except ProtocolError:
            datagrams.close_all(fds)
            raise

    def _left(self) -> float:
        return max(_POLL, self._deadline - self._clock())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._sock.close()


def visit(runtime: RuntimeDirectory, clock: Callable[[], float], timeout: float) -> Visit | None:
    """Call on the agent of ``runtime`` for at most ``timeout`` seconds; None if none runs.

    Raises:
        AgentError: there is one, and it does not answer; or the runtime directory is not safe to use.
        RefusedError: it serves somebody else.
        ProtocolError: it speaks another version of the protocol.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        if runtime.socket.exists():
            runtime.ensure()
            deadline = clock() + timeout
            sock.settimeout(timeout)
            with runtime.socket_address() as address:
                sock.connect(address)
            return Visit(sock, clock, deadline)
    except BaseException as error:
        sock.close()
        if isinstance(error, FileNotFoundError | ConnectionRefusedError):
            return None
        if isinstance(error, OSError) and not isinstance(error, Error):
            reason = f"the agent in {runtime.path} cannot be reached: {error.strerror or error}"
            raise AgentError(reason) from error
        raise
    sock.close()
    return None
