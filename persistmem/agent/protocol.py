"""What the agent and its clients say to each other, without I/O: messages to bytes and back, and who may speak when.

One message is one datagram of a SOCK_SEQPACKET socket: a msgpack map of the protocol's version, an op and that op's
fields; a memfd travels beside it. May know msgpack; must not know sockets, arenas or time.

>>> agent, client = Conversation("agent"), Conversation("client")
>>> agent.receive(client.send(Hello(boot=None)), fds=0)
Hello(boot=None)
>>> agent.state
<State.ANSWERING: 'answering'>
"""

import enum
from collections.abc import Mapping
from typing import Any, Final, Literal, NamedTuple
from uuid import UUID

import msgpack

from persistmem import errors
from persistmem.agent.fields import (
    COUNT,
    FLAG,
    KERNEL,
    NAME,
    SECONDS,
    UUID_TEXT,
    Kind,
    choice,
    integer,
    listing,
    optional,
    record,
    text,
)
from persistmem.agent.records import ARENA, ARENAS_MAX, HANDOVER, UID, ArenaRecord, Handover
from persistmem.errors import ProtocolError

VERSION: Final = 1
MESSAGE_BYTES_MAX: Final = 64 << 10
FDS_MAX: Final = 1
"""Most file descriptors beside a message."""

PAGE: Final = 64
"""Most arenas in one answer to List: 64 records of at most 900 bytes fit a message."""

READY: Final = b"ready"
"""What an agent that starts in the background writes to its starter's pipe once it listens."""

OTHER_AGENT: Final = b"other"
"""What it writes if another one is there already; anything else says why it does not start."""

Role = Literal["agent", "client"]


class Hello(NamedTuple):
    """The first message: which boot the client's arenas belong to, if it has any."""

    boot: UUID | None


class Welcome(NamedTuple):
    """Who answers."""

    pid: int
    boot: UUID
    """Identity of the (simulated) boot: another one means that the memory of the former is gone."""
    kernel: str
    carrier: str


class Attach(NamedTuple):
    """Give me this arena; make it with ``size`` bytes if it is not there (None: do not make it)."""

    name: str
    size: int | None


class Attached(NamedTuple):
    """Here it is: one memfd beside the message."""

    arena: ArenaRecord
    made: bool
    """It was made for this request."""


class List(NamedTuple):
    """Which arenas are there? At most 64, by name, those after ``after``."""

    after: str | None


class Arenas(NamedTuple):
    """Some of the arenas."""

    arenas: tuple[ArenaRecord, ...]
    more: bool


class ListAll(NamedTuple):
    """Which arenas are there, of all users? At most 64, by uid and name, those after. For administrators."""

    after_uid: int | None
    after_name: str | None


class Lend(NamedTuple):
    """Give me this arena of this user, as it is. For administrators."""

    uid: int
    name: str


class Drop(NamedTuple):
    """Let go of this arena. Whoever has it attached is told."""

    name: str


class Dropped(NamedTuple):
    """It is no longer kept."""


class Evict(NamedTuple):
    """Let go of this arena of this user, as if they had asked for it. For administrators."""

    uid: int
    name: str


class Handback(NamedTuple):
    """The agent was away; here is an arena that it kept, in the boot that Hello named: one memfd beside the message."""

    name: str
    uuid: UUID


class Kept(NamedTuple):
    """The agent keeps it."""


class AskStatus(NamedTuple):
    """Tell me how you are."""


class Phase(enum.Enum):
    """How near the agent thinks a kexec is."""

    SERVING = "serving"
    PREPARING = "preparing"
    PREPARED = "prepared"


class Status(NamedTuple):
    """What the agent is and has."""

    pid: int
    boot: UUID
    kernel: str
    carrier: str
    phase: str
    """A value of Phase: while it is preparing, applications take their last snapshots."""
    saved: str
    """The directory from which the next boot's agent takes in what was saved."""
    arenas: int
    size: int
    """Bytes of all arenas, the holes included."""
    missing: int
    """Arenas that an agent which was killed had kept, and that nobody has handed back yet."""
    connections: int
    handovers: int
    """Number of the newest handover; 0 if there was none."""
    handovers_from: int
    """Number of the oldest handover that is remembered; 0 if there was none."""


class AskHandover(NamedTuple):
    """Tell me of the handover of this number."""

    number: int


class HandoverAnswer(NamedTuple):
    """That handover."""

    handover: Handover


