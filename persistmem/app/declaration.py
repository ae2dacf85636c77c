"""What an application's state is: its type, its version, and how older ones become it. Pure: no arena, no clock."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar, cast

from persistmem.app.watched import Changes, is_watched, watch
from persistmem.errors import ArgumentError, CorruptError, MigrationError, NewerStateError

Migrate = Callable[[Any], Any]
"""From what the state of one version was packed as, a dict for a dataclass, to the same for the next version."""

M = TypeVar("M", bound=Migrate)

_VERSION: Final = "version"
_STATE: Final = "state"


class Declaration:
    """The declared state of one application.

    >>> @dataclasses.dataclass
    ... class Board:
    ...     scores: dict[str, int]
    >>> declared = Declaration(Board, 2)
    >>> _ = declared.migrate(1)(lambda old: {"scores": dict(old["points"])})
    >>> declared.load({"version": 1, "state": {"points": [("ada", 3)]}}, Changes())
    (Board(scores={'ada': 3}), 1)
    """

    def __init__(self, make: Callable[[], object], version: int) -> None:
        """Declare what ``make`` makes: a dataclass, or any callable without arguments.

        Raises:
            ArgumentError: the version is less than 1.
        """
        if version < 1:
            raise ArgumentError(f"state version: expected 1 or more, found {version}")
        self.make = make
        self.version = version
        self._migrations: dict[int, Migrate] = {}
        fields = dataclasses.fields(make) if dataclasses.is_dataclass(make) else None
        self._fields = None if fields is None else tuple(field.name for field in fields if field.init)

    def migrate(self, version: int) -> Callable[[M], M]:
        """Return a decorator for the function that makes a state of ``version`` one of the next version.

        Raises:
            ArgumentError: there is one already, or no state can be of that version.
        """
        if not 1 <= version < self.version:
            raise ArgumentError(f"migrate({version}): expected a version before {self.version}, from 1 up")
        if version in self._migrations:
            raise ArgumentError(f"migrate({version}): there is a migration from this version already")

        def register(function: M) -> M:
            self._migrations[version] = function
            return function

        return register

    def fresh(self, changes: Changes) -> object:
        """Return the state of an application that never ran. A dataclass is made twice: it is loaded, as later.

        Raises:
            ArgumentError: it is a dataclass that cannot be made from its fields, so that it could never be loaded.
        """
        state = self.make()
        if self._fields is None:
            return watch(state, changes)
        try:
            return self._of_fields({name: getattr(state, name) for name in self._fields}, changes)
        except TypeError as error:
            raise ArgumentError(
                f"state: expected a dataclass that can be made from its fields, found {self._name}: {error}; let its"
                " __init__ take them all by name"
            ) from error

    def is_watched(self, state: object, changes: Changes) -> bool:
        """Whether ``state`` cannot change without ``changes`` taking notice. Cost: as for its containers."""
        if self._fields is None or type(state) is not self.make:
            return is_watched(state, changes)
        return all(is_watched(getattr(state, name), changes) for name in self._fields)

    def check(self, state: object) -> None:
        """Raise if ``state`` cannot be the application's.

        Raises:
            ArgumentError: it is no instance of the declared dataclass.
        """
        if self._fields is not None and type(state) is not self.make:
            raise ArgumentError(f"app.state: expected a {self._name}, found a {type(state).__qualname__}")

    def dump(self, state: object) -> dict[str, object]:
        """Return what is stored of ``state``."""
        if self._fields is not None and type(state) is self.make:
            state = {name: getattr(state, name) for name in self._fields}
        return {_VERSION: self.version, _STATE: state}

    def load(self, document: object, changes: Changes) -> tuple[object, int]:
        """Return the state in ``document``, migrated if it is older, and the version that it was stored as.

        Raises:
            NewerStateError: this program knows older versions only.
            MigrationError: a migration is missing, or failed; or fields are not those of the class.
            CorruptError: no application's state looks like this.
        """
        if not isinstance(document, Mapping) or document.keys() != {_VERSION, _STATE}:
            raise CorruptError("state: expected a version and a state, found something else under this name")
        stored, state = document[_VERSION], document[_STATE]
        if type(stored) is not int or stored < 1:
            raise CorruptError(f"state: expected a version from 1 up, found {stored!r:.40}")
        if stored > self.version:
            raise NewerStateError(
                f"state: expected version {self.version} or older, found version {stored}, which a newer release of"
                " this program saved; it was not touched: run that release, or remove the state"
            )
        for version in range(stored, self.version):
            state = self._step(state, version, stored)
        return self._build(state, changes), stored

    def _step(self, state: object, version: int, stored: int) -> object:
        migration = self._migrations.get(version)
        if migration is None:
            raise MigrationError(
                f"state: found version {stored}, and this program knows {self.version}, but no migration from"
                f" {version} to {version + 1}; nothing was changed: declare one with migrate({version})"
            )
        try:
            return migration(state)
        except Exception as error:
            raise MigrationError(
                f"state: the migration from version {version} to {version + 1} failed, nothing was changed:"
                f" {type(error).__name__}: {error}"
            ) from error

    @property
    def _name(self) -> str:
        return getattr(self.make, "__qualname__", "the state's class")

    def _build(self, state: object, changes: Changes) -> object:
        if self._fields is None:
            return watch(state, changes)
        if not isinstance(state, dict):
            raise MigrationError(f"state: expected a dict of {self._name}'s fields, found {type(state).__name__}")
        if unknown := sorted(map(str, state.keys() - set(self._fields))):
            raise MigrationError(
                f"state: {self._name} has no field {', '.join(unknown)}; if that is meant, give it a new version and a"
                f" migration from {self.version}"
            )
        try:
            return self._of_fields(state, changes)
        except TypeError as error:
            raise MigrationError(
                f"state: what was saved as version {self.version} makes no {self._name}: {error}; if its fields have"
                f" changed, give it a new version and a migration from {self.version}"
            ) from error

    def _of_fields(self, fields: Mapping[str, object], changes: Changes) -> object:
        # Watched before the state is made: what its __post_init__ keeps elsewhere are the very same containers.
        watched = {name: watch(value, changes) for name, value in fields.items()}
        state = cast("Callable[..., object]", self.make)(**watched)
        for name in self._fields or ():
            object.__setattr__(state, name, watch(getattr(state, name), changes))
        return state
