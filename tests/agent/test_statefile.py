"""What an agent finds on disk: what the last one wrote, in this boot of the machine or in another; or nothing."""

import json
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import pytest

from persistmem.agent.records import ArenaRecord, Departure, RegistryDocument
from persistmem.agent.statefile import FORMAT, AgentState, Boot, machine_boot, read_state, write_state

ID = UUID("12345678-1234-5678-1234-567812345678")
NOON = datetime(2026, 7, 1, 12, tzinfo=UTC)
ARENAS = (ArenaRecord("carts", 0, 0, 0o600, 65536, ID, NOON, None),)


def state(machine: UUID, departure: Departure | None = None) -> AgentState:
    return AgentState(FORMAT, Boot(machine, ID, "7.3.4", "luo-v5"), RegistryDocument("7.3.4", ARENAS, (), departure))


def test_what_was_written_is_read(tmp_path: Path) -> None:
    for departure in (None, Departure(NOON, 0.5)):
        write_state(tmp_path / "state", state(machine_boot(), departure))
        assert read_state(tmp_path / "state") == state(machine_boot(), departure)
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_what_was_written_in_another_boot_of_the_machine_is_known_by_its_boot(tmp_path: Path) -> None:
    assert read_state(tmp_path / "state") is None
    write_state(tmp_path / "state", state(ID))
    found = read_state(tmp_path / "state")
    assert found is not None
    assert found.boot.machine == ID


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"format": 1}', "\0" * 100, "[" * 100_000])
def test_anything_else_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "state").write_text(content)
    with pytest.raises(ValueError, match=r"."):
        read_state(tmp_path / "state")


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    write_state(tmp_path / "state", state(machine_boot()))
    newer = json.loads((tmp_path / "state").read_text()) | {"format": FORMAT + 1}
    (tmp_path / "state").write_text(json.dumps(newer))
    with pytest.raises(ValueError, match="format: expected"):
        read_state(tmp_path / "state")
