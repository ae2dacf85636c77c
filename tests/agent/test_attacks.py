"""Attacks on an agent that serves everybody. Each leaves it serving another user at once, as small as it was, and that
user's arenas as they were, byte for byte.

Attackers are real processes of a user without privileges. Nothing waits for a clock: an agent that waited for an
attacker would wait for an hour.
"""

import errno
import fcntl
import json
import os
import random
import resource
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any, Final, Self, TypeVar
from uuid import UUID, uuid4

import pytest

from persistmem.agent import datagrams
from persistmem.agent.command import environment
from persistmem.agent.paths import RuntimeDirectory
from persistmem.agent.protocol import (
    MESSAGE_BYTES_MAX,
    VERSION,
    Abort,
    Arenas,
    AskHandover,
    AskStatus,
    Attach,
    Attached,
    Conversation,
    Depart,
    Drop,
    Dropped,
    Evict,
    Gone,
    Handback,
    Hello,
    Kept,
    Lend,
    List,
    ListAll,
    Prepare,
    Ready,
    Reboot,
    Refusal,
    Request,
    State,
    Status,
    Stop,
    Watch,
    Welcome,
)
from persistmem.agent.records import ArenaRecord
from persistmem.agent.server import CONNECTIONS_PER_USER_MAX
from persistmem.arena import Arena
from persistmem.arena.layout import ARENA_SIZE_MIN, HEADER_SIZE
from persistmem.arena.locks import try_lock
from persistmem.arena.memfd import SEALS, create_memfd
from tests.waiting import readable

from .support import PATIENCE
from .test_hostile_clients import Client, descriptors, packed

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be several users")

ALICE: Final = 54_321
MALLORY: Final = 54_322
"""Two users who have nothing to do with each other, and need not be in any list of users."""
SIZE: Final = 256 << 10
GROWTH_MAX: Final = 8 << 20
"""Bytes of memory (VmRSS) that the agent may have more after an attack than before: what Python's allocator keeps."""
LINGERS: Final = 3600
"""Seconds."""
SO_PASSRIGHTS: Final = 83
FDS_MAX: Final = 253
"""Most descriptors that one datagram can have."""

AGENT: Final = """
import math, sys
from pathlib import Path
from persistmem.agent.command import Settings
from persistmem.agent.paths import RuntimeDirectory
from persistmem.agent.process import run
runtime = Path(sys.argv[1])
run(Settings(RuntimeDirectory(runtime, shared=True), math.inf, runtime / "saved"))
"""


