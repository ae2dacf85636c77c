"""Vectors of hashed trigrams: texts are near each other if they are spelled alike. Knows text, and no model."""

from collections.abc import Sequence
from typing import Final

import numpy as np

from apps.cities.index import trigrams_of
from apps.cities.spelling import fold
from apps.vectors.table import Vector

_BITS: Final = 9
_FACTOR: Final = np.uint64(0x9E3779B97F4A7C15)  # 2**64 / golden ratio: multiplying by it spreads what is alike


class Ngrams:
    """Each trigram adds 1 or -1 in one of 512 dimensions. Some 20 microseconds for a text."""

    name = "ngrams"
    dimensions = 1 << _BITS

    def embed(self, texts: Sequence[str]) -> Vector:
        """A row of length 1 for each text; all zero for one without letters and digits.

        >>> near, far = Ngrams().embed(["a sailing boat", "a kind of steam engine"]) @ Ngrams().embed(["Sailboats"])[0]
        >>> bool(near > far)
        True
        """
        rows = np.zeros((len(texts), self.dimensions), np.float32)
        for row, text in zip(rows, texts, strict=True):
            if folded := fold(text):
                hashed = trigrams_of(folded) * _FACTOR
                sign = 1 - 2 * (hashed >> np.uint64(63 - _BITS) & np.uint64(1)).astype(np.float32)
                np.add.at(row, (hashed >> np.uint64(64 - _BITS)).astype(np.intp), sign)
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        rows /= np.where(lengths == 0, 1, lengths)
        return rows
