"""What a user would pick to keep state, each behind the same two verbs. Knows nothing of measuring.

Each store imports what it needs when it is opened, so that a process pays for no other's imports.
"""

import itertools
import shutil
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Final, Protocol

KEY: Final = "state"
ROOM: Final = 512 << 20
"""Bytes for the stores that want to know beforehand."""


class Store(Protocol):
    """Keeps one state in a folder."""

    def put(self, state: object) -> None:
        """Store it."""

    def get(self) -> object:
        """Give it back, ready to use."""

    def close(self) -> None:
        """Let go of the folder."""


class Persistmem:
    """An arena, through the agent of the environment. Checked, and large buffers used in place."""

    def __init__(self, folder: Path) -> None:
        import persistmem

        self._arena = persistmem.attach(folder.name, ROOM)

    def put(self, state: object) -> None:
        self._arena.snapshot(KEY, state)

    def get(self) -> object:
        return self._arena.restore(KEY, copy=False)

    def close(self) -> None:
        self._arena.close()


class Pickle:
    """A file, newest protocol; replaced by rename, so that a crash leaves the old or the new one."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "state.pickle"

    def put(self, state: object) -> None:
        import pickle

        new = self._file.with_suffix(".new")
        with new.open("wb") as file:
            pickle.dump(state, file, protocol=pickle.HIGHEST_PROTOCOL)
        new.rename(self._file)

    def get(self) -> object:
        import pickle

        with self._file.open("rb") as file:
            return pickle.load(file)

    def close(self) -> None:
        pass


class Json:
    """A file, replaced by rename."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "state.json"

    def put(self, state: object) -> None:
        import json

        new = self._file.with_suffix(".new")
        new.write_text(json.dumps(state))
        new.rename(self._file)

    def get(self) -> object:
        import json

        return json.loads(self._file.read_bytes())

    def close(self) -> None:
        pass


class Npy:
    """``numpy.save``, and ``numpy.load`` as a mapping: unchecked."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "state.npy"

    def put(self, state: object) -> None:
        import numpy as np

        new = self._file.with_suffix(".new")
        with new.open("wb") as file:
            np.save(file, np.asarray(state))
        new.rename(self._file)

    def get(self) -> object:
        import numpy as np

        return np.load(self._file, mmap_mode="r")

    def close(self) -> None:
        pass


class Lmdb:
    """One pickled value."""

    def __init__(self, folder: Path) -> None:
        import lmdb

        self._environment = lmdb.open(str(folder), map_size=ROOM)

    def put(self, state: object) -> None:
        import pickle

        with self._environment.begin(write=True) as transaction:
            transaction.put(KEY.encode(), pickle.dumps(state, protocol=pickle.HIGHEST_PROTOCOL))

    def get(self) -> object:
        import pickle

        with self._environment.begin(buffers=True) as transaction:
            found = transaction.get(KEY.encode())
            assert found is not None
            return pickle.loads(found)

    def close(self) -> None:
        self._environment.close()


class Diskcache:
    """One value; it pickles by itself."""

    def __init__(self, folder: Path) -> None:
        import diskcache

        self._cache = diskcache.Cache(str(folder))

    def put(self, state: object) -> None:
        self._cache[KEY] = state

    def get(self) -> object:
        return self._cache[KEY]

    def close(self) -> None:
        self._cache.close()


class Redis:
    """One pickled value, over a Unix socket, in a server that keeps an append-only file."""

    def __init__(self, folder: Path) -> None:
        import redis

        self._client = redis.Redis(unix_socket_path=str(folder / "redis.socket"))

    def put(self, state: object) -> None:
        import pickle

        self._client.set(KEY, pickle.dumps(state, protocol=pickle.HIGHEST_PROTOCOL))

    def get(self) -> object:
        import pickle

        found = self._client.get(KEY)
        assert isinstance(found, bytes)
        return pickle.loads(found)

    def close(self) -> None:
        self._client.close()


class RedisServer:
    """A ``redis-server`` in a folder, that nobody else can reach."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        import redis

        self._client = redis.Redis(unix_socket_path=str(folder / "redis.socket"))
        self._process: subprocess.Popen[bytes] | None = None

    @staticmethod
    def installed() -> bool:
        """Whether there is one to start."""
        return shutil.which("redis-server") is not None

    def start(self) -> None:
        """Start it, and wait until it has loaded what it kept."""
        from redis import BusyLoadingError
        from redis import ConnectionError as NoConnectionError

        program = shutil.which("redis-server")
        assert program is not None
        self._process = subprocess.Popen(
            [program, "--port", "0", "--unixsocket", str(self._folder / "redis.socket"), "--unixsocketperm", "700",
             "--dir", str(self._folder), "--appendonly", "yes", "--save", "", "--logfile", str(self._folder / "log")]
        )  # fmt: skip
        for attempt in itertools.count():
            try:
                self._client.ping()
            except (NoConnectionError, BusyLoadingError):
                if attempt == 20_000 or self._process.poll() is not None:
                    raise
                time.sleep(0.001)
            else:
                return

    def stop(self) -> None:
        """End it in an orderly way; what it keeps is in the folder."""
        assert self._process is not None
        with ExitStack() as stack:
            stack.callback(self._process.wait, 60)
            self._client.shutdown(save=False)


STORES: Final[dict[str, Callable[[Path], Store]]] = {
    "persistmem": Persistmem,
    "pickle": Pickle,
    "JSON": Json,
    "npy": Npy,
    "lmdb": Lmdb,
    "diskcache": Diskcache,
    "Redis": Redis,
}
