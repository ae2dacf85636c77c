"""Items in a cache, with a clock that the test holds."""

from collections.abc import Iterator

import pytest

import persistmem
from apps.memcached.items import BINARY, Item
from apps.memcached.storage import ServedError, Storage
from persistmem.attachment import drop_arena, list_arenas

from .support import House

NOW = 1_800_000_000
DAY = 86_400


class Clock:
    """Stands still until it is set."""

    def __init__(self) -> None:
        self.now = float(NOW)

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="module")
def agent() -> Iterator[House]:
    with House() as house:
        yield house


@pytest.fixture
def place(agent: House, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process uses an agent of its own."""
    for name, value in agent.environment().items():
        if name.startswith("PERSISTMEM_"):
            monkeypatch.setenv(name, value)
    yield
    for arena in list_arenas():
        drop_arena(arena.name)


@pytest.fixture
def storage(place: None, clock: Clock) -> Iterator[Storage]:
    found = Storage("shop", "1MiB", clock=clock)
    yield found
    found.close()


def found(storage: Storage, key: bytes) -> bytes | None:
    item = storage.find(key)
    return item.data if item is not None else None


@pytest.mark.parametrize(
    ("exptime", "last"),
    [
        (0, None),
        (1, NOW),
        (60, NOW + 59),
        (30 * DAY, NOW + 30 * DAY - 1),
        (30 * DAY + 1, 0),
        (NOW, 0),
        (NOW - 1, 0),
        (NOW + 5, NOW + 4),
        (NOW + 400 * DAY, NOW + 400 * DAY - 1),
        (-1, 0),
        (-(2**63), 0),
        (2**64, 2**32 - 2),
    ],
)
def test_an_item_is_there_until_its_time_comes(storage: Storage, clock: Clock, exptime: int, last: int | None) -> None:
    storage.put(b"k", Item(b"there", expires=storage.expiry(exptime)))
    if last == 0:
        assert found(storage, b"k") is None
        return
    clock.now = last + 0.99 if last else NOW + 10_000 * DAY
    assert found(storage, b"k") == b"there"
    if last:
        clock.now = last + 1.01
        assert found(storage, b"k") is None


def test_an_item_whose_time_is_over_takes_the_place_of_what_was_there(storage: Storage) -> None:
    storage.put(b"k", Item(b"old"))
    storage.put(b"k", Item(b"new", expires=storage.expiry(-1)))
    assert found(storage, b"k") is None


def test_everything_about_an_item_comes_back(storage: Storage) -> None:
    items = [Item(b"", 0, 0, 0, 0), Item(b"\r\nEND\r\n" * 9, 2**32 - 1, NOW + 1, 2**64 - 1, BINARY), Item(bytes(9999))]
    for number, item in enumerate(items):
        storage.put(b"%d" % number, item)
    assert [storage.find(b"%d" % number) for number in range(len(items))] == items


def test_all_items_go_at_the_time_of_a_delayed_flush_and_later_ones_stay(storage: Storage, clock: Clock) -> None:
    storage.put(b"before", Item(b""))
    storage.flush(10)
    storage.put(b"meanwhile", Item(b""))
    clock.now += 9.9
    storage.flush_if_due()
    assert found(storage, b"before") == found(storage, b"meanwhile") == b""
    clock.now += 0.2
    storage.flush_if_due()
    storage.put(b"after", Item(b""))
    assert found(storage, b"before") is found(storage, b"meanwhile") is None
    clock.now += 100
    storage.flush_if_due()
    assert found(storage, b"after") == b""


def test_a_delayed_flush_is_done_even_if_the_server_was_down_at_its_time(storage: Storage, clock: Clock) -> None:
    storage.put(b"before", Item(b""))
    storage.flush(10)
    storage.close()
    clock.now += 100
    with_later = Storage("shop", clock=clock)
    assert found(with_later, b"before") is None
    with_later.put(b"after", Item(b""))
    with_later.close()
    once_more = Storage("shop", clock=clock)
    assert found(once_more, b"after") == b""
    once_more.close()


def test_a_flush_at_once_takes_back_one_that_was_to_come(storage: Storage, clock: Clock) -> None:
    storage.flush(10)
    storage.flush()
    storage.put(b"after", Item(b""))
    clock.now += 100
    storage.flush_if_due()
    assert found(storage, b"after") == b""


@pytest.mark.parametrize("seconds", [0, -10 * DAY, 10 * DAY])
def test_no_cas_unique_is_given_out_twice_whatever_the_clock_does_between_starts(
    place: None, clock: Clock, seconds: int
) -> None:
    given: list[int] = []
    for _ in range(3):
        storage = Storage("shop", "1MiB", clock=clock)
        given += [storage.next_cas() for _ in range(100)]
        storage.close()
        clock.now += seconds
    assert len(set(given)) == len(given)
    assert all(0 < cas < 2**63 for cas in given)


def test_no_cas_unique_is_given_out_twice_even_if_all_that_was_noted_down_is_lost(place: None, clock: Clock) -> None:
    storage = Storage("shop", "1MiB", clock=clock)
    before = storage.next_cas()
    storage.close()
    persistmem.attach("shop").remove("memcached")
    clock.now += 60
    storage = Storage("shop", clock=clock)
    assert storage.next_cas() > before
    storage.close()


def test_a_cache_has_one_server_at_a_time(storage: Storage) -> None:
    storage.put(b"k", Item(b"mine"))
    with pytest.raises(ServedError, match="cache 'shop': another server has it"):
        Storage("shop")
    assert found(storage, b"k") == b"mine"
    other = Storage("other", "1MiB")
    other.close()
    storage.close()
    later = Storage("shop")
    assert found(later, b"k") == b"mine"
    later.close()


@pytest.mark.parametrize(
    "value", ["text", 17, {"a": 1}, b"", b"bytes", b" 0 3\r\nabc\r\n", b" x 3\r\nabc\r\n" + Item(b"").encode()[-17:]]
)
def test_what_another_program_stored_is_no_item(storage: Storage, value: object) -> None:
    persistmem.Cache("shop")[b"k"] = value
    assert storage.find(b"k") is None


def test_a_cache_without_a_size_is_the_one_there_is_or_one_of_64_mib(place: None) -> None:
    for size, expected in (("2MiB", 2 << 20), (None, 2 << 20)):
        storage = Storage("sized", size)
        assert storage.size == expected
        storage.close()
    storage = Storage("unsized")
    assert storage.size == 64 << 20
    storage.close()
    with pytest.raises(persistmem.SizeError):
        Storage("sized", "4MiB")


def test_what_others_keep_in_the_arena_stays_when_a_server_flushes(storage: Storage) -> None:
    persistmem.attach("shop").snapshot("beside", {"a": 1})
    storage.put(b"k", Item(b""))
    storage.flush()
    assert found(storage, b"k") is None
    assert persistmem.attach("shop").restore("beside") == {"a": 1}
