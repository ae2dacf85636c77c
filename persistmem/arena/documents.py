"""Documents to msgpack and back; large buffers stand outside the packed document. Knows not where either is kept."""

import gc
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar, cast

import msgpack

from persistmem.arena import arrays
from persistmem.arena.types import CONTAINERS, READERS, STANDS_FOR, VALUE_TYPES, Code, TypeRegistry
from persistmem.errors import BusyError, CorruptError, Error, UnsupportedTypeError

if TYPE_CHECKING:
    import numpy as np

T = TypeVar("T")

BUFFER_SIZE_MIN = 4096
"""Bytes from which a buffer stands outside the document."""

NESTING_MAX = 100
"""How deep tuples, sets and the user's types may nest in each other; each level is packed inside the one around it."""

_BYTES_LIKE = (bytes, bytearray, memoryview)
_GLANCE, _GLANCE_INTO_EACH = 1000, 50
_PACKER_KEPT_MAX = 64 << 20


class Encoded(NamedTuple):
    """A document ready to be written: views of its encoder's memory and of the caller's buffers."""

    packed: memoryview
    buffers: list[memoryview]


class _Large:
    """Stands in a document for a bytes-like that goes outside."""

    __slots__ = ("data",)

    def __init__(self, data: bytes | bytearray | memoryview) -> None:
        self.data = data


