"""Before a kexec applications are told and waited for, memory is preserved, and whatever goes wrong is undone.

Nobody but an administrator decides about it, and nobody is waited for longer than was said.
"""

import math
import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from persistmem import attachment
from persistmem.agent import datagrams
from persistmem.agent.client import Connection
from persistmem.agent.command import Settings
from persistmem.agent.custodian import Owner
from persistmem.agent.holder import holder_of_user
from persistmem.agent.paths import RuntimeDirectory
from persistmem.agent.protocol import (
    Abort,
    Aborted,
    Arenas,
    AskStatus,
    Attach,
    Attached,
    Conversation,
    Depart,
    Departing,
    Drop,
    Dropped,
    Hello,
    Lend,
    List,
    ListAll,
    Noted,
    Prepare,
    Prepared,
    Preparing,
    Ready,
    Reboot,
    Refusal,
    Request,
    Status,
    Stop,
    Watch,
    Watching,
    Welcome,
)
from persistmem.agent.server import Audience, Limits, Server
from persistmem.agent.simulated import SimulatedMachine
from persistmem.agent.statefile import read_state
from persistmem.errors import RefusedError
from tests.waiting import readable

from .support import PATIENCE, StartProgram, kill_agent, running_agent

ROOT = Audience(None)
"""The system's agent: everybody has arenas, and root decides."""
MINE = Audience(Owner(os.geteuid(), os.getegid()))
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")


class Client:
    """One connection to the agent under test."""

    def __init__(self, path: Path, boot: UUID | None = None) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.settimeout(PATIENCE)
        self.sock.connect(str(path))
        self.conversation = Conversation("client")
        assert isinstance(self.ask(Hello(boot)), Welcome)

    def ask(self, request: Request) -> Any:
        self.begin(request)
        return self.answer()

    def begin(self, request: Request) -> None:
        self.sock.send(self.conversation.send(request))

    def answer(self) -> Any:
        """What comes next; descriptors beside it are closed."""
        data, fds = datagrams.receive(self.sock)
        datagrams.close_all(fds)
        return self.conversation.receive(data, fds=len(fds))

    def hears_nothing(self) -> bool:
        """Whether nothing has come. The agent does one thing after the other: ask it something first."""
        return not readable(self.sock, seconds=0)


class Agent:
    """A server of its own, in a thread, with a clock that moves when the test says so."""

    def __init__(self, directory: Path, audience: Audience) -> None:
        self.directory = directory
        self.now = 1000.0
        self.settings = Settings(RuntimeDirectory(directory), 600.0, directory / "saved")
        self._lock = os.open(directory / "agent.lock", os.O_RDWR | os.O_CREAT)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(str(directory / "agent.socket"))
        (directory / "agent.socket").chmod(0o666)
        self._listener.listen()
        self._wakeup, self._waker = socket.socketpair()
        self._clients: list[Client] = []
        self._server = Server(
            self._listener,
            SimulatedMachine.start(self.settings, self._lock, read_state(self.settings.runtime.state)),
            audience,
            saved=self.settings.saved,
            limits=Limits(idle=math.inf),
            clock=lambda: self.now,
        )
        self._thread = threading.Thread(target=self._server.serve, args=(self._wakeup, lambda _: True))
        self._thread.start()
        self._observer = self.client()

    def client(self, uid: int | None = None, boot: UUID | None = None) -> Client:
        """A new connection, of that user, whose arenas are from that boot."""
        if uid is not None:
            os.seteuid(uid)
        try:
            self._clients.append(Client(self.directory / "agent.socket", boot))
        finally:
            if uid is not None:
                os.seteuid(0)
        return self._clients[-1]

    def watcher(self) -> Client:
        """An application that wants to be told."""
        watcher = self.client()
        assert watcher.ask(Watch()) == Watching()
        return watcher

    def status(self) -> Status:
        status = self._observer.ask(AskStatus())
        assert isinstance(status, Status)
        return status

    def phase(self) -> str:
        return self.status().phase

    def passes(self, seconds: float) -> None:
        """Let so much time pass, and the agent see it."""
        self.now += seconds
        self.status()
        self.status()  # deadlines are looked at between one answer and the next

    def leave(self, client: Client) -> None:
        """End a client's connection, and let the agent see it."""
        count = self.status().connections
        client.sock.close()
        assert any(self.status().connections < count for _ in range(1000))

    def end(self) -> None:
        self._waker.send(b"x")
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()
        for client in self._clients:
            client.sock.close()
        for sock in (self._listener, self._wakeup, self._waker):
            sock.close()
        os.close(self._lock)


