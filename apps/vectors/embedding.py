"""Texts to vectors: which models there are, and a model's weights in the arena beside what they made."""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Final, Protocol, cast

from apps.vectors.minilm import PACKAGE, MiniLM, Model, read_package
from apps.vectors.ngrams import Ngrams
from apps.vectors.table import Vector
from persistmem.arena import Arena
from persistmem.errors import ArgumentError

SNAPSHOT: Final = "model"
MODELS: Final = ("minilm", "ngrams")


class Embedder(Protocol):
    """Something that makes vectors of texts."""

    @property
    def name(self) -> str:
        """What the index's header says it is."""
        ...

    @property
    def dimensions(self) -> int:
        """Floats in a vector."""
        ...

    def embed(self, texts: Sequence[str]) -> Vector:
        """A row of length 1 for each text."""
        ...


def best_model() -> str:
    """The best one that is installed."""
    return "minilm" if all(map(find_spec, (PACKAGE, "safetensors", "tokenizers"))) else "ngrams"


def dimensions_of(model: str) -> int:
    """How many floats a model's vectors have."""
    return (MiniLM if _known(model) == "minilm" else Ngrams).dimensions


def room_for(model: str) -> int:
    """Bytes that a model takes in the arena, with what the arena needs for itself."""
    return (96 if _known(model) == "minilm" else 1) << 20


def open_embedder(model: str, arena: Arena) -> Embedder:
    """A model, with its weights where they lie in the arena; they are put there the first time.

    Raises:
        MissingLibraryError: it is not installed.
    """
    if _known(model) == "ngrams":
        return Ngrams()
    document = arena.restore(SNAPSHOT, default=None, copy=False)
    if document is None:
        arena.snapshot(SNAPSHOT, read_package(), keep=1)
        document = arena.restore(SNAPSHOT, copy=False)
    return MiniLM(cast("Model", document))


def _known(model: str) -> str:
    if model not in MODELS:
        raise ArgumentError(f"model {model[:40]!r}: expected one of {', '.join(MODELS)}")
    return model
