"""Arenas lie in huge folios where the administrator allows them, and arrive in huge folios again."""

import pytest

from .folios_guest import ROUNDS, SIZE
from .machine import Job, Run

pytestmark = pytest.mark.vm

FOLIOS = Job("tests.vm.folios_guest", ("7.2.13", "7.3.4"))
folios = pytest.mark.parametrize("run", [FOLIOS], indirect=True, ids=["7.2.13-to-7.3.4"])
rounds = pytest.mark.parametrize("number", range(ROUNDS))


@folios
@rounds
def test_what_is_stored_goes_into_huge_folios_and_no_memory_but_theirs_is_taken(run: Run, number: int) -> None:
    huge, taken = run.said(0, f"huge with advise, filled by half, {number}")
    assert huge == taken
    assert SIZE // 2 < taken <= SIZE // 2 + (4 << 20)


@folios
@rounds
def test_preserving_fills_holes_with_huge_folios_too_and_they_arrive_as_such(run: Run, number: int) -> None:
    assert run.said(0, f"huge with advise, preserved, {number}") == [SIZE, SIZE]
    assert run.said(1, f"huge with advise, {number}") == SIZE
    assert run.said(1, f"sound with advise, {number}") is True


@folios
@rounds
def test_without_leave_everything_works_with_small_ones(run: Run, number: int) -> None:
    assert run.said(0, f"huge with never, preserved, {number}")[0] == 0
    assert run.said(1, f"huge with never, {number}") == 0
    assert run.said(1, f"sound with never, {number}") is True
