"""Clients as they are, over real sockets."""

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from .support import House, Server, Wire, needs_tool

pymemcache = pytest.importorskip("pymemcache", reason="pymemcache is missing: pip install pymemcache")

from pymemcache.client.base import Client, PooledClient  # noqa: E402
from pymemcache.client.hash import HashClient  # noqa: E402
from pymemcache.exceptions import MemcacheClientError, MemcacheServerError  # noqa: E402


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    found = Client(("127.0.0.1", server.port), default_noreply=False)
    yield found
    found.close()


def test_pymemcache_does_all_it_can(client: Client) -> None:
    assert client.set("a", b"1", flags=5)
    assert client.get("a") == b"1"
    value, cas = client.gets("a")
    assert value == b"1"
    assert client.cas("a", b"2", cas) is True
    assert client.cas("a", b"3", cas) is False
    assert client.cas("nobody", b"3", cas) is None
    assert client.set_many({f"k{number}": b"%d" % number for number in range(500)}) == []
    assert client.get_many([f"k{number}" for number in range(0, 1000, 2)]) == {
        f"k{number}": b"%d" % number for number in range(0, 500, 2)
    }
    assert client.gets_many(["a", "nobody"]).keys() == {"a"}
    assert client.add("a", b"x") is False
    assert client.add("b", b"x") is True
    assert client.replace("b", b"y") is True
    assert client.append("b", b"z") is True
    assert client.prepend("b", b"x") is True
    assert client.get("b") == b"xyz"
    assert client.set("n", b"41")
    assert client.incr("n", 1) == 42
    assert client.decr("n", 50) == 0
    assert client.incr("nobody", 1) is None
    assert client.touch("n", 100) is True
    assert client.touch("nobody", 100) is False
    assert client.touch("n", -1) is True
    assert client.get("n", "gone") == "gone"
    assert client.delete("b") is True
    assert client.delete("b") is False
    assert client.delete_many(["k1", "k2", "nobody"]) is True
    assert client.get_many(["k1", "k2", "k3"]) == {"k3": b"3"}
    assert client.version() == b"1.6.45-persistmem"
    assert client.flush_all() is True
    assert client.get("a") is None
    client.quit()


def test_pymemcache_does_not_wait_for_replies_it_does_not_want(client: Client) -> None:
    for number in range(1000):
        client.set(f"k{number}", b"%d" % number, noreply=True)
        client.incr(f"k{number}", 1000, noreply=True)
    client.delete("k0", noreply=True)
    client.touch("k1", -1, noreply=True)
    assert client.get_many(["k0", "k1", "k2", "k999"]) == {"k2": b"1002", "k999": b"1999"}


def test_pymemcache_tells_what_was_wrong_and_goes_on(client: Client) -> None:
    with pytest.raises(MemcacheServerError, match="too large"):
        client.set("large", bytes(2 << 20))
    client.set("text", b"no number")
    with pytest.raises(MemcacheClientError, match="non-numeric"):
        client.incr("text", 1)
    assert client.get("text") == b"no number"


def test_stats_count_what_happened(client: Client) -> None:
    before = client.stats()
    assert before[b"curr_items"] == 0
    client.set_many({"a": b"1", "b": b"2", "c": b"3"})
    client.get_many(["a", "b", "nobody"])
    client.gets("a")
    client.incr("a", 1)
    client.incr("nobody", 1)
    client.decr("nobody", 1)
    client.cas("a", b"4", client.gets("a")[1])
    client.cas("a", b"4", b"1")
    client.cas("nobody", b"4", b"1")
    client.touch("a", 0)
    client.touch("nobody", 0)
    client.delete("c")
    client.delete("c")
    after = client.stats()

    def grown(name: str) -> int:
        return int(after[name.encode()]) - int(before[name.encode()])

    expected = {
        "cmd_get": 5, "get_hits": 4, "get_misses": 1, "cmd_set": 6, "incr_hits": 1, "incr_misses": 1,
        "decr_hits": 0, "decr_misses": 1, "cas_hits": 1, "cas_badval": 1, "cas_misses": 1, "cmd_touch": 2,
        "touch_hits": 1, "touch_misses": 1, "delete_hits": 1, "delete_misses": 1, "cmd_flush": 0,
        "curr_items": 2, "curr_connections": 0, "evictions": 0,
    }  # fmt: skip
    assert {name: grown(name) for name in expected} == expected
    assert grown("bytes_read") > 100
    assert grown("bytes_written") > 100
    assert grown("bytes") > 0
    assert int(after[b"limit_maxbytes"]) == 64 << 20
    assert client.stats("settings")[b"item_size_max"] == 1 << 20
    assert client.stats("items") == {b"items:1:number": 2, b"items:1:evicted": 0}


def test_what_is_read_stays_and_evictions_are_counted_when_the_cache_is_full(house: House) -> None:
    server = house.serve("tight", "--size", "1MiB")
    with server.wire() as wire:
        wire.ask(b"".join(b"set hot%d 0 0 100 noreply\r\n%b\r\n" % (number, bytes(100)) for number in range(200)))
        hot = b"get " + b" ".join(b"hot%d" % number for number in range(200)) + b"\r\n"
        for number in range(20_000):
            if number % 1000 == 0:
                wire.ask(hot)
            wire.send(b"set k%d 0 0 100 noreply\r\n%b\r\n" % (number, bytes(100)))
        assert wire.ask(hot).count(b"VALUE") > 190
    stats = server.stats()
    assert int(stats["evictions"]) > 10_000
    assert int(stats["curr_items"]) < 10_000
    assert int(stats["total_items"]) == 20_200


