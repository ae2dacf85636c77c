"""The agent's socket: one thread, many clients, none of whom can make it wait, or hold more than a bounded share of it.

Knows sockets, messages and whom they are for; what becomes of arenas is the custodian's, what becomes of the kernel the
machine's.
"""

import errno
import logging
import os
import selectors
import socket
import struct
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, NoReturn, Protocol
from uuid import UUID

from persistmem.agent import datagrams
from persistmem.agent.custodian import Custodian, Owner
from persistmem.agent.disposal import Disposal
from persistmem.agent.preparation import Preparation
from persistmem.agent.protocol import (
    PAGE,
    Abort,
    Aborted,
    AdministratorRequest,
    Arenas,
    AskHandover,
    AskStatus,
    Attach,
    Attached,
    Conversation,
    Depart,
    Departing,
    Drop,
    Dropped,
    Evict,
    Gone,
    Handback,
    HandoverAnswer,
    Hello,
    Kept,
    Lend,
    List,
    ListAll,
    Message,
    Noted,
    Phase,
    Prepare,
    Prepared,
    Preparing,
    Ready,
    Reboot,
    Rebooting,
    Status,
    Stop,
    Stopping,
    Watch,
    Watching,
    Welcome,
    refusal,
)
from persistmem.agent.records import Handover
from persistmem.agent.statefile import Boot
from persistmem.errors import AgentError, Error, NotFoundError, ProtocolError, RefusedError

CONNECTIONS_MAX: Final = 256
CONNECTIONS_PER_USER_MAX: Final = 64
"""Where one agent serves many, and with what each of them passed that is not closed yet; root has no limit, so that
nobody can lock it out."""
PREPARATION_MAX: Final = 3600.0
"""Seconds; longer than this no application is waited for."""
_OUTBOX_MAX: Final = 64
_PATIENCE: Final = 5.0
"""Seconds in which a client says hello, and reads what it was sent."""
_WAIT_MAX: Final = 86_400.0
"""Seconds; poll(2) cannot wait for ever, and an agent in the foreground never idles."""
_PEER_CREDENTIALS: Final = struct.Struct("i2I")
_SO_PASSRIGHTS: Final = 83  # include/uapi/asm-generic/socket.h
"""Whether others may pass descriptors to a socket; since Linux 6.16, before which they always may."""
_PROGRAM_BYTES_MAX: Final = 64
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Limits:
    """How long the agent waits, in seconds."""

    idle: float = 600.0
    """With nothing kept, until it ends by itself."""
    grace: float = 5.0
    """After it took the place of one that was killed, for those who held its arenas to hand them back."""


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """A sign of life, for the watchdog of a service manager."""

    every: float
    """Seconds after which it is due again. It can be late by what one answer takes."""
    beat: Callable[[], None]
    """Gives it. Called in the thread that serves, so it must neither wait nor raise."""


@dataclass(frozen=True, slots=True)
class Audience:
    """Whom an agent serves: one user and root, who acts for that user; or everybody, each by themselves."""

    sole: Owner | None
    """None for everybody."""

    def admits(self, uid: int) -> bool:
        """Whether the agent talks to this user."""
        return self.sole is None or uid in (self.sole.uid, 0)

    def owner(self, uid: int, gid: int) -> Owner:
        """Whose arenas this user sees."""
        return self.sole or Owner(uid, gid)

    def administers(self, uid: int) -> bool:
        """Whether this user decides about the agent and the kernel."""
        return uid == 0 or (self.sole is not None and uid == self.sole.uid)


class Machine(Protocol):
    """What the agent runs on."""

    @property
    def carrier(self) -> str:
        """What carries arenas to the next kernel."""

    @property
    def custodian(self) -> Custodian:
        """Who keeps them in this one."""

    @property
    def outlives_process(self) -> bool:
        """Whether they stay when the agent ends."""

    def next_boot(self, release: str | None, *, compatible: bool) -> Boot:
        """Return the kernel that a simulated reboot would lead to. RefusedError if there can be none like that."""

    def kexec(self, successor: Boot, preserve: float) -> NoReturn:
        """Go there, with every arena, all being preserved. RefusedError if that did not happen."""


