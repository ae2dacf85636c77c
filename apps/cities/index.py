"""Building the search index: a document of columns, and arrays to search in. Knows neither queries nor persistmem.

Cities are numbered from the largest down, so the lowest numbers among the matches are the best.
"""

from collections.abc import Sequence
from typing import Final, TypedDict

import numpy as np
import numpy.typing as npt

from apps.cities.city import City
from apps.cities.spelling import fold

FORMAT: Final = 1
"""To be raised whenever :class:`Index` changes: an older one in an arena is built anew."""

SEPARATOR: Final = "\n"

Numbers = npt.NDArray[np.uint32]


class Index(TypedDict):
    """Everything the search needs. Lists of starts have one more entry than there are items."""

    format: int
    names: list[str]
    countries: list[str]
    country_of: Numbers
    timezones: list[str]
    timezone_of: Numbers
    populations: Numbers
    vectors: npt.NDArray[np.float64]
    """Unit vectors from the centre of the earth, a row for each city."""
    spellings: bytes | memoryview
    """All folded spellings in UTF-8, sorted, one behind the other."""
    spelling_starts: Numbers
    spelling_city: Numbers
    trigram_counts: Numbers
    """How many different trigrams each spelling has."""
    trigrams: npt.NDArray[np.uint64]
    """All trigrams that occur, sorted."""
    posting_starts: Numbers
    postings: Numbers
    """For each trigram the spellings that have it."""


def build_index(cities: Sequence[City]) -> Index:
    """Build the index of ``cities``, which are sorted, the largest first. Takes seconds."""
    countries = sorted({city.country for city in cities})
    timezones = sorted({city.timezone for city in cities})
    # UTF-8 sorts as code points do, so the sorted texts are sorted bytes
    pairs = sorted({(fold(text), at) for at, city in enumerate(cities) for text in (city.name, *city.alternate_names)})
    texts = [text for text, _ in pairs]
    encoded = [text.encode() for text in texts]
    trigrams, posting_starts, postings, counts = _invert(texts)
    return Index(
        format=FORMAT,
        names=[city.name for city in cities],
        countries=countries,
        country_of=_positions([city.country for city in cities], countries),
        timezones=timezones,
        timezone_of=_positions([city.timezone for city in cities], timezones),
        populations=np.array([city.population for city in cities], np.uint32),
        vectors=unit_vectors(
            np.array([city.latitude for city in cities]), np.array([city.longitude for city in cities])
        ),
        spellings=b"".join(encoded),
        spelling_starts=_starts(np.array([len(text) for text in encoded], np.uint32)),
        spelling_city=np.array([at for _, at in pairs], np.uint32),
        trigram_counts=counts,
        trigrams=trigrams,
        posting_starts=posting_starts,
        postings=postings,
    )


def trigrams_of(folded: str) -> npt.NDArray[np.uint64]:
    """The different trigrams of one spelling, as numbers: the word ends count as spaces.

    >>> len(trigrams_of("rome"))
    4
    """
    return np.unique(_windows(f" {folded} "))


def unit_vectors(latitude: npt.NDArray[np.float64], longitude: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Vectors of length 1 that point where degrees ``latitude`` and ``longitude`` say, one a row."""
    phi, theta = np.radians(latitude), np.radians(longitude)
    return np.stack([np.cos(phi) * np.cos(theta), np.cos(phi) * np.sin(theta), np.sin(phi)], axis=-1)


def _invert(texts: Sequence[str]) -> tuple[npt.NDArray[np.uint64], Numbers, Numbers, Numbers]:
    """Trigrams, where each one's postings start, postings, and how many each text has."""
    joined = SEPARATOR.join(f" {text} " for text in texts)
    is_separator = _code_points(joined) == ord(SEPARATOR)
    across = is_separator[:-2] | is_separator[1:-1] | is_separator[2:]
    windows = _windows(joined)[~across]
    text_of = np.cumsum(is_separator, dtype=np.uint32)[:-2][~across]
    # a stable sort leaves the texts of each trigram in order, so what occurs twice stands side by side
    order = np.argsort(windows, kind="stable")
    windows, postings = windows[order], text_of[order]
    another = np.concatenate([[True], windows[1:] != windows[:-1]])
    once = another | np.concatenate([[True], postings[1:] != postings[:-1]])
    postings = postings[once]
    first = np.flatnonzero(another[once])
    starts = np.append(first, len(postings)).astype(np.uint32)
    return windows[another], starts, postings, np.bincount(postings, minlength=len(texts)).astype(np.uint32)


def _windows(text: str) -> npt.NDArray[np.uint64]:
    """Every three characters in a row as one number: a code point has 21 bits."""
    codes = _code_points(text).astype(np.uint64)
    return codes[:-2] << np.uint64(42) | codes[1:-1] << np.uint64(21) | codes[2:]


def _code_points(text: str) -> Numbers:
    return np.frombuffer(text.encode("utf-32-le"), np.dtype("<u4"))


def _positions(values: Sequence[str], among: Sequence[str]) -> Numbers:
    number = {value: at for at, value in enumerate(among)}
    return np.array([number[value] for value in values], np.uint32)


def _starts(lengths: Numbers) -> Numbers:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.uint32)
