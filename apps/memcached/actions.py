"""What classic and meta commands do alike: store under a condition, count, drop. Knows items, and no way to say it."""

from enum import Enum
from typing import Final

import persistmem
from apps.memcached.commands import Mode
from apps.memcached.counts import Counts
from apps.memcached.items import BINARY, STALE, WON, Item
from apps.memcached.storage import Storage
from apps.memcached.words import UINT64_MAX, ClientError

TOO_LARGE: Final = b"SERVER_ERROR object too large for cache\r\n"
_NOT_NUMERIC: Final = b"CLIENT_ERROR cannot increment or decrement non-numeric value\r\n"
_DIGITS_MAX: Final = 20


class Outcome(Enum):
    """What became of a command: as classic commands say it, and as meta commands do."""

    STORED = b"STORED\r\n", b"HD"
    NOT_STORED = b"NOT_STORED\r\n", b"NS"
    EXISTS = b"EXISTS\r\n", b"EX"
    NOT_FOUND = b"NOT_FOUND\r\n", b"NF"

    def __init__(self, classic: bytes, meta: bytes) -> None:
        self.classic = classic
        self.meta = meta


class Actions:
    """Changes items, and counts what it did."""

    def __init__(self, storage: Storage, counts: Counts, item_size_max: int) -> None:
        """Data may have ``item_size_max`` bytes."""
        self.storage = storage
        self.counts = counts
        self._item_size_max = item_size_max

    def store(
        self,
        mode: Mode,
        key: bytes,
        item: Item,
        *,
        cas: int = 0,
        new_cas: int | None = None,
        vivifies: bool = False,
        takes_older: bool = False,
    ) -> Outcome:
        """Store an item; then it has its cas unique, and with it what it was joined to.

        Args:
            mode: under which condition, and how.
            key: under which key.
            item: what is stored.
            cas: the cas unique that what is there has to have; 0 for any. With ``Mode.CAS``, 0 is none's.
            new_cas: the one that it gets; a new one by default.
            vivifies: whether what is joined to nothing is stored alone.
            takes_older: whether it is stored, and called stale, if ``cas`` is less than that of what is there.

        Raises:
            ClientError: it is too large; in place of what it was to replace there is nothing then.
        """
        there = None if mode is Mode.SET else self.storage.find(key)
        if there is None:
            if mode is Mode.CAS:
                self.counts.cas_misses += 1
                return Outcome.NOT_FOUND
            if mode not in (Mode.SET, Mode.ADD) and not vivifies:
                return Outcome.NOT_STORED
        elif mode is Mode.ADD:
            return Outcome.NOT_STORED
        elif mode is Mode.CAS and takes_older and 0 < cas < there.cas:
            self.counts.cas_hits += 1
            item.expires = there.expires
            item.state |= STALE | there.state & WON
        elif cas != there.cas and (cas or mode is Mode.CAS):
            self.counts.cas_badval += mode is Mode.CAS
            return Outcome.EXISTS
        elif mode is Mode.CAS:
            self.counts.cas_hits += 1
        elif mode in (Mode.APPEND, Mode.PREPEND):
            item.data = there.data + item.data if mode is Mode.APPEND else item.data + there.data
            item.flags, item.expires, item.state = there.flags, there.expires, there.state & BINARY
            if len(item.data) > self._item_size_max:
                return Outcome.NOT_STORED
        item.cas = self.storage.next_cas() if new_cas is None else new_cas
        try:
            self.storage.put(key, item)
        except persistmem.SizeError as error:
            self.refuse(key, drops=mode is Mode.SET)
            raise ClientError(TOO_LARGE) from error
        return Outcome.STORED

    def refuse(self, key: bytes, *, drops: bool) -> None:
        """Count an item that is too large, and remove what it was to replace: nobody is to read that any more."""
        self.counts.store_too_large += 1
        if drops:
            self.storage.delete(key)

    def delete(self, key: bytes) -> bool:
        """Remove an item; tell whether it was there."""
        found = self.storage.delete(key)
        if found:
            self.counts.delete_hits += 1
        else:
            self.counts.delete_misses += 1
        return found

    def count(self, key: bytes, delta: int, *, down: bool, cas: int = 0, new_cas: int | None = None) -> Item | Outcome:
        """Add to the number under a key, or subtract from it, and return the item that it is now; or why it is none.

        It wraps around at 64 bits, and stops at 0. The item has its new cas unique, and is yet to be
        put in its place.

        Raises:
            ClientError: what is there is no number.
        """
        item = self.storage.find(key)
        if item is None:
            if down:
                self.counts.decr_misses += 1
            else:
                self.counts.incr_misses += 1
            return Outcome.NOT_FOUND
        if cas and cas != item.cas:
            return Outcome.EXISTS
        text = item.data.strip(b" ")
        if not text.isdigit() or len(text) > _DIGITS_MAX or (number := int(text)) > UINT64_MAX:
            raise ClientError(_NOT_NUMERIC)
        if down:
            self.counts.decr_hits += 1
        else:
            self.counts.incr_hits += 1
        item.data = b"%d" % (max(0, number - delta) if down else number + delta & UINT64_MAX)
        item.cas = self.storage.next_cas() if new_cas is None else new_cas
        return item
