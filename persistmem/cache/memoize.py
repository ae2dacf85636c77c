"""Functions whose results are kept in a cache, computed once at a time. Knows a cache's calls, nothing inside it."""

import functools
import inspect
import logging
import math
import random
import threading
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar, cast

from persistmem.durations import Duration, seconds
from persistmem.errors import ArgumentError, SizeError
from persistmem.threads import start_deaf

if TYPE_CHECKING:
    import asyncio

    from persistmem.cache.cache import Cache
    from persistmem.cache.keys import Key

F = TypeVar("F", bound=Callable[..., Any])

_log: Final = logging.getLogger(__name__)
_MISSING: Final = object()
_WAIT_FIRST: Final = 0.001
_WAIT_MAX: Final = 0.05


class _Kept(NamedTuple):
    """A result, as it is stored."""

    value: object
    cost: float
    """Seconds that computing it took."""
    until: float
    """When its time is up, by the cache's clock; infinite for never."""


def memoize(
    cache: "Cache",
    ttl: Duration | None,
    *,
    typed: bool,
    key: "Callable[..., Key] | None",
    early: float,
) -> Callable[[F], F]:
    """See :meth:`persistmem.Cache.memoize`."""
    if early < 0 or (early and ttl is None):
        raise ArgumentError(f"memoize: early={early}: expected 0 or more, and a ttl for it to be early of")
    lifetime = None if ttl is None else seconds(ttl)

    def decorate(function: F) -> F:
        memo = _Memo(cache, function, lifetime, typed=typed, key=key, early=early)
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def wrapper(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - the function's own
                return await memo.call_async(args, kwargs)
        else:

            @functools.wraps(function)
            def wrapper(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - the function's own
                return memo.call(args, kwargs)

        wrapper.cache_key = lambda *args, **kwargs: memo.key_of(args, kwargs)  # type: ignore[attr-defined]
        return cast("F", wrapper)

    return decorate


class _Memo:
    """One function, and the cache that keeps its results."""

    def __init__(
        self,
        cache: "Cache",
        function: Callable[..., Any],
        lifetime: float | None,
        *,
        typed: bool,
        key: "Callable[..., Key] | None",
        early: float,
    ) -> None:
        self._cache = cache
        self._function = function
        self._lifetime = lifetime
        self._typed = typed
        self._key = key
        self._early = early
        self._name = f"{function.__module__}.{function.__qualname__}"
        self._tasks: set[asyncio.Task[object]] = set()

    def key_of(self, args: tuple[object, ...], kwargs: dict[str, object]) -> "Key":
        """Return the key of a call."""
        if self._key is not None:
            return self._key(*args, **kwargs)
        given = [*args, *(part for name in sorted(kwargs) for part in (name, kwargs[name]))]
        if not self._typed:
            given = [_untyped(part) for part in given]
        return self._name, len(args), self._cache.pack(given)

    def call(self, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        """Return the result of a call, kept or computed."""
        key = self.key_of(args, kwargs)
        kept = self._kept(key)
        if kept is None:
            with self._cache.key_lock(key) as lock:
                lock.take()
                kept = self._kept(key)
                if kept is None:
                    return self._compute(key, args, kwargs)
        elif self._is_due(kept):
            worker = threading.Thread(target=self._refresh, args=(key, args, kwargs, kept), daemon=True)
            start_deaf(worker)
        return kept.value

    async def call_async(self, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        """Return the result of a call of a coroutine function, kept or computed."""
        import asyncio  # noqa: PLC0415 - half of what importing a cache would take; who awaits this has it already

        key = self.key_of(args, kwargs)
        kept = self._kept(key)
        if kept is None:
            with self._cache.key_lock(key) as lock:
                wait = _WAIT_FIRST
                while not lock.try_take():
                    await asyncio.sleep(wait)
                    wait = min(2 * wait, _WAIT_MAX)
                kept = self._kept(key)
                if kept is None:
                    return await self._compute_async(key, args, kwargs)
        elif self._is_due(kept):
            task = asyncio.ensure_future(self._refresh_async(key, args, kwargs, kept))
            self._tasks.add(task)  # the loop itself would forget it
            task.add_done_callback(self._tasks.discard)
        return kept.value

    def _kept(self, key: "Key") -> _Kept | None:
        found = self._cache.get(key, _MISSING)
        return None if found is _MISSING else _Kept(*found)

    def _is_due(self, kept: _Kept) -> bool:
        # XFetch: each reader throws dice that come up ever more likely as the time comes near.
        if not self._early:
            return False
        return self._cache.now() - kept.cost * self._early * math.log(1 - random.random()) >= kept.until  # noqa: S311

    def _compute(self, key: "Key", args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        began = monotonic()
        value = self._function(*args, **kwargs)
        self._keep(key, value, monotonic() - began)
        return value

    async def _compute_async(self, key: "Key", args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        began = monotonic()
        value = await cast("Awaitable[object]", self._function(*args, **kwargs))
        self._keep(key, value, monotonic() - began)
        return value

    def _refresh(self, key: "Key", args: tuple[object, ...], kwargs: dict[str, object], old: _Kept) -> None:
        with self._cache.key_lock(key) as lock:
            if lock.try_take() and not self._is_renewed(key, old):
                self._compute(key, args, kwargs)

    async def _refresh_async(self, key: "Key", args: tuple[object, ...], kwargs: dict[str, object], old: _Kept) -> None:
        with self._cache.key_lock(key) as lock:
            if lock.try_take() and not self._is_renewed(key, old):
                await self._compute_async(key, args, kwargs)

    def _is_renewed(self, key: "Key", old: _Kept) -> bool:
        """Whether somebody else has computed it since."""
        kept = self._kept(key)
        return kept is not None and kept.until != old.until

    def _keep(self, key: "Key", value: object, cost: float) -> None:
        until = math.inf if self._lifetime is None else self._cache.now() + self._lifetime
        try:
            self._cache.set(key, [value, cost, until], self._lifetime)
        except SizeError as error:
            _log.warning("%s: its result is not kept: %s", self._name, error)


def _untyped(part: object) -> object:
    """Numbers that are equal made the same; others as they are."""
    if isinstance(part, bool) or (isinstance(part, float) and part.is_integer()):
        return int(part)
    return part