class Agent:
    """The system's agent, with a simulated kernel under it: a process that runs as root and serves everybody."""

    def __init__(self, runtime: RuntimeDirectory) -> None:
        self.runtime = runtime
        self.process = self._start()

    def _start(self) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", AGENT, str(self.runtime.path)],
            stderr=subprocess.PIPE,
            text=True,
            env=environment() | {"PERSISTMEM_STATE_DIR": str(self.runtime.path / "state")},
        )
        assert process.stderr
        assert any("serves" in line for line in process.stderr), "the agent does not start"
        # Whatever it says from here on, nobody has to read it for it to go on.
        self._log = threading.Thread(target=process.stderr.read)
        self._log.start()
        return process

    @property
    def pid(self) -> int:
        return self.process.pid

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self._log.join()
        assert self.process.stderr
        self.process.stderr.close()

    def kill(self) -> None:
        """Kill it, and have another take its place: arenas are missing then until they are handed back."""
        self.end()
        self.process = self._start()

    def memory(self) -> int:
        status = Path(f"/proc/{self.pid}/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) << 10

    def client(self, uid: int, boot: UUID | None = None) -> Client:
        """A connection of that user, and who it belongs to from then on, whoever has it."""
        with credentials(uid):
            client = Client(self.runtime, boot)
        client.hello()
        return client


@contextmanager
def credentials(uid: int) -> Iterator[None]:
    """Be that user for the kernel."""
    os.setegid(uid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


class Attacker:
    """A process of a user without privileges, which does something, and says what comes of it.

    It does so step by step: it waits at each ``yield``, and keeps what it holds, until it is told to go on, or ended.
    """

    def __init__(self, uid: int, steps: Callable[[], Iterator[object]]) -> None:
        reading, writing = os.pipe()
        waiting, self._go = os.pipe()
        self._said = os.fdopen(reading)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # the child takes no lock that another thread may hold
            self._pid = os.fork()
        if self._pid == 0:
            self._take(uid, steps, writing, waiting)
        os.close(writing)
        os.close(waiting)

    @staticmethod
    def _take(uid: int, steps: Callable[[], Iterator[object]], writing: int, waiting: int) -> None:
        try:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            for worth in steps():
                os.write(writing, json.dumps({"worth": worth}).encode() + b"\n")
                os.read(waiting, 1)
        except BaseException:  # noqa: BLE001 - whatever it is, the test has to hear of it
            os.write(writing, json.dumps({"failed": traceback.format_exc()}).encode() + b"\n")
        os._exit(0)

    def result(self) -> Any:
        """What the step that it is at came to."""
        assert readable(self._said, seconds=PATIENCE), "the attacker does not come to an end"
        answer = json.loads(self._said.readline())
        assert "failed" not in answer, answer["failed"]
        return answer["worth"]

    def go_on(self) -> Any:
        os.write(self._go, b"x")
        return self.result()

    def end(self) -> None:
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        self._said.close()
        os.close(self._go)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()


def attack(code: Callable[[], object], uid: int = MALLORY) -> Any:
    """Have a user's process do something, and return what it returns."""

    def only_step() -> Iterator[object]:
        yield code()

    with Attacker(uid, only_step) as attacker:
        return attacker.result()


def ask(client: Client, request: Request, *fds: int) -> tuple[Any, list[int]]:
    """The answer to a request, and the descriptors beside it; notices that come before it are nothing to us."""
    client.send(client.conversation.send(request), *fds)
    while True:
        data, found = datagrams.receive(client.sock)
        answer = client.conversation.receive(data, fds=len(found))
        if not isinstance(answer, Gone):
            return answer, found


def attached(client: Client, name: str, size: int | None = None) -> tuple[ArenaRecord, int]:
    """An arena, and a memfd that the caller closes."""
    answer, fds = ask(client, Attach(name, size))
    assert isinstance(answer, Attached), answer
    return answer.arena, fds[0]


class Alice:
    """A user who has an arena, and uses it."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.client = agent.client(ALICE)
        self.arena, self.fd = attached(self.client, "treasure", SIZE)
        with Arena(self.fd, kernel="7.3.4") as arena:
            arena.snapshot("gold", random.Random(1).randbytes(100_000))
        self.content = os.pread(self.fd, SIZE, 0)
        ask(self.client, AskStatus())  # it has closed by now what it sent to her
        self.held = descriptors(agent.pid)
        """How many descriptors the agent has when she is alone with it."""

    def is_served(self) -> None:
        """What she can do without an attack; on her old connection, and on a new one."""
        with self.agent.client(ALICE) as new:
            for client in (self.client, new):
                assert ask(client, List(None))[0] == Arenas((self.arena,), more=False)
                arena, fd = attached(client, "treasure")
                assert arena == self.arena
                assert os.pread(fd, SIZE, 0) == self.content
                os.close(fd)
            _, fd = attached(new, "more", ARENA_SIZE_MIN)
            os.close(fd)
            assert ask(new, Drop("more"))[0] == Dropped()

    def is_alone(self) -> None:
        """The agent holds what it holds for her, and nothing else."""
        pid, deadline = self.agent.pid, time.monotonic() + PATIENCE
        while descriptors(pid) > self.held and time.monotonic() < deadline:
            ask(self.client, AskStatus())  # each answer means that the agent has gone round once more
        assert descriptors(pid) == self.held

    def comes_back(self) -> None:
        """Hand back what she has to the agent that took the place of one that was killed."""
        self.client.sock.close()
        self.client = self.agent.client(ALICE)
        boot = ask(self.client, AskStatus())[0].boot
        self.client.sock.close()
        self.client = self.agent.client(ALICE, boot)
        assert ask(self.client, Handback("treasure", self.arena.uuid), self.fd)[0] == Kept()
        ask(self.client, AskStatus())
        self.held = descriptors(self.agent.pid)

    def leave(self) -> None:
        self.client.sock.close()
        os.close(self.fd)


@contextmanager
def system() -> Iterator[Alice]:
    with tempfile.TemporaryDirectory(prefix="persistmem-test-") as path:  # tmp_path is not for other users
        Path(path).chmod(0o755)
        agent = Agent(RuntimeDirectory(Path(path), shared=True))
        alice = Alice(agent)
        try:
            yield alice
        finally:
            alice.leave()
            agent.end()


@contextmanager
def unharmed(alice: Alice) -> Iterator[None]:
    """Whatever is done meanwhile: afterwards all is as before."""
    alice.is_served()
    alice.is_alone()
    memory = alice.agent.memory()
    yield
    alice.is_served()
    alice.is_alone()
    assert alice.agent.process.poll() is None
    assert alice.agent.memory() - memory < GROWTH_MAX


@pytest.fixture(scope="module")
def alice_of_module() -> Iterator[Alice]:
    with system() as alice:
        yield alice


@pytest.fixture
def alice(alice_of_module: Alice) -> Iterator[Alice]:
    with unharmed(alice_of_module):
        yield alice_of_module


@pytest.fixture
def agent(alice: Alice) -> Agent:
    return alice.agent


def boot_of(agent: Agent) -> UUID:
    with agent.client(MALLORY) as client:
        status, _ = ask(client, AskStatus())
        assert isinstance(status, Status)
        return status.boot


def refused(client: Client, request: Request, *fds: int) -> str:
    """Of which class the refusal is."""
    answer, found = ask(client, request, *fds)
    assert isinstance(answer, Refusal), answer
    assert not found
    return answer.error


class TestAnotherUser:
    """Each user sees, opens and drops what is theirs. What is another's is simply not there."""

    def test_her_arena_is_not_there_for_him(self, alice: Alice, agent: Agent) -> None:
        def look() -> object:
            with Client(agent.runtime) as client:
                client.hello()
                listed = len(ask(client, List(None))[0].arenas), len(ask(client, List("a"))[0].arenas)
                status = ask(client, AskStatus())[0]
                return [
                    *listed,
                    *status[6:9],  # arenas, size, missing
                    refused(client, Attach("treasure", None)),
                    refused(client, Drop("treasure")),
                ]

        assert attack(look) == [0, 0, 0, 0, 0, "NotFoundError", "NotFoundError"]

    def test_an_arena_of_his_by_her_arenas_name_is_his_alone(self, alice: Alice, agent: Agent) -> None:
        def squat() -> object:
            with Client(agent.runtime) as client:
                client.hello()
                arena, fd = attached(client, "treasure", ARENA_SIZE_MIN)
                os.pwrite(fd, b"\xff" * ARENA_SIZE_MIN, 0)
                alone = [found.uuid for found in ask(client, List(None))[0].arenas] == [arena.uuid]
                assert ask(client, Drop("treasure"))[0] == Dropped()
                return [alone, arena.uid, str(arena.uuid) != str(alice.arena.uuid)]

        assert attack(squat) == [True, MALLORY, True]

    def test_he_cannot_hand_back_in_her_name(self, alice: Alice, agent: Agent) -> None:
        boot = boot_of(agent)

        def claim() -> object:
            fd = create_memfd("treasure", SIZE)
            os.pwrite(fd, alice.content, 0)
            with Client(agent.runtime, boot) as client:
                client.hello()
                return refused(client, Handback("treasure", alice.arena.uuid), fd)

        assert attack(claim) == "RefusedError"

    ADMINISTRATION: tuple[Request, ...] = (
        ListAll(None, None),
        ListAll(ALICE, "a"),
        Lend(ALICE, "treasure"),
        Evict(ALICE, "treasure"),
        Prepare(0.0, preserve=True, lasting=True),
        Abort(),
        Depart(),
        Reboot(0.0, None, compatible=True),
        Stop(discard=True),
    )

    def test_what_root_may_do_nobody_else_may(self, alice: Alice, agent: Agent) -> None:
        def administer() -> object:
            with Client(agent.runtime) as client:
                client.hello()
                answers = [client.ask(request) for request in self.ADMINISTRATION]
                return [[answer.error, answer.message] for answer in answers]

        assert attack(administer) == [
            ["RefusedError", f"only root decides that on this agent, not uid {MALLORY}"]
        ] * len(self.ADMINISTRATION)

    def test_root_sees_and_drops_what_is_anybodys_and_who_holds_it_is_told(self, alice: Alice, agent: Agent) -> None:
        with agent.client(MALLORY) as mallory, agent.client(0) as root:
            arena, fd = attached(mallory, "loot", ARENA_SIZE_MIN)
            os.close(fd)
            assert ask(root, ListAll(None, None))[0] == Arenas((alice.arena, arena), more=False)
            for uid, name in ((ALICE, "loot"), (0, "loot"), (MALLORY, "treasure")):
                assert refused(root, Evict(uid, name)) == "NotFoundError"
            assert ask(root, Evict(MALLORY, "loot"))[0] == Dropped()
            gone = mallory.answer()
            assert (gone.uuid, "dropped by an administrator" in gone.why) == (arena.uuid, True)
            assert refused(mallory, Attach("loot", None)) == "NotFoundError"

    def test_the_agents_own_files_and_descriptors_are_closed_to_him(self, alice: Alice, agent: Agent) -> None:
        inode = os.fstat(alice.fd).st_ino
        memfds = [link for link in Path(f"/proc/{agent.pid}/fd").iterdir() if link.stat().st_ino == inode]

        def look() -> object:
            found = []
            for path in (agent.runtime.lock, agent.runtime.state, *memfds, Path(f"/proc/{agent.pid}/mem")):
                try:
                    os.close(os.open(path, os.O_RDONLY))
                    found.append("open")
                except PermissionError:
                    found.append("closed")
            return found

        assert attack(look) == ["closed"] * (3 + len(memfds))
        assert memfds


class TestForgedCredentials:
    """Who is who, the kernel says; a client has no say in it."""

    @staticmethod
    def claim(client: Client, pid: int, uid: int, gid: int, request: Request) -> Any:
        claimed = struct.pack("3i", pid, uid, gid)
        message = client.conversation.send(request)
        client.sock.sendmsg([message], [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, claimed)])
        return client.answer()

    def test_who_claims_to_be_another_is_stopped_by_the_kernel(self, alice: Alice, agent: Agent) -> None:
        parent = os.getpid()

        def forge() -> object:
            told = []
            with Client(agent.runtime) as client:
                client.hello()
                for claim in ((parent, MALLORY, MALLORY), (1, 0, 0), (os.getpid(), ALICE, MALLORY), (0, 0, 0)):
                    fresh = Conversation("client")
                    fresh.state = State.IDLE
                    client.conversation = fresh
                    try:
                        told.append(str(self.claim(client, *claim, List(None))))
                    except OSError as error:
                        told.append(errno.errorcode[error.errno or 0])
            return told

        assert attack(forge) == ["EPERM"] * 4

    def test_true_credentials_beside_a_message_change_nothing(self, alice: Alice, agent: Agent) -> None:
        def claim() -> object:
            with Client(agent.runtime) as client:
                client.hello()
                return len(self.claim(client, os.getpid(), MALLORY, MALLORY, List(None)).arenas)

        assert attack(claim) == 0

    def test_root_who_may_claim_anything_is_believed_nothing(self, alice: Alice, agent: Agent) -> None:
        with agent.client(0) as client:
            assert self.claim(client, os.getpid(), ALICE, ALICE, List(None)) == Arenas((), more=False)
        with agent.client(MALLORY) as client:  # root's process, but not root's connection
            assert self.claim(client, 1, 0, 0, ListAll(None, None)).error == "RefusedError"

    def test_a_connection_is_the_users_who_made_it_whoever_uses_it(self, alice: Alice, agent: Agent) -> None:
        with agent.client(MALLORY) as mallory, agent.client(ALICE) as hers:

            def use() -> object:
                both = [
                    [arena.name for arena in ask(client, List(None))[0].arenas] + [refused(client, Lend(0, "x"))]
                    for client in (mallory, hers)
                ]
                with Client(agent.runtime) as own:  # a new one is of whoever it is now
                    own.hello()
                    return [*both, len(ask(own, List(None))[0].arenas)]

            assert attack(use, ALICE + 2) == [["RefusedError"], ["treasure", "RefusedError"], 0]


def request_of_each_kind(name: str, uuid: UUID) -> list[Request]:
    """All that a client can say."""
    return [
        Hello(None),
        Attach(name, None),
        List(None),
        Drop(name),
        Handback(name, uuid),
        AskStatus(),
        AskHandover(1),
        Watch(),
        Ready(done=True),
        ListAll(None, None),
        Lend(0, name),
        Evict(0, name),
        Prepare(0.0, preserve=True, lasting=True),
        Abort(),
        Depart(),
        Reboot(0.0, None, compatible=True),
        Stop(discard=True),
    ]


def data_of(request: Request) -> bytes:
    """Its bytes, whatever the state of the conversation."""
    conversation = Conversation("client")
    conversation.state = State.GREETING if isinstance(request, Hello) else State.IDLE
    return conversation.send(request)


def has_passrights() -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        try:
            return bool(sock.getsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS))
        except OSError:
            return False


