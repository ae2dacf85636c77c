"""Answering queries from an index, wherever its arrays lie: copies none of them. Knows nothing of persistmem."""

from bisect import bisect_left
from dataclasses import dataclass
from typing import Final

import numpy as np

from apps.cities.index import Index, Numbers, trigrams_of, unit_vectors
from apps.cities.spelling import fold

EARTH_RADIUS_KM: Final = 6371.0
SIMILAR: Final = 0.4
"""Dice coefficient of trigrams from which a spelling counts as meant."""


@dataclass(frozen=True, slots=True)
class Hit:
    """A city that answers a query."""

    name: str
    country: str
    population: int
    timezone: str
    distance_km: float | None = None
    """From the place that was asked for, along the surface; None if a name was."""

    def __str__(self) -> str:
        place = f"{self.name}, {self.country}"
        return f"{place}, {self.population:,}" if self.distance_km is None else f"{place}, {self.distance_km:.0f} km"


class CitySearch:
    """Queries by name and by place."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._text = memoryview(index["spellings"])

    def named(self, query: str, limit: int = 3) -> list[Hit]:
        """Cities spelled, or beginning, as ``query``; failing that, spelled similarly. The largest first."""
        folded = fold(query)
        if not folded:
            return []
        numbers = self._beginning(folded)
        if not len(numbers):
            numbers = self._similar(folded)
        return [self._hit(int(number)) for number in numbers[:limit]]

    def nearest(self, latitude: float, longitude: float, limit: int = 3) -> list[Hit]:
        """The cities nearest to a place, in degrees; the nearest first. Looks at all of them."""
        place = unit_vectors(np.float64(latitude), np.float64(longitude))  # type: ignore[arg-type]
        vectors = self._index["vectors"]
        numbers = np.argsort(-(vectors @ place), kind="stable")[:limit]
        chords = np.linalg.norm(vectors[numbers] - place, axis=1)
        distances = 2 * EARTH_RADIUS_KM * np.arcsin(np.minimum(chords / 2, 1))
        return [self._hit(int(at), float(km)) for at, km in zip(numbers, distances, strict=True)]

    def _beginning(self, folded: str) -> Numbers:
        everything = range(len(self._index["spelling_city"]))
        wanted = folded.encode()
        start = bisect_left(everything, wanted, key=self._spelling)
        whole = bisect_left(everything, wanted + b"\0", lo=start, key=self._spelling)
        stop = bisect_left(everything, wanted + b"\xff", lo=whole, key=self._spelling)  # no UTF-8 has this byte
        cities = self._index["spelling_city"]
        exact, longer = np.unique(cities[start:whole]), np.unique(cities[whole:stop])
        return np.concatenate([exact, longer[~np.isin(longer, exact)]])

    def _spelling(self, number: int) -> bytes:
        starts = self._index["spelling_starts"]
        return bytes(self._text[starts[number] : starts[number + 1]])

    def _similar(self, folded: str) -> Numbers:
        wanted = trigrams_of(folded)
        shared = np.concatenate([self._having(trigram) for trigram in wanted])
        spellings, count = np.unique(shared, return_counts=True)
        likeness = 2 * count / (len(wanted) + self._index["trigram_counts"][spellings])
        meant = likeness >= SIMILAR
        cities, likeness = self._index["spelling_city"][spellings[meant]], likeness[meant]
        order = np.lexsort((cities, -likeness))
        _, first = np.unique(cities[order], return_index=True)
        best: Numbers = cities[order][np.sort(first)]
        return best

    def _having(self, trigram: np.uint64) -> Numbers:
        trigrams, starts = self._index["trigrams"], self._index["posting_starts"]
        at = int(np.searchsorted(trigrams, trigram))
        if at == len(trigrams) or trigrams[at] != trigram:
            return self._index["postings"][:0]
        return self._index["postings"][starts[at] : starts[at + 1]]

    def _hit(self, number: int, distance_km: float | None = None) -> Hit:
        index = self._index
        return Hit(
            index["names"][number],
            index["countries"][index["country_of"][number]],
            int(index["populations"][number]),
            index["timezones"][index["timezone_of"][number]],
            distance_km,
        )
