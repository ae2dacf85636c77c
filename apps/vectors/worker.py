"""A process that answers queries, one a line, as JSON: over the arena, or over files for comparison."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from apps.vectors.copies import Find, load
from apps.vectors.index import Index

COUNT: Final = 3
"""Names in an answer."""


def _attach() -> Find:
    index = Index.attach()
    index.embedder  # noqa: B018 - opened now, not at the first query
    return lambda query, count: [hit.name for hit in index.search(query, count).hits]


def _open(source: str) -> Callable[[], Find]:
    if source == "arena":
        return _attach
    how, _, folder = source.partition(":")
    return lambda: load(Path(folder), mapped=how == "mapped")


def main(source: str) -> None:
    """Say when it is ready, and how many seconds it took; then answer until there are no more lines."""
    begun = time.monotonic()
    find = _open(source)()
    ready = time.monotonic()
    _say({"seconds": ready - begun, "ready": ready})
    for line in sys.stdin:
        begun = time.monotonic()
        names = find(line.strip(), COUNT)
        _say({"seconds": time.monotonic() - begun, "names": names})


def _say(answer: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1])  # "arena", "copy:FOLDER" or "mapped:FOLDER"
