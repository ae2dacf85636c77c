"""Classes that tell when an attribute of an instance is set. Knows nothing of what is done about it."""

from collections.abc import Callable
from typing import cast

from persistmem.app.watched import Changes


def watch_attributes(cls: type, changes_of: Callable[[object], Changes | None]) -> None:
    """Have ``cls`` note what attributes are set to, for the instances that ``changes_of`` knows."""
    plain = cast("Callable[[object, str, object], None]", cls.__setattr__)

    def set_attribute(self: object, name: str, value: object) -> None:
        changes = changes_of(self)
        if changes is None:
            plain(self, name, value)
            return
        changes.check_allowed()
        plain(self, name, value)
        changes.note(value)

    cls.__setattr__ = set_attribute  # type: ignore[assignment, method-assign]
