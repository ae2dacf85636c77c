"""dogpile's own tests of backends and mutexes; then what only this backend promises."""

import subprocess
import sys

import pytest
from dogpile.cache import CacheRegion, make_region
from dogpile.cache.api import NO_VALUE, CachedValue
from dogpile.testing import fixtures

from persistmem import ArgumentError, Cache, UnsupportedTypeError
from persistmem.adapters.dogpile import PersistmemBackend
from persistmem.testing import new_arena

from .clock import Clock


class TestDogpileBackend(fixtures._GenericBackendTestSuite):
    backend = "persistmem"
    config_args = {  # noqa: RUF012 - dogpile's suite has it so
        "arguments": {"arena": "dogpile-plain", "size": "1MiB"}
    }


class TestDogpileSerializer(fixtures._GenericSerializerTestSuite, fixtures._GenericBackendFixture):
    backend = "persistmem"
    config_args = {  # noqa: RUF012 - dogpile's suite has it so
        "arguments": {"arena": "dogpile-serialized", "size": "1MiB"}
    }


class TestDogpileMutex(fixtures._GenericMutexTestSuite):
    backend = "persistmem"
    config_args = {  # noqa: RUF012 - dogpile's suite has it so
        "arguments": {"arena": "dogpile-mutex", "size": "1MiB"}
    }


@pytest.fixture
def cache() -> Cache:
    return Cache(new_arena("1MiB"), "512KiB")


@pytest.fixture
def region(cache: Cache) -> CacheRegion:
    return make_region().configure("persistmem", arguments={"cache": cache})


def test_the_backend_is_found_by_its_name(region: CacheRegion) -> None:
    assert type(region.backend) is PersistmemBackend


def test_the_payload_and_its_metadata_come_back(cache: Cache) -> None:
    backend = PersistmemBackend({"cache": cache})
    value = CachedValue({"born": 1815, "tags": ("math",)}, {"ct": 1.25, "v": 2})
    backend.set("ada", value)
    assert backend.get("ada") == value
    assert type(backend.get("ada")) is CachedValue


def test_none_that_was_cached_is_none_and_not_no_value(region: CacheRegion) -> None:
    region.set("nothing", None)
    assert region.get("nothing") is None
    assert region.get("never set") is NO_VALUE


def test_bytes_that_a_region_serialized_come_back_as_they_were(cache: Cache) -> None:
    backend = PersistmemBackend({"cache": cache})
    backend.set_serialized("raw", b"\x00|\xff")
    backend.set_serialized_multi({"more": b"", "most": b"x" * 5000})
    assert backend.get_serialized_multi(["raw", "more", "most", "none"]) == [b"\x00|\xff", b"", b"x" * 5000, NO_VALUE]


def test_what_somebody_else_stored_there_is_no_value(region: CacheRegion, cache: Cache) -> None:
    cache.set("foreign", {"not": "dogpile's"})
    assert region.get("foreign") is NO_VALUE


def test_a_value_that_no_snapshot_takes_is_refused_with_its_type(region: CacheRegion) -> None:
    with pytest.raises(UnsupportedTypeError, match=r"builtins\.object"):
        region.set("object", object())


def test_with_a_ttl_the_memory_is_free_again_after_it() -> None:
    clock = Clock()
    cache = Cache(new_arena("1MiB"), "512KiB", clock=clock)
    region = make_region().configure("persistmem", arguments={"cache": cache, "ttl": "90s"})
    region.set("short", "lived")
    region.set_multi({"as": "short"})
    clock.advance(89)
    assert (region.get("short"), region.get("as")) == ("lived", "short")
    clock.advance(1)
    assert (region.get("short"), region.get("as")) == (NO_VALUE, NO_VALUE)
    assert cache.expire() == 2


def test_a_region_is_configured_from_text_as_in_an_ini_file() -> None:
    region = make_region()
    region.configure_from_config(
        {
            "cache.backend": "persistmem",
            "cache.expiration_time": "60",
            "cache.arguments.arena": "dogpile-ini",
            "cache.arguments.size": "1MiB",
            "cache.arguments.items": "1000",
            "cache.arguments.timeout": "2.5",
            "cache.arguments.ttl": "120",
        },
        "cache.",
    )
    region.set("ada", 1815)
    assert region.get("ada") == 1815


def test_arguments_without_an_arena_are_refused() -> None:
    with pytest.raises(ArgumentError, match="arena"):
        PersistmemBackend({"url": "127.0.0.1"})


def test_a_mutex_that_another_process_holds_is_locked_here_until_that_dies() -> None:
    arguments = {"arena": "dogpile-processes", "size": "1MiB"}
    code = (
        "import sys\n"
        "from persistmem.adapters.dogpile import PersistmemBackend\n"
        f"mutex = PersistmemBackend({arguments!r}).get_mutex('key')\n"
        "assert mutex.acquire()\n"
        "print('holds', flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"holds\n"
        backend = PersistmemBackend(arguments)
        assert backend.get_mutex("key").locked()
        assert not backend.get_mutex("key").acquire(wait=False)
        assert not backend.get_mutex("another key").locked()
        holder.kill()
        mutex = backend.get_mutex("key")
        assert mutex.acquire()
        mutex.release()
        assert not mutex.locked()


def test_a_value_made_in_one_process_is_not_made_again_in_another() -> None:
    arguments = {"arena": "dogpile-made", "size": "1MiB"}
    region = make_region().configure("persistmem", arguments=arguments)
    assert region.get_or_create("slow", lambda: {"made": "here"}) == {"made": "here"}
    code = (
        "import dogpile.cache\n"
        f"region = dogpile.cache.make_region().configure('persistmem', arguments={arguments!r})\n"
        "print(region.get_or_create('slow', lambda: 'made there'))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout == b"{'made': 'here'}\n"
