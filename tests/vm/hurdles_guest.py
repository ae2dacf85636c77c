"""What stands in the way of an upgrade: a device that is held, too little memory, a wrong file. And late writes."""

import json
import os
import tempfile
from pathlib import Path

from persistmem.liveupdate.device import KernelDevice

from . import guest
from .guest import SystemAgent, persistmem, run

USER = 1001
WRITE = """
import sys, persistmem
with persistmem.attach("shop", size="1MiB") as arena:
    arena.snapshot("carts", sys.argv[1])
"""


def status() -> object:
    return json.loads(persistmem("status", "--json").stdout)


def main() -> None:
    if guest.stage() == 1:
        SystemAgent()
        guest.tell("document", json.loads(persistmem("restore", "shop/carts", "-", uid=USER).stdout))
        guest.tell_history()
        return
    with KernelDevice():
        guest.tell("agent without the device", [SystemAgent().log, os.getpid()])
    agent = SystemAgent()
    guest.tell("second agent", SystemAgent().log)
    run("-c", WRITE, "first", uid=USER)

    # more than the machine has
    run("-c", "import persistmem; persistmem.attach('huge', '4GiB')")
    guest.tell_command("prepare with too little memory", persistmem("prepare", check=False))
    guest.tell("status after it", status())
    guest.tell_command("only root", persistmem("prepare", uid=USER, check=False))
    persistmem("rm", "huge")

    wrong = Path(tempfile.gettempdir()) / "wrong"
    wrong.write_bytes(b"no kernel")
    kexec = ("reboot", "--reuse-cmdline", "--running", str(guest.kernel()))
    guest.tell_command("wrong kernel", persistmem(*kexec, "--kexec", str(wrong), check=False))
    missing = persistmem(*kexec, "--kexec", str(guest.next_kernel()), "--initrd", "/nowhere", check=False)
    guest.tell_command("no initrd", missing)
    guest.tell("status after the wrong files", status())
    guest.tell("loaded", Path("/sys/kernel/kexec_loaded").read_text().strip())

    guest.tell_command("prepare", persistmem("prepare", "--json"))
    guest.tell_command("made while prepared", run("-c", WRITE.replace("shop", "new"), "x", uid=USER, check=False))
    guest.tell_command("abort", persistmem("abort"))
    run("-c", WRITE.replace("shop", "new"), "x", uid=USER)
    guest.tell_command("abort again", persistmem("abort"))

    persistmem("prepare")
    run("-c", WRITE, "last", uid=USER)
    guest.tell("agent lives", agent.process.poll() is None)
    guest.load_next()
    guest.kexec()


if __name__ == "__main__":
    main()
