"""The agent is killed: before a kexec, with nobody to start it again, and with a supervisor that does.

In the first kernel it stays dead, in the second one it is started again.
"""

import json
import os
import subprocess
import sys

from . import guest
from .guest import SystemAgent, persistmem, run

USER = 1001
HOLDER = """
import sys
import persistmem
with persistmem.attach("shop", size="1MiB") as arena:
    arena.snapshot("carts", [1, 2, 3])
    print("holds", flush=True)
    sys.stdin.read()
"""


def main() -> None:
    stage = guest.stage()
    agent = SystemAgent()
    guest.tell("kernel", os.uname().release)
    guest.tell_history()
    guest.tell("arenas", [record["arena"] for record in json.loads(persistmem("ls", "--json", uid=USER).stdout)])
    if stage == 2:
        guest.tell("document", json.loads(run("-m", "persistmem", "restore", "shop/carts", "-", uid=USER).stdout))
        return
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        user=USER,
        group=USER,
        extra_groups=[],
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "holds\n"
    persistmem("prepare")
    agent.kill()
    if stage == 0:
        guest.load_next()
        guest.kexec()
    SystemAgent()
    persistmem("ls", uid=USER)  # is answered when what is missing was handed back
    guest.tell("status after the kill", json.loads(persistmem("status", "--json").stdout))
    guest.tell_command("stayed", guest.reboot())


if __name__ == "__main__":
    main()
