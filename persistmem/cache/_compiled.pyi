from collections.abc import Callable, Hashable
from mmap import mmap
from types import NotImplementedType
from typing import Any

from persistmem.cache.store import Found

class Records:
    row: int
    def __new__(
        cls,
        *,
        mapping: mmap,
        base: int,
        size: int,
        buckets: int,
        seed: int,
        tags_at: int,
        frequencies_at: int,
        ghosts_at: int,
        entries_at: int,
        item_max: int,
        small: tuple[int, int, int],
        main: tuple[int, int, int],
        clock: Callable[[], float],
        encode_key: Callable[[Hashable], bytes],
        unpack: Callable[[bytes], object],
        digest: Callable[[bytes, int], int],
    ) -> Records: ...
    def find(self, key: bytes, /) -> Found | NotImplementedType | None: ...
    def get(self, key: Hashable, /) -> Any: ...  # noqa: ANN401 - what the caller stored, or NotImplemented
    def put(self, key: bytes, value: bytes, kind: int, expires: float | None, /) -> bool: ...
    def set(self, key: Hashable, value: bytes, kind: int, expires: float | None, /) -> bool: ...
