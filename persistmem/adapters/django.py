"""A cache backend for Django's ``CACHES``. Knows Django's interface, and what of Django's values is stored how.

::

    CACHES = {
        "default": {
            "BACKEND": "persistmem.adapters.django.PersistmemCache",
            "LOCATION": "shop",  # the arena's name
            "OPTIONS": {"size": "256MiB"},
        }
    }

Reading a cache runs no code from it, so nothing is pickled. Values are what a snapshot takes; beyond that, of Django's
own: a SafeString comes back as one, a lazy text (``gettext_lazy``) as the text it is when it is stored, and a response
that is no stream (``cache_page`` and the cache middlewares) as an HttpResponse with the same status, headers, cookies
and content. Instances of models and querysets are refused, with an error that says what to do instead.

So these expectations, which Django's own backends meet, cannot hold here:

- functions, classes, model instances and deferred querysets as values; a value that cannot be stored raises
  :class:`persistmem.UnsupportedTypeError`, which is a TypeError, and no PickleError;
- MAX_ENTRIES and CULL_FREQUENCY, which are refused: a cache is bounded by its size in bytes, and S3-FIFO decides what
  makes room.
"""

from collections.abc import Iterable, Mapping
from http.cookies import CookieError, Morsel
from typing import Any, Final, cast

from asgiref.sync import sync_to_async
from django.core.cache.backends.base import DEFAULT_TIMEOUT, BaseCache
from django.core.exceptions import ImproperlyConfigured
from django.db.models import Model, QuerySet
from django.http import HttpResponse
from django.utils.functional import Promise
from django.utils.safestring import SafeString

from persistmem.adapters.shared import SharedCache
from persistmem.arena.types import TypeRegistry, UserType, registry
from persistmem.cache import Cache
from persistmem.errors import ArgumentError, NotFoundError

_TIMEOUT_MAX: Final = 1e11
"""Seconds; longer is for ever, but a cache takes it for a mistake."""