@contextmanager
def running(audience: Audience) -> Iterator[Agent]:
    # Not tmp_path, which other users cannot reach.
    directory = Path(tempfile.mkdtemp(prefix="persistmem-test-"))
    directory.chmod(0o755)
    agent = Agent(directory, audience)
    try:
        yield agent
    finally:
        agent.end()
        shutil.rmtree(directory)


@pytest.fixture
def agent() -> Iterator[Agent]:
    with running(MINE) as agent:
        yield agent


def prepare(*, seconds: float = 10.0, preserve: bool = True, lasting: bool = False) -> Prepare:
    return Prepare(seconds, preserve, lasting)


def refusal_of(answer: Any) -> str:
    """The message of a RefusedError."""
    assert isinstance(answer, Refusal)
    assert answer.error == "RefusedError"
    return answer.message


def make(agent: Agent, name: str, size: int = 65536) -> None:
    assert isinstance(agent.client().ask(Attach(name, size)), Attached)


class TestWaiting:
    """Applications are told, and waited for until they are ready or time is up."""

    def test_nobody_to_wait_for_is_not_waited_for(self, agent: Agent) -> None:
        make(agent, "carts")
        prepared = agent.client().ask(prepare())
        assert isinstance(prepared, Prepared)
        assert prepared[:5] == (1, 65536, 0, 0, 0.0)
        assert prepared.preserve > 0

    def test_all_are_told_how_long_they_have_and_waited_for(self, agent: Agent) -> None:
        watchers = [agent.watcher() for _ in range(3)]
        asking = agent.client()
        asking.begin(prepare(seconds=10.0))
        assert [watcher.answer() for watcher in watchers] == [Preparing(10.0)] * 3
        agent.passes(2.5)
        for watcher in watchers[:2]:
            assert watcher.ask(Ready(done=True)) == Noted()
        assert agent.phase() == "preparing"
        assert asking.hears_nothing()
        agent.passes(1.5)
        watchers[2].begin(Ready(done=True))
        prepared = asking.answer()
        assert (prepared.applications, prepared.unready, prepared.waited) == (3, 0, 4.0)
        assert agent.phase() == "prepared"

    def test_one_that_fails_is_counted_and_not_waited_for(self, agent: Agent) -> None:
        watchers = [agent.watcher() for _ in range(2)]
        asking = agent.client()
        asking.begin(prepare())
        for watcher, done in zip(watchers, (True, False), strict=True):
            assert watcher.answer() == Preparing(10.0)
            assert watcher.ask(Ready(done)) == Noted()
        prepared = asking.answer()
        assert (prepared.applications, prepared.unready) == (2, 1)

    def test_when_time_is_up_the_rest_is_counted_and_not_waited_for(self, agent: Agent) -> None:
        watchers = [agent.watcher() for _ in range(3)]
        asking = agent.client()
        asking.begin(prepare(seconds=10.0))
        watchers[0].answer()
        watchers[0].ask(Ready(done=True))
        agent.passes(9.5)
        assert asking.hears_nothing()
        agent.passes(0.5)
        prepared = asking.answer()
        assert (prepared.applications, prepared.unready, prepared.waited) == (3, 2, 10.0)

    def test_who_is_ready_too_late_is_heard_and_changes_nothing(self, agent: Agent) -> None:
        late = agent.watcher()
        assert isinstance(agent.client().ask(prepare(seconds=0.0, lasting=True)), Prepared)
        assert late.answer() == Preparing(0.0)
        assert late.ask(Ready(done=False)) == Noted()
        assert agent.phase() == "prepared"

    def test_without_a_deadline_all_are_told_and_none_is_waited_for(self, agent: Agent) -> None:
        watcher = agent.watcher()
        prepared = agent.client().ask(prepare(seconds=0.0))
        assert (prepared.applications, prepared.unready, prepared.waited) == (1, 1, 0.0)
        assert watcher.answer() == Preparing(0.0)

    def test_nobody_is_waited_for_longer_than_an_hour(self, agent: Agent) -> None:
        watcher = agent.watcher()
        asking = agent.client()
        asking.begin(prepare(seconds=1e300))
        assert watcher.answer() == Preparing(3600.0)
        agent.passes(3600)
        assert asking.answer().waited == 3600.0

    def test_an_application_that_ends_is_not_waited_for(self, agent: Agent) -> None:
        watcher = agent.watcher()
        asking = agent.client()
        asking.begin(prepare())
        watcher.answer()
        agent.leave(watcher)
        assert asking.answer().applications == 1

    def test_who_did_not_ask_to_be_told_is_not(self, agent: Agent) -> None:
        other = agent.client()
        assert agent.client().ask(prepare()).applications == 0
        assert other.hears_nothing()

    def test_who_prepares_does_not_wait_for_itself(self, agent: Agent) -> None:
        both = agent.watcher()
        assert both.ask(prepare()).applications == 0

    def test_saying_ready_twice_or_unasked_counts_once(self, agent: Agent) -> None:
        first, second = agent.watcher(), agent.watcher()
        assert first.ask(Ready(done=False)) == Noted()
        asking = agent.client()
        asking.begin(prepare())
        first.answer()
        for _ in range(3):
            assert first.ask(Ready(done=False)) == Noted()
        assert agent.phase() == "preparing"
        second.answer()
        second.ask(Ready(done=True))
        assert asking.answer().unready == 1

    def test_all_are_told_each_time(self, agent: Agent) -> None:
        watcher = agent.watcher()
        asking = agent.client()
        for _ in range(3):
            asking.begin(prepare(lasting=True))
            assert watcher.answer() == Preparing(10.0)
            watcher.ask(Ready(done=True))
            assert asking.answer().applications == 1


