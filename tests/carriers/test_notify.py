"""What the environment and the manager's socket may say, and what is made of it."""

import os
import threading
from collections.abc import Iterator

import pytest

from persistmem import errors
from persistmem.carriers import notify
from persistmem.carriers.notify import descriptors

from .manager import Manager


@pytest.fixture
def pipe() -> Iterator[int]:
    reading, writing = os.pipe()
    yield reading
    os.close(reading)
    os.close(writing)


def test_a_process_that_was_given_nothing_has_nothing() -> None:
    assert descriptors({}, 7) == []
    assert descriptors({"LISTEN_FDS": "3", "LISTEN_PID": "8"}, 7) == []
    assert descriptors({"LISTEN_FDS": "0", "LISTEN_PID": "7", "LISTEN_FDNAMES": ""}, 7) == []


@pytest.mark.parametrize("count", ["", "-1", "1.0", "٣", "x", "99999", "9" * 100, "+1", " 1"])
def test_a_number_of_descriptors_that_is_none_is_an_error(count: str) -> None:
    with pytest.raises(errors.CarrierError, match=r"\$LISTEN_FDS: expected a number"):
        descriptors({"LISTEN_FDS": count, "LISTEN_PID": "7"}, 7)


@pytest.mark.parametrize("names", ["", "a:b", ":"])
def test_names_that_do_not_match_the_descriptors_are_an_error(names: str) -> None:
    if names.count(":") == 0 and names == "":
        names = "a:b:c"
    with pytest.raises(errors.CarrierError, match=r"\$LISTEN_FDNAMES: expected 1 names"):
        descriptors({"LISTEN_FDS": "1", "LISTEN_PID": "7", "LISTEN_FDNAMES": names}, 7)


def test_a_descriptor_that_is_not_there_is_an_error() -> None:
    with pytest.raises(errors.CarrierError, match="is not there"):
        descriptors({"LISTEN_FDS": "60000", "LISTEN_PID": "7", "LISTEN_FDNAMES": ":" * 59_999}, 7)


@pytest.mark.parametrize("address", ["vsock:2:1234", "run/notify", "@", "/", "/" + "x" * 200])
def test_an_address_that_cannot_be_spoken_to_is_an_error(address: str) -> None:
    with pytest.raises(errors.CarrierError, match=r"\$NOTIFY_SOCKET: expected"):
        notify.Manager.of({"NOTIFY_SOCKET": address})


def test_a_manager_that_is_gone_is_an_error_that_names_it() -> None:
    with pytest.raises(errors.CarrierError, match="at @persistmem-nobody:"):
        notify.Manager("@persistmem-nobody").tell("READY=1")


def test_what_was_said_has_been_read_when_the_wait_is_over() -> None:
    with Manager() as manager:
        own = notify.Manager(manager.address)
        for number in range(20):
            own.tell(f"STATUS={number}")
        own.wait()
        assert manager.said[:20] == [f"STATUS={number}" for number in range(20)]


def test_a_manager_that_takes_no_note_is_waited_for_only_so_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notify, "_PATIENCE", 0.05)
    with Manager() as manager:
        manager.answers_barriers = False
        with pytest.raises(errors.CarrierError, match="did not take note"):
            notify.Manager(manager.address).wait()


def test_a_full_queue_is_waited_for() -> None:
    with Manager() as manager:
        own = notify.Manager(manager.address)

        def talk() -> None:
            for _ in range(300):
                own.tell("X=1")

        threads = [threading.Thread(target=talk) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        own.wait()
        assert manager.said.count("X=1") == 600