class Watch(NamedTuple):
    """Tell me when a kexec is being prepared, and wait until I am ready for it."""


class Watching(NamedTuple):
    """You will be told."""


class Preparing(NamedTuple):
    """Nobody asked: a kexec is being prepared, say Ready within so many seconds."""

    seconds: float


class Ready(NamedTuple):
    """I got ready for it, or could not."""

    done: bool


class Noted(NamedTuple):
    """Good."""


class Prepare(NamedTuple):
    """Get ready for a kexec. For administrators."""

    seconds: float
    """How long applications may take for their last snapshots."""
    preserve: bool
    """Whether memory is to cross; if not, it goes by the disk."""
    lasting: bool
    """Whether it stays prepared when this connection ends, until Abort."""


class Prepared(NamedTuple):
    """Everything crosses the next kexec."""

    arenas: int
    size: int
    """Bytes, the holes included."""
    applications: int
    """How many were told."""
    unready: int
    """How many of them failed to take their last snapshots, or not in time."""
    waited: float
    """Seconds."""
    preserve: float
    """Seconds that preserving took."""


class Abort(NamedTuple):
    """Take Prepare back. For administrators."""


class Aborted(NamedTuple):
    """Nothing is prepared any more."""

    prepared: bool
    """Whether anything was."""


class Depart(NamedTuple):
    """The kernel is left now: write that down. For administrators, once it is prepared."""


class Departing(NamedTuple):
    """It is written down."""


class Reboot(NamedTuple):
    """Simulate a kernel upgrade."""

    seconds: float
    """How long applications may take for their last snapshots."""
    release: str | None
    """Of the next kernel; None for one that is made up."""
    compatible: bool
    """Whether it reads what this one hands over."""


class Rebooting(NamedTuple):
    """The agent leaves now. What follows is the end of the connection, or a Refusal if the kernel refused."""

    kernel_from: str
    kernel_to: str


class Stop(NamedTuple):
    """End yourself; with arenas only if they may be discarded."""

    discard: bool


class Stopping(NamedTuple):
    """The agent ends now."""


class Gone(NamedTuple):
    """Nobody asked: an arena that this client attached is no longer kept."""

    uuid: UUID
    why: str


class Refusal(NamedTuple):
    """It was not done."""

    error: str
    """Name of the class in ``persistmem.errors``."""
    message: str


AdministratorRequest = ListAll | Lend | Evict | Prepare | Abort | Depart | Reboot | Stop
Request = Hello | Attach | List | Drop | Handback | AskStatus | AskHandover | Watch | Ready | AdministratorRequest
Reply = (
    Welcome
    | Attached
    | Arenas
    | Dropped
    | Kept
    | Status
    | HandoverAnswer
    | Watching
    | Noted
    | Prepared
    | Aborted
    | Departing
    | Rebooting
    | Stopping
    | Refusal
)
Notice = Gone | Preparing
Message = Request | Reply | Notice

_ERRORS: Final[dict[str, type[errors.Error]]] = {
    error.__name__: error
    for error in (
        errors.NotFoundError,
        errors.ExistsError,
        errors.SizeError,
        errors.CorruptError,
        errors.ArenaFullError,
        errors.BusyError,
        errors.StaleArenaError,
        errors.AgentError,
        errors.CarrierError,
        errors.ProtocolError,
        errors.RefusedError,
    )
}
_PID: Final = integer(0, 2**31 - 1)


class _Op(NamedTuple):
    """One op: who sends it, in which move, with how many file descriptors, and its fields."""

    by: Role
    move: "Move"
    fields: Kind[Any]  # a table of ops has records of every class
    fds: int = 0


class Move(enum.Enum):
    """What a message does to a conversation."""

    GREET = "greet"
    ASK = "ask"
    ANSWER = "answer"
    PART = "part"
    REFUSE = "refuse"
    NOTIFY = "notify"


class State(enum.Enum):
    """Where a conversation is."""

    GREETING = "greeting"
    IDLE = "idle"
    ANSWERING = "answering"
    PARTING = "parting"
    CLOSED = "closed"


