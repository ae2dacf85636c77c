"""Reading, where things go wrong between two questions; and what is exposed of texts that nobody checked."""

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from uuid import UUID

import pytest

import persistmem
from persistmem.agent import datagrams
from persistmem.agent.paths import RuntimeDirectory
from persistmem.agent.protocol import (
    Arenas,
    AskHandover,
    AskStatus,
    Attach,
    Conversation,
    Gone,
    HandoverAnswer,
    Hello,
    List,
    Message,
    Preparing,
    Status,
    Welcome,
    refusal,
)
from persistmem.agent.records import ArenaRecord, Handover
from persistmem.attachment import agent_status
from persistmem.cache.layout import Counter
from persistmem.cache.viewing import CacheView
from persistmem.cache.viewing import Reading as CacheReading
from persistmem.metrics import exposing, reading
from persistmem.metrics.reading import read
from tests.cli.support import CommandLine

from .support import Metrics, make_shop

HOSTILE = 'a "b" \\ c\n# HELP d\nd{e="f"} 1\x1b\u2028é'
BOOT = UUID(int=1)
NOW = datetime(2026, 7, 1, tzinfo=UTC)
STATUS = Status(1, BOOT, "7.3.4", "luo", "serving", "/", 2, 2 << 20, 2, 1, 1, 1)
RECORDS = tuple(ArenaRecord(name, 0, 0, 0o600, 1 << 20, UUID(int=2), NOW, None) for name in ("carts", "shop"))
HANDOVER = Handover(1, "7.2", "7.3", None, 2, 0, 2 << 20, 0.0, 0.0, 0.0, 0.1, (), 0)


def text_of(found: reading.Reading) -> Metrics:
    return Metrics.of(exposing.text(exposing.registry(lambda: found, lambda _: None)))


def test_texts_that_nobody_checked_cannot_break_out_of_their_labels() -> None:
    found = text_of(
        reading.Reading(
            STATUS._replace(kernel=HOSTILE, carrier=HOSTILE),
            (reading.ArenaReading(RECORDS[0]._replace(name=HOSTILE, kernel_from=HOSTILE), True, None),),
            HANDOVER._replace(kernel_from=HOSTILE, kernel_to=HOSTILE),
            (),
            0.001,
        )
    )
    assert found.labels("persistmem_agent_info") == [{"carrier": HOSTILE, "kernel": HOSTILE}]
    assert found.value("persistmem_arena_damaged", arena=HOSTILE) == 1
    assert found.labels("persistmem_arena_info")[0]["kernel_from"] == HOSTILE
    assert found.labels("persistmem_last_handover_info") == [{"kernel_from": HOSTILE, "kernel_to": HOSTILE}]
    assert "d" not in found


def test_a_handover_that_nobody_prepared_has_no_duration() -> None:
    found = text_of(reading.Reading(STATUS, (), HANDOVER._replace(arenas=0, lost_count=2), (), 0.001))
    assert found.value("persistmem_last_handover_arenas", outcome="lost") == 2
    assert "persistmem_last_handover_duration_seconds" not in found
    assert "persistmem_last_handover_timestamp_seconds" not in found


def test_the_parts_of_a_handover_add_up() -> None:
    handover = HANDOVER._replace(left=NOW, arenas=5, saved=2, preserve=0.5, dark=10.0, boot=6.0, retrieve=1.0)
    found = text_of(reading.Reading(STATUS, (), handover, (), 0.001))
    parts = {"preserve": 0.5, "kexec": 3.0, "boot": 6.0, "retrieve": 1.0}
    for part, expected in parts.items():
        assert found.value("persistmem_last_handover_duration_seconds", part=part) == expected
    for outcome, count in {"memory": 3, "disk": 2, "lost": 0}.items():
        assert found.value("persistmem_last_handover_arenas", outcome=outcome) == count


def test_an_agent_that_does_not_answer_costs_no_more_than_the_timeout(cli: CommandLine) -> None:
    make_shop()
    status = agent_status()
    assert status is not None
    os.kill(status.pid, signal.SIGSTOP)
    try:
        found = read(RuntimeDirectory(cli.runtime), timeout=0.2)
    finally:
        os.kill(status.pid, signal.SIGCONT)
    assert found.status is None
    assert found.problems == ("agent: the agent does not answer; see its log",)


