"""A cache is warm in the next kernel, and goes on there as if nothing had happened."""

import json

import pytest

from .cache_guest import ITEMS
from .machine import Job, Run

pytestmark = pytest.mark.vm

CACHE = Job("tests.vm.cache_guest", ("7.2.13", "7.3.4", "7.2.13"))
cache = pytest.mark.parametrize("run", [CACHE], indirect=True, ids=["7.2.13-to-7.3.4-and-back"])
after = pytest.mark.parametrize("stage", [1, 2])


@cache
@after
def test_every_item_is_there_and_sound(run: Run, stage: int) -> None:
    told = run.said(stage, "cache")
    assert (told["found"], told["damaged"]) == (ITEMS, 0)
    assert told["items"] == ITEMS + 3


@cache
@after
def test_what_expired_meanwhile_is_gone_and_what_did_not_is_there(run: Run, stage: int) -> None:
    told = run.said(stage, "cache")
    assert (told["session"], told["account"]) == (None, "long")


@cache
@after
def test_it_goes_on_counting_writing_and_evicting(run: Run, stage: int) -> None:
    told = run.said(stage, "cache")
    assert told["boots"] == 2
    assert told["evicted"] > 0
    assert told["newest"] == 1000
    status, output, _ = run.said(stage, "stats")
    assert status == 0
    assert json.loads(output)["evicted"] >= told["evicted"]
