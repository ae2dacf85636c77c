"""A client that misbehaves harms only itself: others are served, and the agent holds no more than before."""

import array
import os
import select
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self
from uuid import UUID

import msgpack
import pytest

from persistmem.agent import datagrams
from persistmem.agent.paths import RuntimeDirectory
from persistmem.agent.protocol import (
    VERSION,
    Attach,
    Attached,
    Conversation,
    Handback,
    Hello,
    List,
    Refusal,
    Request,
    Welcome,
)
from persistmem.agent.records import ArenaRecord
from persistmem.agent.server import CONNECTIONS_MAX
from persistmem.arena import Arena
from persistmem.arena.memfd import create_memfd
from persistmem.attachment import agent_status, attach, drop_arena, list_arenas, start_agent

from .support import PATIENCE, kill_agent, running_agent


class Client:
    """A client that says what it likes."""

    def __init__(self, runtime: RuntimeDirectory, boot: UUID | None = None) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with runtime.socket_address() as address:
            self.sock.connect(address)  # before there is a timeout, so that it waits where many others connect
        self.sock.settimeout(PATIENCE)
        self.conversation = Conversation("client")
        self.boot = boot

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def hello(self) -> Welcome:
        answer = self.ask(Hello(self.boot))
        assert isinstance(answer, Welcome)
        return answer

    def ask(self, message: Request, *fds: int) -> Any:
        self.send(self.conversation.send(message), *fds)
        return self.answer()

    def send(self, data: bytes, *fds: int) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.sock.sendmsg([data], rights)

    def answer(self) -> Any:
        data, fds = datagrams.receive(self.sock)
        datagrams.close_all(fds)
        return self.conversation.receive(data, fds=len(fds)) if data else None

    def is_thrown_out(self) -> bool:
        """Whether nothing more comes but, at most, the reason."""
        try:
            answer = self.answer()
            return answer is None or (isinstance(answer, Refusal) and self.sock.recv(1) == b"")
        except ConnectionResetError:
            return True


def descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


@pytest.fixture
def agent(runtime: RuntimeDirectory) -> Iterator[int]:
    """The pid of an agent; afterwards it serves, and holds no more descriptors than it did."""
    pid = start_agent().pid
    before = descriptors(pid)
    yield pid
    assert running_agent().pid == pid
    with attach("control", size="64KiB") as arena:
        assert arena.snapshot("x", 1).number == 1
    drop_arena("control")
    deadline = time.monotonic() + PATIENCE
    while descriptors(pid) > before and time.monotonic() < deadline:
        agent_status()  # each answer means that the agent has gone round once more
    assert descriptors(pid) == before


def packed(**fields: object) -> bytes:
    return bytes(msgpack.packb(fields))


@pytest.mark.parametrize(
    "data",
    [
        b"\xc1",
        b"GET / HTTP/1.1\r\n\r\n",
        packed(v=VERSION, op="hello", boot=None)[:-3],
        packed(v=VERSION + 1, op="hello", boot=None),
        packed(v=VERSION, op="hello", boot=None, more=1),
        packed(v=VERSION, op="launch"),
        packed(v=VERSION, op="list", after=None),
        packed(v=VERSION, op="welcome", pid=1, boot=None, kernel="", carrier=""),
        b"\x00" * 60_000,
        b"\x00" * 100_000,
    ],
    ids=["byte", "text", "half", "version", "field", "op", "order", "role", "long", "oversized"],
)
def test_what_is_no_message_ends_the_connection_with_a_reason(runtime: RuntimeDirectory, agent: int, data: Any) -> None:
    with Client(runtime) as client:
        client.send(data)
        assert client.is_thrown_out()


def test_a_version_that_the_agent_does_not_speak_is_named_in_the_answer(runtime: RuntimeDirectory, agent: int) -> None:
    with Client(runtime) as client:
        client.send(packed(v=VERSION + 1, op="hello", boot=None))
        answer = client.answer()
        assert answer.error == "ProtocolError"
        assert f"expected protocol version {VERSION}, found {VERSION + 1}" in answer.message


