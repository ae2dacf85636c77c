"""The agent's messages: what is sent is what is received, and nothing else is taken for a message."""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from persistmem import errors
from persistmem.agent.protocol import (
    MESSAGE_BYTES_MAX,
    PAGE,
    VERSION,
    Abort,
    Aborted,
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
    Prepare,
    Prepared,
    Preparing,
    Ready,
    Reboot,
    Rebooting,
    Refusal,
    Request,
    State,
    Status,
    Stop,
    Stopping,
    Watch,
    Watching,
    Welcome,
    refusal,
    refused,
)
from persistmem.agent.records import LOSSES_MAX, ArenaRecord, Handover, Loss

ID = UUID("12345678-1234-5678-1234-567812345678")
NOON = datetime(2026, 7, 1, 12, 0, 0, 123456, tzinfo=UTC)
ARENA = ArenaRecord("carts", 1000, 100, 0o600, 1 << 40, ID, NOON, "7.2.13")
LOSSES = (Loss("lost", 1000, "why"),)
HANDOVER = Handover(3, "7.2.13", "7.3.4", NOON, 2, 1, 1 << 30, 0.25, 1.5, 0.7, 0.5, LOSSES, 1)
WELCOME = Welcome(4711, ID, "7.3.4", "luo")

EXCHANGES = [
    (Attach("carts", 1 << 40), Attached(ARENA, made=True), 0, 1),
    (Attach("Wäschekorb 🧺", None), Refusal("NotFoundError", "there is none"), 0, 0),
    (List(None), Arenas((ARENA, ARENA), more=True), 0, 0),
    (List("carts"), Arenas((), more=False), 0, 0),
    (Drop("carts"), Dropped(), 0, 0),
    (Handback("carts", ID), Kept(), 1, 0),
    (AskStatus(), Status(1, ID, "7.3.4", "luo", "prepared", "/var/lib/saved", 2, 1 << 30, 0, 5, 9, 1), 0, 0),
    (ListAll(None, None), Arenas((ARENA,), more=True), 0, 0),
    (ListAll(1000, "carts"), Arenas((), more=False), 0, 0),
    (Lend(1000, "carts"), Attached(ARENA, made=False), 0, 1),
    (Evict(1000, "carts"), Dropped(), 0, 0),
    (Watch(), Watching(), 0, 0),
    (Ready(done=True), Noted(), 0, 0),
    (Prepare(10.0, preserve=True, lasting=False), Prepared(2, 1 << 30, 3, 1, 0.5, 0.25), 0, 0),
    (Depart(), Departing(), 0, 0),
    (Abort(), Aborted(prepared=True), 0, 0),
    (AskHandover(3), HandoverAnswer(HANDOVER), 0, 0),
]


@pytest.fixture
def ends() -> tuple[Conversation, Conversation]:
    """A client and an agent that have greeted each other."""
    client, agent = Conversation("client"), Conversation("agent")
    agent.receive(client.send(Hello(ID)), fds=0)
    client.receive(agent.send(WELCOME), fds=0)
    return client, agent


@pytest.mark.parametrize(("request_", "answer", "request_fds", "answer_fds"), EXCHANGES)
def test_what_is_sent_is_what_is_received(
    ends: tuple[Conversation, Conversation], request_: Request, answer: Message, request_fds: int, answer_fds: int
) -> None:
    client, agent = ends
    assert agent.receive(client.send(request_), fds=request_fds) == request_
    assert client.receive(agent.send(answer), fds=answer_fds) == answer
    assert client.state is agent.state is State.IDLE


def test_the_agent_may_say_goodbye_and_change_its_mind(ends: tuple[Conversation, Conversation]) -> None:
    client, agent = ends
    agent.receive(client.send(Reboot(5.0, "7.3.4", compatible=True)), fds=0)
    assert client.receive(agent.send(Rebooting("7.2.13", "7.3.4")), fds=0) == Rebooting("7.2.13", "7.3.4")
    client.receive(agent.send(Refusal("RefusedError", "the kernel refused")), fds=0)
    agent.receive(client.send(Stop(discard=False)), fds=0)
    client.receive(agent.send(Stopping()), fds=0)
    assert client.state is agent.state is State.PARTING