class DocumentEncoder:
    """Packs documents, one at a time, and keeps its packing memory for the next one."""

    def __init__(self, types: TypeRegistry, *, inline: bool = False) -> None:
        """With ``inline`` nothing stands outside: for :meth:`pack`."""
        self._types = types
        self._inline = inline
        self._packer = self._new_packer()
        self._nested_packers: list[msgpack.Packer] = []
        self._buffers: list[memoryview] = []
        self._depth = 0
        self._calls = 0
        self._saw_large = False
        self._sets_apart = False
        self._extended = False

    @contextmanager
    def encode(self, document: object) -> Iterator[Encoded]:
        """Pack ``document``, and list the buffers of 4 KiB and more that stand outside it, in order.

        Nothing is copied: what it yields is valid inside the ``with`` alone. Costs one pass of msgpack, and a quarter
        of that for looking over its output.

        Raises:
            UnsupportedTypeError: a value cannot be stored; the message says where it is.
            BusyError: another thread changed the document meanwhile.
        """
        try:
            packed = self._encode(document)
        except (TypeError, ValueError, OverflowError, BufferError, RecursionError) as error:
            raise UnsupportedTypeError(self._explain(document, error)) from error
        except RuntimeError as error:  # a dict or set was changed
            raise BusyError(f"document: another thread changed it while it was packed ({error}); try again") from error
        try:
            yield Encoded(packed, self._buffers)
        finally:
            size = len(packed)
            packed.release()
            self._buffers = []
            if size > _PACKER_KEPT_MAX:
                self._packer = self._new_packer()

    def pack(self, document: object) -> tuple[bytes, bool]:
        """Return ``document`` in one piece, and whether it holds more than msgpack does by itself.

        Raises:
            UnsupportedTypeError: a value cannot be stored; the message says where it is.
        """
        self._extended = False
        try:
            self._packer.pack(document)
            packed: bytes = self._packer.bytes()
        except (TypeError, ValueError, OverflowError, BufferError, RecursionError) as error:
            raise UnsupportedTypeError(self._explain(document, error)) from error
        finally:
            self._depth = 0
            self._packer.reset()
        return packed, self._extended

    def _encode(self, document: object) -> memoryview:
        # msgpack packs bytes itself, without asking. So glance at the document; if that shows no large ones, pack it
        # as it is and see whether any came out; only then walk all of it in Python, which takes many times as long.
        if not _glance_finds_large(document):
            packed = self._pack(document)
            if not self._saw_large and not _needs_walk(packed):
                return packed
            packed.release()
        self._sets_apart = True
        try:
            return self._pack(_set_apart(document))
        finally:
            self._sets_apart = False

    def _pack(self, document: object) -> memoryview:
        self._buffers, self._saw_large, self._depth = [], False, 0
        self._packer.reset()
        self._packer.pack(document)
        packed: memoryview = self._packer.getbuffer()
        return packed

    def _nested(self, value: object) -> bytes:
        if self._depth == NESTING_MAX:
            raise ValueError(f"tuples and sets nested deeper than {NESTING_MAX}")
        packer = self._nested_packers.pop() if self._nested_packers else self._new_packer()
        self._depth += 1
        calls = self._calls
        packer.pack(value)
        self._depth -= 1
        packed: bytes = packer.bytes()
        packer.reset()
        if len(packed) <= BUFFER_SIZE_MIN:
            self._nested_packers.append(packer)
        # Another thread can only have changed what is in it, and only if something was called meanwhile.
        may_be_broken = self._calls != calls and type(value) is list and not _CHANGING.isdisjoint(map(type, value))
        if len(packed) > BUFFER_SIZE_MIN or may_be_broken:
            self._saw_large = self._saw_large or _needs_walk(memoryview(packed))
        return packed

    def _new_packer(self) -> msgpack.Packer:
        return msgpack.Packer(default=self._default, strict_types=True, autoreset=False)

    def _default(self, value: object) -> object:
        self._calls += 1
        kind = _kind(value)
        if kind is dict:
            return dict(cast("dict[object, object]", value))
        if kind is list:
            return list(cast("list[object]", value))
        self._extended = True
        if (container := CONTAINERS.get(kind)) is not None:
            return msgpack.ExtType(container, self._nested(list(value)))  # type: ignore[call-overload]
        if (row := VALUE_TYPES.get(kind)) is not None:
            return msgpack.ExtType(row.code, row.to_bytes(value))
        if kind is _Large:
            return msgpack.ExtType(Code.BUFFER, self._nested(self._outside(cast("_Large", value).data)))
        if (user := self._types.of(kind)) is not None:
            content = user.pack(value)
            return msgpack.ExtType(
                Code.USER, self._nested([user.tag, _set_apart(content) if self._sets_apart else content])
            )
        if arrays.is_array(value):
            description, data = arrays.describe_array(value)  # type: ignore[arg-type]
            if self._inline or len(data) < BUFFER_SIZE_MIN:
                return msgpack.ExtType(Code.ARRAY, self._nested([description, data]))
            return msgpack.ExtType(Code.BUFFER_ARRAY, self._nested([description, self._outside(data)]))
        if arrays.is_scalar(value):
            return msgpack.ExtType(Code.SCALAR, self._nested(list(arrays.describe_scalar(value))))  # type: ignore[arg-type]
        name = f"{kind.__module__}.{kind.__qualname__}"
        raise TypeError(f"a value of type {name}; convert it, or call persistmem.register_type for it")

    def _outside(self, data: bytes | bytearray | memoryview) -> int:
        self._buffers.append(memoryview(data).toreadonly().cast("B"))
        return len(self._buffers) - 1

    def _explain(self, document: object, error: Exception) -> str:
        try:
            path, reason = self._locate(document, "document") or ("document", str(error))
        except RecursionError:
            path, reason = "document", "it contains itself, or is nested too deep"
        return f"{path}: {reason}"

    def _locate(self, value: object, path: str) -> tuple[str, str] | None:
        """Where in ``value`` the first thing is that cannot be packed, and why. Only called when there is one."""
        for inner_path, item in _items(value, path):
            if found := self._locate(item, inner_path):
                return found
        try:
            kind = _kind(value)
            self._pack(kind() if kind in _NESTING else value).release()
        except (TypeError, ValueError, OverflowError, BufferError) as error:
            return path, str(error)
        return None


_CHANGING = frozenset({dict, list})
_NESTING = frozenset({dict, list, *CONTAINERS})


