"""What is replied to a command, once it is done. Knows the classic commands; must not know how bytes come and go."""

from typing import Final

import persistmem
from apps.memcached.actions import TOO_LARGE, Actions, Outcome
from apps.memcached.commands import (
    Command,
    Count,
    Delete,
    FlushAll,
    Get,
    Meta,
    OneReply,
    Say,
    Stats,
    Store,
    TooLarge,
    Touch,
)
from apps.memcached.items import MARK, MARKED, SHOWN, Item
from apps.memcached.meta_answers import MetaAnswers
from apps.memcached.reports import Reports
from apps.memcached.words import KEY_MAX, ClientError

REPLY_MAX: Final = 256 << 10
"""Bytes of items after which a reply is sent, and the rest of it waits for its turn."""
_END: Final = b"END\r\n"


class Answers:
    """Does what all connections ask for, one after the other."""

    def __init__(self, actions: Actions, reports: Reports) -> None:
        self._actions = actions
        self._storage = actions.storage
        self._counts = actions.counts
        self._reports = reports
        self._meta = MetaAnswers(actions)

    def answer(self, command: Command) -> bytes:
        """Do what a command says, and return the reply to it.

        If there is too much to be sent, a :class:`Get` keeps the keys that are not answered yet: call again with it.
        After the kernel was replaced, the cache is opened anew first; what keeps it from being used is a
        ``SERVER_ERROR``.
        """
        try:
            try:
                return self._answer(command)
            except (persistmem.StaleArenaError, persistmem.ClosedError):
                self._storage.reopen()
                return self._answer(command)
        except ClientError as error:
            reply = error.reply
        except persistmem.Error as error:
            reply = b"SERVER_ERROR %b\r\n" % " ".join(str(error).split()).encode(errors="replace")
        if isinstance(command, Get):
            command.keys = []
            return reply
        return b"" if command.noreply else reply

    def _answer(self, command: Command) -> bytes:
        self._storage.flush_if_due()
        if isinstance(command, Get):
            return self._get_more(command) if command.with_cas or command.exptime is not None else self._get(command)
        reply = self._done(command)
        return b"" if command.noreply else reply

    def _done(self, command: OneReply) -> bytes:
        match command:
            case Store():
                return self._store(command)
            case Delete():
                return self._delete(command)
            case Count():
                return self._count(command)
            case Touch():
                return self._touch(command)
            case Meta():
                return self._meta.answer(command)
            case Say():
                return command.reply
            case TooLarge():
                self._actions.refuse(command.key, drops=command.drops)
                return TOO_LARGE
            case FlushAll():
                self._counts.cmd_flush += 1
                self._storage.flush(command.delay)
                return b"OK\r\n"
            case Stats():
                return self._reports.report(command.topic)

    def _get(self, command: Get) -> bytes:
        """The plain ``get``, which is to be fast: for each key it calls nothing but the cache."""
        get = self._storage.get
        shown = [b""]
        size = 0
        keys = iter(command.keys)
        for key in keys:
            value = get(key)
            if type(value) is bytes and value[MARKED] == MARK:
                shown.append(key + value[SHOWN])
                size += len(value)
                if size > REPLY_MAX:
                    break
            elif len(key) > KEY_MAX:
                raise ClientError
        return self._end(command, list(keys), shown)

    def _get_more(self, command: Get) -> bytes:
        shown = [b""]
        size = 0
        keys = iter(command.keys)
        for key in keys:
            item = self._storage.find(key) if command.exptime is None else self._touched(key, command.exptime)
            if item is not None:
                shown.append(key + (item.shown_with_cas() if command.with_cas else item.encode()[SHOWN]))
                size += len(item.data)
                if size > REPLY_MAX:
                    break
            elif len(key) > KEY_MAX:
                raise ClientError
        return self._end(command, list(keys), shown)

    def _end(self, command: Get, left: list[bytes], shown: list[bytes]) -> bytes:
        """Count what was done, note down which keys are left, and return the reply.

        ``shown`` is nothing, and then what follows the word VALUE for each item.
        """
        if command.exptime is None:
            asked, hits = len(command.keys) - len(left), len(shown) - 1
            self._counts.cmd_get += asked
            self._counts.get_hits += hits
            self._counts.get_misses += asked - hits
        command.keys = left
        if not left:
            shown[-1] += _END
        return b"VALUE ".join(shown)

    def _touched(self, key: bytes, exptime: int) -> Item | None:
        self._counts.cmd_touch += 1
        item = self._storage.find(key)
        if item is None:
            self._counts.touch_misses += 1
            return None
        item.expires = self._storage.expiry(exptime)
        self._storage.put(key, item)
        self._counts.touch_hits += 1
        return item

    def _touch(self, command: Touch) -> bytes:
        return b"TOUCHED\r\n" if self._touched(command.key, command.exptime) else Outcome.NOT_FOUND.classic

    def _store(self, command: Store) -> bytes:
        self._counts.cmd_set += 1
        item = Item(command.data, command.flags, self._storage.expiry(command.exptime))
        return self._actions.store(command.mode, command.key, item, cas=command.cas).classic

    def _delete(self, command: Delete) -> bytes:
        return b"DELETED\r\n" if self._actions.delete(command.key) else Outcome.NOT_FOUND.classic

    def _count(self, command: Count) -> bytes:
        found = self._actions.count(command.key, command.delta, down=command.down)
        if isinstance(found, Outcome):
            return found.classic
        self._storage.put(command.key, found)
        return found.data + b"\r\n"
