"""Finding an application's state in its arena: the newest sound generation, built and migrated. Reads only."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from persistmem.app.declaration import Declaration
from persistmem.app.watched import Changes
from persistmem.arena import Arena, Generation
from persistmem.errors import CorruptError, DamageWarning, NotFoundError

SNAPSHOT = "state"
"""What an application's state is called in its arena."""


@dataclass(frozen=True, slots=True)
class StateDamage:
    """What failed its check when an application's state was read."""

    problems: tuple[str, ...]
    """One for each generation, or commit, that is damaged, newest first."""
    generation: int | None
    """The generation that is given instead; None if no sound one is left."""


class Loaded(NamedTuple):
    """A state, and where it is from."""

    state: object
    stored_version: int | None
    """Version that it was saved as; None if it is fresh."""
    generation: Generation | None
    damage: tuple[str, ...]


def load_state(
    arena: Arena, declaration: Declaration, changes: Changes, on_corrupt: Callable[[StateDamage], object] | None
) -> Loaded:
    """Return the newest sound state in ``arena``, or a fresh one if there never was any.

    Args:
        arena: where it is.
        declaration: what it is to be.
        changes: what takes notice of changes to it.
        on_corrupt: told if something is damaged. If nothing sound is left, the state is fresh once it has returned.

    Raises:
        CorruptError: no sound generation is left, and there is no ``on_corrupt``.
        NewerStateError, MigrationError: what is there is not for this program.
    """
    problems: list[str] = []
    while True:
        try:
            generations = arena.history(SNAPSHOT)
        except NotFoundError:
            return Loaded(declaration.fresh(changes), None, None, ())
        try:
            found = _first_sound(arena, generations, problems)
        except NotFoundError:
            problems.clear()  # the writer was faster; look again
            continue
        break
    damage = StateDamage(tuple(problems), found[1].number if found is not None else None)
    if found is None and on_corrupt is None:
        raise CorruptError(
            f"state: no sound generation is left ({'; '.join(problems)}); nothing was changed: start anew by removing"
            " the snapshot, or declare what to do with on_corrupt"
        )
    if problems and on_corrupt is not None:
        on_corrupt(damage)
    if found is None:
        return Loaded(declaration.fresh(changes), None, None, damage.problems)
    state, stored_version = declaration.load(found[0], changes)
    return Loaded(state, stored_version, found[1], damage.problems)


def _first_sound(arena: Arena, generations: list[Generation], problems: list[str]) -> tuple[object, Generation] | None:
    for generation in generations:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", DamageWarning)
            try:
                found = arena.restore(SNAPSHOT, generation=generation.number)
            except CorruptError as error:
                problems.append(f"generation {generation.number}: {error}")
                continue
        problems.extend(str(warning.message) for warning in caught)  # of a commit: there were newer ones
        return found, generation
    return None
