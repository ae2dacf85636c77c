"""What an application finds when it starts, as one line for its log. Knows nothing of how it is found."""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from persistmem.origin import Origin

Role = Literal["writer", "reader"]
"""Whether this process saves the state, or only looks at what another one saved."""


@dataclass(frozen=True, slots=True)
class Found:
    """What an application found when it started.

    >>> from persistmem import Origin
    >>> print(Found("shop", Origin("carried over", "7.2.13", "7.3.4"), "writer", 2, generation=7, migrated_from=1))
    app=shop state=migrated arena="carried over" kernel=7.3.4 kernel_from=7.2.13 role=writer generation=7 version=2 \
migrated_from=1
    """

    app: str
    origin: Origin
    """How its arena came here."""
    role: Role
    version: int
    """Of the state, as the program declares it."""
    generation: int | None = None
    """That the state was read from; None if it is fresh."""
    saved: datetime | None = None
    """When that was saved, in UTC."""
    saved_by: str | None = None
    """Release of the kernel that it was saved under."""
    migrated_from: int | None = None
    """Version that it was saved as, if that is an older one."""
    damage: tuple[str, ...] = ()
    """What failed its check, newest first; the state is from the first generation that did not."""
    seconds: float | None = None
    """How long attaching, reading and migrating took."""

    @property
    def state(self) -> Literal["fresh", "restored", "migrated", "fell back"]:
        """What the state is, in a word or two."""
        if self.generation is None:
            return "fresh"
        if self.damage:
            return "fell back"
        return "restored" if self.migrated_from is None else "migrated"

    def __str__(self) -> str:
        fields: dict[str, object] = {
            "app": self.app,
            "state": self.state,
            "arena": self.origin.kind,
            "kernel": self.origin.kernel_to,
            "kernel_from": self.origin.kernel_from,
            "role": self.role,
            "generation": self.generation,
            "saved": self.saved.isoformat(timespec="seconds") if self.saved else None,
            "saved_by": self.saved_by,
            "version": self.version,
            "migrated_from": self.migrated_from,
            "damage": "; ".join(self.damage) or None,
            "ms": f"{self.seconds * 1e3:.1f}" if self.seconds is not None else None,
        }
        return log_line(fields)


def log_line(fields: dict[str, object]) -> str:
    """Return ``key=value`` pairs, those that are None left out; values are quoted where they need it (logfmt)."""
    return " ".join(f"{name}={_quoted(str(value))}" for name, value in fields.items() if value is not None)


def _quoted(text: str) -> str:
    if text and not set(text) & set(' "=\\') and text.isprintable():
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() else _code_units(c) for c in escaped) + '"'


def _code_units(character: str) -> str:
    # As in JSON: beyond U+FFFF it takes two.
    units = character.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))
