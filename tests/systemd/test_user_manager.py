"""A service's arenas in the store of a real service manager: when it has them again, and what it is told when not.

What systemd does differs by its version; what is expected here is what the version that runs says of itself.
"""

import pytest

from persistmem.carriers.unit import PRESERVE_VERSION

from .manager import ServiceManager

STORE = "FileDescriptorStoreMax=16\n"
FORCED = "Environment=PERSISTMEM_CARRIER=systemd\n"
COUNT = """
import json, signal, persistmem
arena = persistmem.attach("shop", "1MiB")
count = arena.restore("count", default=0)
arena.snapshot("count", count + 1)
print(json.dumps([arena.origin.kind, count]), flush=True)
signal.pause()
"""
ATTACH = """
import json, signal, persistmem
for name in {names!r}:
    try:
        said = persistmem.attach(name, "1MiB").origin.kind
    except persistmem.Error as error:
        said = str(error)
    print(json.dumps([name, said]), flush=True)
signal.pause()
"""


def stored(manager: ServiceManager) -> int:
    return int(manager.systemctl("show", "--property=NFileDescriptorStore", "--value", "shop.service"))


def test_a_restarted_service_has_its_arena_again(manager: ServiceManager) -> None:
    manager.run_program(COUNT, STORE + FORCED)
    assert manager.line() == ["created", 0]
    for count in (1, 2):
        manager.systemctl("restart", "shop.service")
        assert manager.line() == ["reattached", count]
    assert stored(manager) == 1


def test_a_killed_service_has_its_arena_again(manager: ServiceManager) -> None:
    manager.run_program(COUNT, STORE + FORCED + "Restart=always\nRestartSec=0\n")
    assert manager.line() == ["created", 0]
    for count in (1, 2):
        manager.systemctl("kill", "--signal=KILL", "shop.service")
        assert manager.line() == ["reattached", count]


@pytest.mark.parametrize("settings", ["", "FileDescriptorStorePreserve=yes\n"])
def test_a_stopped_service_has_its_arena_again_if_its_systemd_can_and_shall_keep_it(
    manager: ServiceManager, settings: str
) -> None:
    manager.run_program(COUNT, STORE + settings + FORCED)
    assert manager.line() == ["created", 0]
    manager.systemctl("stop", "shop.service")
    manager.systemctl("start", "shop.service")
    kept = bool(settings) and manager.version >= PRESERVE_VERSION
    assert manager.line() == (["reattached", 1] if kept else ["created", 0])


def test_systemd_itself_may_be_upgraded_meanwhile(manager: ServiceManager) -> None:
    manager.run_program(COUNT, STORE + FORCED)
    assert manager.line() == ["created", 0]
    manager.systemctl("daemon-reexec")
    manager.systemctl("restart", "shop.service")
    assert manager.line() == ["reattached", 1]


def test_the_store_is_used_unasked_where_systemd_says_that_there_is_one(manager: ServiceManager) -> None:
    manager.run_program(COUNT, STORE + ("" if manager.version >= PRESERVE_VERSION else FORCED))
    assert manager.line() == ["created", 0]
    manager.run_program(COUNT, STORE)
    manager.systemctl("restart", "shop.service")
    assert manager.line() == ["reattached", 1]
    assert stored(manager) == 1


def test_arenas_of_any_names_come_back(manager: ServiceManager) -> None:
    names = ["shop", "with a space", "名前", "a:b", "\\", "a=b", "%n", "x" * 200]
    manager.run_program(ATTACH.format(names=names), STORE + FORCED)
    assert [manager.line() for _ in names] == [[name, "created"] for name in names]
    manager.systemctl("restart", "shop.service")
    assert [manager.line() for _ in names] == [[name, "reattached"] for name in names]


def test_a_full_store_says_which_line_to_change_and_keeps_what_it_has(manager: ServiceManager) -> None:
    manager.run_program(ATTACH.format(names=["one", "two"]), "FileDescriptorStoreMax=1\n" + FORCED)
    for expected in ("created", "reattached"):
        assert manager.line() == ["one", expected]
        name, said = manager.line()
        assert name == "two"
        assert "of shop.service is full (1 of 1): raise FileDescriptorStoreMax=" in said
        assert stored(manager) == 1
        manager.systemctl("restart", "shop.service")


def test_a_service_without_a_store_says_which_lines_to_add(manager: ServiceManager) -> None:
    manager.run_program(ATTACH.format(names=["shop"]), "Type=simple\nNotifyAccess=main\n" + FORCED)
    _, said = manager.line()
    assert said.startswith("shop.service has no file descriptor store: add FileDescriptorStoreMax=16 and")
    assert "systemctl daemon-reload" in said


def test_a_dropped_arena_is_gone_from_the_store(manager: ServiceManager) -> None:
    drop = "import persistmem.attachment\npersistmem.attachment.drop_arena('shop')\n"
    manager.run_program(COUNT.replace("signal.pause()", drop + "print(0, flush=True)\nsignal.pause()"), STORE + FORCED)
    for _ in range(2):
        assert manager.line() == ["created", 0]
        assert manager.line() == 0
        assert stored(manager) == 0
        manager.systemctl("restart", "shop.service")


def test_the_last_snapshot_is_taken_when_the_service_is_told_to_end(manager: ServiceManager) -> None:
    program = """
import json, time, persistmem
state = []
arena = persistmem.attach("shop", "1MiB", on_stop=lambda arena: arena.snapshot("state", state))
before = arena.restore("state", default=None)
state.append("told")
print(json.dumps(before), flush=True)
while True:
    time.sleep(0.1)  # not for ever: a signal that comes just before it is seen after it
"""
    manager.run_program(program, STORE + FORCED)
    assert manager.line() is None
    manager.systemctl("restart", "shop.service")
    assert manager.line() == ["told"]


def test_a_service_that_took_its_last_snapshot_did_not_fail(manager: ServiceManager) -> None:
    program = """
import time, persistmem
arena = persistmem.attach("shop", "1MiB", on_stop=lambda arena: arena.snapshot("state", 1))
print(1, flush=True)
while True:
    time.sleep(0.1)  # not for ever: a signal that comes just before it is seen after it
"""
    manager.run_program(program, STORE + FORCED)
    assert manager.line() == 1
    manager.systemctl("stop", "shop.service")
    assert manager.systemctl("show", "--property=ActiveState,Result", "shop.service").splitlines() == [
        "Result=success",
        "ActiveState=inactive",
    ]
