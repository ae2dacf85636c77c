"""Arenas with more holes than the machine has memory cannot be preserved: an upgrade takes them by the disk."""

import json

from . import guest
from .guest import SystemAgent, persistmem, run

USER = 1001
WRITE = """
import persistmem
persistmem.attach("huge", "4GiB").close()
with persistmem.attach("shop", size="1MiB") as arena:
    arena.snapshot("carts", ["apples", "pears"])
"""


def main() -> None:
    SystemAgent("--quota", "8GiB")
    if guest.stage() == 0:
        run("-c", WRITE, uid=USER)
        guest.tell_command("memory only", guest.reboot("--memory-only"))
        guest.tell_command("stayed", guest.reboot())
        return
    guest.tell("document", json.loads(persistmem("restore", "shop/carts", "-", uid=USER).stdout))
    guest.tell("arenas", [record["arena"] for record in json.loads(persistmem("ls", "--json", uid=USER).stdout)])
    guest.tell_history()


if __name__ == "__main__":
    main()