@contextmanager
def agent_that(cli: CommandLine, answer: Callable[[Message], list[Message] | None]) -> Iterator[None]:
    """An agent that answers as told, and ends the conversation where there is no answer."""

    def serve() -> None:
        peer, _ = listener.accept()
        conversation = Conversation("agent")
        with peer:
            while (data := datagrams.receive(peer)[0]) and (
                answers := answer(conversation.receive(data, fds=0))
            ) is not None:
                for message in answers:
                    datagrams.send(peer, conversation.send(message))

    runtime = RuntimeDirectory(cli.runtime)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(runtime.socket))
        listener.listen()
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            thread.join()
            runtime.socket.unlink()


def usual(message: Message) -> list[Message] | None:
    """What an agent says that ends before it gives an arena out."""
    match message:
        case Hello():
            return [Welcome(1, BOOT, "7.3.4", "luo")]
        case AskStatus():
            return [STATUS]
        case AskHandover():
            return [HandoverAnswer(HANDOVER)]
        case List():
            return [Preparing(1.0), Gone(BOOT, "dropped"), Arenas(RECORDS, more=False)]
    return None


def test_an_agent_that_ends_meanwhile_is_one_problem_and_what_was_read_is_told(cli: CommandLine) -> None:
    with agent_that(cli, usual):
        found = read(RuntimeDirectory(cli.runtime))
    assert found.problems == ("agent: the agent ended before it answered",)
    assert (found.status, found.handover) == (STATUS, HANDOVER)
    assert text_of(found)["persistmem_missing_arenas"] == 2


def test_an_arena_that_is_dropped_meanwhile_is_no_problem_and_one_that_is_refused_is_named(cli: CommandLine) -> None:
    errors = {"carts": persistmem.NotFoundError("gone"), "shop": persistmem.RefusedError("not now")}
    with agent_that(
        cli, lambda message: [refusal(errors[message.name])] if isinstance(message, Attach) else usual(message)
    ):
        found = read(RuntimeDirectory(cli.runtime))
    assert [arena.record.name for arena in found.arenas] == ["shop"]
    assert found.problems == ("arena shop: not now",)
    assert "persistmem_arena_damaged" not in text_of(found)


def test_an_agent_that_refuses_this_user_is_not_up_and_the_reason_is_told(cli: CommandLine) -> None:
    with agent_that(cli, lambda _: [refusal(persistmem.RefusedError("it serves somebody else"))]):
        found = read(RuntimeDirectory(cli.runtime))
    assert (found.status, found.problems) == (None, ("agent: it serves somebody else",))


@pytest.mark.parametrize("moment", [1, 2, 3])
@pytest.mark.parametrize("met", [0, 6])
def test_counters_do_not_go_back_while_a_process_takes_over_the_counts_of_another(
    cli: CommandLine, monkeypatch: pytest.MonkeyPatch, moment: int, met: int
) -> None:
    """The 3 hits of a process that is gone are moved: who reads meanwhile may meet them twice, or not at all."""
    make_shop()

    class AtTheWrongMoment(CacheView):
        readings = 0

        def read(self) -> CacheReading:
            AtTheWrongMoment.readings += 1
            if self.readings != moment:
                return super().read()
            with self._arena.region("cache") as region, words_of(region) as words:
                rows = range(self._geometry.counters_at, len(words))
                hits = next(at for at in rows if words[at + Counter.HITS : at + Counter.SETS].tolist() == [3, 2])
                words[hits] = met
                try:
                    return super().read()
                finally:
                    words[hits] = 3

    monkeypatch.setattr(reading, "CacheView", AtTheWrongMoment)
    found = text_of(read(RuntimeDirectory(cli.runtime)))
    assert AtTheWrongMoment.readings >= moment
    assert found.value("persistmem_cache_hits_total", arena="shop", cache="cache") == 3


@contextmanager
def words_of(region: persistmem.Region) -> Iterator[memoryview]:
    with region.view() as view, view[: len(view) & ~7] as whole, whole.cast("Q") as words:
        yield words
