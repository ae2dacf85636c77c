"""The whole upgrade as its users see it: two of them keep data, root upgrades the kernel, and both have theirs again.

In every kernel the system's agent is started, as a service manager would; the way to the next kernel is the product's.
"""

import hashlib
import json
import os
import tempfile
from pathlib import Path

from persistmem.liveupdate.device import holders

from . import guest
from .guest import SystemAgent, persistmem, run

GEOGRAPHER, PHYSICIST = 1001, 1002
CITIES = "cities.json"
ARRAY_MIB = 256

MAKE_CITIES = """
import json, sys
from dataclasses import asdict
from apps.cities.gazetteer import load_cities
json.dump([asdict(city) for city in load_cities()], open(sys.argv[1], "w"))
"""
KEEP_ARRAY = f"""
import numpy, persistmem
with persistmem.attach("simulation", size="{ARRAY_MIB + 64}MiB") as arena:
    field = numpy.arange({ARRAY_MIB} << 17, dtype=numpy.float64)
    arena.snapshot("field", {{"step": 7, "field": field}})
"""
CHECK_ARRAY = f"""
import numpy, persistmem
with persistmem.attach("simulation") as arena:
    kept = arena.restore("field")
    print(kept["step"], kept["field"].shape, numpy.array_equal(kept["field"], numpy.arange({ARRAY_MIB} << 17)))
    print(arena.origin)
"""


def main() -> None:
    stage, tell = guest.stage(), guest.tell
    agent = SystemAgent()
    tell("kernel", os.uname().release)
    tell("agent", agent.log)
    cities = Path(tempfile.gettempdir()) / CITIES
    if stage == 0:
        run("-c", MAKE_CITIES, str(cities), uid=GEOGRAPHER)
        tell("digest", hashlib.sha256(cities.read_bytes()).hexdigest())
        persistmem("snapshot", "cities", str(cities), uid=GEOGRAPHER)
        run("-c", KEEP_ARRAY, uid=PHYSICIST)
    else:
        persistmem("restore", "cities", str(cities), "--format", "json", uid=GEOGRAPHER)
        canonical = json.dumps(json.loads(cities.read_text())).encode()
        tell("digest", hashlib.sha256(canonical).hexdigest())
        tell("array", run("-c", CHECK_ARRAY, uid=PHYSICIST).stdout.splitlines())
        tell("verified", persistmem("verify", "simulation", uid=PHYSICIST).returncode)
    guest.tell_command("refused", persistmem("restore", "cities", uid=PHYSICIST, check=False))
    tell("listed", [record["arena"] for record in json.loads(persistmem("ls", "--json", uid=PHYSICIST).stdout)])
    guest.tell_history()
    tell("history as told", persistmem("history", uid=GEOGRAPHER).stdout)
    tell("status", json.loads(persistmem("status", "--json").stdout))
    tell("device", [holder == agent.process.pid for holder in holders()])
    if stage + 1 < guest.kernels():
        guest.tell_command("stayed", guest.reboot())


if __name__ == "__main__":
    main()