class TestUndone:
    """What was prepared is undone when it is aborted, when it fails, and when who asked for it is gone."""

    def is_undone(self, agent: Agent) -> None:
        assert agent.phase() == "serving"
        make(agent, "made afterwards")
        assert agent.client().ask(Abort()) == Aborted(prepared=False)

    def test_when_who_asked_is_gone_before_all_were_ready(self, agent: Agent) -> None:
        watcher = agent.watcher()
        asking = agent.client()
        asking.begin(prepare(lasting=True))
        watcher.answer()
        assert agent.phase() == "preparing"
        agent.leave(asking)
        self.is_undone(agent)
        assert watcher.ask(Ready(done=True)) == Noted()
        assert agent.phase() == "serving"

    def test_when_who_asked_is_gone_afterwards(self, agent: Agent) -> None:
        make(agent, "carts")
        asking = agent.client()
        asking.ask(prepare())
        assert agent.phase() == "prepared"
        agent.leave(asking)
        self.is_undone(agent)

    def test_not_if_it_is_to_last(self, agent: Agent) -> None:
        make(agent, "carts")
        asking = agent.client()
        asking.ask(prepare(lasting=True))
        agent.leave(asking)
        agent.passes(100_000)
        assert agent.phase() == "prepared"
        assert agent.client().ask(Abort()) == Aborted(prepared=True)
        self.is_undone(agent)

    def test_when_it_is_aborted_while_somebody_waits_who_is_told(self, agent: Agent) -> None:
        watcher = agent.watcher()
        asking = agent.client()
        asking.begin(prepare())
        watcher.answer()
        assert agent.client().ask(Abort()) == Aborted(prepared=True)
        assert refusal_of(asking.answer()) == "the kexec was not prepared: it was aborted"
        self.is_undone(agent)

    def test_when_memory_cannot_be_preserved(self, agent: Agent) -> None:
        make(agent, "vast", 1 << 40)  # filling the holes takes more memory than any machine here has
        asking = agent.client()
        assert refusal_of(asking.ask(prepare(lasting=True))).endswith("; nothing has changed")
        self.is_undone(agent)
        assert asking.ask(AskStatus()).phase == "serving"

    def test_not_by_somebody_else_who_prepares_meanwhile(self, agent: Agent) -> None:
        watcher = agent.watcher()
        first, second = agent.client(), agent.client()
        first.begin(prepare())
        watcher.answer()
        assert "is being prepared already" in refusal_of(second.ask(prepare()))
        agent.leave(second)
        watcher.ask(Ready(done=True))
        assert isinstance(first.answer(), Prepared)
        assert watcher.hears_nothing()

    def test_what_was_prepared_is_prepared_anew_by_who_comes_next(self, agent: Agent) -> None:
        first, second = agent.client(), agent.client()
        first.ask(prepare())
        second.ask(prepare())
        agent.leave(first)
        assert agent.phase() == "prepared"
        agent.leave(second)
        self.is_undone(agent)


