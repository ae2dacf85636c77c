"""A user fills a cache in one kernel, and reads, writes and evicts in the next one, and in the one after that."""

import json
import os

from . import guest
from .guest import SystemAgent, persistmem, run

USER = 1001
ITEMS = 5000
FILL = f"""
import persistmem
with persistmem.Cache("thumbnails", "16MiB") as cache:
    cache.set_many({{("page", number): {{"number": number, "text": "x" * 50}} for number in range({ITEMS})}})
    cache.set("session", b"short", ttl=1)
    cache.set("account", b"long", ttl="7d")
    cache.incr("boots", default=0)
"""
READ = f"""
import json, persistmem
with persistmem.Cache("thumbnails") as cache:
    before = cache.stats()
    found = sum(cache.get(("page", number)) == {{"number": number, "text": "x" * 50}} for number in range({ITEMS}))
    session, account, boots = cache.get("session"), cache.get("account"), cache.incr("boots")
    for number in range(20_000):
        cache[number] = bytes(1000)
    after = cache.stats()
    print(json.dumps({{
        "items": before.items, "found": found, "session": session, "account": account.decode(), "boots": boots,
        "hits": after.hits - before.hits, "damaged": after.damaged, "evicted": after.evicted - before.evicted,
        "newest": len(cache[19_999]),
    }}))
    cache.clear()
"""


def main() -> None:
    SystemAgent()
    if guest.stage():
        guest.tell("cache", json.loads(run("-c", READ, uid=USER).stdout))
        guest.tell_command("stats", persistmem("cache", "stats", "thumbnails", "--json", uid=USER))
    guest.tell("kernel", os.uname().release)
    if guest.stage() + 1 < guest.kernels():
        run("-c", FILL, uid=USER)
        guest.tell_command("stayed", guest.reboot())


if __name__ == "__main__":
    main()
