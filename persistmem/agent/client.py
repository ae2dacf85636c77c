"""A client's connection to the agent: finds one or has one started, asks, and hears what nobody asked for.

Knows sockets, processes and messages; what this process holds through the agent is the holder's.
"""

import os
import select
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from time import monotonic, sleep
from typing import Final, TypeVar
from uuid import UUID

from persistmem.agent import datagrams
from persistmem.agent.paths import RuntimeDirectory
from persistmem.agent.protocol import (
    Conversation,
    Gone,
    Hello,
    Message,
    Notice,
    Preparing,
    Refusal,
    Request,
    State,
    Welcome,
    refused,
)
from persistmem.arena.locks import conflict
from persistmem.errors import AgentError, Error, ProtocolError
from persistmem.threads import start_deaf

PATIENCE: Final = 15.0
"""Seconds to wait for an agent to start, or to answer."""

_PAUSE: Final = 0.01
_TIMEVAL: Final = struct.Struct("@ll")
_Answer = tuple[Message, list[int]]
R = TypeVar("R")


class Connection:
    """A conversation with an agent that said welcome. It ends with that agent, or with :meth:`close`.

    A thread of its own reads: ``on_notice`` is called there with what nobody asked for, and ``on_end`` at the end.
    """

    def __init__(
        self,
        sock: socket.socket,
        conversation: Conversation,
        welcome: Welcome,
        on_notice: Callable[[Notice], None],
        on_end: Callable[["Connection"], None],
    ) -> None:
        self.welcome = welcome
        self.alive = True
        self._sock = sock
        self._conversation = conversation
        self._on_notice = on_notice
        self._on_end = on_end
        self._answers: SimpleQueue[_Answer | None] = SimpleQueue()
        self._asking = threading.Lock()
        self._changed = threading.Condition()
        """Guards the conversation's state and the socket's life; notified after each message."""
        self._reader = threading.Thread(target=self._read, name="persistmem-agent", daemon=True)
        start_deaf(self._reader)

    def ask(self, request: Request, expected: type[R], *fds: int, timeout: float = PATIENCE) -> tuple[R, list[int]]:
        """Send a request, with descriptors, and return the answer with its own, which the caller closes.

        Raises:
            AgentError: the agent ended, or did not answer in time; the connection has ended then.
            Error: the agent refused, and this is why.
        """
        with self._asking:
            with self._changed:
                if not self.alive:
                    raise AgentError("the agent ended; try again")
                data = self._conversation.send(request)
                try:
                    datagrams.send(self._sock, data, fds)
                except OSError as error:
                    self._hang_up()
                    raise AgentError(f"the agent cannot be told ({error.strerror}); try again") from error
            return self._answer(expected, timeout)

    def wait_for_end(self, timeout: float) -> None:
        """Wait until the agent ends the connection, as it said it would.

        Raises:
            AgentError: it did not, in time.
            Error: it changed its mind, and this is why.
        """
        with self._asking:
            try:
                self._answer(Refusal, timeout)
            except AgentError:
                if self.alive:
                    raise

    def has_news(self) -> bool:
        """Tell whether there is something that the reader has not seen yet, or the end. Cost: one poll(2)."""
        with self._changed:
            if not self.alive:
                return True
            poll = select.poll()
            poll.register(self._sock, select.POLLIN)
            return bool(poll.poll(0))

    def settle(self, timeout: float) -> None:
        """Wait until the reader has seen all that there was."""
        deadline = monotonic() + timeout
        while self.alive and self.has_news() and monotonic() < deadline:
            with self._changed:
                self._changed.wait(_PAUSE)

    def close(self) -> None:
        """End the connection; the thread that reads sees the end, and closes."""
        with self._changed:
            self._hang_up()

    def abandon(self) -> None:
        """Let go of it in a forked child, where it is the parent's."""
        self.alive = False
        self._sock.close()

    def _hang_up(self) -> None:
        if self.alive:
            with suppress(OSError):  # the other end may have hung up already
                self._sock.shutdown(socket.SHUT_RDWR)

    def _answer(self, expected: type[R], timeout: float) -> tuple[R, list[int]]:
        try:
            answer = self._answers.get(timeout=timeout)
        except Empty:
            self.close()
            raise AgentError(f"the agent did not answer within {timeout:g} s; see its log") from None
        if answer is None:
            self._answers.put(None)
            raise AgentError("the agent ended before it answered; try again")
        message, fds = answer
        if isinstance(message, expected) and not isinstance(message, Refusal):
            return message, fds
        datagrams.close_all(fds)
        if isinstance(message, Refusal):
            raise refused(message)
        raise ProtocolError(f"expected {expected.__name__} from the agent, found {type(message).__name__}")

    def _read(self) -> None:
        try:
            while self._conversation.state is not State.CLOSED and self._read_one():
                with self._changed:
                    self._changed.notify_all()
        except (OSError, ProtocolError):
            pass  # an agent that breaks the protocol is treated as one that ended
        with self._changed:
            self.alive = False
            self._sock.close()
            self._answers.put(None)
            self._changed.notify_all()
        self._on_end(self)

    def _read_one(self) -> bool:
        data, fds = datagrams.receive(self._sock)
        if not data:
            return False
        try:
            with self._changed:
                message = self._conversation.receive(data, fds=len(fds))
        except ProtocolError:
            datagrams.close_all(fds)
            raise
        if isinstance(message, Gone | Preparing):
            self._on_notice(message)
        else:
            self._answers.put((message, fds))
        return True