_Parkable = Attach | Drop | List | AdministratorRequest


@dataclass(slots=True, eq=False)
class _Peer:
    """One client."""

    sock: socket.socket
    pid: int
    uid: int
    owner: Owner
    """Whose arenas it sees."""
    deadline: float | None
    """When it is thrown out unless it gets on."""
    passes: bool
    """There may be descriptors in what it sent and nobody has read."""
    conversation: Conversation = field(default_factory=lambda: Conversation("agent"))
    outbox: deque[tuple[bytes, list[int]]] = field(default_factory=deque)
    """What it has not taken yet, with descriptors that are ours until then."""
    boot: UUID | None = None
    """The boot that its arenas are from."""
    attached: set[UUID] = field(default_factory=set)
    parked: _Parkable | None = None
    """What waits until arenas were handed back."""
    watches: bool = False
    """It is told before a kexec, and waited for."""


class Server:
    """Serves clients on ``listener`` (bound and listening; the caller closes it).

    ``saved`` is the directory that the next boot's agent takes arenas in from, for whoever saves them.
    """

    def __init__(
        self,
        listener: socket.socket,
        machine: Machine,
        audience: Audience,
        *,
        saved: Path,
        limits: Limits,
        clock: Callable[[], float],
        heartbeat: Heartbeat | None = None,
    ) -> None:
        self._listener = listener
        self._custodian = machine.custodian
        self._machine = machine
        self._audience = audience
        self._saved = saved
        self._limits = limits
        self._preparation: Preparation[_Peer] | None = None
        self._clock = clock
        self._heartbeat = heartbeat
        self._next_beat = clock()
        self._disposal = Disposal()
        self._peers: set[_Peer] = set()
        self._grace_ends = clock() + limits.grace
        self._empty_since: float | None = None
        self._stopping = False
        self._selector = selectors.DefaultSelector()

    def serve(self, wakeup: socket.socket, on_wakeup: Callable[[bytes], bool]) -> None:
        """Serve until told to stop, or until nothing was kept for a while.

        ``wakeup`` becomes readable when a signal came; ``on_wakeup`` is given what was read, and says whether to stop.
        """
        self._listener.setblocking(False)
        _let_pass(self._listener, allowed=False)
        wakeup.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(wakeup, selectors.EVENT_READ)
        try:
            while not self._stopping and not self._is_idle():
                self._show_life()
                for key, events in self._selector.select(self._timeout()):
                    if key.fileobj is self._listener:
                        self._accept()
                    elif key.fileobj is wakeup:
                        self._stopping = on_wakeup(wakeup.recv(64)) or self._stopping
                    elif key.data in self._peers:
                        self._move(key.data, events)
                self._enforce_deadlines()
        finally:
            for peer in list(self._peers):
                self._close(peer)
            self._selector.close()

    def _show_life(self) -> None:
        if self._heartbeat is not None and self._clock() >= self._next_beat:
            self._next_beat = self._clock() + self._heartbeat.every
            self._heartbeat.beat()

    def _is_idle(self) -> bool:
        if not self._custodian.is_empty or self._in_grace():
            self._empty_since = None
            return False
        if self._empty_since is None:
            self._empty_since = self._clock()
        return self._clock() - self._empty_since >= self._limits.idle

    def _in_grace(self, owner: Owner | None = None) -> bool:
        """Whether arenas may still be handed back; those of ``owner``, or any."""
        return bool(self._custodian.missing(owner)) and self._clock() < self._grace_ends

    def _timeout(self) -> float | None:
        deadlines = [peer.deadline for peer in self._peers if peer.deadline is not None]
        if self._in_grace():
            deadlines.append(self._grace_ends)
        if self._empty_since is not None:
            deadlines.append(self._empty_since + self._limits.idle)
        if self._preparation is not None and not self._preparation.is_complete:
            deadlines.append(self._preparation.ends)
        if self._heartbeat is not None:
            deadlines.append(self._next_beat)
        return min(max(0.0, min(deadlines) - self._clock()), _WAIT_MAX) if deadlines else None

    def _enforce_deadlines(self) -> None:
        now = self._clock()
        for peer in list(self._peers):
            if peer.deadline is not None and peer.deadline <= now:
                self._close(peer)
        if not self._in_grace():
            self._unpark()
        if self._preparation is not None and self._preparation.is_due(now):
            self._complete(self._preparation)

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError as error:
            # Out of descriptors or memory, or the client is gone already: the others go on.
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.ECONNABORTED):
                return
            raise
        sock.setblocking(False)
        pid, uid, gid = _PEER_CREDENTIALS.unpack(
            sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER_CREDENTIALS.size)
        )
        peer = _Peer(sock, pid, uid, self._audience.owner(uid, gid), self._clock() + _PATIENCE, _may_pass(sock))
        self._peers.add(peer)
        self._selector.register(sock, selectors.EVENT_READ, peer)
        if (refused := self._reason_to_refuse(uid)) is not None:
            self._throw_out(peer, RefusedError(refused))

    def _reason_to_refuse(self, uid: int) -> str | None:
        sole = self._audience.sole
        if sole is not None and not self._audience.admits(uid):
            return f"this agent serves uid {sole.uid} and root, not uid {uid}"
        if len(self._peers) > CONNECTIONS_MAX and not (sole is None and uid == 0):
            return f"the agent has {CONNECTIONS_MAX} connections, which is its limit"
        if sole is None and uid != 0 and self._burden(uid) > CONNECTIONS_PER_USER_MAX:
            return f"you have {CONNECTIONS_PER_USER_MAX} connections to the agent, which is your limit"
        return None

    def _burden(self, uid: int) -> int:
        """How many descriptors of the agent's a user takes, beside those of arenas."""
        return sum(peer.uid == uid for peer in self._peers) + self._disposal.pending(uid)

    def _move(self, peer: _Peer, events: int) -> None:
        if events & selectors.EVENT_WRITE:
            self._flush(peer)
        elif events & selectors.EVENT_READ:
            self._read(peer)

    def _read(self, peer: _Peer) -> None:
        if self._disposal.pending(peer.uid) > CONNECTIONS_PER_USER_MAX:
            # Whatever this user's programs passed cannot be closed, and there could be more of it in here.
            self._close(peer)
            return
        discard = partial(self._disposal.close, peer.uid)
        try:
            data, fds = datagrams.receive(peer.sock, discard)
        except BlockingIOError:
            return
        except ProtocolError as error:
            self._throw_out(peer, error)
            return
        except OSError:
            # Whatever ails this connection is its client's concern alone.
            self._close(peer)
            return
        try:
            if data:
                self._obey(peer, peer.conversation.receive(data, fds=len(fds)), fds)
            else:
                self._close(peer)
        except ProtocolError as error:
            self._throw_out(peer, error)
        finally:
            discard(fds)

    def _obey(self, peer: _Peer, message: Message, fds: list[int]) -> None:
        peer.deadline = None
        try:
            match message:
                case Hello():
                    peer.boot = message.boot
                    if peer.boot is not None:
                        # It has arenas to hand back. Nobody else has anything to pass.
                        _let_pass(peer.sock, allowed=True)
                        peer.passes = True
                    boot = self._custodian.boot
                    self._send(peer, Welcome(os.getpid(), boot.id, boot.kernel, self._machine.carrier))
                case Handback():
                    began = self._clock()
                    self._custodian.take_back(peer.owner, message.name, message.uuid, peer.boot, fds[0])
                    self._grace_ends += self._clock() - began  # the disk's time, to which it is written, is not theirs
                    peer.attached.add(message.uuid)
                    self._send(peer, Kept())
                    self._unpark()
                case AskStatus():
                    self._send(peer, self._status(peer))
                case AskHandover():
                    self._send(peer, HandoverAnswer(self._handover(peer, message.number)))
                case Watch():
                    peer.watches = True
                    self._send(peer, Watching())
                case Ready():
                    self._send(peer, Noted())
                    self._note_ready(peer, done=message.done)
                case (
                    Attach() | Drop() | List() | ListAll() | Lend() | Evict()
                    | Prepare() | Abort() | Depart() | Reboot() | Stop()
                ):  # fmt: skip
                    if self._must_wait(peer, message):
                        peer.parked = message
                    else:
                        self._act(peer, message)
        except (Error, OSError) as error:
            self._refuse(peer, error)

    def _must_wait(self, peer: _Peer, message: _Parkable) -> bool:
        if isinstance(message, Attach | Drop):
            return self._in_grace() and self._custodian.is_missing(peer.owner, message.name)
        if isinstance(message, List):
            return self._in_grace(peer.owner)
        if isinstance(message, Abort | Depart) or (isinstance(message, Stop) and message.discard):
            return False
        return self._in_grace()

    def _unpark(self) -> None:
        for peer in list(self._peers):
            message = peer.parked
            if message is not None and not self._must_wait(peer, message):
                peer.parked = None
                try:
                    self._act(peer, message)
                except (Error, OSError) as error:
                    self._refuse(peer, error)

    def _act(self, peer: _Peer, message: _Parkable) -> None:
        match message:
            case Attach():
                self._custodian.give_up(peer.owner, message.name)
                fd, record, made = self._custodian.attach(peer.owner, message.name, message.size)
                peer.attached.add(record.uuid)
                self._send(peer, Attached(record, made), [fd])
            case List():
                self._send(peer, Arenas(*self._custodian.records(peer.owner, message.after, PAGE)))
            case Drop():
                uuid = self._custodian.drop(peer.owner, message.name)
                self._tell_gone([uuid], f"arena {message.name!r} was dropped: attach again to make a new one")
                self._send(peer, Dropped())
            case _:
                self._administer(peer, message)

    def _administer(self, peer: _Peer, message: AdministratorRequest) -> None:
        if not self._audience.administers(peer.uid):
            raise RefusedError(f"only root decides that on this agent, not uid {peer.uid}")
        match message:
            case ListAll(uid, name):
                after = (uid, name) if uid is not None and name is not None else None
                self._send(peer, Arenas(*self._custodian.everyone(after, PAGE)))
            case Lend():
                fd, record = self._custodian.lend(message.uid, message.name)
                self._send(peer, Attached(record, made=False), [fd])
            case Evict():
                self._evict(peer, message)
            case Prepare():
                self._prepare(peer, message)
            case Abort():
                self._send(peer, Aborted(self._abort("it was aborted")))
            case Depart():
                self._depart(peer)
            case Reboot():
                self._reboot(peer, message)
            case Stop():
                self._stop(peer, message)

    def _evict(self, peer: _Peer, message: Evict) -> None:
        uid, name = message
        try:
            uuid = self._custodian.drop(Owner(uid, peer.owner.gid), name)  # an arena is its user's, whatever the group
        except NotFoundError as error:
            raise NotFoundError(
                f"uid {uid} has no arena {name!r}; persistmem ls --all-users lists those that there are"
            ) from error
        _log.info("arena %r (%s) of uid %d was dropped by uid %d", name, uuid, uid, peer.uid)
        self._tell_gone([uuid], f"arena {name!r} was dropped by an administrator: attach again to make a new one")
        self._send(peer, Dropped())

    def _note_ready(self, peer: _Peer, *, done: bool) -> None:
        preparation = self._preparation
        if preparation is None or peer not in preparation.waiting:
            return
        preparation.waiting.discard(peer)
        if not done:
            preparation.failed += 1
            _log.warning("before the kexec: %s failed to get ready", _described(peer))

    def _prepare(self, peer: _Peer, message: Prepare) -> None:
        def complete(preparation: Preparation[_Peer]) -> None:
            waited = self._clock() - preparation.began
            if message.preserve:
                preparation.preserve = self._custodian.preserve()
            count, size, told = self._custodian.count(), self._custodian.size(), preparation.told
            self._send(peer, Prepared(count, size, told, preparation.unready, waited, preparation.preserve))

        self._begin(peer, message.seconds, complete, lasting=message.lasting)

    def _reboot(self, peer: _Peer, message: Reboot) -> None:
        successor = self._machine.next_boot(message.release, compatible=message.compatible)

        def complete(preparation: Preparation[_Peer]) -> None:
            preparation.preserve = self._custodian.preserve()
            self._send(peer, Rebooting(self._custodian.boot.kernel, successor.kernel))
            self._machine.kexec(successor, preparation.preserve)

        self._begin(peer, message.seconds, complete, lasting=False)

    def _begin(
        self, peer: _Peer, seconds: float, complete: Callable[[Preparation[_Peer]], None], *, lasting: bool
    ) -> None:
        if self._preparation is not None and not self._preparation.is_complete:
            raise RefusedError("a kexec is being prepared already; wait for it, or abort it (persistmem abort)")
        self._abort("it is prepared anew")
        now = self._clock()
        watchers = {other for other in self._peers if other.watches and other is not peer}
        ends = now + min(seconds, PREPARATION_MAX)
        self._preparation = Preparation(peer, lasting, now, ends, watchers, complete)
        for watcher in list(watchers):
            self._send(watcher, Preparing(ends - now))
        if self._preparation.is_due(now):
            self._complete(self._preparation)

    def _complete(self, preparation: Preparation[_Peer]) -> None:
        preparation.is_complete = True
        waited = self._clock() - preparation.began
        for peer in sorted(preparation.waiting, key=lambda peer: peer.pid):
            _log.warning("before the kexec: %s was not ready within %.1f s", _described(peer), waited)
        try:
            preparation.complete(preparation)
        except (Error, OSError) as error:
            self._take_back_preparation()
            told = error if isinstance(error, RefusedError) else RefusedError(f"{error}; nothing has changed")
            self._refuse(preparation.requester, told)

    def _depart(self, peer: _Peer) -> None:
        if self._preparation is None or not self._preparation.is_complete:
            raise RefusedError("no kexec is prepared; prepare it first (persistmem prepare)")
        self._custodian.depart(self._preparation.preserve)
        self._send(peer, Departing())

    def _abort(self, why: str) -> bool:
        """Return whether there was anything to take back."""
        preparation = self._preparation
        if preparation is None:
            return False
        self._take_back_preparation()
        if not preparation.is_complete:
            self._refuse(preparation.requester, RefusedError(f"the kexec was not prepared: {why}"))
        return True

    def _take_back_preparation(self) -> None:
        self._preparation = None
        self._custodian.stay()

    def _stop(self, peer: _Peer, message: Stop) -> None:
        if message.discard:
            self._custodian.discard()
            self._tell_gone(None, "the agent was told to discard every arena: attach again to make a new one")
        elif not self._custodian.is_empty and not self._machine.outlives_process:
            count = self._custodian.count()
            raise RefusedError(f"the agent keeps {count} arenas, which end with it; drop them, or stop with --discard")
        self._send(peer, Stopping())
        self._stopping = True

    def _tell_gone(self, uuids: Iterable[UUID] | None, why: str) -> None:
        for peer in list(self._peers):
            for uuid in list(peer.attached) if uuids is None else peer.attached.intersection(uuids):
                peer.attached.discard(uuid)
                self._send(peer, Gone(uuid, why))

    @property
    def _phase(self) -> Phase:
        if self._preparation is None:
            return Phase.SERVING
        return Phase.PREPARED if self._preparation.is_complete else Phase.PREPARING

    def _status(self, peer: _Peer) -> Status:
        boot, handovers = self._custodian.boot, self._custodian.handovers
        whose = None if self._audience.administers(peer.uid) else peer.owner
        return Status(
            pid=os.getpid(),
            boot=boot.id,
            kernel=boot.kernel,
            carrier=self._machine.carrier,
            phase=self._phase.value,
            saved=str(self._saved),
            arenas=self._custodian.count(whose),
            size=self._custodian.size(whose),
            missing=self._custodian.missing(whose),
            connections=len(self._peers),
            handovers=handovers[-1].number if handovers else 0,
            handovers_from=handovers[0].number if handovers else 0,
        )

    def _handover(self, peer: _Peer, number: int) -> Handover:
        for handover in self._custodian.handovers:
            if handover.number == number:
                if self._audience.administers(peer.uid):
                    return handover
                own = tuple(loss for loss in handover.lost if loss.uid == peer.owner.uid)
                return handover._replace(lost=own, lost_count=len(own))
        raise NotFoundError(f"there is no handover {number}, or no longer; persistmem status says which there are")

    def _send(self, peer: _Peer, message: Message, fds: list[int] | None = None) -> None:
        """Send a message and its descriptors, which are no longer the caller's; what does not go now waits its turn."""
        peer.outbox.append((peer.conversation.send(message), fds or []))
        if len(peer.outbox) > _OUTBOX_MAX:
            self._close(peer)
        else:
            self._flush(peer)

    def _flush(self, peer: _Peer) -> None:
        try:
            while peer.outbox:
                data, fds = peer.outbox[0]
                datagrams.send(peer.sock, data, fds)
                peer.outbox.popleft()
                datagrams.close_all(fds)
        except BlockingIOError:
            # Nothing more is read from a client that does not take its answers.
            peer.deadline = peer.deadline or self._clock() + _PATIENCE
            self._selector.modify(peer.sock, selectors.EVENT_WRITE, peer)
        except OSError:
            self._close(peer)
        else:
            peer.deadline = None
            self._selector.modify(peer.sock, selectors.EVENT_READ, peer)

    def _refuse(self, peer: _Peer, error: Error | OSError) -> None:
        if peer in self._peers:
            told = error if isinstance(error, Error) else AgentError(f"the agent cannot do that: {error}; see its log")
            self._send(peer, refusal(told))

    def _throw_out(self, peer: _Peer, error: Error) -> None:
        """Say why, if the client will hear it, and close."""
        peer.conversation = Conversation("agent")
        with suppress(OSError):  # it may not listen either
            datagrams.send(peer.sock, peer.conversation.send(refusal(error)))
        self._close(peer)

    def _close(self, peer: _Peer) -> None:
        if peer not in self._peers:
            return
        self._peers.discard(peer)
        self._selector.unregister(peer.sock)
        if peer.passes:
            with suppress(OSError):  # the client may have gone
                peer.sock.shutdown(socket.SHUT_RDWR)
            self._disposal.close(peer.uid, [peer.sock.detach()])
        else:
            peer.sock.close()
        for _, fds in peer.outbox:
            datagrams.close_all(fds)
        peer.outbox.clear()
        peer.parked = None
        preparation = self._preparation
        if preparation is not None:
            preparation.waiting.discard(peer)
            if preparation.requester is peer and not (preparation.lasting and preparation.is_complete):
                try:
                    self._take_back_preparation()
                except Error:
                    _log.exception("the kexec that was being prepared is not, but this cannot be written down")


def _let_pass(sock: socket.socket, *, allowed: bool) -> None:
    """Let others pass descriptors to a socket, and to those that it accepts, or not; before Linux 6.16 they may."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_PASSRIGHTS, allowed)
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:
            raise


def _may_pass(sock: socket.socket) -> bool:
    try:
        return bool(sock.getsockopt(socket.SOL_SOCKET, _SO_PASSRIGHTS))
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:
            raise
        return True


def _described(peer: _Peer) -> str:
    """Name a client for the log, with what its process calls itself, if that can be read."""
    program = "unknown"
    with suppress(OSError), Path(f"/proc/{peer.pid}/comm").open("rb") as comm:  # it is gone, or hidden from us
        program = comm.read(_PROGRAM_BYTES_MAX).removesuffix(b"\n").decode(errors="replace")
    return f"pid {peer.pid} ({program!r}), uid {peer.uid}"
