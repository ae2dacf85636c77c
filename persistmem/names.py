"""What arenas, snapshots and regions may be called; knows nothing of what they are."""

from persistmem.errors import InvalidNameError

NAME_BYTES_MAX = 200
"""Longest name, in bytes of UTF-8."""


def check_name(name: str, what: str = "arena") -> str:
    """Return ``name`` if it can name an arena, a snapshot or a region.

    A name has 1 to 200 bytes of UTF-8, no control, format, surrogate or separator characters but the space, does not
    begin or end with a space, and does not begin with a dash. An arena's name has no slash: ``ARENA/SNAPSHOT`` names a
    snapshot.

    Raises:
        InvalidNameError: it cannot.

    >>> check_name("thumbnails")
    'thumbnails'
    """
    if not isinstance(name, str):
        raise InvalidNameError(f"{what} name: expected str, found {type(name).__name__}")
    reason = _objection(name, slash_allowed=what != "arena")
    if reason:
        raise InvalidNameError(f"{what} name {name[:80]!r}: {reason}")
    return name


def split_name(name: str) -> tuple[str, str | None]:
    """Split ``ARENA`` or ``ARENA/SNAPSHOT`` and check both.

    >>> split_name("shop/carts")
    ('shop', 'carts')
    >>> split_name("shop")
    ('shop', None)
    """
    arena, slash, snapshot = name.partition("/")
    return check_name(arena), check_name(snapshot, "snapshot") if slash else None


def _objection(name: str, *, slash_allowed: bool) -> str | None:
    if not name:
        return "it is empty; give at least one character"
    if not name.isprintable() and _has_refused(name):
        return "it has a control, format or separator character; use letters, digits and punctuation"
    if (length := len(name.encode())) > NAME_BYTES_MAX:
        return f"it is {length} bytes long; at most {NAME_BYTES_MAX} are allowed"
    if name.startswith("-"):
        return "it begins with a dash, which a command line takes for an option"
    if name != name.strip(" "):
        return "it begins or ends with a space"
    if not slash_allowed and "/" in name:
        return "it has a slash, which separates arena and snapshot"
    return None


def _has_refused(name: str) -> bool:
    # Of what str.isprintable() says no to, private and unassigned characters may be in a name: fonts have them.
    import unicodedata  # noqa: PLC0415 - a megabyte of tables, for names that are hardly ever seen

    return any(unicodedata.category(character) in _REFUSED and character != " " for character in name)


_REFUSED = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp", "Zs"})
