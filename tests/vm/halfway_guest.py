"""The agent is killed halfway through taking over what the last kernel handed it, and started again."""

import json
import os
import signal
import subprocess
import sys

from persistmem.agent.kernel import KernelMachine, KernelSettings
from persistmem.agent.paths import state_directory
from persistmem.agent.statefile import read_state
from persistmem.liveupdate.device import KernelDevice, KernelSession

from . import guest
from .guest import SystemAgent, persistmem, run

USER = 1001
NAMES = ["a", "b", "c", "d"]
SESSIONS = 3
"""It gets to retrieve the registry and two arenas, and finishes none."""
KEEP = """
import sys, persistmem
for name in sys.argv[1:]:
    with persistmem.attach(name, size="1MiB") as arena:
        arena.snapshot("name", name)
"""


class FatalDevice(KernelDevice):
    """Kills the process that asks for one session too many."""

    sessions = 0

    def retrieve_session(self, name: str) -> KernelSession:
        self.sessions += 1
        if self.sessions > SESSIONS:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().retrieve_session(name)


def killed_halfway() -> None:
    """Be an agent that starts, up to that."""
    state, saved = state_directory() / "agent.state", state_directory() / "saved"
    KernelMachine.start(
        KernelSettings("luo", "late", 1 << 40), saved, state, read_state(state), open_device=FatalDevice
    )


def main() -> None:
    if guest.stage() == 0:
        SystemAgent()
        run("-c", KEEP, *NAMES, uid=USER)
        guest.tell_command("stayed", guest.reboot())
        return
    command = [sys.executable, "-c", "from tests.vm.halfway_guest import killed_halfway; killed_halfway()"]
    guest.tell("killed by", -subprocess.run(command, check=False).returncode)
    SystemAgent()
    guest.tell_history()
    names = [record["arena"] for record in json.loads(persistmem("ls", "--json", uid=USER).stdout)]
    guest.tell("arenas", names)
    guest.tell("contents", [json.loads(persistmem("restore", f"{name}/name", "-", uid=USER).stdout) for name in names])


if __name__ == "__main__":
    main()