class PersistmemCache(BaseCache):  # type: ignore[misc]  # Django has no types
    """Django's cache interface to a :class:`persistmem.Cache`, which all threads of a process share.

    LOCATION is the name of an arena. OPTIONS are what :class:`persistmem.Cache` takes: ``size``, ``namespace``,
    ``items``, ``timeout`` in seconds for another writer, and ``clock``. Aliases that name the same are the same cache,
    apart from KEY_PREFIX and VERSION. After a kernel upgrade the cache is opened again by itself.

    Beside what Django's documentation says, methods that write raise :class:`persistmem.UnsupportedTypeError`,
    :class:`persistmem.SizeError` for an item larger than a quarter of the cache, and :class:`persistmem.BusyError` if
    another process was writing all the time. ``incr`` counts ints, as memcached does, and is atomic among processes;
    so are ``add`` and ``touch``.

    Cost: two or three microseconds more than the cache's own calls, most of it for Django's key. The coroutines that
    read do so at once, for reading never waits; those that write use Django's thread, as for other backends.
    """

    def __init__(self, location: str, params: Mapping[str, Any]) -> None:
        """Name the cache; it is opened when it is first used.

        Raises:
            ImproperlyConfigured: no LOCATION, or OPTIONS that a cache does not take.
        """
        super().__init__(params)
        if not location:
            raise ImproperlyConfigured("CACHES: LOCATION: expected the name of an arena, found none")
        try:
            self._shared = SharedCache(location, **{"types": TYPES, **params.get("OPTIONS", {})})
        except ArgumentError as error:
            raise ImproperlyConfigured(f"CACHES: {location}: {error}; size in bytes bounds a cache") from error

    # A timeout is what Django calls it: seconds, None for ever; 0 or less is over at once.

    def get(self, key: str, default: Any = None, version: int | None = None) -> Any:  # noqa: ANN401 - any value
        """Return the value of ``key``, or ``default``."""
        name = self.make_and_validate_key(key, version=version)
        return self._shared.use(lambda cache: cache.get(name, default))

    def get_many(self, keys: Iterable[str], version: int | None = None) -> dict[str, Any]:
        """Return those of ``keys`` that are there, with their values."""
        names = {self.make_and_validate_key(key, version=version): key for key in keys}
        found = self._shared.use(lambda cache: cache.get_many(names))
        return {names[cast("str", name)]: value for name, value in found.items()}

    def has_key(self, key: str, version: int | None = None) -> bool:
        """Tell whether there is a value that has not expired. Does not count as reading it."""
        name = self.make_and_validate_key(key, version=version)
        return self._shared.use(lambda cache: name in cache)

    async def aget(self, key: str, default: Any = None, version: int | None = None) -> Any:  # noqa: ANN401 - any value
        """As :meth:`get`."""
        return self.get(key, default, version)

    async def aget_many(self, keys: Iterable[str], version: int | None = None) -> dict[str, Any]:
        """As :meth:`get_many`."""
        return self.get_many(keys, version)

    async def ahas_key(self, key: str, version: int | None = None) -> bool:
        """As :meth:`has_key`."""
        return self.has_key(key, version)

    def set(self, key: str, value: object, timeout: object = DEFAULT_TIMEOUT, version: int | None = None) -> None:
        """Store ``value`` under ``key`` for ``timeout``."""
        name, ttl = self.make_and_validate_key(key, version=version), self._ttl(timeout)
        self._shared.use(lambda cache: cache.set(name, value, ttl))

    def set_many(
        self, data: Mapping[str, object], timeout: object = DEFAULT_TIMEOUT, version: int | None = None
    ) -> list[str]:
        """Store several values at once, and return the keys that could not be, which are none: it raises."""
        items = {self.make_and_validate_key(key, version=version): value for key, value in data.items()}
        ttl = self._ttl(timeout)
        self._shared.use(lambda cache: cache.set_many(items, ttl))
        return []

    def add(self, key: str, value: object, timeout: object = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        """Store ``value`` if there is none, and return whether it was."""
        name, ttl = self.make_and_validate_key(key, version=version), self._ttl(timeout)
        return self._shared.use(lambda cache: cache.add(name, value, ttl))

    def touch(self, key: str, timeout: object = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        """Let a value live for ``timeout`` from now, and return whether there is one."""
        name, ttl = self.make_and_validate_key(key, version=version), self._ttl(timeout)
        return self._shared.use(lambda cache: cache.touch(name, ttl))

    def incr(self, key: str, delta: int = 1, version: int | None = None) -> int:
        """Add ``delta`` to an int, which keeps its time, and return the sum. Atomic among threads and processes.

        Raises:
            ValueError: there is none.
            UnsupportedTypeError: it is no int.
        """
        name = self.make_and_validate_key(key, version=version)

        def incr(cache: Cache) -> int:
            try:
                return cache.incr(name, delta)
            except NotFoundError as error:
                raise ValueError(f"Key '{key}' not found") from error

        return self._shared.use(incr)

    async def aincr(self, key: str, delta: int = 1, version: int | None = None) -> int:
        """As :meth:`incr`, and as atomic."""
        return await sync_to_async(self.incr, thread_sensitive=True)(key, delta, version)

    def delete(self, key: str, version: int | None = None) -> bool:
        """Remove ``key``, and return whether it was there."""
        name = self.make_and_validate_key(key, version=version)
        return self._shared.use(lambda cache: cache.delete(name))

    def delete_many(self, keys: Iterable[str], version: int | None = None) -> None:
        """Remove several keys."""
        names = [self.make_and_validate_key(key, version=version) for key in keys]
        self._shared.use(lambda cache: cache.delete_many(names))

    async def aset_many(
        self, data: Mapping[str, object], timeout: object = DEFAULT_TIMEOUT, version: int | None = None
    ) -> list[str]:
        """As :meth:`set_many`."""
        return await sync_to_async(self.set_many, thread_sensitive=True)(data, timeout, version)

    async def adelete_many(self, keys: Iterable[str], version: int | None = None) -> None:
        """As :meth:`delete_many`."""
        await sync_to_async(self.delete_many, thread_sensitive=True)(keys, version)

    def clear(self) -> None:
        """Remove everything that is in the arena's cache, or in its namespace, whatever the prefix and the version."""
        self._shared.use(lambda cache: cache.clear())

    def _ttl(self, timeout: object) -> float | None:
        timeout = cast("float | None", self.default_timeout if timeout is DEFAULT_TIMEOUT else timeout)
        return None if timeout is None or timeout > _TIMEOUT_MAX else max(0.0, timeout)


class _DjangoTypes(TypeRegistry):
    """The process's own types, and those of Django's that can be stored."""

    def of(self, cls: type) -> UserType | None:
        """The entry for a class. TypeError for what Django's users cache and cannot here."""
        entry = registry.of(cls) or next((entry for base, entry in _ENTRIES.items() if issubclass(cls, base)), None)
        if entry is not None:
            return entry
        if issubclass(cls, Model):
            raise TypeError(
                f"an instance of the model {cls.__qualname__}; store what you need of it, as from .values(), or call"
                " persistmem.register_type for the model"
            )
        if issubclass(cls, QuerySet):
            raise TypeError("a queryset; store list(queryset.values())")
        return None

    def tagged(self, tag: object) -> UserType:
        """The entry for a tag. UnsupportedTypeError if there is none."""
        return next((entry for entry in _ENTRIES.values() if entry.tag == tag), None) or registry.tagged(tag)


def _safe(content: object) -> SafeString:
    return SafeString(_text(content))


def _text(content: object) -> str:
    if not isinstance(content, str):
        raise TypeError(f"expected text, found {type(content).__name__}")
    return content


def _from_response(value: object) -> object:
    response = cast("HttpResponse", value)
    cookies = [(morsel.key, morsel.value, morsel.coded_value, dict(morsel)) for morsel in response.cookies.values()]
    headers = list(response.items())
    return response.status_code, response.reason_phrase, response.charset, headers, cookies, response.content


def _to_response(content: object) -> HttpResponse:
    status, reason, charset, headers, cookies, body = cast("tuple[Any, ...]", content)
    response = HttpResponse(body, status=status, reason=reason, charset=charset)
    del response["Content-Type"]
    for name, value in headers:
        response[name] = value
    for key, value, coded, attributes in cookies:
        morsel: Morsel[str] = Morsel()
        try:
            morsel.set(key, value, coded)
            morsel.update(attributes)
        except CookieError as error:
            raise ValueError(str(error)) from error
        response.cookies[key] = morsel
    return response


_ENTRIES: Final[dict[type, UserType]] = {
    SafeString: UserType("django.SafeString", lambda value: str.__str__(cast("str", value)), _safe),
    Promise: UserType("django.lazy", str, _text),
    HttpResponse: UserType("django.HttpResponse", _from_response, _to_response),
}
"""By the class that stands for its subclasses, too."""

TYPES: Final = _DjangoTypes()
"""What the caches of this backend can hold beside documents' own types."""