@pytest.fixture
def pipes() -> Iterator[list[int]]:
    """As many descriptors as one message can have."""
    ends = [end for _ in range(127) for end in os.pipe()][:-1]
    yield ends
    for end in ends:
        os.close(end)


def test_descriptors_that_nobody_asked_for_are_closed(runtime: RuntimeDirectory, agent: int, pipes: list[int]) -> None:
    for count in (1, 2, 3, 100, 253):
        with Client(runtime, running_agent().boot) as client:
            client.hello()
            client.send(Conversation("client").send(Hello(None)), *pipes[:count])
            assert client.is_thrown_out()


def test_who_has_nothing_to_hand_back_cannot_pass_a_descriptor(
    runtime: RuntimeDirectory, agent: int, pipes: list[int]
) -> None:
    for greeted in (False, True):
        with Client(runtime) as client:
            if greeted:
                client.hello()
            try:
                client.send(b"garbage", *pipes[:3])
            except PermissionError:
                continue  # the kernel says so itself, from Linux 6.16 on
            assert client.is_thrown_out()


def test_asking_again_before_the_answer_is_refused(runtime: RuntimeDirectory, agent: int) -> None:
    with Client(runtime) as client:
        client.hello()
        # Nothing is read from a client that waits, so only one that sends two at once can be early.
        request = client.conversation.send(List(None))
        client.send(request)
        client.send(Conversation("client").send(Hello(None)))
        client.answer()
        assert client.is_thrown_out()


def test_one_that_never_reads_is_thrown_out_while_others_are_served(runtime: RuntimeDirectory, agent: int) -> None:
    for number in range(64):
        attach(
            f"an arena whose name is rather long, so that the list is, too {'x' * 100} {number}", size="64KiB"
        ).close()
    with Client(runtime) as client:
        client.hello()
        client.sock.setblocking(False)
        request = Conversation("client")
        request.send(Hello(None))
        data = packed(v=VERSION, op="list", after=None)
        try:
            for _ in range(100_000):
                client.send(data)
        except (BlockingIOError, BrokenPipeError, ConnectionResetError):
            pass
        began = time.monotonic()
        assert len(list_arenas()) == 64
        assert time.monotonic() - began < 1.0
        poll = select.poll()
        poll.register(client.sock, 0)
        assert poll.poll(PATIENCE * 1000), "it was not thrown out"
    for record in list_arenas():
        drop_arena(record.name)


def test_one_that_says_nothing_is_thrown_out(runtime: RuntimeDirectory, agent: int) -> None:
    with Client(runtime) as client:
        assert client.sock.recv(1) == b""


def test_more_connections_than_the_agent_takes_do_not_lock_others_out(runtime: RuntimeDirectory, agent: int) -> None:
    idle: list[Client] = []
    try:
        idle.extend(Client(runtime) for _ in range(CONNECTIONS_MAX + 20))
        # The last ones are told; those that say nothing make room within seconds.
        answer = idle[-1].answer()
        assert (answer.error, "connections" in answer.message) == ("RefusedError", True)
        for client in idle:
            while client.sock.recv(65536):
                pass
    finally:
        for client in idle:
            client.sock.close()


def test_ten_thousand_connections_one_after_the_other_leave_nothing_behind(
    runtime: RuntimeDirectory, agent: int
) -> None:
    for _ in range(10_000):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock, runtime.socket_address() as address:
            sock.connect(address)


def test_another_user_is_refused_whatever_the_directory_lets_through(runtime: RuntimeDirectory, agent: int) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    runtime.path.chmod(0o755)
    runtime.socket.chmod(0o777)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.setgid(65534)
        os.setuid(65534)
        client = Client(runtime)
        answer = client.answer()
        os.write(writing, f"{answer.error} {answer.message} {client.sock.recv(1)!r}".encode())
        os._exit(0)
    os.waitpid(child, 0)
    told = os.read(reading, 10_000).decode()
    os.close(reading)
    os.close(writing)
    runtime.path.chmod(0o700)
    assert told.startswith("RefusedError this agent serves uid 0")
    assert told.endswith("b''")


