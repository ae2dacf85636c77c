"""An application's state is the one that it had when the kernel was left, whichever release of it starts next."""

from itertools import pairwise

import pytest

from .machine import Job, Run

pytestmark = pytest.mark.vm

APP = Job("tests.vm.app_guest", ("7.2.13", "7.3.4", "7.2.13"))
RELEASES = [f"{version}-luo" for version in APP.kernels]
app = pytest.mark.parametrize("run", [APP], indirect=True, ids=["7.2.13-to-7.3.4-and-back"])
after = pytest.mark.parametrize("stage", [1, 2])

BEFORE = {"visits": 0, "scores": {"ada": 3, "bob": 5}}
"""The board's first state; two visits are counted under each kernel, the second one after it was saved last."""
PLAYERS = {
    "ada": {"handle": "@ada", "score": 3},
    "bob": {"handle": "@bob", "score": 5},
    "closed": {"handle": "@closed", "score": 1},
}
"""With what the application put in when the first upgrade was being prepared, migrated."""


@app
def test_it_begins_with_nothing_saved(run: Run) -> None:
    told = run.said(0, "board")
    assert (told["found"], told["arena"], told["generation"]) == ("fresh", "created", None)
    assert told["state"] == BEFORE


@app
def test_the_next_kernel_has_the_state_as_it_was_when_the_upgrade_was_prepared_migrated(run: Run) -> None:
    told = run.said(1, "board")
    assert (told["found"], told["migrated_from"]) == ("migrated", 1)
    assert told["state"] == {"visits": 2, "players": PLAYERS}


@app
def test_the_last_kernel_has_what_the_migrated_application_did_since(run: Run) -> None:
    told = run.said(2, "board")
    assert (told["found"], told["migrated_from"]) == ("restored", None)
    assert told["state"] == {"visits": 4, "players": PLAYERS}


@app
@after
def test_what_it_found_was_saved_once_more_after_its_last_save_and_carried_over(run: Run, stage: int) -> None:
    told = run.said(stage, "board")
    assert told["generation"] == run.said(stage - 1, "board saved") + 1
    assert told["saved_by"] == RELEASES[stage - 1]
    assert (told["arena"], told["kernels"]) == ("carried over", RELEASES[stage - 1 : stage + 1])


@app
@after
def test_its_log_tells_so_in_one_line(run: Run, stage: int) -> None:
    (line,) = run.said(stage, "log")
    assert f'arena="carried over" kernel={RELEASES[stage]} kernel_from={RELEASES[stage - 1]} role=writer' in line
    assert ("state=migrated" in line and "migrated_from=1" in line) is (stage == 1)


@app
def test_a_release_that_knows_only_an_older_state_is_refused_and_leaves_it_as_it_was(run: Run) -> None:
    status, output, error = run.said(2, "downgraded")
    assert (status, output) == (1, "")
    assert "NewerStateError: state: expected version 1 or older, found version 2" in error
    generations, document = run.said(2, "before the downgrade")
    assert document == {"version": 2, "state": {"visits": 4, "players": PLAYERS}}
    assert run.said(2, "after the downgrade") == [generations, document]
    assert run.said(2, "board")["generation"] == generations[0][0]


@app
def test_who_is_not_ready_at_the_deadline_has_what_it_saved_before(run: Run) -> None:
    assert run.said(0, "stuck says") == "hangs"
    told = run.said(1, "stuck")
    assert (told["found"], told["arena"], told["kernels"]) == ("restored", "carried over", RELEASES[:2])
    assert told["generation"] == run.said(0, "stuck saved")
    assert told["state"] == {"visits": 1}


@app
def test_nothing_is_lost_on_the_way_and_nothing_takes_the_disk(run: Run) -> None:
    handovers = run.said(2, "history")
    assert [(told["kernel_from"], told["kernel_to"]) for told in handovers] == [*pairwise(RELEASES)]
    assert [(told["arenas"], told["saved"], told["lost_count"]) for told in handovers] == [(2, 0, 0)] * 2