_NEXT: Final[Mapping[State, Mapping[Move, State]]] = {
    State.GREETING: {Move.GREET: State.ANSWERING, Move.REFUSE: State.CLOSED},
    # Refused without having asked: the other end broke the protocol, and the connection ends.
    State.IDLE: {Move.ASK: State.ANSWERING, Move.NOTIFY: State.IDLE, Move.REFUSE: State.CLOSED},
    State.ANSWERING: {
        Move.ANSWER: State.IDLE,
        Move.REFUSE: State.IDLE,
        Move.PART: State.PARTING,
        Move.NOTIFY: State.ANSWERING,
    },
    # A kernel that refuses the freeze: everything goes on as before.
    State.PARTING: {Move.REFUSE: State.IDLE, Move.NOTIFY: State.PARTING},
    State.CLOSED: {},
}

_OPS: Final[Mapping[type[object], tuple[str, _Op]]] = {
    Hello: ("hello", _Op("client", Move.GREET, record(Hello, boot=optional(UUID_TEXT)))),
    Welcome: (
        "welcome",
        _Op("agent", Move.ANSWER, record(Welcome, pid=_PID, boot=UUID_TEXT, kernel=KERNEL, carrier=text(20))),
    ),
    Attach: ("attach", _Op("client", Move.ASK, record(Attach, name=NAME, size=optional(COUNT)))),
    Attached: ("attached", _Op("agent", Move.ANSWER, record(Attached, arena=ARENA, made=FLAG), fds=1)),
    List: ("list", _Op("client", Move.ASK, record(List, after=optional(NAME)))),
    Arenas: ("arenas", _Op("agent", Move.ANSWER, record(Arenas, arenas=listing(ARENA, PAGE), more=FLAG))),
    ListAll: (
        "list-all",
        _Op("client", Move.ASK, record(ListAll, after_uid=optional(UID), after_name=optional(NAME))),
    ),
    Lend: ("lend", _Op("client", Move.ASK, record(Lend, uid=UID, name=NAME))),
    Evict: ("evict", _Op("client", Move.ASK, record(Evict, uid=UID, name=NAME))),
    Drop: ("drop", _Op("client", Move.ASK, record(Drop, name=NAME))),
    Dropped: ("dropped", _Op("agent", Move.ANSWER, record(Dropped))),
    Handback: (
        "handback",
        _Op("client", Move.ASK, record(Handback, name=NAME, uuid=UUID_TEXT), fds=1),
    ),
    Kept: ("kept", _Op("agent", Move.ANSWER, record(Kept))),
    AskStatus: ("ask-status", _Op("client", Move.ASK, record(AskStatus))),
    Status: (
        "status",
        _Op(
            "agent",
            Move.ANSWER,
            record(
                Status,
                pid=_PID,
                boot=UUID_TEXT,
                kernel=KERNEL,
                carrier=text(20),
                phase=choice(*(phase.value for phase in Phase)),
                saved=text(4096),
                arenas=integer(0, ARENAS_MAX),
                size=COUNT,
                missing=integer(0, ARENAS_MAX),
                connections=COUNT,
                handovers=COUNT,
                handovers_from=COUNT,
            ),
        ),
    ),
    AskHandover: ("ask-handover", _Op("client", Move.ASK, record(AskHandover, number=COUNT))),
    HandoverAnswer: ("handover", _Op("agent", Move.ANSWER, record(HandoverAnswer, handover=HANDOVER))),
    Watch: ("watch", _Op("client", Move.ASK, record(Watch))),
    Watching: ("watching", _Op("agent", Move.ANSWER, record(Watching))),
    Preparing: ("preparing", _Op("agent", Move.NOTIFY, record(Preparing, seconds=SECONDS))),
    Ready: ("ready", _Op("client", Move.ASK, record(Ready, done=FLAG))),
    Noted: ("noted", _Op("agent", Move.ANSWER, record(Noted))),
    Prepare: ("prepare", _Op("client", Move.ASK, record(Prepare, seconds=SECONDS, preserve=FLAG, lasting=FLAG))),
    Prepared: (
        "prepared",
        _Op(
            "agent",
            Move.ANSWER,
            record(
                Prepared, arenas=COUNT, size=COUNT, applications=COUNT, unready=COUNT, waited=SECONDS, preserve=SECONDS
            ),
        ),
    ),
    Abort: ("abort", _Op("client", Move.ASK, record(Abort))),
    Aborted: ("aborted", _Op("agent", Move.ANSWER, record(Aborted, prepared=FLAG))),
    Depart: ("depart", _Op("client", Move.ASK, record(Depart))),
    Departing: ("departing", _Op("agent", Move.ANSWER, record(Departing))),
    Reboot: (
        "reboot",
        _Op("client", Move.ASK, record(Reboot, seconds=SECONDS, release=optional(KERNEL), compatible=FLAG)),
    ),
    Rebooting: ("rebooting", _Op("agent", Move.PART, record(Rebooting, kernel_from=KERNEL, kernel_to=KERNEL))),
    Stop: ("stop", _Op("client", Move.ASK, record(Stop, discard=FLAG))),
    Stopping: ("stopping", _Op("agent", Move.PART, record(Stopping))),
    Gone: ("gone", _Op("agent", Move.NOTIFY, record(Gone, uuid=UUID_TEXT, why=text(300)))),
    Refusal: ("refusal", _Op("agent", Move.REFUSE, record(Refusal, error=choice(*_ERRORS), message=text(2000)))),
}
_BY_NAME: Final[Mapping[str, _Op]] = dict(_OPS.values())