def raise_limit_of_descriptors() -> int:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def greeted(runtime: RuntimeDirectory, boot: UUID) -> Client:
    """A connection of one who says that they have arenas to hand back; as soon as they may have another one."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        client = Client(runtime, boot)
        with suppress(BrokenPipeError, ConnectionResetError):
            if isinstance(client.ask(Hello(boot)), Welcome):
                return client
        client.sock.close()
    raise AssertionError("the agent takes no connection")


@contextmanager
def asleep(agent: Agent) -> Iterator[None]:
    """Whatever comes meanwhile waits for the agent."""
    os.kill(agent.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, agent.pid, os.WSTOPPED)
    try:
        yield
    finally:
        os.kill(agent.pid, signal.SIGCONT)


def pass_all(client: Client, words: bytes, fds: list[int]) -> int:
    """Pass these again and again, for as long as they can queue up; how many could."""
    client.sock.setblocking(False)
    count = 0
    try:
        while True:
            client.send(words, *fds)
            count += len(fds)
    except BlockingIOError:
        pass
    except OSError as error:
        if error.errno != errno.ETOOMANYREFS:  # as many as this user may have under way
            raise
    return count


class Lingering:
    """Sockets whose last close takes an hour, unless the other end goes away."""

    def __init__(self) -> None:
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen()
        self._ends: list[socket.socket] = []

    def give_away(self, client: Client, words: bytes, *others: int) -> None:
        """Pass one, after others, and have it no longer: the agent's is the last."""
        with socket.socket() as given:
            given.connect(self._listener.getsockname())
            self._ends.append(self._listener.accept()[0])
            given.setblocking(False)
            with suppress(BlockingIOError):
                while True:
                    given.send(bytes(1 << 16))
            with suppress(PermissionError):  # who has nothing to hand back may pass nothing, from Linux 6.16 on
                client.send(words, *others, given.fileno())
                given.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("2i", 1, LINGERS))

    def end(self) -> None:
        for end in (*self._ends, self._listener):
            end.close()


