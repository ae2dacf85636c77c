"""An application works until its kernel is left, and again as soon as it can in the next; each hit is reported at once.

The host takes the times: a kernel sets its clock from one that counts whole seconds.
"""

import os
import subprocess
import sys
from typing import IO

from . import guest
from .guest import SystemAgent

USER = 1001
MIB = 64
APPLICATION = f"""
import os, sys
import persistmem
arena = persistmem.attach("index", size="{2 * MIB}MiB")
if sys.argv[1] == "0":
    arena.snapshot("index", {{"words": ["warm"], "table": os.urandom({MIB} << 20)}})
while True:
    assert arena.restore("index")["words"] == ["warm"]
    print("hit", flush=True)
"""


def application() -> IO[str]:
    command = [sys.executable, "-c", APPLICATION, str(guest.stage())]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, user=USER, group=USER, extra_groups=[])
    assert process.stdout is not None
    return process.stdout


def main() -> None:
    guest.report(guest.stage(), "user space", None)
    SystemAgent()
    guest.report(guest.stage(), "agent", None)
    hits = application()
    hits.readline()
    guest.report(guest.stage(), "hit", None)
    if guest.stage() == 1:
        guest.tell_history()
        return
    if os.fork() == 0:
        guest.tell_command("stayed", guest.reboot())
        os._exit(0)
    for _ in hits:
        guest.report(guest.stage(), "hit", None)


if __name__ == "__main__":
    main()
