"""Two users' services on the systemd carrier: restarted, stopped, killed, soft-rebooted, and taken to another kernel.

Both have an arena of the same name. Each reports what it finds when it starts; no agent runs.
"""

import os
import signal
from pathlib import Path

from . import guest
from .systemd_guest import UNITS, journal, kexec, last_line, power_off, prop, run_stage, soft_reboot, systemctl
from .systemd_image import GEOGRAPHER, USERS

PROGRAM = Path("/usr/local/lib/shop.py")
STATE = "shop"
KILLS = 4
STOPPED = ("ActiveState", "Result", "NFileDescriptorStore")
"""What is to be known of a service that is stopped."""
SHOP = """
import hashlib, json, os, pwd, socket, threading
from pathlib import Path
import persistmem

state = Path(os.environ["STATE_DIRECTORY"])
progress = os.open(state / "progress", os.O_RDWR | os.O_CREAT)

def tell_manager(what):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.sendto(what, os.environ["NOTIFY_SOCKET"])

def order(number):
    return {"number": number, "body": hashlib.sha256(b"%d" % number).digest() * 32768}

def take_order():
    global number
    os.pwrite(progress, b"%20d %20d" % (number + 1, number), 0)
    arena.snapshot("orders", order(number + 1))
    number += 1
    os.pwrite(progress, b"%20d %20d" % (number, number), 0)

def close(arena):
    arena.snapshot("closing", {"orders": number, "times": closing["times"] + 1})

arena = persistmem.attach("shop", "16MiB", on_stop=close)
user = pwd.getpwuid(os.getuid()).pw_name
if arena.origin.kind == "created":
    catalogue = {"owner": user, "body": os.urandom(1 << 20)}
    arena.snapshot("catalogue", catalogue)
else:
    catalogue = arena.restore("catalogue")
found = arena.restore("orders", default={"number": 0, "body": b""})
number = found["number"]
closing = arena.restore("closing", default={"orders": 0, "times": 0})
report = {
    "pid": os.getpid(), "user": user, "owner": catalogue["owner"],
    "digest": hashlib.sha256(catalogue["body"]).hexdigest(),
    "origin": str(arena.origin), "kind": arena.origin.kind, "sound": arena.verify().ok,
    "orders": number, "whole": number == 0 or found == order(number), "closing": closing,
}
busy = (state / "busy").exists()
if not busy:
    take_order()
with open(state / "starts", "a") as file:
    file.write(json.dumps(report) + "\\n")
tell_manager(b"READY=1")
while busy:
    take_order()
threading.Event().wait()
"""
UNIT = f"""\
[Unit]
Description=Shop of %i
StartLimitIntervalSec=0

[Service]
Type=notify
User=%i
ExecStart=/usr/bin/python3 {PROGRAM}
FileDescriptorStoreMax=16
FileDescriptorStorePreserve=yes
StateDirectory={STATE}/%i
StandardError=journal+console

[Install]
WantedBy=multi-user.target
"""
SHOPS = {user: f"shop@{user}.service" for user in USERS.values()}


def state(user: str) -> Path:
    """Where that user's service keeps its files."""
    return Path("/var/lib") / STATE / user


def tell_found(how: str) -> None:
    """Report what each service found at its last start."""
    guest.tell(how, {user: last_line(state(user) / "starts") for user in SHOPS})


def kill_again_and_again(user: str) -> None:
    """Kill a service that takes one order after the other; report what was going on, and what it found afterwards."""
    shop, busy = SHOPS[user], state(user) / "busy"
    busy.touch()
    systemctl("restart", shop)
    told = []
    for _ in range(KILLS):
        pid = int(prop(shop, "MainPID"))
        assert pid, f"{shop} does not run"  # the pid 0 is this very program's group
        _, before = progress(user)
        while progress(user)[1] == before:
            prop(shop, "MainPID")  # takes a moment, now longer, now shorter: a kill may come at any point of an order
        os.kill(pid, signal.SIGKILL)
        while prop(shop, "ActiveState") != "failed":
            pass
        begun, ended = progress(user)
        systemctl("start", shop)
        told.append({"begun": begun, "ended": ended, "found": last_line(state(user) / "starts")})
    guest.tell("killed", told)
    busy.unlink()
    systemctl("restart", shop)


def progress(user: str) -> tuple[int, int]:
    """The order that a service began to store last, and the last one that was stored."""
    begun, ended = (state(user) / "progress").read_bytes().split()
    return int(begun), int(ended)


def before_the_soft_reboot() -> None:
    PROGRAM.write_text(SHOP)
    (UNITS / "shop@.service").write_text(UNIT)
    systemctl("daemon-reload")
    systemctl("enable", "--now", *SHOPS.values())
    tell_found("start")
    systemctl("restart", *SHOPS.values())
    tell_found("restart")
    systemctl("stop", *SHOPS.values())
    guest.tell("while stopped", [[prop(shop, name) for name in STOPPED] for shop in SHOPS.values()])
    systemctl("start", *SHOPS.values())
    tell_found("stop and start")
    kill_again_and_again(USERS[GEOGRAPHER])
    tell_found("before the soft-reboot")
    soft_reboot()


def between_soft_reboot_and_kexec() -> None:
    tell_found("soft-reboot")
    kexec()


def after_the_kexec() -> None:
    tell_found("kexec")
    guest.tell("agent", Path("/run/persistmem").exists())
    guest.tell("timeouts", [line for shop in SHOPS.values() for line in journal(shop) if "timed out" in line])
    power_off()


if __name__ == "__main__":
    run_stage([before_the_soft_reboot, between_soft_reboot_and_kexec, after_the_kexec])