def _kind(value: object) -> type[Any]:
    kind = type(value)
    return STANDS_FOR.get(kind, kind)


def _items(value: object, path: str) -> Iterator[tuple[str, object]]:
    """What a container holds, each with the path to it."""
    kind = _kind(value)
    if kind is dict:
        for key, item in cast("dict[object, object]", value).items():
            yield f"{path} key {key!r:.60}", key
            yield f"{path}[{key!r:.60}]", item
    elif kind in (list, tuple):
        for index, item in enumerate(cast("list[object]", value)):
            yield f"{path}[{index}]", item
    elif kind in (set, frozenset):
        for item in cast("set[object]", value):
            yield f"{path} member {item!r:.60}", item


def _is_large(value: object) -> bool:
    return type(value) in _BYTES_LIKE and memoryview(cast("bytes", value)).nbytes >= BUFFER_SIZE_MIN


def _glance_finds_large(document: object) -> bool:
    """Whether a large bytes-like is among the first values of the first containers, depth first."""
    stack, left = [document], _GLANCE
    while stack and left:
        value = stack.pop()
        left -= 1
        if _is_large(value):
            return True
        kind = _kind(value)
        if kind is dict:
            stack.extend(islice(cast("dict[object, object]", value).values(), _GLANCE_INTO_EACH))
        elif kind in _NESTING:
            stack.extend(islice(cast("list[object]", value), _GLANCE_INTO_EACH))
    return False


# msgpack's bin 16 and bin 32 become 0xc1, which no msgpack has. First all of them, in one cheap pass that also hits
# bytes inside of numbers and text, where it does no harm; then, if that struck a real one, only those of 4 KiB and up.
_ANY_BIN = bytes.maketrans(b"\xc5\xc6", b"\xc1\xc1")
_LARGE_BIN = re.compile(rb"\xc5(?=[\x10-\xff])|\xc6")


def _needs_walk(packed: memoryview) -> bool:
    """Whether it holds a large bin; or is no msgpack, because another thread put something into a list meanwhile."""
    if len(packed) < BUFFER_SIZE_MIN:
        return _is_broken(packed)
    if not _is_broken(packed, _ANY_BIN):
        return False
    return _is_broken(memoryview(_LARGE_BIN.sub(b"\xc1", packed)))


_PIECE = 256 << 10


def _is_broken(packed: memoryview, table: bytes | None = None) -> bool:
    """Whether ``packed``, its bytes mapped by ``table``, is not well-formed msgpack. Builds nothing.

    Without it, an array header that promises more items than there are bytes would reserve memory for them, once for
    each level of nesting. Costs a twentieth of unpacking.
    """
    parser = msgpack.Unpacker(max_buffer_size=len(packed) + 1, read_size=max(len(packed), 1))
    for start in range(0, len(packed), _PIECE):
        piece = packed[start : start + _PIECE]
        parser.feed(bytes(piece).translate(table) if table else piece)
    try:
        parser.skip()
    except (ValueError, msgpack.UnpackException):
        return True
    return int(parser.tell()) != len(packed)


def _set_apart(value: object) -> object:
    """The document with every large bytes-like in it replaced by a :class:`_Large`."""
    kind = _kind(value)
    if _is_large(value):
        return _Large(cast("bytes", value))
    if kind is dict:
        return {_set_apart(key): _set_apart(item) for key, item in cast("dict[object, object]", value).items()}
    if kind in _NESTING:
        nested: object = kind(_set_apart(item) for item in cast("list[object]", value))
        return nested
    return value


