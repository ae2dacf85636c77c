"""One cache for a process, whoever asks for it; and nothing imported that nobody uses."""

import gc
import os
import subprocess
import sys
import threading

import pytest

from persistmem import ArgumentError, Cache, NotFoundError
from persistmem.adapters.shared import SharedCache
from persistmem.attachment import simulate_reboot


def test_whoever_names_the_same_cache_gets_the_same_one_in_every_thread() -> None:
    found: list[Cache] = []
    first = SharedCache("shared-same", size="1MiB")
    threads = [
        threading.Thread(target=lambda: found.append(SharedCache("shared-same", size="1MiB").use(lambda cache: cache)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {id(cache) for cache in found} == {id(first.use(lambda cache: cache))}
    found.clear()
    gc.collect()
    assert first.use(lambda cache: cache.stats().processes) == 1
    first.close()


def test_an_empty_cache_is_not_opened_again() -> None:
    shared = SharedCache("shared-empty", size="1MiB")
    assert shared.use(lambda cache: cache) is shared.use(lambda cache: cache)
    shared.close()


def test_a_closed_cache_is_opened_again_with_what_was_in_it() -> None:
    shared = SharedCache("shared-closed", size="1MiB")
    shared.use(lambda cache: cache.set("ada", 1815))
    shared.close()
    assert shared.use(lambda cache: cache["ada"]) == 1815
    shared.close()


def test_after_a_kernel_upgrade_the_cache_is_opened_again_and_still_warm() -> None:
    shared = SharedCache("shared-upgrade", size="1MiB")
    shared.use(lambda cache: cache.set("ada", 1815))
    simulate_reboot()
    shared.use(lambda cache: cache.set("grace", 1906))
    assert shared.use(lambda cache: cache.get_many(["ada", "grace"])) == {"ada": 1815, "grace": 1906}
    shared.close()


def test_threads_that_read_a_key_while_it_is_set_get_one_value_after_the_other() -> None:
    shared = SharedCache("shared-race", size="1MiB")
    shared.use(lambda cache: cache.set("key", 0))
    found: list[list[int]] = []
    over = threading.Event()

    def read() -> None:
        seen = [0]
        found.append(seen)
        while not over.is_set():
            seen.append(shared.use(lambda cache: cache["key"]))

    threads = [threading.Thread(target=read) for _ in range(4)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for number in range(1, 3000):
            shared.use(lambda cache, number=number: cache.set("key", number))  # type: ignore[misc]
    finally:
        sys.setswitchinterval(interval)
        over.set()
        for thread in threads:
            thread.join()
    assert [seen == sorted(seen) and seen[-1] >= 0 for seen in found] == [True] * 4
    shared.close()


def test_a_forked_worker_shares_the_cache_that_its_server_opened() -> None:
    shared = SharedCache("shared-forked", size="1MiB")
    shared.use(lambda cache: cache.set("counter", 1))
    child = os.fork()
    if child == 0:
        os._exit(shared.use(lambda cache: cache.incr("counter")))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2
    assert shared.use(lambda cache: cache["counter"]) == 2
    shared.close()


def test_an_arena_that_is_not_there_is_an_error_at_the_first_use() -> None:
    shared = SharedCache("shared-nowhere")
    with pytest.raises(NotFoundError, match="shared-nowhere"):
        shared.use(len)


def test_an_option_that_no_cache_takes_is_refused_by_name() -> None:
    with pytest.raises(ArgumentError, match="MAX_ENTRIES"):
        SharedCache("shared", MAX_ENTRIES=300)


@pytest.mark.parametrize("module", ["persistmem", "persistmem.adapters", "persistmem.adapters.shared"])
def test_importing_persistmem_imports_none_of_the_libraries_that_it_adapts_to(module: str) -> None:
    code = f"import sys, {module}; print(*{{'django', 'dogpile', 'cachetools', 'asgiref'}} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout.strip() == b""