def test_a_notice_may_come_at_any_time_and_changes_nothing(ends: tuple[Conversation, Conversation]) -> None:
    client, agent = ends
    assert client.receive(agent.send(Gone(ID, "dropped")), fds=0) == Gone(ID, "dropped")
    agent.receive(client.send(List(None)), fds=0)
    client.receive(agent.send(Gone(ID, "dropped")), fds=0)
    client.receive(agent.send(Preparing(5.0)), fds=0)
    client.receive(agent.send(Arenas((), more=False)), fds=0)


def test_nobody_speaks_before_the_greeting_or_out_of_turn(ends: tuple[Conversation, Conversation]) -> None:
    fresh = Conversation("client")
    with pytest.raises(errors.ProtocolError, match="not expected while greeting"):
        fresh.send(List(None))
    with pytest.raises(errors.ProtocolError, match="not expected while greeting"):
        Conversation("agent").send(Dropped())
    client, agent = ends
    with pytest.raises(errors.ProtocolError, match="not expected while idle"):
        client.send(Hello(None))
    with pytest.raises(errors.ProtocolError, match="not expected while idle"):
        agent.send(Dropped())
    client.send(List(None))
    with pytest.raises(errors.ProtocolError, match="not expected while answering"):
        client.send(List(None))


def test_an_end_does_not_take_its_own_words_from_the_other(ends: tuple[Conversation, Conversation]) -> None:
    with pytest.raises(errors.ProtocolError, match="from the agent"):
        ends[0].receive(msgpack.packb({"v": VERSION, "op": "list", "after": None}), fds=0)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"v": 2}, "version 1, found 2"),
        ({"v": True}, "version 1, found True"),
        ({"v": None}, "version 1, found None"),
        ({"op": "fetch"}, "found 'fetch'"),
        ({"op": ["attach"]}, "found"),
        ({"name": 5}, "name: "),
        ({"name": "a/b"}, "name: "),
        ({"name": "x" * 201}, "name: "),
        ({"name": ""}, "name: "),
        ({"size": "1MiB"}, "size: "),
        ({"size": -1}, "size: "),
        ({"size": 1 << 63}, "size: "),
        ({"size": 1.5}, "size: "),
        ({"size": True}, "size: "),
        ({"colour": "red"}, "expected a map of name, size"),
    ],
)
def test_a_request_that_differs_from_its_table_is_refused_by_field(
    ends: tuple[Conversation, Conversation], change: dict[str, object], found: str
) -> None:
    _, agent = ends
    request = {"v": VERSION, "op": "attach", "name": "carts", "size": 65536}
    agent_before = agent.state
    with pytest.raises(errors.ProtocolError, match=found):
        agent.receive(msgpack.packb(request | change), fds=0)
    assert agent.state is agent_before
    assert agent.receive(msgpack.packb(request), fds=0) == Attach("carts", 65536)


@pytest.mark.parametrize("missing", ["v", "op", "name", "size"])
def test_a_request_that_lacks_a_field_is_refused(ends: tuple[Conversation, Conversation], missing: str) -> None:
    request = {"v": VERSION, "op": "attach", "name": "carts", "size": 65536}
    del request[missing]
    with pytest.raises(errors.ProtocolError):
        ends[1].receive(msgpack.packb(request), fds=0)


@pytest.mark.parametrize("fds", [1, 2, 253])
def test_a_descriptor_too_many_or_too_few_is_refused(ends: tuple[Conversation, Conversation], fds: int) -> None:
    client, agent = ends
    with pytest.raises(errors.ProtocolError, match=f"expected 0 file descriptors beside it, found {fds}"):
        agent.receive(client.send(List(None)), fds=fds)
    with pytest.raises(errors.ProtocolError, match="expected 1 file descriptors"):
        Conversation("agent").receive(
            msgpack.packb({"v": VERSION, "op": "handback", "name": "a", "uuid": str(ID)}), fds=0
        )


def test_a_message_longer_than_the_limit_is_refused_before_it_is_decoded(
    ends: tuple[Conversation, Conversation],
) -> None:
    with pytest.raises(errors.ProtocolError, match="at most 65536 bytes"):
        ends[1].receive(b"\xc0" * (MESSAGE_BYTES_MAX + 1), fds=0)


