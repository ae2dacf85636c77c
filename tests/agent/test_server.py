"""What the server says to those who watch over it: a sign of life, and who was not ready in time; how long it waits."""

import logging
import math
import os
import queue
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from persistmem.agent import datagrams
from persistmem.agent.command import Settings
from persistmem.agent.custodian import Custodian
from persistmem.agent.paths import RuntimeDirectory
from persistmem.agent.protocol import (
    AskStatus,
    Attach,
    Attached,
    Handback,
    Kept,
    List,
    Noted,
    Prepared,
    Preparing,
    Ready,
    Watch,
    Watching,
)
from persistmem.agent.records import ArenaRecord
from persistmem.agent.server import Heartbeat, Limits, Server
from persistmem.agent.simulated import SimulatedMachine

from .support import PATIENCE
from .test_attacks import Attacker
from .test_preparation import MINE, ROOT, Agent, Client, needs_root, prepare, running


@pytest.fixture
def agent() -> Iterator[Agent]:
    with running(MINE) as agent:
        yield agent


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.levelno == logging.WARNING]


@contextmanager
def program_called(name: str) -> Iterator[None]:
    """What this process, whose threads are agent and applications, calls itself meanwhile."""
    comm = Path("/proc/self/comm")
    before = comm.read_bytes().removesuffix(b"\n")  # which is not part of it
    comm.write_bytes(name.encode())
    try:
        yield
    finally:
        comm.write_bytes(before)


class TestNotReady:
    """Who is not ready for a kexec by the deadline is named in the log, and nothing else comes of it."""

    def test_who_did_not_answer_and_who_failed_are_named(self, agent: Agent, caplog: pytest.LogCaptureFixture) -> None:
        silent, failing, ready = (agent.watcher() for _ in range(3))
        asking = agent.client()
        asking.begin(prepare(seconds=10.0))
        for watcher in (silent, failing, ready):
            assert watcher.answer() == Preparing(10.0)
        pid, uid = os.getpid(), os.getuid()
        with program_called("web worker\n"):
            assert failing.ask(Ready(done=False)) == Noted()
            assert ready.ask(Ready(done=True)) == Noted()
            assert warnings_in(caplog) == [
                f"before the kexec: pid {pid} ('web worker\\n'), uid {uid} failed to get ready"
            ]
            agent.passes(10.0)
            prepared = asking.answer()
        assert isinstance(prepared, Prepared)
        assert (prepared.applications, prepared.unready) == (3, 2)
        assert warnings_in(caplog)[1:] == [
            f"before the kexec: pid {pid} ('web worker\\n'), uid {uid} was not ready within 10.0 s"
        ]

    def test_who_is_ready_or_gone_is_not(self, agent: Agent, caplog: pytest.LogCaptureFixture) -> None:
        gone, ready = agent.watcher(), agent.watcher()
        asking = agent.client()
        asking.begin(prepare())
        agent.leave(gone)
        ready.answer()
        assert ready.ask(Ready(done=True)) == Noted()
        assert isinstance(asking.answer(), Prepared)
        assert ready.ask(Ready(done=False)) == Noted()  # too late to be told of
        assert warnings_in(caplog) == []

    @needs_root
    def test_a_process_that_is_gone_is_named_by_what_is_left_of_it(self, caplog: pytest.LogCaptureFixture) -> None:
        """Its connection is somebody else's by now, and stays that of the user who made it."""
        here, there = socket.socketpair()
        with running(ROOT) as agent, here, there:

            def watch() -> Iterator[object]:
                client = Client(agent.directory / "agent.socket")
                assert client.ask(Watch()) == Watching()
                socket.send_fds(there, [b"x"], [client.sock.fileno()])
                yield os.getpid()

            with Attacker(54_321, watch) as other:
                pid = other.result()
                _, (left,), _, _ = socket.recv_fds(here, 1, 1)
            assert isinstance(agent.client().ask(prepare(seconds=0.0)), Prepared)
            os.close(left)
        assert warnings_in(caplog) == [f"before the kexec: pid {pid} ('unknown'), uid 54321 was not ready within 0.0 s"]


