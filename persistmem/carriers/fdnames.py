"""What arenas are called in a service manager's file descriptor store: any name as one that systemd takes.

systemd takes 1 to 255 printable ASCII characters without a colon (``fdname_is_valid`` in its source). A name of
letters, digits and a few signs is ``pm.NAME``, so that people can read it; any other is ``pm=`` and base 85.
"""

import base64
import re
from typing import Final

from persistmem.errors import InvalidNameError

NAME_BYTES_MAX: Final = 200
_PLAIN: Final = re.compile(r"[A-Za-z0-9._@+-]{1,200}", re.ASCII)
_READABLE, _ENCODED = "pm.", "pm="


def to_fdname(name: str) -> str:
    """Return what ``name``, of 1 to 200 bytes of UTF-8, is called in the store.

    Raises:
        InvalidNameError: it is longer, empty, or no text that UTF-8 can hold.

    >>> to_fdname("sessions"), to_fdname("日本")
    ('pm.sessions', 'pm==9i`BoU8')
    """
    if _PLAIN.fullmatch(name):
        return _READABLE + name
    try:
        data = name.encode()
    except UnicodeEncodeError as error:
        raise InvalidNameError(f"expected a name that UTF-8 can hold, found {name[:80]!r}") from error
    if not 0 < len(data) <= NAME_BYTES_MAX:
        raise InvalidNameError(f"expected a name of 1 to {NAME_BYTES_MAX} bytes, found {name[:80]!r}")
    return _ENCODED + base64.b85encode(data).decode("ascii")


def from_fdname(fdname: str) -> str | None:
    """Return the name that :func:`to_fdname` made ``fdname`` of; None if it made it of none.

    >>> from_fdname("pm.sessions"), from_fdname("varlink")
    ('sessions', None)
    """
    if fdname.startswith(_READABLE):
        name = fdname.removeprefix(_READABLE)
    elif fdname.startswith(_ENCODED):
        try:
            name = base64.b85decode(fdname.removeprefix(_ENCODED)).decode()
        except ValueError:
            return None
    else:
        return None
    try:
        return name if to_fdname(name) == fdname else None
    except InvalidNameError:
        return None
