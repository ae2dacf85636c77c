"""Under systemd, whose own machinery is used: services restart, stop, are killed; user space and the kernel change."""

import pytest

from .machine import Run
from .systemd_agent_guest import AGENT_UNITS, CLOSING, KEPT
from .systemd_image import GEOGRAPHER, PHYSICIST, USERS
from .systemd_machine import SystemdJob

pytestmark = pytest.mark.vm

KERNELS = ("7.2.13", "7.3.4")
SERVICES = SystemdJob("tests.vm.systemd_service_guest", KERNELS)
AGENT = SystemdJob("tests.vm.systemd_agent_guest", KERNELS)
OLDER = SystemdJob("tests.vm.systemd_older_guest", KERNELS, suite="trixie")
"""Whose systemd, 257, takes no store to the next kernel."""
OLD, NEW = (f"{version}-luo" for version in KERNELS)

BEFORE, SOFTLY_REBOOTED, AFTER = range(3)
"""The boots of user space: the first, the one after a soft reboot, the one after a kexec."""
STARTS = [(BEFORE, "restart"), (BEFORE, "stop and start"), (SOFTLY_REBOOTED, "soft-reboot"), (AFTER, "kexec")]

services = pytest.mark.parametrize("run", [SERVICES], indirect=True, ids=["services"])
agent = pytest.mark.parametrize("run", [AGENT], indirect=True, ids=["agent"])
older = pytest.mark.parametrize("run", [OLDER], indirect=True, ids=["older"])
agents = pytest.mark.parametrize("run", [AGENT, OLDER], indirect=True, ids=["agent", "older"])
every = pytest.mark.parametrize("run", [SERVICES, AGENT, OLDER], indirect=True, ids=["services", "agent", "older"])
each_user = pytest.mark.parametrize("user", USERS.values())
each_start = pytest.mark.parametrize(("stage", "how"), STARTS, ids=[how for _, how in STARTS])


def _check_kept(found: dict[str, object], uid: int) -> None:
    assert found["restored"] == KEPT[uid]
    listed = found["listed"]
    assert isinstance(listed, list)
    assert [arena for arena in listed if arena != CLOSING] == sorted(KEPT[uid])
    assert found["verified"] == [0] * len(KEPT[uid])


@every
def test_it_goes_through_a_soft_reboot_and_a_kexec_to_another_kernel(run: Run) -> None:
    assert [run.said(stage, "kernel") for stage in range(3)] == [OLD, OLD, NEW]


@services
@each_user
@each_start
def test_a_service_has_its_arena_again_sound_and_its_own(run: Run, user: str, stage: int, how: str) -> None:
    found = run.said(stage, how)[user]
    assert found["digest"] == run.said(BEFORE, "start")[user]["digest"]
    assert (found["user"], found["owner"]) == (user, user)
    assert found["sound"] is True
    assert found["whole"] is True


@services
@each_user
def test_a_service_is_told_where_its_arena_comes_from(run: Run, user: str) -> None:
    origins = [run.said(stage, how)[user]["origin"] for stage, how in [(BEFORE, "start"), *STARTS]]
    assert origins == [
        f"created on kernel {OLD}",
        *[f"reattached on kernel {OLD}"] * 3,
        f"carried over from kernel {OLD} to {NEW}",
    ]


@services
def test_services_of_two_users_with_arenas_of_the_same_name_do_not_meet(run: Run) -> None:
    assert len({found["digest"] for found in run.said(AFTER, "kexec").values()}) == len(USERS)


@services
def test_a_stopped_service_is_not_failed_and_what_it_keeps_is_kept(run: Run) -> None:
    assert run.said(BEFORE, "while stopped") == [["inactive", "success", "1"]] * len(USERS)


@services
@each_user
@each_start
def test_the_last_snapshot_before_a_service_stops_is_there(run: Run, user: str, stage: int, how: str) -> None:
    found = run.said(stage, how)[user]
    assert found["closing"]["orders"] == found["orders"] > 0


@services
@each_user
def test_it_is_taken_once_at_each_stop(run: Run, user: str) -> None:
    times = [found["closing"]["times"] for found in (run.said(stage, how)[user] for stage, how in STARTS)]
    in_between = 2 if user == USERS[GEOGRAPHER] else 0  # restarts around the kills
    assert times == [1, 2, 3 + in_between, 4 + in_between]


@services
def test_a_service_killed_amid_a_snapshot_has_the_last_one_or_that_one_whole(run: Run) -> None:
    killed = run.said(BEFORE, "killed")
    assert any(each["begun"] > each["ended"] for each in killed), "no kill came amid a snapshot"
    for each in killed:
        found = each["found"]
        assert each["ended"] <= found["orders"] <= each["begun"]
        assert (found["sound"], found["whole"], found["kind"]) == (True, True, "reattached")
        assert found["digest"] == run.said(BEFORE, "start")[USERS[GEOGRAPHER]]["digest"]


