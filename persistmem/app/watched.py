"""Containers that notice when they are changed, so that a state which nobody changed need not be looked at.

They are a dict, a list and a set in every other respect. Knows nothing of states, or of where they are saved.
"""

import datetime as dt
from collections.abc import Callable, Iterable
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final, Protocol, TypeVar, cast
from uuid import UUID

from persistmem.arena.types import STANDS_FOR
from persistmem.errors import RefusedError

R = TypeVar("R")

_LEAVES: Final = frozenset(
    {
        *(type(None), bool, int, float, complex, str, bytes, Decimal, Fraction, UUID),
        *(dt.date, dt.datetime, dt.time, dt.timedelta, range),
    }
)
"""Types whose values never change, and hold nothing that does."""


CONTAINERS_MAX: Final = 100_000
"""Containers of a state that are watched, at the most: with more, loading takes longer than a look now and then."""


class Changes:
    """What is known of a state since it was last saved."""

    __slots__ = ("changed", "refusal", "unwatched", "watched")

    def __init__(self) -> None:
        self.watched = 0
        """How many containers are watched."""
        self.changed = False
        """Something was changed."""
        self.unwatched = False
        """It may hold containers that do not notice."""
        self.refusal: str | None = None
        """Why nothing may be changed in this process."""

    @property
    def possible(self) -> bool:
        """Whether the state may be another than the one that was saved."""
        return self.changed or self.unwatched

    def check_allowed(self) -> None:
        """Raise if nothing may be changed here.

        Raises:
            RefusedError: that.
        """
        if self.refusal is not None:
            raise RefusedError(self.refusal)

    def note(self, value: object = None) -> None:
        """Take notice of a change that was made, and of what it may have put in."""
        if type(value) not in _LEAVES and not is_watched(value, self):
            self.unwatched = True
        self.changed = True  # last: whoever clears it looks at the state after that


_NOTHING: Final = -1
_MANY: Final = -2


class _Watched(Protocol):
    _changes: Changes


def _noticing(method: Callable[..., R], puts_in: int) -> Callable[..., R]:
    """The method, and notice of what it did; its argument number ``puts_in`` is put in, or nothing, or many things."""

    def call(self: _Watched, *args: object, **kwargs: object) -> R:
        changes = self._changes
        if changes.refusal is not None:
            changes.check_allowed()
        try:
            return method(self, *args, **kwargs)
        finally:
            # Last, and whatever was raised: a sort may stop halfway; and who clears it looks at the state after that.
            if puts_in == _MANY:
                changes.unwatched = True  # until somebody looks, when the state is saved
            elif 0 <= puts_in < len(args) and type(args[puts_in]) not in _LEAVES:
                changes.note(args[puts_in])
            changes.changed = True

    call.__name__ = method.__name__
    call.__doc__ = method.__doc__
    return call


_METHODS: Final[dict[type, dict[str, int]]] = {
    dict: {
        "__setitem__": 1, "setdefault": 1, "__delitem__": _NOTHING, "pop": _NOTHING, "popitem": _NOTHING,
        "clear": _NOTHING, "update": _MANY, "__ior__": _MANY,
    },
    list: {
        "append": 0, "insert": 1, "__delitem__": _NOTHING, "pop": _NOTHING, "remove": _NOTHING, "clear": _NOTHING,
        "reverse": _NOTHING, "sort": _NOTHING, "__imul__": _NOTHING, "__setitem__": _MANY, "extend": _MANY,
        "__iadd__": _MANY,
    },
    set: {
        "add": 0, "discard": _NOTHING, "remove": _NOTHING, "pop": _NOTHING, "clear": _NOTHING,
        "intersection_update": _NOTHING, "difference_update": _NOTHING, "__iand__": _NOTHING, "__isub__": _NOTHING,
        "update": _MANY, "symmetric_difference_update": _MANY, "__ior__": _MANY, "__ixor__": _MANY,
    },
}  # fmt: skip
"""Every method that changes one, and which of its arguments is put in."""


def _watched_type(base: type, name: str, doc: str) -> type:
    members: dict[str, object] = {"__slots__": ("_changes",), "__doc__": doc, "__module__": __name__}
    for method, puts_in in _METHODS[base].items():
        members[method] = _noticing(getattr(base, method), puts_in)
    # Copies, of whatever depth, and what is pickled are the caller's own, and plain.
    members["__reduce_ex__"] = lambda self, _: (base, (base(self),))
    members["__copy__"] = base
    members["copy"] = base
    made = type(name, (base,), members)
    STANDS_FOR[made] = base
    return made


WatchedDict: Final = _watched_type(dict, "WatchedDict", "A dict that notices its changes.")
WatchedList: Final = _watched_type(list, "WatchedList", "A list that notices its changes.")
WatchedSet: Final = _watched_type(set, "WatchedSet", "A set that notices its changes.")
_WATCHED_AS: Final[dict[type, type]] = {dict: WatchedDict, list: WatchedList, set: WatchedSet}
_WATCHED: Final = frozenset(_WATCHED_AS.values())


def watch(value: object, changes: Changes) -> object:
    """Return ``value`` with watched containers in place of the plain ones, as deep as plain ones hold it.

    Nobody else may hold the plain ones: they are copied, and what is done to them later is done to nothing. Those after
    the first :data:`CONTAINERS_MAX` stay plain. Cost: half a microsecond for each container, and 30 ns for each thing
    in one.
    """
    kind = type(value)
    if kind is tuple:
        return tuple(watch(item, changes) for item in cast("tuple[object, ...]", value))
    if kind not in _WATCHED_AS or changes.watched >= CONTAINERS_MAX:
        return value
    made: Any = _WATCHED_AS[kind](value)
    made._changes = changes
    changes.watched += 1
    if isinstance(value, dict):
        for key, item in value.items():
            if type(item) not in _LEAVES:
                dict.__setitem__(made, key, watch(item, changes))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            if type(item) not in _LEAVES:
                list.__setitem__(made, index, watch(item, changes))
    return made


def is_watched(value: object, changes: Changes) -> bool:
    """Whether ``value`` cannot change without ``changes`` taking notice.

    Cost: a look at everything in it, or at less if something is not watched.
    """
    kind = type(value)
    if kind in _LEAVES:
        return True
    if kind in _WATCHED and cast("_Watched", value)._changes is not changes:
        return False
    if kind is WatchedDict:
        return _are_watched(cast("dict[object, object]", value).values(), changes)
    if kind in (WatchedList, tuple, frozenset):
        return _are_watched(cast("list[object]", value), changes)
    return kind is WatchedSet


def _are_watched(values: Iterable[object], changes: Changes) -> bool:
    try:
        return all(type(value) in _LEAVES or is_watched(value, changes) for value in values)
    except RuntimeError:  # another thread changes it just now
        return False
