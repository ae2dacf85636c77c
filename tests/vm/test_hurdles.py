"""What stands in the way of an upgrade is named, and leaves the system as it was. Late writes cross."""

import pytest

from .machine import Job, Run

pytestmark = pytest.mark.vm

hurdles = pytest.mark.parametrize(
    "run", [Job("tests.vm.hurdles_guest", ("7.3.4", "7.3.4"))], indirect=True, ids=["7.3.4"]
)


@hurdles
def test_an_agent_that_finds_the_device_held_says_by_whom(run: Run) -> None:
    log, holder = run.said(0, "agent without the device")
    assert f"process {holder} holds /dev/liveupdate" in log[-1]
    assert "another agent runs in /run/persistmem" in run.said(0, "second agent")[-1]


@hurdles
def test_too_little_memory_to_preserve_is_refused_before_anything_is_filled(run: Run) -> None:
    status, _, error = run.said(0, "prepare with too little memory")
    assert status == 1
    assert "preserving: filling the holes of all arenas needs 4 GiB" in error
    assert run.said(0, "status after it")["phase"] == "serving"


@hurdles
def test_only_root_prepares_a_kexec(run: Run) -> None:
    status, _, error = run.said(0, "only root")
    assert status == 1
    assert "only root decides that on this agent, not uid 1001" in error


@hurdles
def test_files_that_cannot_be_started_are_named_and_undo_everything(run: Run) -> None:
    status, _, error = run.said(0, "wrong kernel")
    assert status == 1
    assert "expected a Linux kernel" in error
    status, _, error = run.said(0, "no initrd")
    assert status == 1
    assert "/nowhere: No such file or directory" in error
    assert run.said(0, "status after the wrong files")["phase"] == "serving"
    assert run.said(0, "loaded") == "0"


@hurdles
def test_while_a_kexec_is_prepared_nothing_new_is_made_until_it_is_aborted(run: Run) -> None:
    assert run.said(0, "prepare")[0] == 0
    status, _, error = run.said(0, "made while prepared")
    assert status == 1
    assert "a kexec is being prepared" in error
    assert "nothing is prepared any more" in run.said(0, "abort")[2]
    assert "nothing was prepared" in run.said(0, "abort again")[2]


@hurdles
def test_what_is_written_after_everything_was_preserved_still_crosses(run: Run) -> None:
    assert run.said(0, "agent lives") is True
    assert run.said(1, "document") == "last"
    (told,) = run.said(1, "history")
    assert (told["arenas"], told["lost"]) == (2, [])
    assert 0 < told["retrieve"] < told["boot"] <= told["dark"] < 120  # the clock may have lost a second
