"""Saving everybody's arenas: one that its owner does not let go of is named, and keeps none of the others back."""

from pathlib import Path

import pytest

from persistmem import attach, errors, upgrade
from persistmem.agent.saved import SavedArenas
from persistmem.arena import freeze


@pytest.mark.usefixtures("runtime")
def test_an_arena_that_somebody_holds_does_not_keep_the_others_from_being_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upgrade, "TIMEOUT_DEFAULT", 0.05)
    for name in ("a", "held", "z"):
        with attach(name, "1MiB") as arena:
            arena.snapshot("s", name)
    match = r"^1 of 3 arenas are not saved, the others are: 'held' of uid \d+ \("
    with attach("held") as arena, freeze(arena.descriptor(), 1), pytest.raises(errors.BusyError, match=match):
        upgrade.save(tmp_path)
    found, problems = SavedArenas(tmp_path).find()
    assert ({saved.record.name for saved in found}, problems) == ({"a", "z"}, [])