def connect(
    runtime: RuntimeDirectory,
    boot: UUID | None,
    *,
    start: bool,
    on_notice: Callable[[Notice], None],
    on_end: Callable[[Connection], None],
    timeout: float = PATIENCE,
) -> Connection | None:
    """Return a connection to the agent of ``runtime``, or None if there is none and none was to be started.

    Raises:
        AgentError: none answered in time, or none could be started.
        RefusedError: it serves somebody else.
        ProtocolError: it speaks another version of the protocol.
    """
    deadline = monotonic() + timeout
    runtime.ensure()
    try:
        while (greeted := _greet(runtime, boot, deadline)) is None:
            if monotonic() > deadline:
                raise TimeoutError
            # An agent that ends of its own accord takes its socket along; one that was killed is to be replaced.
            if not _is_locked(runtime):
                if not start and not runtime.socket.exists():
                    return None
                from persistmem.agent.starting import start_agent  # noqa: PLC0415 - most clients find an agent

                start_agent(runtime, deadline)
            sleep(_PAUSE)
    except Error:
        raise
    except TimeoutError as error:
        raise AgentError(
            f"the agent in {runtime.path} did not answer within {timeout:g} s; see {runtime.log}"
        ) from error
    except OSError as error:
        raise AgentError(f"the agent in {runtime.path} cannot be reached: {error}") from error
    return Connection(*greeted, on_notice, on_end)


def _greet(
    runtime: RuntimeDirectory, boot: UUID | None, deadline: float
) -> tuple[socket.socket, Conversation, Welcome] | None:
    conversation = Conversation("client")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        # connect(2) itself waits where many others connect; with a timeout of Python's it would not.
        left = max(_PAUSE, deadline - monotonic())
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _TIMEVAL.pack(int(left), int(left % 1 * 1e6)))
        with runtime.socket_address() as address:
            sock.connect(address)
        sock.settimeout(max(_PAUSE, deadline - monotonic()))
        datagrams.send(sock, conversation.send(Hello(boot)))
        data, fds = datagrams.receive(sock)
        datagrams.close_all(fds)
        answer = conversation.receive(data, fds=len(fds)) if data else None
    except (FileNotFoundError, ConnectionError, BlockingIOError):
        # None there, one that leaves, or one whose queue was full all the time.
        sock.close()
        return None
    except BaseException:
        sock.close()
        raise
    if isinstance(answer, Welcome):
        sock.settimeout(None)
        # An agent that does not read must not hold up those who write to it for ever.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _TIMEVAL.pack(int(PATIENCE), 0))
        return sock, conversation, answer
    sock.close()
    if isinstance(answer, Refusal):
        raise refused(answer)
    return None


def _is_locked(runtime: RuntimeDirectory) -> bool:
    try:
        lock = os.open(runtime.lock, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except (FileNotFoundError, PermissionError):  # where it is another user's to look, its socket alone can tell
        return False
    try:
        return conflict(lock, 0, 1) is not None
    finally:
        os.close(lock)
