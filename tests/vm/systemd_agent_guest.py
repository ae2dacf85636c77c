"""Two users' arenas with the system's agent, a unit: it is restarted, stopped, killed; then user space, and the kernel.

Users are plain processes that come and go; but two applications are running, one of them deaf, when the kernel is left.
"""

import json
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from . import guest
from .guest import persistmem
from .systemd_guest import journal, kexec, power_off, prop, run_stage, soft_reboot, systemctl
from .systemd_image import GEOGRAPHER, PHYSICIST, USERS

AGENT_UNITS = ("persistmem.socket", "persistmem.service", "persistmem-prepare.service")
KEPT: dict[int, dict[str, object]] = {
    GEOGRAPHER: {"cities": ["Lima", "Oslo"], "notes": "rivers"},
    PHYSICIST: {"notes": "quarks"},
}
"""Each user's arenas, and the document in each."""
ARENAS = ("cities", "notes")
CLOSING = "closing"
"""The arena that an application keeps."""

# They are gone with the kernel.
_UNITS = Path("/run/systemd/system")
_PROGRAMS = Path("/run")
_APPLICATION = """
import os, socket, threading
import persistmem

{body}

with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
    manager.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
threading.Event().wait()
"""
APPLICATIONS = {
    "attentive": (
        GEOGRAPHER,
        f"""
arena = persistmem.attach("{CLOSING}", "1MiB")
arena.snapshot("last", "not yet")

@persistmem.before_kexec
def close():
    arena.snapshot("last", os.uname().release)
""",
    ),
    "deaf": (PHYSICIST, "persistmem.before_kexec(threading.Event().wait)"),
}
"""Each one's user, and what it does."""
_UNIT = """\
[Unit]
Description=An application

[Service]
Type=notify
User={uid}
ExecStart=/usr/bin/python3 {program}

[Install]
WantedBy=multi-user.target
"""


def keep() -> None:
    """Have each user keep their documents."""
    for uid, documents in KEPT.items():
        for arena, document in documents.items():
            file = Path(tempfile.gettempdir()) / f"{uid}-{arena}"
            file.write_text(json.dumps(document))
            persistmem("snapshot", arena, str(file), uid=uid)


def tell_kept(how: str) -> None:
    """Report what each user finds; nothing but a user's own command starts the agent, if it does not run."""
    while persistmem("status", uid=GEOGRAPHER, check=False).returncode:
        pass  # a slow machine takes longer to start it than a command waits
    with ThreadPoolExecutor(len(USERS)) as pool:
        guest.tell(how, dict(zip(USERS.values(), pool.map(look, USERS), strict=True)))


def look(uid: int) -> dict[str, object]:
    """What a user finds, who asks for what is the other's, too."""
    restored = {arena: persistmem("restore", arena, uid=uid, check=False).stdout for arena in ARENAS}
    return {
        "restored": {arena: json.loads(document) for arena, document in restored.items() if document},
        "listed": [record["arena"] for record in json.loads(persistmem("ls", "--json", uid=uid).stdout)],
        "verified": [persistmem("verify", arena, uid=uid, check=False).returncode for arena in KEPT[uid]],
    }


def tell_status() -> None:
    """Report what the agent says of itself."""
    guest.tell("status", json.loads(persistmem("status", "--json", uid=GEOGRAPHER).stdout))


def start_applications() -> None:
    """Start them as an administrator's services, which have no store of their own."""
    for name, (uid, body) in APPLICATIONS.items():
        program = _PROGRAMS / f"{name}.py"
        program.write_text(_APPLICATION.format(body=body))
        (_UNITS / f"{name}.service").write_text(_UNIT.format(uid=uid, program=program))
    systemctl("daemon-reload")
    systemctl("enable", "--runtime", "--now", *APPLICATIONS)


def wait_for_applications() -> None:
    """Wait until the agent has both applications among its clients; status is the third."""
    while json.loads(persistmem("status", "--json").stdout)["connections"] < len(APPLICATIONS) + 1:
        pass


def before_the_soft_reboot() -> None:
    guest.tell_command("install", persistmem("agent", "install", check=False))
    guest.tell("installed", {unit: prop(unit, "ActiveState") for unit in AGENT_UNITS})
    keep()
    guest.tell_command("refused", persistmem("restore", "cities", uid=PHYSICIST, check=False))
    tell_status()
    tell_kept("start")
    pid = prop("persistmem.service", "MainPID")
    systemctl("restart", "persistmem.service")
    guest.tell("is another process", prop("persistmem.service", "MainPID") != pid)
    tell_kept("restart")
    systemctl("stop", "persistmem.service")
    guest.tell("while stopped", [prop("persistmem.service", name) for name in ("ActiveState", "Result")])
    tell_kept("stop")
    systemctl("stop", "persistmem.socket", "persistmem.service")
    systemctl("start", "persistmem.socket", "persistmem.service")
    tell_kept("stop and start")
    systemctl("kill", "--signal=KILL", "persistmem.service")
    tell_kept("kill")
    soft_reboot()


def between_soft_reboot_and_kexec() -> None:
    tell_kept("soft-reboot")
    start_applications()
    systemctl("restart", "persistmem.service")
    wait_for_applications()
    systemctl("stop", "persistmem.socket", "persistmem.service")
    systemctl("start", "persistmem.socket", "persistmem.service")
    wait_for_applications()
    guest.tell("applications", {name: int(prop(name, "MainPID")) for name in APPLICATIONS})
    kexec()


def after_the_kexec() -> None:
    tell_kept("kexec")
    guest.tell("closing", json.loads(persistmem("restore", f"{CLOSING}/last", uid=GEOGRAPHER).stdout))
    guest.tell("unready", [line for line in journal("persistmem.service") if "was not ready" in line])
    guest.tell_history()
    tell_status()
    guest.tell_command("uninstall while it keeps arenas", persistmem("agent", "uninstall", check=False))
    guest.tell_command("uninstall", persistmem("agent", "uninstall", "--discard", check=False))
    guest.tell("uninstalled", {unit: prop(unit, "LoadState") for unit in AGENT_UNITS})
    power_off()


if __name__ == "__main__":
    run_stage([before_the_soft_reboot, between_soft_reboot_and_kexec, after_the_kexec])
