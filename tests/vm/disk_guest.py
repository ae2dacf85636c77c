"""To kernels that memory does not survive: looks before the jump, and goes by the disk.

A user keeps a document in the first kernel, and has it in every other one.
"""

import json
import os
import tempfile
from pathlib import Path

from . import guest
from .guest import SystemAgent, persistmem

USER = 1001
DOCUMENT = {"user": "7f3a", "items": list(range(1000)), "name": "Wäschekorb"}


def main() -> None:
    stage = guest.stage()
    agent = SystemAgent()
    guest.tell("kernel", os.uname().release)
    guest.tell("command line", Path("/proc/cmdline").read_text())
    guest.tell("agent", agent.log)
    file = Path(tempfile.gettempdir()) / "carts.json"
    if stage == 0:
        file.write_text(json.dumps(DOCUMENT))
        persistmem("snapshot", "shop/carts", str(file), "--size", "16MiB", uid=USER)
    else:
        restored = persistmem("restore", "shop/carts", "-", uid=USER)
        guest.tell("equal", json.loads(restored.stdout) == DOCUMENT)
        guest.tell_command("verify", persistmem("verify", "shop", uid=USER))
        guest.tell("saved", sorted(path.suffix for path in Path("/var/lib/persistmem/saved").iterdir()))
    guest.tell_history()
    guest.tell("status", json.loads(persistmem("status", "--json").stdout))
    if stage + 1 < guest.kernels():
        ask = ("preflight", str(guest.next_kernel()), "--running", str(guest.kernel()))
        guest.tell_command("preflight", persistmem(*ask, uid=USER, check=False))
        guest.tell_command("refused", guest.reboot("--memory-only"))
        guest.tell("status after the refusal", json.loads(persistmem("status", "--json").stdout))
        guest.tell_command("stayed", guest.reboot())


if __name__ == "__main__":
    main()
