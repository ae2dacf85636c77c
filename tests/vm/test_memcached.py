"""The memcached app is warm under the next kernel, for clients that know nothing of it."""

import pytest

from .machine import Job, Run

pytest.importorskip("pymemcache", reason="the client: pip install pymemcache")

from .memcached_guest import HOUR, ITEMS

pytestmark = pytest.mark.vm

memcached = pytest.mark.parametrize(
    "run", [Job("tests.vm.memcached_guest", ("7.2.13", "7.3.4"))], indirect=True, ids=["7.2.13-to-7.3.4"]
)


@memcached
def test_every_value_is_there_with_its_flags(run: Run) -> None:
    assert [run.said(stage, "sound") for stage in range(2)] == [ITEMS, ITEMS]
    (told,) = run.said(1, "history")
    assert (told["arenas"], told["saved"], told["lost_count"]) == (1, 0, 0)


@memcached
def test_every_get_is_a_hit(run: Run) -> None:
    assert run.said(1, "hits and misses") == [ITEMS, 0]


@memcached
def test_every_item_has_the_cas_token_that_it_had(run: Run) -> None:
    different, _ = run.said(0, "tokens")
    assert different == ITEMS
    assert run.said(1, "tokens") == run.said(0, "tokens")


@memcached
def test_a_token_of_the_last_kernel_is_good_for_one_change_in_this_one(run: Run) -> None:
    assert run.said(1, "cas") == [True, False]
    assert run.said(1, "cart") == ["pears", 8]
    assert run.said(1, "token is another")


@memcached
def test_a_counter_goes_on_where_it_was(run: Run) -> None:
    assert run.said(1, "visits") == 42


@memcached
def test_what_expired_meanwhile_is_gone_and_time_went_on_for_the_rest(run: Run) -> None:
    assert run.said(1, "brief") is False
    status, left = run.said(1, "long").split(" t")
    assert status == "HD"
    assert 0 < int(left) < HOUR


@memcached
def test_what_is_there_is_not_added_and_what_is_not_is(run: Run) -> None:
    assert run.said(1, "added") == [False, True]
