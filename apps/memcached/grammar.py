"""The one table of commands: a line's words in, a command out. Knows how each is said, and not how it is done."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Final, NamedTuple

from apps.memcached import meta_grammar
from apps.memcached.commands import Command, Count, Delete, FlushAll, Get, Mode, Say, Stats, Store, Touch
from apps.memcached.words import UINT32_MAX, ClientError, data_length, key, new_key, signed, unsigned

VERSION: Final = b"1.6.45-persistmem"
"""The memcached whose protocol this is, as clients expect it to be said, and who speaks it."""

NOT_BINARY: Final = b"CLIENT_ERROR the binary protocol is not spoken here; have the client use the text protocol\r\n"
BINARY_REQUEST: Final = b"\x80"
"""What every request of the binary protocol begins with."""

_ERROR: Final = b"ERROR\r\n"
_BAD_EXPTIME: Final = b"CLIENT_ERROR invalid exptime argument\r\n"
_BAD_DELTA: Final = b"CLIENT_ERROR invalid numeric delta argument\r\n"
_BAD_DELETE: Final = b"CLIENT_ERROR bad command line format.  Usage: delete <key> [noreply]\r\n"
_LINE_END: Final = 2
_ANY: Final = 1 << 16


def _get(words: list[bytes], *, with_cas: bool = False) -> Get:
    return Get(words[1:], with_cas)


def _get_and_touch(words: list[bytes], *, with_cas: bool = False) -> Get:
    return Get(words[2:], with_cas, signed(words[1], _BAD_EXPTIME))


def _store(words: list[bytes], mode: Mode) -> Store:
    length = data_length(words[4])
    cas = unsigned(words[5]) if mode is Mode.CAS else 0
    return Store(mode, new_key(words[1]), unsigned(words[2], UINT32_MAX), signed(words[3]), length, cas)


def _delete(words: list[bytes]) -> Delete:
    if words[2:] not in ([], [b"0"]):
        raise ClientError(_BAD_DELETE)
    return Delete(key(words[1]))


def _count(words: list[bytes], *, down: bool) -> Count:
    return Count(key(words[1]), unsigned(words[2], reply=_BAD_DELTA), down)


def _touch(words: list[bytes]) -> Touch:
    return Touch(key(words[1]), signed(words[2], _BAD_EXPTIME))


def _flush_all(words: list[bytes]) -> FlushAll:
    return FlushAll(signed(words[1], _BAD_EXPTIME) if len(words) > 1 else 0)


def _stats(words: list[bytes]) -> Stats:
    return Stats(b" ".join(words[1:]))


def _version(_: list[bytes]) -> Say:
    return Say(b"VERSION %b\r\n" % VERSION)


def _verbosity(words: list[bytes]) -> Say:
    unsigned(words[1], UINT32_MAX)
    return Say(b"OK\r\n")


def _quit(_: list[bytes]) -> Say:
    return Say(b"", closes=True)


def _nothing(_: list[bytes]) -> Say:
    return Say(b"MN\r\n")


class Form(NamedTuple):
    """How a command is said."""

    parse: Callable[[list[bytes]], Command]
    fewest: int
    """Words, its name among them; fewer or more are an ``ERROR``."""
    most: int = _ANY
    may_be_quiet: bool = False
    """Whether ``noreply`` may stand at the end."""
    length_at: int | None = None
    """Which of its words is the length of the data that follow the line."""


COMMANDS: Final[Mapping[bytes, Form]] = {
    b"get": Form(_get, 2),
    b"gets": Form(partial(_get, with_cas=True), 2),
    b"gat": Form(_get_and_touch, 3),
    b"gats": Form(partial(_get_and_touch, with_cas=True), 3),
    b"set": Form(partial(_store, mode=Mode.SET), 5, 6, True, 4),
    b"add": Form(partial(_store, mode=Mode.ADD), 5, 6, True, 4),
    b"replace": Form(partial(_store, mode=Mode.REPLACE), 5, 6, True, 4),
    b"append": Form(partial(_store, mode=Mode.APPEND), 5, 6, True, 4),
    b"prepend": Form(partial(_store, mode=Mode.PREPEND), 5, 6, True, 4),
    b"cas": Form(partial(_store, mode=Mode.CAS), 6, 7, True, 4),
    b"delete": Form(_delete, 2, 4, True),
    b"incr": Form(partial(_count, down=False), 3, 4, True),
    b"decr": Form(partial(_count, down=True), 3, 4, True),
    b"touch": Form(_touch, 3, 4, True),
    b"flush_all": Form(_flush_all, 1, 3, True),
    b"stats": Form(_stats, 1),
    b"version": Form(_version, 1),
    b"verbosity": Form(_verbosity, 2, 3, True),
    b"quit": Form(_quit, 1),
    b"mg": Form(meta_grammar.parse_get, 2),
    b"ms": Form(meta_grammar.parse_set, 2, length_at=2),
    b"md": Form(meta_grammar.parse_change, 2),
    b"ma": Form(meta_grammar.parse_change, 2),
    b"me": Form(meta_grammar.parse_debug, 1),
    b"mn": Form(_nothing, 1),
}


def parse(words: list[bytes]) -> Command:
    """Return the command that a line's words are, or what is said to them if they are none."""
    form = COMMANDS.get(words[0])
    if form is None:
        if words[-1].startswith(b"HTTP/"):  # browsers can be made to talk to any port: the rest is not listened to
            return Say(b"", closes=True)
        return Say(NOT_BINARY, closes=True) if words[0].startswith(BINARY_REQUEST) else Say(_ERROR)
    if not form.fewest <= len(words) <= form.most:
        return Say(_ERROR)
    noreply = form.may_be_quiet and words[-1] == b"noreply"
    is_beside = noreply and len(words) > form.fewest
    try:
        command = form.parse(words[:-1] if is_beside else words)
    except ClientError as error:
        return Say(error.reply, skips=_data_after(words, form), noreply=noreply)
    if is_beside:
        assert not isinstance(command, Get)
        command.noreply = True
    return command


def _data_after(words: list[bytes], form: Form) -> int:
    """Bytes of the data that follow a line which is no command; nobody is to take them for commands."""
    if form.length_at is None or len(words) <= form.length_at:
        return 0
    try:
        return data_length(words[form.length_at]) + _LINE_END
    except ClientError:
        return 0
