"""What is replied to a meta command, once it is done. Knows what each flag does to an item, and to the reply."""

import base64
from collections.abc import Iterable
from typing import Final

from apps.memcached.actions import Actions, Outcome
from apps.memcached.commands import Meta, Mode
from apps.memcached.items import BINARY, STALE, WON, Item
from apps.memcached.words import ClientError

_MODES: Final = {
    b"S": Mode.SET,
    b"E": Mode.ADD,
    b"R": Mode.REPLACE,
    b"A": Mode.APPEND,
    b"P": Mode.PREPEND,
}
_COUNTS_DOWN: Final = {b"I": False, b"+": False, b"D": True, b"-": True}


class MetaAnswers:
    """Does what meta commands ask for."""

    def __init__(self, actions: Actions) -> None:
        self._actions = actions
        self._storage = actions.storage
        self._counts = actions.counts

    def answer(self, command: Meta) -> bytes:
        """Do it, and return the reply.

        Raises:
            ClientError: it cannot be done; its reply says why.
        """
        match command.verb:
            case b"mg":
                return self._get(command)
            case b"ms":
                return self._set(command)
            case b"md":
                return self._delete(command)
            case b"ma":
                return self._count(command)
        return self._debug(command)

    def _get(self, command: Meta) -> bytes:
        flags, numbers = command.flags, command.numbers
        self._counts.cmd_get += 1
        item = self._storage.find(command.key)
        if item is not None:
            created = False
            self._counts.get_hits += 1
        elif "N" in flags:
            created = True
            item = self._new(command)
        else:
            self._counts.get_misses += 1
            return b"" if "q" in flags else _line(b"EN", self._echo(command))
        wins, before = created, (item.expires, item.state)
        said: list[bytes] = []
        for flag in flags:
            match flag:
                case "T" | "N" if flag == "T" or created:
                    item.expires = self._storage.expiry(numbers[flag])
                case "R":
                    ends = 0 < item.expires < self._storage.expiry(numbers["R"])
                    wins |= ends and not created and not item.state & WON
                case _:
                    said += self._say(flag, command, item)
        if item.state & WON:
            said.append(b"Z")
        if item.state & STALE:
            said.append(b"X")
            wins |= not item.state & WON
        if wins:
            said.append(b"W")
            item.state |= WON
        if created or before != (item.expires, item.state):
            self._storage.put(command.key, item)
        if "v" not in flags or numbers.get("C") == item.cas:
            return _line(b"HD", said)
        return _with_data(item.data, said)

    def _set(self, command: Meta) -> bytes:
        flags, numbers = command.flags, command.numbers
        mode = _MODES.get(flags.get("M", b"S"))
        if mode is None:
            raise ClientError(b"CLIENT_ERROR invalid mode for ms M token\r\n")
        if "C" in flags and mode in (Mode.SET, Mode.REPLACE):
            mode = Mode.CAS
        vivifies = "N" in flags and mode in (Mode.APPEND, Mode.PREPEND)
        expires = self._storage.expiry(numbers.get("N" if vivifies else "T", 0))
        item = Item(command.data, numbers.get("F", 0), expires, state=_state(command))
        self._counts.cmd_set += 1
        outcome = self._actions.store(
            mode,
            command.key,
            item,
            cas=numbers.get("C", 0),
            new_cas=numbers.get("E"),
            vivifies=vivifies,
            takes_older="I" in flags,
        )
        if outcome is Outcome.STORED and "q" in flags:
            return b""
        said = [word for flag in flags if flag in "Okcs" for word in self._say(flag, command, item)]
        return _line(outcome.meta, said)

    def _delete(self, command: Meta) -> bytes:
        flags, numbers = command.flags, command.numbers
        item = self._storage.find(command.key)
        if item is None or numbers.get("C", item.cas) != item.cas:
            self._counts.delete_misses += 1
            return _line(b"NF" if item is None else b"EX", self._echo(command))
        if "I" not in flags and "x" not in flags:
            self._actions.delete(command.key)
        else:
            if "x" in flags:
                item.data, item.flags = b"", 0
            if "I" in flags:
                item.state = item.state & ~WON | STALE
                if "T" in flags:
                    item.expires = self._storage.expiry(numbers["T"])
            item.cas = self._new_cas(command)
            self._storage.put(command.key, item)
        return b"" if "q" in flags else _line(b"HD", self._echo(command))

    def _count(self, command: Meta) -> bytes:
        flags, numbers = command.flags, command.numbers
        down = _COUNTS_DOWN.get(flags.get("M", b"I"))
        if down is None:
            raise ClientError(b"CLIENT_ERROR invalid mode for ma M token\r\n")
        item = self._actions.count(
            command.key, numbers.get("D", 1), down=down, cas=numbers.get("C", 0), new_cas=numbers.get("E")
        )
        created = item is Outcome.NOT_FOUND and "N" in flags
        if created:
            item = self._new(command)
            item.data = b"%d" % numbers.get("J", 0)
        if isinstance(item, Outcome):
            return _line(item.meta, self._echo(command))
        said: list[bytes] = []
        for flag in flags:
            if flag == "T" or (flag == "N" and created):
                item.expires = self._storage.expiry(numbers[flag])
            elif flag in "Okct":
                said += self._say(flag, command, item)
        self._storage.put(command.key, item)
        if "q" in flags:
            return b""
        return _with_data(item.data, said) if "v" in flags else _line(b"HD", said)

    def _debug(self, command: Meta) -> bytes:
        self._counts.cmd_meta += 1
        item = self._storage.find(command.key)
        if item is None:
            return b"EN\r\n"
        key = base64.b64encode(command.key) if item.state & BINARY else command.key
        size = len(command.key) + len(item.encode())
        return b"ME %b exp=%d cas=%d cls=1 size=%d\r\n" % (key, self._time_left(item), item.cas, size)

    def _new(self, command: Meta) -> Item:
        """An item that is made because there is none; it does not expire as yet."""
        return Item(b"", cas=self._new_cas(command), state=_state(command))

    def _new_cas(self, command: Meta) -> int:
        return command.numbers["E"] if "E" in command.numbers else self._storage.next_cas()

    def _time_left(self, item: Item) -> int:
        return item.expires - self._storage.now() if item.expires else -1

    def _say(self, flag: str, command: Meta, item: Item) -> Iterable[bytes]:
        """What the reply has to say for a flag."""
        match flag:
            case "O":
                yield b"O" + command.flags["O"]
            case "k":
                yield from _key(command.key, is_binary=bool(item.state & BINARY))
            case "c":
                yield b"c%d" % item.cas
            case "f":
                yield b"f%d" % item.flags
            case "s":
                yield b"s%d" % len(item.data)
            case "t":
                yield b"t%d" % self._time_left(item)

    def _echo(self, command: Meta) -> list[bytes]:
        """What the reply has to say where there is no item."""
        said = Item(b"", state=_state(command))
        return [word for flag in command.flags if flag in "Ok" for word in self._say(flag, command, said)]


def _state(command: Meta) -> int:
    """The state of an item that a command makes."""
    return BINARY if "b" in command.flags else 0


def _key(key: bytes, *, is_binary: bool) -> tuple[bytes, ...]:
    return (b"k" + base64.b64encode(key), b"b") if is_binary else (b"k" + key,)


def _line(code: bytes, words: list[bytes]) -> bytes:
    return b" ".join([code, *words]) + b"\r\n"


def _with_data(data: bytes, words: list[bytes]) -> bytes:
    return b"%b%b\r\n" % (_line(b"VA %d" % len(data), words), data)