class TestHandingBack:
    """What the agent takes back is what it kept, and nothing else."""

    @pytest.fixture
    def lost(self, runtime: RuntimeDirectory) -> Iterator[tuple[ArenaRecord, int]]:
        """The record of an arena whose agent was killed, a descriptor of it, and a new agent that misses it."""
        with Client(runtime) if runtime.socket.exists() else _started(runtime) as client:
            client.hello()
            client.send(client.conversation.send(Attach("carts", 65536)))
            data, fds = datagrams.receive(client.sock)
            attached = client.conversation.receive(data, fds=len(fds))
            assert isinstance(attached, Attached)
            kill_agent()
        start_agent()
        yield attached.arena, fds[0]
        os.close(fds[0])

    def hand_back(
        self,
        runtime: RuntimeDirectory,
        arena: ArenaRecord,
        fd: int,
        *,
        name: str | None = None,
        boot: Callable[[UUID], UUID | None] = lambda actual: actual,
    ) -> Any:
        with Client(runtime, boot(running_agent().boot)) as client:
            client.hello()
            return client.ask(Handback(name or arena.name, arena.uuid), fd)

    def test_the_genuine_arena_is_kept(self, runtime: RuntimeDirectory, lost: tuple[ArenaRecord, int]) -> None:
        arena, fd = lost
        assert not isinstance(self.hand_back(runtime, arena, fd), Refusal)
        assert list_arenas() == [arena]

    def test_from_another_boot_it_is_refused(self, runtime: RuntimeDirectory, lost: tuple[ArenaRecord, int]) -> None:
        arena, fd = lost
        refusal = self.hand_back(runtime, arena, fd, boot=lambda _: UUID(int=7))
        assert refusal.error == "StaleArenaError"

    def test_from_no_boot_it_is_refused(self, runtime: RuntimeDirectory, lost: tuple[ArenaRecord, int]) -> None:
        arena, fd = lost
        try:
            refusal = self.hand_back(runtime, arena, fd, boot=lambda _: None)
        except PermissionError:
            return  # the kernel says so itself, from Linux 6.16 on
        assert refusal.error == "StaleArenaError"

    def test_under_another_name_it_is_refused(self, runtime: RuntimeDirectory, lost: tuple[ArenaRecord, int]) -> None:
        arena, fd = lost
        assert self.hand_back(runtime, arena, fd, name="other").error == "RefusedError"

    def make(self, kind: str, arena: ArenaRecord, genuine: int) -> int:
        if kind == "pipe":
            reading, writing = os.pipe()
            os.close(writing)
            return reading
        if kind == "file":
            return os.open("/etc/passwd", os.O_RDONLY)
        if kind == "unsealed":
            fd = os.memfd_create("x", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.truncate(fd, arena.size)
            os.pwrite(fd, os.pread(genuine, arena.size, 0), 0)
            return fd
        fd = create_memfd("x", arena.size * 2 if kind == "another size" else arena.size)
        if kind != "empty":
            Arena.format(fd, kernel="7.3.4")
        return fd

    @pytest.mark.parametrize("kind", ["pipe", "file", "unsealed", "empty", "another arena", "another size"])
    def test_something_else_in_its_place_is_refused(
        self, runtime: RuntimeDirectory, lost: tuple[ArenaRecord, int], kind: str
    ) -> None:
        arena, genuine = lost
        fd = self.make(kind, arena, genuine)
        try:
            assert self.hand_back(runtime, arena, fd).error == "CorruptError"
        finally:
            os.close(fd)
        assert not isinstance(self.hand_back(runtime, arena, genuine), Refusal)


def _started(runtime: RuntimeDirectory) -> Client:
    start_agent()
    return Client(runtime)