class Conversation:
    """One connection as one end sees it: makes and reads its messages, and holds both ends to the table of states."""

    def __init__(self, role: Role) -> None:
        self._role: Role = role
        self._peer: Role = "client" if role == "agent" else "agent"
        self.state = State.GREETING

    def send(self, message: Message) -> bytes:
        """Return the bytes of a message that this end may send now.

        Raises:
            ProtocolError: it may not, or the message is too long.

        """
        name, op = _OPS[type(message)]
        following = self._following(name, op, self._role)
        data = _pack(name, op, message)
        self.state = following
        return data

    def receive(self, data: bytes, *, fds: int) -> Message:
        """Return the message in a datagram that came with ``fds`` file descriptors. Cost: at most one pass over 64 KiB.

        Raises:
            ProtocolError: it is no message, or not one that the other end may send now. The state stays as it was.

        """
        name, op, message = _unpack(data)
        if fds != op.fds:
            raise ProtocolError(f"{name}: expected {op.fds} file descriptors beside it, found {fds}")
        self.state = self._following(name, op, self._peer)
        return message

    def _following(self, name: str, op: _Op, speaker: Role) -> State:
        following = _NEXT[self.state].get(op.move)
        if op.by != speaker or following is None:
            raise ProtocolError(f"{name} from the {speaker}: not expected while {self.state.value}")
        return following


def refusal(error: errors.Error) -> Refusal:
    """Return the message that says that ``error`` was raised; the client raises the same."""
    known = next((cls.__name__ for cls in type(error).__mro__ if cls.__name__ in _ERRORS), errors.AgentError.__name__)
    return Refusal(known, str(error))


def refused(message: Refusal) -> errors.Error:
    """Return the error that a Refusal stands for."""
    return _ERRORS[message.error](message.message)


def _pack(name: str, op: _Op, message: Message) -> bytes:
    fields = op.fields.pack(message)
    assert isinstance(fields, dict)
    try:
        data: bytes = msgpack.packb({"v": VERSION, "op": name, **fields})
    except UnicodeEncodeError as error:
        raise ProtocolError(f"{name}: expected text, found {error.object[:40]!r}") from error
    if len(data) > MESSAGE_BYTES_MAX:
        raise ProtocolError(f"{name}: expected at most {MESSAGE_BYTES_MAX} bytes, found {len(data)}")
    return data


def _unpack(data: bytes) -> tuple[str, _Op, Message]:
    if len(data) > MESSAGE_BYTES_MAX:
        raise ProtocolError(f"expected a message of at most {MESSAGE_BYTES_MAX} bytes, found {len(data)}")
    try:
        # Its own limits on strings, lists and maps follow from the length of ``data``.
        plain = msgpack.unpackb(data, strict_map_key=True)
    except (ValueError, msgpack.UnpackException) as error:
        raise ProtocolError(f"expected a msgpack map, found something else ({error})") from error
    if not isinstance(plain, dict):
        raise ProtocolError(f"expected a msgpack map, found {type(plain).__name__}")
    version, name = plain.pop("v", None), plain.pop("op", None)
    if type(version) is not int or version != VERSION:
        raise ProtocolError(
            f"expected protocol version {VERSION}, found {version!r:.40}; stop the agent (persistmem agent stop) or"
            " upgrade the older of the two"
        )
    op = _BY_NAME.get(name) if isinstance(name, str) else None
    if op is None:
        raise ProtocolError(f"expected an op of protocol version {VERSION}, found {name!r:.40}")
    try:
        message: Message = op.fields.unpack(plain)
    except ValueError as error:
        raise ProtocolError(f"{name}: {error}") from error
    return str(name), op, message
