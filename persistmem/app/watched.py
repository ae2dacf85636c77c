"""Containers that notice when they are changed, so that a state which nobody changed need not be looked at.

They are a dict, a list and a set in every other respect. Knows nothing of states, or of where they are saved.
"""

import datetime as dt
from collections.abc import Callable, Iterable
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final, Literal, Protocol, TypeVar, cast
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


_Puts = Literal["nothing", "arguments", "their items"]
"""What a method puts into a container."""


class _Watched(Protocol):
    _changes: Changes


def _noticing(method: Callable[..., R], puts: _Puts) -> Callable[..., R]:
    """The method, and notice of what it did."""

    def call(self: _Watched, *args: object, **kwargs: object) -> R:
        changes = self._changes
        if changes.refusal is not None:
            changes.check_allowed()
        try:
            return method(self, *args, **kwargs)
        finally:
            # Last, and whatever was raised: it may stop halfway; and who clears it looks at the state after that.
            if puts == "their items":
                changes.unwatched = True  # until somebody looks, when the state is saved
            elif puts == "arguments":
                for value in args:
                    if type(value) not in _LEAVES:
                        changes.note(value)
            changes.changed = True

    call.__name__ = method.__name__
    call.__doc__ = method.__doc__
    return call


_METHODS: Final[dict[type, dict[_Puts, tuple[str, ...]]]] = {
    dict: {
        "nothing": ("__delitem__", "pop", "popitem", "clear"),
        "arguments": ("__setitem__", "setdefault"),
        "their items": ("update", "__ior__"),
    },
    list: {
        "nothing": ("__delitem__", "pop", "remove", "clear", "reverse", "__imul__"),
        "arguments": ("append", "insert"),
        "their items": ("__setitem__", "extend", "__iadd__"),
    },
    set: {
        "nothing": (
            *("discard", "remove", "pop", "clear", "intersection_update", "difference_update", "__iand__", "__isub__"),
        ),
        "arguments": ("add",),
        "their items": ("update", "symmetric_difference_update", "__ior__", "__ixor__"),
    },
}
"""Every method that changes one, by what it puts in."""


def _sort(self: list[Any], **how: Any) -> None:  # noqa: ANN401 - what sorted() takes
    # list.sort empties the list meanwhile, and calls keys and comparisons, beside which another thread may save it.
    list.__setitem__(self, slice(None), sorted(self, **how))


_OTHER_METHODS: Final[dict[type, dict[str, object]]] = {
    dict: {"fromkeys": dict.fromkeys},
    list: {"sort": _noticing(_sort, "nothing")},
    set: {"__repr__": lambda self: repr(set(self))},
}
"""What differs from the plain ones' beside that."""


def _watched_type(base: type, name: str, doc: str) -> type:
    members: dict[str, object] = {"__slots__": ("_changes",), "__doc__": doc, "__module__": __name__}
    for puts, methods in _METHODS[base].items():
        members.update({method: _noticing(getattr(base, method), puts) for method in methods})

    def copy(self: Iterable[object]) -> object:
        return base(self)

    # Copies, of whatever depth, and what is pickled or made anew are the caller's own, and plain.
    members["__reduce_ex__"] = lambda self, _: (base, (base(self),))
    members["__copy__"] = members["copy"] = copy
    made = type(name, (base,), {**members, **_OTHER_METHODS[base]})
    STANDS_FOR[made] = base
    return made


WatchedDict: Final = _watched_type(dict, "WatchedDict", "A dict that notices its changes.")
WatchedList: Final = _watched_type(list, "WatchedList", "A list that notices its changes.")
WatchedSet: Final = _watched_type(set, "WatchedSet", "A set that notices its changes.")
_WATCHED_AS: Final[dict[type, type]] = {dict: WatchedDict, list: WatchedList, set: WatchedSet}
_WATCHED: Final = frozenset(_WATCHED_AS.values())
_HOLDING: Final = _WATCHED | {tuple, frozenset}


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
    if kind is WatchedDict and not _are_watched(cast("dict[object, object]", value).values(), changes):
        return False
    return kind in _HOLDING and _are_watched(cast("Iterable[object]", value), changes)


def _are_watched(values: Iterable[object], changes: Changes) -> bool:
    try:
        return _LEAVES.issuperset(map(type, values)) or all(is_watched(value, changes) for value in values)
    except RuntimeError:  # another thread changes it just now
        return False