class DocumentDecoder:
    """Reads one packed document back, with the buffers that stand outside it."""

    def __init__(self, types: TypeRegistry, buffers: Sequence[memoryview], *, copy: bool) -> None:
        """``buffers`` are verified; with ``copy`` the document gets its own bytes of them, else read-only views."""
        self._types = types
        self._buffers = buffers
        self._copy = copy
        self._depth = 0

    def decode(self, packed: memoryview) -> object:
        """The document.

        Raises:
            CorruptError: it is not one.
            UnsupportedTypeError: it holds a type that is not registered, or not installed, in this process.
        """
        if _is_broken(packed):
            raise CorruptError("document: not well-formed msgpack")
        try:
            with _collector_paused():
                return self._unpack(packed)
        except Error:
            raise
        except (
            ValueError,
            TypeError,
            OverflowError,
            ArithmeticError,
            struct.error,
            RecursionError,
            MemoryError,
        ) as error:
            raise CorruptError(
                f"document: it holds a value that cannot be ({type(error).__name__}: {error})"
            ) from error

    def _unpack(self, packed: memoryview) -> object:
        return msgpack.unpackb(packed, ext_hook=self._extension, strict_map_key=False)

    def _nested(self, payload: bytes) -> object:
        packed = memoryview(payload)
        if self._depth == NESTING_MAX or _is_broken(packed):
            raise CorruptError("document: an extension that is not well-formed, or nested too deep")
        self._depth += 1
        value = self._unpack(packed)
        self._depth -= 1
        return value

    def _extension(self, code: int, payload: bytes) -> object:
        if (read := READERS.get(code)) is not None:
            return read(payload)
        reader = self._READERS.get(code)
        if reader is None:
            raise CorruptError(f"document: extension type {code} is not known; was it written by a newer persistmem?")
        return reader(self, self._nested(payload))

    def _tuple(self, value: object) -> object:
        return tuple(_typed(value, list))

    def _set(self, value: object) -> object:
        return set(_typed(value, list))

    def _frozenset(self, value: object) -> object:
        return frozenset(_typed(value, list))

    def _user(self, value: object) -> object:
        tag, content = _pair(value)
        return self._types.tagged(tag).unpack(content)

    def _array(self, value: object) -> object:
        description, data = _pair(value)
        return self._own(arrays.build_array(description, _typed(data, bytes)))

    def _scalar(self, value: object) -> object:
        description, data = _pair(value)
        return arrays.build_scalar(description, _typed(data, bytes))

    def _buffer(self, value: object) -> object:
        view = self._outside(value)
        return bytes(view) if self._copy else view

    def _buffer_array(self, value: object) -> object:
        description, index = _pair(value)
        return self._own(arrays.build_array(description, self._outside(index)))

    def _own(self, array: "np.ndarray") -> "np.ndarray":
        return array.copy(order="K") if self._copy else array

    def _outside(self, index: object) -> memoryview:
        if type(index) is not int or not 0 <= index < len(self._buffers):
            raise CorruptError(f"document: buffer {index!r:.40} of {len(self._buffers)}")
        return self._buffers[index]

    _READERS: ClassVar[dict[int, Callable[["DocumentDecoder", object], object]]] = {
        Code.TUPLE: _tuple,
        Code.SET: _set,
        Code.FROZENSET: _frozenset,
        Code.ARRAY: _array,
        Code.SCALAR: _scalar,
        Code.BUFFER: _buffer,
        Code.BUFFER_ARRAY: _buffer_array,
        Code.USER: _user,
    }


def _typed(value: object, kind: type[T]) -> T:
    if type(value) is not kind:
        raise CorruptError(f"document: expected {kind.__name__} in an extension, found {type(value).__name__}")
    return value


def _pair(value: object) -> tuple[object, object]:
    first, second = _typed(value, list)
    return first, second


@contextmanager
def _collector_paused() -> Iterator[None]:
    # Building a million objects makes the cycle collector look at all of them, many times, and find nothing.
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        if gc.get_freeze_count() == 0:
            # Moves all that is young to the oldest generation without looking at it, or the first allocation from here
            # on would set off a collection of everything just built: a third of the time that unpacking took.
            gc.freeze()
            gc.unfreeze()
        gc.enable()