def test_many_threads_lose_no_count(server: Server) -> None:
    client = PooledClient(("127.0.0.1", server.port), max_pool_size=8, default_noreply=False)
    client.set("n", b"0")
    with ThreadPoolExecutor(8) as pool:
        counted = list(pool.map(lambda _: client.incr("n", 1), range(800)))
    assert sorted(counted) == list(range(1, 801))
    client.close()


def test_hash_client_spreads_keys_over_servers_and_finds_them_after_an_upgrade(house: House) -> None:
    servers = [house.serve(name, "--size", "1MiB") for name in ("one", "two")]
    client = HashClient([("127.0.0.1", server.port) for server in servers], default_noreply=False)
    pages = {f"page:{number}": b"%d" % number for number in range(200)}
    assert client.set_many(pages) == []
    assert all(int(server.stats()["curr_items"]) > 50 for server in servers)
    house.persistmem("reboot", "--simulate")
    assert client.get_many(list(pages)) == pages
    client.close()


def test_django_runs_its_cache_on_it(server: Server, house: House) -> None:
    program = f"""
import django
from django.conf import settings
settings.configure(CACHES={{"default": {{
    "BACKEND": "django.core.cache.backends.memcached.PyMemcacheCache",
    "LOCATION": "127.0.0.1:{server.port}",
}}}})
django.setup()
from django.core.cache import cache
assert cache.get("nobody", "default") == "default"
cache.set("a", {{"list": [1, 2.5, None, "é"]}}, timeout=300)
assert cache.get("a") == {{"list": [1, 2.5, None, "é"]}}
assert cache.add("a", 1) is False
assert cache.get_or_set("b", lambda: 42) == 42
assert cache.incr("b") == 43 and cache.decr("b", 3) == 40
try:
    cache.incr("nobody")
except ValueError:
    pass
else:
    raise AssertionError
assert cache.touch("a", 600) is True and cache.touch("nobody") is False
cache.set_many({{f"k{{n}}": n for n in range(100)}}, timeout=None)
assert cache.get_many(f"k{{n}}" for n in range(150)) == {{f"k{{n}}": n for n in range(100)}}
cache.set("over", 1, timeout=0)
assert "over" not in cache and "a" in cache
cache.set("versioned", "one", version=1)
assert cache.incr_version("versioned") == 2 and cache.get("versioned", version=2) == "one"
cache.delete_many(["k1", "k2"])
assert cache.delete("k3") is True and cache.delete("k3") is False
assert cache.get("k1") is None
cache.clear()
assert cache.get("a") is None
cache.close()
print("done")
"""
    done = house.run(sys.executable, "-W", "error", "-c", program)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


@needs_tool("memccapable")
def test_libmemcached_finds_the_server_capable(server: Server) -> None:
    done = subprocess.run(
        ["memccapable", "-h", "127.0.0.1", "-p", str(server.port), "-a"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, [line for line in done.stdout.splitlines() if "[pass]" not in line]) == (
        0, ["All tests passed"],
    ), done.stdout  # fmt: skip
    assert done.stdout.count("[pass]") == 27


@needs_tool("memcslap")
@pytest.mark.parametrize("test", ["get", "mget", "set"])
def test_memcslap_loads_the_server(house: House, test: str) -> None:
    path = house.directory / "socket"
    server = house.serve("slapped", "--listen", "127.0.0.1:0", "--unix", str(path))
    where = f"--servers=127.0.0.1:{server.port}"
    done = house.run(
        "memcslap", where, "--concurrency=8", "--execute-number=500", f"--test={test}", "--initial-load=500"
    )
    assert done.returncode == 0, done.stderr
    stats = server.stats()
    assert int(stats["cmd_set" if test == "set" else "get_hits"]) >= 4000
    assert stats["get_misses"] == "0" if test == "get" else True
    with Wire(path) as wire:  # it listens everywhere still
        assert wire.ask(b"get nobody\r\n") == b"END\r\n"


@needs_tool("memccp")
def test_files_go_in_and_out_with_libmemcached_tools(server: Server, house: House, tmp_path: Path) -> None:
    where = f"--servers=127.0.0.1:{server.port}"
    (tmp_path / "photo").write_text("ä line\n" * 20_000)
    assert house.run("memccp", where, "--flag=7", "--expire=100", str(tmp_path / "photo")).returncode == 0
    assert house.run("memcexist", where, "photo").returncode == 0
    assert house.run("memctouch", where, "--expire=0", "photo").returncode == 0
    got = house.run("memccat", where, "photo")
    assert got.stdout.rstrip("\n") == (tmp_path / "photo").read_text().rstrip("\n")
    assert house.run("memcping", where).returncode == 0
    assert "version: 1.6.45-persistmem" in house.run("memcstat", where).stdout
    assert house.run("memcrm", where, "photo").returncode == 0
    assert house.run("memcexist", where, "photo").returncode != 0
    assert house.run("memcflush", where).returncode == 0