@services
def test_services_need_no_agent(run: Run) -> None:
    assert run.said(AFTER, "agent") is False


@services
def test_systemd_never_loses_patience_with_a_service_that_takes_its_last_snapshot(run: Run) -> None:
    assert run.said(AFTER, "timeouts") == []


@agents
def test_install_says_what_it_does_and_the_agent_runs(run: Run) -> None:
    status, output, said = run.said(BEFORE, "install")
    assert (status, output) == (0, "")
    assert all(f"wrote /etc/systemd/system/{unit}" in said for unit in AGENT_UNITS)
    assert run.said(BEFORE, "installed") == dict.fromkeys(AGENT_UNITS, "active")


@agent
@pytest.mark.parametrize(("stage", "kernel"), [(BEFORE, OLD), (AFTER, NEW)], ids=["before", "after"])
def test_status_says_that_systemd_carries(run: Run, stage: int, kernel: str) -> None:
    status = run.said(stage, "status")
    assert (status["chosen"], status["carrier"], status["phase"]) == ("system", "systemd", "serving")
    assert (status["runtime_dir"], status["kernel"]) == ("/run/persistmem", kernel)


@agent
@pytest.mark.parametrize("uid", USERS, ids=USERS.values())
@pytest.mark.parametrize(("stage", "how"), [(BEFORE, "start"), (BEFORE, "stop"), (BEFORE, "kill"), *STARTS])
def test_a_user_has_what_is_theirs_again_and_nothing_else(run: Run, uid: int, stage: int, how: str) -> None:
    _check_kept(run.said(stage, how)[USERS[uid]], uid)


@agent
def test_for_another_user_it_is_not_there(run: Run) -> None:
    status, output, error = run.said(BEFORE, "refused")
    assert (status, output) == (1, "")
    assert "there is no arena 'cities'" in error


@agent
def test_the_agent_stops_with_arenas_in_its_store_and_is_another_process_afterwards(run: Run) -> None:
    assert run.said(BEFORE, "while stopped") == ["inactive", "success"]
    assert run.said(BEFORE, "is another process") is True


@agents
def test_an_application_takes_its_last_snapshot_before_the_kernel_is_left(run: Run) -> None:
    assert run.said(AFTER, "closing") == OLD


@agents
def test_who_is_not_ready_for_the_kexec_is_named_in_the_log_and_nobody_else(run: Run) -> None:
    (unready,) = run.said(AFTER, "unready")
    assert f"pid {run.said(SOFTLY_REBOOTED, 'applications')['deaf']} ('python3'), uid {PHYSICIST}" in unready


@agents
def test_the_agent_remembers_the_handover(run: Run) -> None:
    (told,) = run.said(AFTER, "history")
    assert (told["kernel_from"], told["kernel_to"]) == (OLD, NEW)
    assert (told["arenas"], told["saved"], told["lost_count"]) == (sum(map(len, KEPT.values())) + 1, 0, 0)
    assert 0 < told["boot"] <= told["dark"] < 240  # the clock may have lost a second


@agent
def test_uninstall_refuses_to_lose_arenas_and_undoes_the_rest_when_it_may(run: Run) -> None:
    status, _, error = run.said(AFTER, "uninstall while it keeps arenas")
    assert status == 1
    assert "the agent keeps 4 arenas" in error
    assert run.said(AFTER, "uninstall")[0] == 0
    assert run.said(AFTER, "uninstalled") == dict.fromkeys(AGENT_UNITS, "not-found")


@older
def test_an_older_systemd_has_the_agent_hold_the_device(run: Run) -> None:
    assert run.said(BEFORE, "status")["carrier"] == run.said(AFTER, "status")["carrier"] == "luo"


@older
def test_there_the_agent_is_not_stopped_by_hand_and_outlives_the_soft_reboot(run: Run) -> None:
    assert run.said(BEFORE, "may be stopped") is False
    assert run.said(SOFTLY_REBOOTED, "agent") == run.said(BEFORE, "agent")


@older
@pytest.mark.parametrize("uid", USERS, ids=USERS.values())
@pytest.mark.parametrize(("stage", "how"), [(BEFORE, "start"), (SOFTLY_REBOOTED, "soft-reboot"), (AFTER, "kexec")])
def test_there_a_user_has_what_is_theirs_again_and_nothing_else(run: Run, uid: int, stage: int, how: str) -> None:
    _check_kept(run.said(stage, how)[USERS[uid]], uid)


@older
def test_there_uninstall_leaves_nothing(run: Run) -> None:
    assert run.said(AFTER, "uninstall")[0] == 0
    assert run.said(AFTER, "uninstalled") == dict.fromkeys(AGENT_UNITS, "not-found")
