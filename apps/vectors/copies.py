"""What the demo compares with: the same search over a copy of the matrix that each process loads from files."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np

from apps.vectors.index import Index
from apps.vectors.minilm import MiniLM, read_package
from apps.vectors.ngrams import Ngrams
from apps.vectors.table import Row

_MATRIX: Final = "matrix.npy"
_NAMES: Final = "names.json"

Find = Callable[[str, int], list[str]]
"""The names of so many texts nearest to a query."""


def export(index: Index, folder: Path) -> None:
    """Write the index to files that anything could load."""
    rows = [row for row in index.table.entries() if isinstance(row, Row)]
    np.save(folder / _MATRIX, np.stack([row.vector for row in rows]))
    names = {row.record.name: row.record.text for row in rows}
    (folder / _NAMES).write_text(json.dumps([index.geometry.model, names]), encoding="utf-8")


def load(folder: Path, *, mapped: bool) -> Find:
    """Load it: the matrix copied, or mapped from its file; the texts and the model copied."""
    matrix = np.load(folder / _MATRIX, mmap_mode="r" if mapped else None)
    model, texts = json.loads((folder / _NAMES).read_text(encoding="utf-8"))
    names = list(texts)
    embedder = MiniLM(read_package()) if model == MiniLM.name else Ngrams()

    def find(query: str, count: int) -> list[str]:
        scores = matrix @ embedder.embed([query])[0]
        best = np.argpartition(-scores, count)[:count]
        return [names[at] for at in best[np.argsort(-scores[best], kind="stable")].tolist()]

    return find


if __name__ == "__main__":
    with Index.attach() as opened:
        export(opened, Path(sys.argv[1]))