class TestPrepared:
    """While it is prepared, what is kept cannot change; whoever has an arena goes on with it."""

    def test_no_arena_is_made_or_dropped_and_those_that_are_there_can_be_had(self, agent: Agent) -> None:
        make(agent, "carts")
        agent.client().ask(prepare(lasting=True))
        client = agent.client()
        assert "wait, or abort it" in refusal_of(client.ask(Attach("new", 65536)))
        assert "wait, or abort it" in refusal_of(client.ask(Drop("carts")))
        assert client.ask(Attach("carts", None)).arena.name == "carts"
        assert [arena.name for arena in client.ask(List(None)).arenas] == ["carts"]
        client.ask(Abort())
        assert agent.client().ask(Drop("carts")) == Dropped()

    def test_while_applications_get_ready_everything_can_change(self, agent: Agent) -> None:
        watcher = agent.watcher()
        asking = agent.client()
        asking.begin(prepare())
        watcher.answer()
        assert isinstance(watcher.ask(Attach("last", 65536)), Attached)
        watcher.ask(Ready(done=True))
        assert asking.answer().arenas == 1

    def test_for_the_disk_nothing_is_preserved_and_everything_can_change(self, agent: Agent) -> None:
        prepared = agent.client().ask(prepare(preserve=False, lasting=True))
        assert prepared.preserve == 0.0
        make(agent, "carts")
        assert agent.phase() == "prepared"

    def test_the_agent_does_not_discard_arenas_and_tells_nobody_that_it_did(self, agent: Agent) -> None:
        holder = agent.client()
        holder.ask(Attach("carts", 65536))
        client = agent.client()
        client.ask(prepare(lasting=True))
        assert "wait, or abort it" in refusal_of(client.ask(Stop(discard=True)))
        assert holder.hears_nothing()
        assert agent.status().arenas == 1


class TestLeaving:
    """That the kernel is left is written down, by whoever prepared for it; and taken back."""

    def departed(self, agent: Agent) -> bool:
        state = read_state(agent.settings.runtime.state)
        assert state is not None
        return state.registry.departure is not None

    def test_nobody_leaves_without_having_prepared(self, agent: Agent) -> None:
        assert "no kexec is prepared" in refusal_of(agent.client().ask(Depart()))
        assert not self.departed(agent)

    def test_nor_before_all_are_ready(self, agent: Agent) -> None:
        watcher = agent.watcher()
        agent.client().begin(prepare())
        watcher.answer()
        assert "no kexec is prepared" in refusal_of(agent.client().ask(Depart()))
        assert not self.departed(agent)

    def test_it_is_on_disk_when_it_is_answered_and_aborting_takes_it_back(self, agent: Agent) -> None:
        client = agent.client()
        client.ask(prepare(lasting=True))
        assert client.ask(Depart()) == Departing()
        assert self.departed(agent)
        client.ask(Abort())
        assert not self.departed(agent)

    def test_so_does_the_end_of_who_prepared(self, agent: Agent) -> None:
        client = agent.client()
        client.ask(prepare())
        client.ask(Depart())
        agent.leave(client)
        assert not self.departed(agent)


ADMINISTRATION: list[Request] = [
    ListAll(None, None),
    Lend(0, "carts"),
    prepare(),
    prepare(seconds=0.0, preserve=False),
    Abort(),
    Depart(),
    Reboot(0.0, "no kernel is called so", compatible=True),
    Stop(discard=True),
]


