"""The map shows what is there: nothing small disappears, and what shares memory shares a letter."""

import persistmem.testing
from persistmem.cli.map import draw


def symbols(arena: persistmem.Arena, width: int = 75) -> str:
    drawn = draw(arena.pieces(), arena.size, width)
    return "".join(cell.symbol for _, cells in drawn.rows for cell in cells)


def legend(arena: persistmem.Arena) -> dict[str, tuple[str, str, int]]:
    drawn = draw(arena.pieces(), arena.size, 75)
    return {entry.mark.symbol: (entry.mark.what, entry.mark.generations, entry.size) for entry in drawn.legend}


def test_a_small_snapshot_in_a_large_arena_is_on_the_map() -> None:
    arena = persistmem.testing.new_arena("1GiB")
    arena.region("cache", 512 << 20)
    arena.snapshot("tiny", b"x" * 100_000)
    assert set(symbols(arena)) == set("ab.")


def test_generations_have_letters_of_their_own_and_one_for_what_they_share() -> None:
    arena = persistmem.testing.new_arena("1MiB")
    shared = bytes(50_000)
    arena.snapshot("carts", [shared, b"x" * 20_000])
    arena.snapshot("carts", [shared, b"y" * 20_000])
    described = {(what, generations) for what, generations, _ in legend(arena).values() if what == "carts"}
    assert described == {("carts", "2"), ("carts", "1"), ("carts", "2, 1")}


def test_the_legend_accounts_for_all_but_what_alignment_costs() -> None:
    arena = persistmem.testing.new_arena("256KiB")
    for number in range(5):
        arena.snapshot("carts", bytes([number]) * 30_000)
    accounted = sum(size for _, _, size in legend(arena).values())
    assert arena.size - 64 * len(arena.pieces()) <= accounted <= arena.size


def test_more_snapshots_than_letters_are_all_in_the_legend_total() -> None:
    arena = persistmem.testing.new_arena("1MiB")
    for number in range(40):
        arena.snapshot(f"s{number:02}", bytes([number]) * 5000)
    described = legend(arena)
    assert described["+"][2] == 14 * 5000
    assert {"a", "z"} <= described.keys()


def test_a_terminal_of_no_width_still_gets_a_map() -> None:
    assert len(symbols(persistmem.testing.new_arena("64KiB"), width=0)) == 8 * 16
