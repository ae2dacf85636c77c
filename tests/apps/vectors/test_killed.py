"""Builders and updaters that are killed, and several at once: real processes, one memory."""

import numpy as np
import pytest

from apps.vectors.index import Index
from apps.vectors.ngrams import Ngrams
from apps.vectors.table import Row
from persistmem.errors import NotFoundError

from .support import TEXTS, App, many_texts

UPDATER = """
import itertools, sys
from apps.vectors.index import Index
index = Index.attach()
print("ready", flush=True)
for number in itertools.count() if sys.argv[2] == "forever" else range(int(sys.argv[2])):
    index.add(f"{sys.argv[1]} {number % 300}", f"the boat of {sys.argv[1]}, number {number}")
    index.add("common", f"the last one was {sys.argv[1]}, number {number}")
    if number % 3 == 2:
        index.remove(f"{sys.argv[1]} {number % 300}")
"""


def check_sound(index: Index) -> dict[str, str]:
    """Every text has the vector that belongs to it; gives the texts."""
    rows = list(index.table.entries())
    sound = [row for row in rows if isinstance(row, Row)]
    assert len(sound) == len(rows) == len({row.record.name for row in sound})
    expected = Ngrams().embed([row.record.text for row in sound])
    assert np.array_equal(np.stack([row.vector for row in sound]), expected)
    return {row.record.name: row.record.text for row in sound}


def wait_for_texts(count: int) -> None:
    """Look at the memory itself until a builder has come so far."""
    while True:
        try:
            with Index.attach() as index:
                while len(index) < count:
                    pass
                return
        except NotFoundError:
            continue


def test_builder_that_was_killed_goes_on_where_it_was(app: App) -> None:
    texts = many_texts(12_000)
    with app.start("-m", "apps.vectors", "build", app.file(texts)) as builder:
        wait_for_texts(4000)
        builder.kill()
        builder.wait()
    with Index.attach() as index:
        there = check_sound(index)
    assert 4000 <= len(there) < len(texts)
    assert there.items() <= texts.items()

    assert f"vectors: {len(texts) - len(there):,} texts embedded" in app.build(texts).err
    with Index.attach() as index:
        assert check_sound(index) == texts


def test_updater_that_is_killed_at_any_moment_leaves_every_text_whole(app: App) -> None:
    app.build(TEXTS, "--capacity", "400")
    for number in range(4):
        with Index.attach() as index, app.start("-c", UPDATER, f"updater {number}", "forever") as updater:
            assert updater.stdout is not None
            assert updater.stdout.readline() == "ready\n"
            seen = {int(word) for word in index.table.directory().tolist()}
            while len(seen) < 100 + 37 * number:
                seen.update(index.table.directory().tolist())
            updater.kill()
            updater.wait()
            assert TEXTS.items() <= check_sound(index).items()
            for name in check_sound(index).keys() - TEXTS.keys():  # and its lock was released
                index.remove(name)
            assert check_sound(index) == TEXTS


def test_two_updaters_at_once_lose_nothing(app: App) -> None:
    app.build(TEXTS, "--capacity", "500")
    count = 200
    with app.start("-c", UPDATER, "ann", str(count)) as ann, app.start("-c", UPDATER, "bob", str(count)) as bob:
        assert ann.wait(30) == bob.wait(30) == 0
    with Index.attach() as index:
        texts = check_sound(index)
    expected = {
        f"{who} {number}": f"the boat of {who}, number {number}"
        for who in ("ann", "bob")
        for number in range(count)
        if number % 3 != 2
    }
    assert texts.pop("common") in [f"the last one was {who}, number {count - 1}" for who in ("ann", "bob")]
    assert texts == TEXTS | expected


def test_searches_while_others_update_give_what_was_put_and_nothing_else(app: App) -> None:
    app.build(TEXTS, "--capacity", "400")
    query = "the boat of ann, number 7"
    with Index.attach() as index, app.start("-c", UPDATER, "ann", "forever") as updater:
        assert updater.stdout is not None
        assert updater.stdout.readline() == "ready\n"
        found: set[str] = set()
        while len(found) < 40:
            answer = index.search(query, 20)
            assert answer.damaged == []
            assert len({hit.name for hit in answer.hits}) == len(answer.hits)
            for hit in answer.hits:
                assert hit.score == pytest.approx(float(np.dot(*Ngrams().embed([query, hit.text]))), abs=1e-5)
                if hit.name.startswith("ann"):
                    assert hit.text.startswith("the boat of ann, number")
                    assert int(hit.text.split()[-1]) % 300 == int(hit.name.split()[-1])
                found.add(hit.text)
        updater.kill()
