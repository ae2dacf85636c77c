"""What the service manager says of its service, by way of systemctl; and a service that is told what its unit lacks.

systemctl is a script that answers as systemd 252 and 262 do; the service manager is a real socket with a real store.
"""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from persistmem.carriers import unit
from persistmem.carriers.unit import Unit, is_stopping, systemd_version

from .manager import Manager

Answer = Callable[..., None]


@pytest.fixture
def answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Answer:
    """Says what systemctl answers to each of its first arguments."""
    directory = tmp_path / "bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")

    def say(status: int = 0, **answers: str) -> None:
        script = ["#!/bin/sh", "shift", 'while [ "${1#--}" != "$1" ]; do shift; done', "case $1 in"]
        for command, text in answers.items():
            script += [f"{command.replace('_', '-')}) cat <<'END'", text.strip("\n"), "END", "exit $status;;"]
        script.insert(1, f"status={status}")
        (directory / "systemctl").write_text("\n".join([*script, "esac", "exit 1", ""]))
        (directory / "systemctl").chmod(0o755)

    return say


@pytest.fixture
def shop(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process is shop.service's."""
    monkeypatch.setattr(unit, "_unit_of", lambda _: ("shop.service", ()))


@pytest.mark.parametrize(
    ("cgroups", "found"),
    [
        ("0::/system.slice/shop.service\n", ("shop.service", ())),
        ("0::/system.slice/system-shop.slice/shop@1.service\n", ("shop@1.service", ())),
        ("0::/system.slice/shop.service/payload\n", ("shop.service", ())),
        ("4:memory:/x\n1:name=systemd:/system.slice/shop.service\n0::/\n", ("shop.service", ())),
        ("0::/user.slice/user-7.slice/user@7.service/app.slice/shop.service\n", ("shop.service", ("--user",))),
        ("0::/user.slice/user-7.slice/session-1.scope\n", None),
        ("0::/\n", None),
        ("0::/system.slice/--help\n", None),
        ("0::/system.slice/sh op.service\n", None),
        ("", None),
    ],
)
def test_a_process_knows_its_unit(cgroups: str, found: object) -> None:
    assert unit._unit_of(cgroups) == found


@pytest.mark.usefixtures("shop")
def test_a_units_settings_are_read(answer: Answer) -> None:
    answer(
        show="""
FileDescriptorStoreMax=16
NFileDescriptorStore=3
FileDescriptorStorePreserve=restart
NotifyAccess=main
"""
    )
    assert Unit.of_process() == Unit("shop.service", 16, 3, "restart", "main")
    answer(show="NFileDescriptorStore=\nFileDescriptorStoreMax=many")
    assert Unit.of_process() == Unit("shop.service", 0, 0, "", "")


@pytest.mark.usefixtures("shop")
def test_nobody_who_answers_is_no_error(answer: Answer, monkeypatch: pytest.MonkeyPatch) -> None:
    answer(status=1, show="")
    assert Unit.of_process() is None
    assert systemd_version() is None
    monkeypatch.setenv("PATH", "/nowhere")
    assert Unit.of_process() is None
    assert not is_stopping()


@pytest.mark.parametrize(
    ("said", "version"),
    [
        ("Version=252.39-1~deb12u2", 252),
        ("Version=v261", 261),
        ("Version=262~rc1-2", 262),
        ("Version=", None),
        ("Version=" + "9" * 30, 9999),
    ],
)
def test_the_managers_version_is_read(answer: Answer, said: str, version: int | None) -> None:
    answer(show=said)
    assert systemd_version() == version


def test_a_shutdown_is_seen_though_systemctl_calls_that_a_failure(answer: Answer) -> None:
    answer(status=1, is_system_running="stopping")
    assert is_stopping()
    answer(status=0, is_system_running="running")
    assert not is_stopping()


@pytest.fixture
def manager() -> Iterator[Manager]:
    with Manager() as one:
        yield one


ATTACH = """
import json, warnings
from persistmem.carriers import unit
unit._unit_of = lambda _: ("shop.service", ())
import persistmem
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    persistmem.attach("shop", "1MiB", carrier="systemd")
print(json.dumps([str(warning.message) for warning in caught]))
"""
SETTINGS = "FileDescriptorStoreMax={}\nNFileDescriptorStore={}\nFileDescriptorStorePreserve={}\nNotifyAccess=main"


@pytest.mark.parametrize(
    ("preserve", "told"),
    [
        ("yes", []),
        ("restart", ["arena 'shop': the store of shop.service is emptied when it is stopped, and at a kexec: add"]),
        ("", ["arena 'shop': this systemd empties the store of shop.service when it is stopped; from systemd 254 on"]),
    ],
)
def test_a_store_that_a_stop_empties_is_told_of_when_an_arena_is_made(
    answer: Answer, manager: Manager, preserve: str, told: list[str]
) -> None:
    answer(show=SETTINGS.format(16, 0, preserve))
    said = manager.run(ATTACH)
    assert len(said) == len(told)
    assert all(text.startswith(expected) for text, expected in zip(said, told, strict=True))
    assert manager.run(ATTACH) == []


def test_a_unit_without_a_store_is_named_with_the_lines_to_add(answer: Answer) -> None:
    answer(show=SETTINGS.format(0, 0, "no"))
    with Manager(most=None) as manager:
        said = manager.fail(ATTACH)
    assert "shop.service has no file descriptor store: add FileDescriptorStoreMax=16 and" in said
    assert "FileDescriptorStorePreserve=yes to its [Service] section" in said


def test_a_unit_whose_store_is_full_is_named(answer: Answer, manager: Manager) -> None:
    answer(show=SETTINGS.format(4, 4, "yes"))
    assert "the file descriptor store of shop.service is full (4 of 4)" in manager.fail(ATTACH)
    assert manager.names() == []


def test_a_manager_that_does_not_listen_is_told_of_with_the_unit(answer: Answer, manager: Manager) -> None:
    answer(show=SETTINGS.format(16, 0, "yes"))
    manager.listens_to = 1
    assert "add NotifyAccess=all to the [Service] section of shop.service" in manager.fail(ATTACH)


def test_status_in_a_service_says_who_keeps_its_arenas_and_why(answer: Answer, manager: Manager) -> None:
    answer(show=SETTINGS.format(16, 1, "yes"))
    manager.run(ATTACH)
    status = "from persistmem.carriers import unit; unit._unit_of = lambda _: ('shop.service', ())\n"
    status += "from persistmem.cli import app; app({!r})"
    process = manager.start(status.format(["status", "--json"]))
    found = json.loads(process.communicate(timeout=30)[0])
    assert (found["chosen"], found["why"]) == ("systemd", "this service has a file descriptor store for 16")
    assert (found["unit"], found["stored"], found["store_max"], found["preserve"]) == ("shop.service", 1, 16, "yes")
    assert (found["arenas"], found["size"], found["running"]) == (1, 1 << 20, False)
    output, _ = manager.start(status.format(["status"])).communicate(timeout=30)
    assert "store      1 of 16 in use; kept while the service is stopped" in output