class TestDescriptors:
    """Nobody makes the agent hold, or wait for, what they pass to it."""

    def test_as_many_as_a_message_can_have_with_every_kind_of_message(self, alice: Alice, agent: Agent) -> None:
        boot = boot_of(agent)

        def flood() -> object:
            fd, null = create_memfd("x", SIZE), os.open("/dev/null", os.O_RDWR)
            survivors = []
            for request in request_of_each_kind("treasure", alice.arena.uuid):
                for fds in ([fd], [null], [fd, null], [fd] * FDS_MAX, [null] * FDS_MAX):
                    with greeted(agent.runtime, boot) as client:
                        client.send(data_of(request), *fds)
                        is_request = isinstance(request, Handback) and len(fds) == 1
                        if not (client.answer().error == "RefusedError" if is_request else client.is_thrown_out()):
                            survivors.append([type(request).__name__, len(fds)])
            return survivors

        assert attack(flood) == []

    def test_those_that_queue_up_while_the_agent_does_not_read(self, alice: Alice, agent: Agent) -> None:
        boot = boot_of(agent)

        def flood() -> Iterator[object]:
            raise_limit_of_descriptors()
            clients = [greeted(agent.runtime, boot) for _ in range(CONNECTIONS_PER_USER_MAX)]
            fds = [end for _ in range(FDS_MAX // 2) for end in os.pipe()]
            yield None
            yield sum(pass_all(client, data_of(List(None)), fds) for client in clients)

        with Attacker(MALLORY, flood) as attacker:
            attacker.result()
            with asleep(agent):
                assert attacker.go_on() > 500
            alice.is_served()

    @pytest.mark.parametrize("where", ["in place of an arena", "beside other words", "unread", "before any word"])
    def test_sockets_whose_last_close_takes_an_hour(self, alice: Alice, agent: Agent, where: str) -> None:
        boot = boot_of(agent)

        def linger() -> Iterator[object]:
            lingering = Lingering()
            clients = [
                Client(agent.runtime) if where == "before any word" else greeted(agent.runtime, boot) for _ in range(5)
            ]
            words = data_of(Handback("treasure", alice.arena.uuid) if where == "in place of an arena" else List(None))
            yield None
            for client in clients:
                if where == "unread":
                    client.send(b"garbage")
                others = [0] * 3 if where == "beside other words" else []
                lingering.give_away(client, words, *others)
            yield None

        with Attacker(MALLORY, linger) as attacker:
            attacker.result()
            with asleep(agent):
                attacker.go_on()
            alice.is_served()

    def test_who_passes_what_cannot_be_closed_has_a_bounded_share_until_it_is(self, alice: Alice, agent: Agent) -> None:
        if not has_passrights():
            pytest.skip("before Linux 6.16 nobody can be kept from passing descriptors")
        boot = boot_of(agent)

        def linger() -> Iterator[object]:
            raise_limit_of_descriptors()
            lingering, null = Lingering(), [os.open("/dev/null", os.O_RDONLY)] * (FDS_MAX - 1)
            clients = [greeted(agent.runtime, boot) for _ in range(CONNECTIONS_PER_USER_MAX)]
            yield None
            for client in clients:
                lingering.give_away(client, data_of(List(None)), *null)
            yield None
            for client in clients:
                assert client.is_thrown_out()
            yield [Client(agent.runtime).answer().message for _ in range(200)]
            lingering.end()
            yield greeted(agent.runtime, boot).ask(List(None)).more

        with Attacker(MALLORY, linger) as attacker:
            attacker.result()
            with asleep(agent):
                attacker.go_on()
            told = attacker.go_on()
            assert set(told) == {f"you have {CONNECTIONS_PER_USER_MAX} connections to the agent, which is your limit"}
            alice.is_served()
            assert descriptors(agent.pid) - alice.held <= FDS_MAX + CONNECTIONS_PER_USER_MAX + 5
            assert attacker.go_on() is False


T = TypeVar("T")


def errors_of(runtime: RuntimeDirectory, messages: Iterable[bytes]) -> dict[str, int]:
    """Send each on a connection of its own, some side by side, and count the answers by the error that they name."""
    found: Counter[str] = Counter()
    for some in batched(messages, CONNECTIONS_PER_USER_MAX // 2):
        clients = [Client(runtime) for _ in some]
        for client, message in zip(clients, some, strict=True):
            client.hello()
            client.send(message)
        for client in clients:
            with client:
                client.conversation.state = State.ANSWERING
                answer = client.answer()
                found[answer.error if isinstance(answer, Refusal) else type(answer).__name__] += 1
    return found


def batched(items: Iterable[T], most: int) -> Iterator[list[T]]:
    left = iter(items)
    while some := list(islice(left, most)):
        yield some


BYTES: Final = [bytes([value]) for value in range(256)]


class TestMessages:
    """Whatever is no message is answered, and ends the connection that it came on, and nothing else."""

    def test_half_messages(self, alice: Alice, agent: Agent) -> None:
        requests = [data_of(request) for request in request_of_each_kind("treasure", uuid4())]
        halves = [data[:end] for data in requests for end in range(1, len(data))]
        assert attack(lambda: errors_of(agent.runtime, halves)) == {"ProtocolError": len(halves)}

    def test_messages_of_every_length(self, alice: Alice, agent: Agent) -> None:
        data = memoryview(packed(v=VERSION, op="list", after="x" * MESSAGE_BYTES_MAX))

        def send() -> object:
            refused = 0
            with agent.runtime.socket_address() as address:
                for lengths in batched(range(1, MESSAGE_BYTES_MAX + 2), CONNECTIONS_PER_USER_MAX // 2):
                    # Nothing but system calls: they are many.
                    socks = [socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in lengths]
                    for sock, length in zip(socks, lengths, strict=True):
                        sock.connect(address)
                        sock.send(data[:length])
                    for sock in socks:
                        refused += b"ProtocolError" in sock.recv(1000)
                        sock.close()
            return refused

        assert attack(send) == MESSAGE_BYTES_MAX + 1

    def test_a_message_of_no_length_ends_the_connection(self, alice: Alice, agent: Agent) -> None:
        def say_nothing() -> object:
            with Client(agent.runtime) as client:
                client.send(b"")
                return client.is_thrown_out()

        assert attack(say_nothing) is True

    def test_damaged_messages(self, alice: Alice, agent: Agent) -> None:
        rng = random.Random(20260701)
        valid = [data_of(request) for request in request_of_each_kind("treasure", alice.arena.uuid)]

        def damaged() -> bytes:
            data = bytearray(rng.choice(valid))
            for _ in range(rng.randint(1, 4)):
                at = rng.randrange(len(data) + 1)
                match rng.randrange(4):
                    case 0:
                        data[at : at + 1] = bytes([rng.randrange(256)])
                    case 1:
                        del data[at : at + rng.randint(1, 9)]
                    case 2:
                        data[at:at] = rng.randbytes(rng.randint(1, 9))
                    case _:
                        other = rng.choice(valid)
                        data[at:at] = other[rng.randrange(len(other)) :]
            return bytes(data) or b"\0"

        def send() -> object:
            found = errors_of(agent.runtime, (damaged() for _ in range(10_000)))
            with Client(agent.runtime) as client:  # what was damaged can still have made an arena
                client.hello()
                for arena in ask(client, List(None))[0].arenas:
                    assert ask(client, Drop(arena.name))[0] == Dropped()
            return found

        found = attack(send)
        assert sum(found.values()) == 10_000
        # The rest is well formed, and is his to ask, or refused because it is not.
        assert found["ProtocolError"] > 8000

    NAMES: tuple[bytes, ...] = (
        *(byte + b"ab" for byte in BYTES),
        *(b"a" + byte + b"b" for byte in BYTES),
        *(b"ab" + byte for byte in BYTES),
        *BYTES,
        *(b"", b"x" * 201, b"x" * 60_000, "é".encode() * 101, b"\xed\xa0\x80", b"\xc0\x80", b"\xf4\x90\x80\x80", b".."),
    )

    def test_names_with_every_byte_in_them(self, alice: Alice, agent: Agent) -> None:
        def raw(name: bytes, *, as_text: bool) -> bytes:
            # What msgpack would not write: text that is no UTF-8.
            length = len(name)
            head = b"\xda" if as_text else b"\xc5"
            packed_name = head + struct.pack(">H", length) + name
            return packed(v=VERSION, op="attach", size=None, name=0)[:-1] + packed_name

        def can_be_a_name(name: bytes) -> bool:
            plain = all(0x20 <= byte < 0x7F and byte != ord("/") for byte in name)
            return plain and 0 < len(name) <= 200 and name[:1] not in b"- " and name[-1:] != b" "

        def try_names() -> object:
            wrong = []
            client = None
            for name in self.NAMES:
                for as_text in (True, False):
                    if client is None:
                        client = Client(agent.runtime)
                        client.hello()
                    client.send(raw(name, as_text=as_text))
                    client.conversation.state = State.ANSWERING
                    answer = client.answer()
                    expected = "NotFoundError" if as_text and can_be_a_name(name) else "ProtocolError"
                    if answer.error != expected:
                        wrong.append([name.hex(), as_text, answer.error])
                    if answer.error == "ProtocolError":
                        client.sock.close()
                        client = None
            return wrong

        assert attack(try_names) == []

    def test_every_name_that_can_be_one_can_be_made_and_found_and_dropped(self, alice: Alice, agent: Agent) -> None:
        names = [chr(value) for value in range(0x21, 0x7F) if chr(value) not in "-/"] + ["é" * 100, "a b", ".."]

        def use() -> object:
            with Client(agent.runtime) as client:
                client.hello()
                for name in names:
                    os.close(attached(client, name, ARENA_SIZE_MIN)[1])
                found, more = ask(client, List(None))[0]
                while more:
                    page, more = ask(client, List(found[-1].name))[0]
                    found += page
                for name in names:
                    assert ask(client, Drop(name))[0] == Dropped()
                return [arena.name for arena in found]

        assert attack(use) == sorted(names)


class TestConnections:
    """However many connections a user makes, another one gets through."""

    MANY: Final = 10_000

    def connect(self, agent: Agent, *, at_once: int) -> int:
        kept: list[socket.socket] = []
        with agent.runtime.socket_address() as address:
            for _ in range(self.MANY):
                sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                sock.connect(address)
                kept.append(sock)
                if len(kept) > at_once:
                    kept.pop(0).close()
        return len(kept)

    def test_ten_thousand_at_once(self, alice: Alice, agent: Agent) -> None:
        def flood() -> Iterator[object]:
            at_once = min(self.MANY, raise_limit_of_descriptors() - 100)
            yield self.connect(agent, at_once=at_once) == at_once

        with Attacker(MALLORY, flood) as attacker:
            for _ in range(3):
                alice.is_served()
            assert attacker.result() is True
            alice.is_served()

    def test_ten_thousand_one_after_the_other(self, alice: Alice, agent: Agent) -> None:
        def flood() -> Iterator[object]:
            yield self.connect(agent, at_once=0)

        with Attacker(MALLORY, flood) as attacker:
            for _ in range(3):
                alice.is_served()
            attacker.result()


class Loot:
    """What Mallory had from an agent that was killed. The one that took its place misses all of it."""

    NAMES: Final = ("one", "two", "three", "four", "five")

    def __init__(self, alice: Alice) -> None:
        self.agent = alice.agent
        with self.agent.client(MALLORY) as client:
            self.arenas = {name: attached(client, name, SIZE) for name in self.NAMES}
        for _, fd in self.arenas.values():
            with Arena(fd, kernel="7.3.4") as arena:
                arena.snapshot("silver", random.Random(2).randbytes(100_000))
        self.agent.kill()
        alice.comes_back()
        self.boot = boot_of(self.agent)

    def hand_back(self, name: str, fd: int) -> str:
        """What the agent says to that: the error's name, or "Kept"."""
        with greeted(self.agent.runtime, self.boot) as client:
            answer, _ = ask(client, Handback(name, self.arenas[name][0].uuid), fd)
        return answer.error if isinstance(answer, Refusal) else type(answer).__name__

    def content(self, name: str) -> bytes:
        return os.pread(self.arenas[name][1], SIZE, 0)

    def forget(self) -> None:
        for _, fd in self.arenas.values():
            os.close(fd)


@pytest.fixture(scope="module")
def alice_after_it() -> Iterator[Alice]:
    with system() as alice:
        yield alice


@pytest.fixture(scope="module")
def loot_of_module(alice_after_it: Alice) -> Iterator[Loot]:
    loot = Loot(alice_after_it)
    yield loot
    loot.forget()


@pytest.fixture
def loot(loot_of_module: Loot, alice_after_it: Alice) -> Iterator[Loot]:
    with unharmed(alice_after_it):
        yield loot_of_module


def sealed(content: bytes, seals: int = SEALS) -> int:
    fd = os.memfd_create("forged", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(fd, content)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def pipe() -> int:
    reading, writing = os.pipe()
    os.close(writing)
    return reading


def path_only(content: bytes) -> int:
    fd = sealed(content)
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_PATH | os.O_CLOEXEC)
    finally:
        os.close(fd)


def other_arena() -> int:
    fd = create_memfd("forged", SIZE)
    Arena.format(fd, kernel="7.3.4")
    return fd


def hugetlb() -> int:
    fd = os.memfd_create("forged", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | os.MFD_HUGETLB)
    os.ftruncate(fd, os.fstat(fd).st_blksize)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
    return fd


def tmpfs(content: bytes) -> int:
    fd = os.open("/dev/shm", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    os.write(fd, content)
    return fd


FORGERIES: Final[dict[str, Callable[[bytes], int]]] = {
    "pipe": lambda _: pipe(),
    "socket": lambda _: socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET).detach(),
    "device": lambda _: os.open("/dev/zero", os.O_RDWR),
    "directory": lambda _: os.open("/", os.O_RDONLY),
    "file": lambda _: os.open("/etc/passwd", os.O_RDONLY),
    "own memory": lambda _: os.open("/proc/self/mem", os.O_RDWR),
    "own process": lambda _: os.pidfd_open(os.getpid()),
    "path only": path_only,
    "tmpfs": tmpfs,
    "hugetlb": lambda _: hugetlb(),
    "unsealed": lambda content: sealed(content, 0),
    "may shrink": lambda content: sealed(content, fcntl.F_SEAL_GROW),
    "may grow": lambda content: sealed(content, fcntl.F_SEAL_SHRINK),
    "read only for ever": lambda content: sealed(content, SEALS | fcntl.F_SEAL_WRITE),
    "too large": lambda content: sealed(content + bytes(SIZE)),
    "too small": lambda content: sealed(content[: SIZE // 2]),
    "empty": lambda _: sealed(bytes(SIZE)),
    "no size at all": lambda _: sealed(b""),
    "another arena of his": lambda _: other_arena(),
}


class TestHandingBack:
    """What a user hands back is the arena that the agent kept for them, or it is refused, at once."""

    @pytest.mark.parametrize("kind", FORGERIES)
    def test_what_is_not_what_it_claims(self, loot: Loot, kind: str) -> None:
        try:
            forged = FORGERIES[kind](loot.content("one"))
        except OSError as error:
            pytest.skip(f"this kernel makes none: {error.strerror}")
        try:
            assert attack(lambda: loot.hand_back("one", forged)) == "CorruptError"
        finally:
            os.close(forged)

    def test_what_is_another_users(self, loot: Loot, alice_after_it: Alice) -> None:
        assert attack(lambda: loot.hand_back("one", sealed(alice_after_it.content))) == "CorruptError"

    def test_a_header_with_any_byte_changed(self, loot: Loot) -> None:
        content = loot.content("one")

        def forge() -> object:
            found = Counter[str]()
            for at in range(HEADER_SIZE):
                damaged = bytearray(content)
                damaged[at] ^= 0xFF
                fd = sealed(bytes(damaged))
                found[loot.hand_back("one", fd)] += 1
                os.close(fd)
            return found

        answers = attack(forge)
        assert sum(answers.values()) == HEADER_SIZE
        assert answers.keys() <= {"CorruptError", "NewerFormatError"}

    def test_one_that_shrinks_before_the_agent_looks(self, loot: Loot) -> None:
        content = loot.content("one")

        def shrink() -> Iterator[object]:
            fd = sealed(content, 0)
            client = greeted(loot.agent.runtime, loot.boot)
            yield None
            client.send(client.conversation.send(Handback("one", loot.arenas["one"][0].uuid)), fd)
            os.ftruncate(fd, 0)
            yield None
            yield client.answer().error

        with Attacker(MALLORY, shrink) as attacker:
            attacker.result()
            with asleep(loot.agent):
                attacker.go_on()
            assert attacker.go_on() == "CorruptError"

    def test_one_that_is_rewritten_all_the_time(self, loot: Loot) -> None:
        content, fd = loot.content("two"), loot.arenas["two"][1]

        def rewrite() -> object:
            rng, ended = random.Random(3), threading.Event()

            def write() -> None:
                while not ended.is_set():
                    os.pwrite(fd, rng.randbytes(HEADER_SIZE), 0)
                    os.pwrite(fd, content[: rng.randrange(2 * HEADER_SIZE)], 0)

            writer = threading.Thread(target=write)
            writer.start()
            found = Counter(loot.hand_back("two", fd) for _ in range(300))
            ended.set()
            writer.join()
            return found

        answers = attack(rewrite)
        assert answers.keys() <= {"CorruptError", "NewerFormatError", "Kept"}
        os.pwrite(fd, content, 0)
        assert attack(lambda: self.keep_and_drop(loot, "two", fd)) == "Kept"

    def test_one_on_which_he_has_a_lease_makes_nobody_wait(self, loot: Loot) -> None:
        """An open(2) that waits for a lease to be given back waits for 45 seconds."""
        genuine = loot.arenas["three"][1]

        def lease() -> Iterator[object]:
            signal.signal(signal.SIGIO, signal.SIG_IGN)
            try:
                fcntl.fcntl(genuine, fcntl.F_SETLEASE, fcntl.F_RDLCK)
            except OSError as error:
                yield f"this kernel gives no lease on a memfd: {error.strerror}"
            yield loot.hand_back("three", genuine)
            fcntl.fcntl(genuine, fcntl.F_SETLEASE, fcntl.F_UNLCK)
            yield self.keep_and_drop(loot, "three", genuine)

        with Attacker(MALLORY, lease) as attacker:
            answer = attacker.result()
            if answer.startswith("this kernel"):
                pytest.skip(answer)
            assert answer == "BusyError"
            assert attacker.go_on() == "Kept"

    def test_one_whose_every_byte_he_has_locked_makes_nobody_wait(self, loot: Loot) -> None:
        genuine = loot.arenas["four"][1]

        def lock() -> object:
            own = os.open(f"/proc/self/fd/{genuine}", os.O_RDWR)
            assert try_lock(own, 0, SIZE, exclusive=True)
            fcntl.flock(own, fcntl.LOCK_EX)
            return self.keep_and_drop(loot, "four", genuine)

        assert attack(lock) == "Kept"

    def test_through_a_descriptor_that_only_reads_it_is_as_good_as_ever(self, loot: Loot) -> None:
        genuine = loot.arenas["five"][1]

        def hand_back() -> object:
            answer = loot.hand_back("five", os.open(f"/proc/self/fd/{genuine}", os.O_RDONLY))
            with Client(loot.agent.runtime) as client:
                client.hello()
                _, fd = attached(client, "five")
                with Arena(fd, kernel="7.3.4") as arena:
                    arena.snapshot("silver", "more of it")
                assert ask(client, Drop("five"))[0] == Dropped()
            return answer

        assert attack(hand_back) == "Kept"

    @staticmethod
    def keep_and_drop(loot: Loot, name: str, fd: int) -> str:
        answer = loot.hand_back(name, fd)
        with Client(loot.agent.runtime) as client:
            client.hello()
            assert ask(client, Drop(name))[0] == Dropped()
        return answer