class TestWhoDecides:
    """On the system's agent root decides, for everybody; on a user's, that user and root."""

    @needs_root
    @pytest.mark.parametrize("request_", ADMINISTRATION, ids=lambda request: type(request).__name__)
    def test_nobody_but_root_on_the_systems_agent(self, request_: Request) -> None:
        with running(ROOT) as agent:
            make(agent, "carts")
            other = agent.client(65534)
            assert "only root decides that on this agent, not uid 65534" in refusal_of(other.ask(request_))
            assert agent.phase() == "serving"
            assert agent.status().arenas == 1

    @needs_root
    def test_nobody_but_root_takes_back_what_root_prepared(self) -> None:
        with running(ROOT) as agent:
            agent.client().ask(prepare(lasting=True))
            for request in (Abort(), Depart(), prepare()):
                refusal_of(agent.client(65534).ask(request))
            assert agent.phase() == "prepared"

    @needs_root
    def test_everybody_is_told_and_waited_for(self) -> None:
        with running(ROOT) as agent:
            watcher = agent.client(65534)
            assert watcher.ask(Watch()) == Watching()
            asking = agent.client()
            asking.begin(prepare())
            assert watcher.answer() == Preparing(10.0)
            assert watcher.ask(Ready(done=True)) == Noted()
            assert asking.answer()[2:4] == (1, 0)

    @needs_root
    def test_root_sees_and_is_lent_the_arenas_of_all(self) -> None:
        with running(ROOT) as agent:
            agent.client(65534).ask(Attach("theirs", 65536))
            make(agent, "roots")
            root = agent.client()
            arenas = root.ask(ListAll(None, None))
            assert isinstance(arenas, Arenas)
            assert [(arena.uid, arena.name) for arena in arenas.arenas] == [(0, "roots"), (65534, "theirs")]
            assert [arena.name for arena in root.ask(ListAll(0, "roots")).arenas] == ["theirs"]
            assert root.ask(Lend(65534, "theirs")).arena.uid == 65534
            assert isinstance(root.ask(Lend(65534, "roots")), Refusal)

    @needs_root
    def test_the_user_on_their_own_agent(self) -> None:
        with running(Audience(Owner(65534, 65534))) as agent:
            for uid in (65534, None):
                client = agent.client(uid)
                assert isinstance(client.ask(prepare()), Prepared)
                assert client.ask(Abort()) == Aborted(prepared=True)


class TestApplications:
    """What an application that asked to be told before a kexec does in time crosses it."""

    @pytest.fixture
    def connection(self, runtime: RuntimeDirectory) -> Iterator[Callable[[], Connection]]:
        def connection() -> Connection:
            connection = holder_of_user().connection()
            assert connection is not None
            return connection

        yield connection
        connection().ask(Abort(), Aborted)

    CALLBACK = """
arena = attach('carts', size='1MiB')
import persistmem
@persistmem.before_kexec
def last():
    arena.snapshot('last', 'just in time')
"""

    def test_its_last_snapshot_is_there_afterwards(self, runtime: RuntimeDirectory, program: StartProgram) -> None:
        program().run(self.CALLBACK)
        handover = attachment.simulate_reboot()
        assert handover.lost_count == 0
        with attachment.attach("carts") as arena:
            assert arena.restore("last") == "just in time"

    def test_one_that_raises_is_told_of_as_not_ready(
        self, connection: Callable[[], Connection], program: StartProgram
    ) -> None:
        program().run(self.CALLBACK + "    raise SystemExit('no')\n")
        prepared, _ = connection().ask(prepare(), Prepared)
        assert (prepared.applications, prepared.unready) == (1, 1)

    def test_one_that_takes_too_long_is_left_behind(
        self, connection: Callable[[], Connection], program: StartProgram
    ) -> None:
        slow = program()
        slow.run("import threading; taken = threading.Event()")
        slow.run(self.CALLBACK + "    taken.set(); threading.Event().wait()\n")
        prepared, _ = connection().ask(prepare(seconds=0.2), Prepared)
        assert (prepared.applications, prepared.unready) == (1, 1)
        assert 0.2 <= prepared.waited < 10
        assert slow.run(f"taken.wait({PATIENCE / 2}) and arena.restore('last')") == "just in time"

    def test_it_is_told_again_by_the_agent_that_comes_next(
        self, connection: Callable[[], Connection], program: StartProgram
    ) -> None:
        watching = program()
        watching.run(self.CALLBACK)
        attachment.simulate_reboot()
        watching.run("arena = attach('carts')")
        prepared, _ = connection().ask(prepare(), Prepared)
        assert (prepared.applications, prepared.unready) == (1, 0)

    def test_one_that_keeps_no_arena_is_told_by_the_agent_that_comes_after_a_killed_one(
        self, connection: Callable[[], Connection], program: StartProgram
    ) -> None:
        program().run("import persistmem; persistmem.before_kexec(lambda: None)")
        kill_agent()
        attachment.start_agent()
        deadline = time.monotonic() + PATIENCE
        while (prepared := connection().ask(prepare(), Prepared)[0]).applications == 0:
            assert time.monotonic() < deadline, "the program does not come back"
            connection().ask(Abort(), Aborted)
        assert (prepared.applications, prepared.unready) == (1, 0)

    def test_a_simulated_upgrade_that_is_refused_leaves_nothing_prepared(self, runtime: RuntimeDirectory) -> None:
        attachment.attach("vast", size="1TiB").close()
        with pytest.raises(RefusedError, match="nothing has changed"):
            attachment.simulate_reboot()
        assert running_agent().phase == "serving"
        attachment.attach("new", size="1MiB").close()
