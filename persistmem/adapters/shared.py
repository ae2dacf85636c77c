"""A cache that all of a process share: opened when it is first used, and again after a kernel upgrade.

Knows persistmem.Cache; must not know the libraries that it is adapted to.
"""

from collections.abc import Callable, Hashable
from typing import Any, Final, TypeVar

from persistmem.cache import Cache
from persistmem.errors import ArgumentError, StaleArenaError

R = TypeVar("R")

OPTIONS: Final = frozenset({"size", "namespace", "items", "timeout", "clock", "types"})
"""What :class:`persistmem.Cache` takes besides the arena."""

_open: Final[dict[Hashable, Cache]] = {}
"""Of this process. Libraries make their backends once for each thread; a cache counts and locks once for all."""


class SharedCache:
    """One cache of this process; whoever names the same one with the same options gets the same one.

    >>> import persistmem.testing
    >>> shared = SharedCache(Cache(persistmem.testing.new_arena("1MiB"), "512KiB"))
    >>> shared.use(lambda cache: cache.set("ada", 1815))
    >>> shared.use(lambda cache: cache["ada"])
    1815
    """

    def __init__(self, where: str | Cache, **options: Any) -> None:  # noqa: ANN401 - each has a type of its own
        """Name a cache; nothing is opened yet.

        Args:
            where: the name of an arena; or a cache that is open, which is used as it is.
            options: what :class:`persistmem.Cache` takes besides.

        Raises:
            ArgumentError: an option that it does not take.
        """
        unknown = options.keys() - OPTIONS
        if unknown:
            raise ArgumentError(f"options {', '.join(sorted(unknown))}: expected some of {', '.join(sorted(OPTIONS))}")
        self._where = where
        self._options = options
        self._name = (where, *sorted(options.items()))

    def use(self, work: Callable[[Cache], R]) -> R:
        """Return what ``work`` returns for the cache; called again, with its successor, if the kernel was replaced.

        Cost: two tenths of a microsecond.

        Raises:
            StaleArenaError: the kernel was replaced, and the cache was given open, so that nobody knows its name.
            and what opening it and ``work`` raise.
        """
        if isinstance(self._where, Cache):
            return work(self._where)
        cache = _open.get(self._name)
        if cache is None:
            cache = _open.setdefault(self._name, Cache(self._where, **self._options))
        try:
            return work(cache)
        except StaleArenaError:
            # Not closed: other threads may be in it. It closes itself when the last one leaves.
            if _open.get(self._name) is cache:
                _open.pop(self._name, None)
            return work(_open.setdefault(self._name, Cache(self._where, **self._options)))

    def close(self) -> None:
        """Let go of the cache in this process, if it was opened here; the next use opens it again."""
        cache = _open.pop(self._name, None)
        if cache is not None:
            cache.close()