def test_the_longest_answers_there_can_be_fit_a_message(ends: tuple[Conversation, Conversation]) -> None:
    client, agent = ends
    arena = ArenaRecord("😀" * 50, 2**32 - 2, 2**32 - 2, 0o777, 2**63 - 1, ID, NOON, "😀" * 100)
    agent.receive(client.send(List(None)), fds=0)
    agent.send(Arenas((arena,) * PAGE, more=True))
    client.receive(msgpack.packb({"v": 1, "op": "arenas", "arenas": [], "more": False}), fds=0)
    agent.receive(client.send(AskHandover(1)), fds=0)
    lost = (Loss("😀" * 50, 2**32 - 2, "😀" * 1000),) * LOSSES_MAX
    agent.send(HandoverAnswer(Handover(1, "😀" * 100, "😀" * 100, NOON, 1, 1, 1, 0.1, 0.1, 0.1, 0.1, lost, 2**60)))


@pytest.mark.parametrize(
    "error",
    [
        errors.NotFoundError("there is no arena 'x'"),
        errors.SizeError("too small"),
        errors.ArenaFullError("no room"),
        errors.RefusedError("not yours"),
        errors.CorruptError("damaged"),
    ],
)
def test_an_error_arrives_as_it_was_raised(ends: tuple[Conversation, Conversation], error: errors.Error) -> None:
    client, agent = ends
    agent.receive(client.send(List(None)), fds=0)
    told = client.receive(agent.send(refusal(error)), fds=0)
    assert isinstance(told, Refusal)
    arrived = refused(told)
    assert type(arrived) is type(error)
    assert str(arrived) == str(error)


def everywhere(data: Any, fds: int) -> None:
    """Give bytes to both ends in each state that they can be in: a message, or a ProtocolError, and nothing else."""
    for role in ("agent", "client"):
        for state in State:
            conversation = Conversation(role)
            conversation.state = state
            try:
                conversation.receive(data, fds=fds)
            except errors.ProtocolError:
                assert conversation.state is state


VALID = [
    msgpack.packb({"v": VERSION, "op": "hello", "boot": str(ID)}),
    msgpack.packb({"v": VERSION, "op": "attach", "name": "carts", "size": 65536}),
    msgpack.packb({"v": VERSION, "op": "handback", "name": "carts", "uuid": str(ID)}),
    msgpack.packb({"v": VERSION, "op": "evict", "uid": 1000, "name": "carts"}),
    msgpack.packb({"v": VERSION, "op": "reboot", "seconds": 5.0, "release": "7.3.4", "compatible": True}),
    msgpack.packb({"v": VERSION, "op": "prepare", "seconds": 5.0, "preserve": True, "lasting": True}),
    msgpack.packb({"v": VERSION, "op": "preparing", "seconds": 5.0}),
    msgpack.packb({"v": VERSION, "op": "refusal", "error": "SizeError", "message": "x"}),
]
PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=50)
    | st.binary(max_size=50),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=10), inner, max_size=5),
    max_leaves=20,
)
FIELDS = [
    "boot",
    "name",
    "size",
    "after",
    "after_uid",
    "after_name",
    "uid",
    "seconds",
    "uuid",
    "arenas",
    "more",
    "handover",
    "release",
    "error",
    "message",
    "pid",
    "arena",
]
OPS = [
    "hello",
    "attach",
    "list",
    "handback",
    "welcome",
    "arenas",
    "handover",
    "status",
    "refusal",
    "gone",
    "reboot",
    "attached",
    "list-all",
    "evict",
    "prepare",
    "prepared",
    "preparing",
    "ready",
]


@settings(max_examples=400)
@given(data=st.binary(max_size=300), fds=st.integers(0, 3))
def test_no_bytes_do_anything_but_be_refused(data: Any, fds: int) -> None:
    everywhere(data, fds)


@settings(max_examples=400)
@given(data=st.data())
def test_no_damage_to_a_message_does_anything_but_be_refused(data: Any) -> None:
    message = bytearray(data.draw(st.sampled_from(VALID)))
    for _ in range(data.draw(st.integers(1, 3))):
        message[data.draw(st.integers(0, len(message) - 1))] = data.draw(st.integers(0, 255))
    everywhere(bytes(message), data.draw(st.integers(0, 1)))


@settings(max_examples=400)
@given(
    op=st.sampled_from(OPS), fields=st.dictionaries(st.sampled_from(FIELDS), PLAIN, max_size=5), fds=st.integers(0, 1)
)
def test_no_value_in_a_field_does_anything_but_be_refused(op: str, fields: dict[str, object], fds: int) -> None:
    everywhere(msgpack.packb({"v": VERSION, "op": op, **fields}), fds)
