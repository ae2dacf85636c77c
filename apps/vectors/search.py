"""The best matches of a query in a table that others may be changing. Knows neither models nor arenas."""

from dataclasses import dataclass
from typing import Final

import numpy as np

from apps.vectors.table import Damage, Numbers, Table, Vector

_ROUNDS: Final = 10


@dataclass(frozen=True, slots=True)
class Hit:
    """A text that is near the query."""

    score: float
    """Cosine of the angle between the two, -1 to 1."""
    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What was found."""

    hits: list[Hit]
    """The best first."""
    damaged: list[Damage]
    """What seemed to be among them, and failed its check."""


def find_best(table: Table, query: Vector, count: int) -> Answer:
    """Find the ``count`` texts whose vectors have the largest product with ``query``, a vector of length 1.

    Each is copied out and checked before it is given. Cost: one pass over the matrix.
    """
    scores = _all_scores(table, query)
    found: list[Hit] = []
    damaged: list[Damage] = []
    while len(found) < count and len(ranked := _ranked(scores, count)):
        for entry in ranked.tolist():
            row = table.read(entry)
            if isinstance(row, Damage):
                damaged.append(row)
            elif row is not None:
                found.append(Hit(float(row.vector @ query), row.record.name, row.record.text))
        scores[ranked] = -np.inf
    found.sort(key=lambda hit: -hit.score)
    return Answer(found[:count], damaged)


def _all_scores(table: Table, query: Vector) -> Vector:
    directory = table.directory()
    scores = table.scores(directory, query)
    for _ in range(_ROUNDS):
        # What was replaced meanwhile may have been read half written; nothing else can.
        now = table.directory()
        changed = np.flatnonzero(now != directory)
        if not len(changed):
            break
        scores[changed] = table.scores(now[changed], query)
        directory = now
    return scores


def _ranked(scores: Vector, count: int) -> Numbers:
    """The entries with the ``count`` best scores, the best first; empty ones are none."""
    best = np.argpartition(-scores, count)[:count] if count < len(scores) else np.arange(len(scores))
    best = best[scores[best] > -np.inf]
    order: Numbers = best[np.lexsort((best, -scores[best]))]
    return order
