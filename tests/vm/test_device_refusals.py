"""What the device refuses says what is the matter and what to do, on the real device."""

import errno

import pytest

from .machine import Job, Run

pytestmark = pytest.mark.vm

PROGRAM = "tests.vm.refusals_guest"
SWITCHED_OFF = [Job(PROGRAM, ("7.3.4",), switches) for switches in ("kho=on", "kho=off liveupdate=on")]


def refusal(run: Run, name: str) -> tuple[object, str]:
    (found,) = [report for report in run.reports if report[0] == name]
    return found[1], str(found[2])


@pytest.mark.parametrize("run", SWITCHED_OFF, indirect=True, ids=lambda job: job.switches)
def test_where_live_update_is_switched_off_the_error_says_how_to_switch_it_on(run: Run) -> None:
    number, message = refusal(run, "no device")
    assert number == errno.ENOENT
    assert "built without CONFIG_LIVEUPDATE, or booted without liveupdate=on or with kho=off" in message


@pytest.mark.parametrize("run", [Job(PROGRAM, ("7.3.4",))], indirect=True, ids=["7.3.4"])
@pytest.mark.parametrize(
    ("name", "number", "says"),
    [
        ("unprivileged", errno.EACCES, "open /dev/liveupdate: Permission denied (EACCES): only root may open it"),
        ("created twice", errno.EEXIST, "create session 'documents': File exists (EEXIST): this kernel has"),
        ("not handed over", errno.ENOENT, "retrieve session 'pictures': No such file or directory (ENOENT): the last"),
        ("pipe", errno.ENOENT, "session 'documents': preserve descriptor"),
        ("pipe", errno.ENOENT, "under token 7: No such file or directory (ENOENT): it is no memfd of normal pages"),
    ],
)
def test_a_refusal_names_the_call_and_says_what_the_errno_means_here(
    run: Run, name: str, number: int, says: str
) -> None:
    found, message = refusal(run, name)
    assert (found, says in message) == (number, True), message


@pytest.mark.parametrize("run", [Job(PROGRAM, ("7.3.4",))], indirect=True, ids=["7.3.4"])
def test_a_device_that_is_held_says_by_whom(run: Run) -> None:
    (holder,) = [report[1] for report in run.reports if report[0] == "holder"]
    number, message = refusal(run, "held")
    assert number == errno.EBUSY
    assert f"process {holder} holds /dev/liveupdate" in message
    assert "this process holds /dev/liveupdate" in refusal(run, "held by itself")[1]