@contextmanager
def beating(directory: Path, every: float, beat: Callable[[], None], clock: Callable[[], float]) -> Iterator[Path]:
    """A server with a heartbeat; gives the path of its socket."""
    settings = Settings(RuntimeDirectory(directory), 600.0, directory / "saved")
    path = directory / "s"
    lock = os.open(directory / "agent.lock", os.O_RDWR | os.O_CREAT)
    wakeup, waker = socket.socketpair()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener, wakeup, waker:
        listener.bind(str(path))
        listener.listen()
        machine = SimulatedMachine.start(settings, lock, None)
        server = Server(
            listener, machine, MINE,
            saved=settings.saved, limits=Limits(idle=math.inf), clock=clock, heartbeat=Heartbeat(every, beat),
        )  # fmt: skip
        thread = threading.Thread(target=server.serve, args=(wakeup, lambda _: True))
        thread.start()
        yield path
        waker.send(b"x")
        thread.join(PATIENCE)
        assert not thread.is_alive()
    os.close(lock)


class TestHeartbeat:
    """A sign of life comes from the thread that serves, as often as was said."""

    def test_it_comes_by_itself_when_nobody_asks_for_anything(self, tmp_path: Path) -> None:
        beats: queue.SimpleQueue[str] = queue.SimpleQueue()
        with beating(tmp_path, 0.01, lambda: beats.put(threading.current_thread().name), monotonic):
            threads = {beats.get(timeout=PATIENCE) for _ in range(5)}
        assert len(threads) == 1
        assert threads != {threading.current_thread().name}

    def test_it_comes_when_it_is_due_however_busy_the_server_is_and_no_more_often(self, tmp_path: Path) -> None:
        beats: list[float] = []
        now = 1000.0
        with beating(tmp_path, 30.0, lambda: beats.append(now), lambda: now) as path:
            client = Client(path)
            for _ in range(8):
                for _ in range(10):
                    client.ask(AskStatus())
                now += 10.0
            client.ask(AskStatus())
            client.sock.close()
        assert beats == [1000.0, 1030.0, 1060.0]

    def test_it_comes_while_a_client_is_waited_for(self, tmp_path: Path) -> None:
        beats: queue.SimpleQueue[None] = queue.SimpleQueue()
        with beating(tmp_path, 0.01, lambda: beats.put(None), monotonic) as path:
            watcher, asking = Client(path), Client(path)
            assert watcher.ask(Watch()) == Watching()
            asking.begin(prepare(seconds=3600.0))
            assert isinstance(watcher.answer(), Preparing)
            while not beats.empty():
                beats.get()
            for _ in range(3):
                beats.get(timeout=PATIENCE)
            for client in (watcher, asking):
                client.sock.close()


class TestGrace:
    """Who held the arenas of an agent that was killed has a while to hand them back; nobody finds them gone by then."""

    def test_what_the_agent_itself_takes_to_keep_them_again_is_not_counted(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with ended(Agent(tmp_path, MINE)) as killed:
            held = [attach_to(killed, name) for name in ("carts", "orders")]
        with ended(Agent(tmp_path, MINE)) as agent:
            keep, slow_disk = Custodian.take_back, Limits().grace * 2

            def keep_slowly(custodian: Custodian, *arena: Any) -> None:
                keep(custodian, *arena)
                agent.now += slow_disk

            monkeypatch.setattr(Custodian, "take_back", keep_slowly)
            holder, asking = agent.client(boot=agent.status().boot), agent.client()
            asking.begin(List(None))
            for record, fd in held:
                assert asking.hears_nothing()
                datagrams.send(holder.sock, holder.conversation.send(Handback(record.name, record.uuid)), [fd])
                assert holder.answer() == Kept()
                os.close(fd)
            assert [record.name for record in asking.answer().arenas] == ["carts", "orders"]


@contextmanager
def ended(agent: Agent) -> Iterator[Agent]:
    """An agent that ends; what it kept is written down, as by one that was killed."""
    try:
        yield agent
    finally:
        agent.end()
        (agent.directory / "agent.socket").unlink()


def attach_to(agent: Agent, name: str) -> tuple[ArenaRecord, int]:
    """A new arena, and the descriptor of its memory."""
    client = agent.client()
    client.begin(Attach(name, 65536))
    data, (fd,) = datagrams.receive(client.sock)
    answer = client.conversation.receive(data, fds=1)
    assert isinstance(answer, Attached)
    return answer.arena, fd
