"""What a program finds when it starts is one line of its log, which tools can read."""

import os

from hypothesis import given
from hypothesis import strategies as st

import persistmem
from persistmem.agent.paths import RuntimeDirectory
from persistmem.app.found import log_line
from persistmem.attachment import simulate_reboot

from ..agent.conftest import runtime as runtime  # noqa: PLC0414 - a fixture
from .support import StartScript, damage, parse_log

PROGRAM = """
import logging, sys
import persistmem

logging.basicConfig(format='%(message)s', level=logging.INFO)
app = persistmem.App(sys.argv[1], '1MiB', interval=0, others='read')
app.state(version=int(sys.argv[2]))(dict)
if int(sys.argv[2]) == 2:
    app.migrate(1)(lambda old: old)
with app:
    print(app.found.seconds, flush=True)
    sys.stdin.readline()
    if app.is_writer:
        app.state['n'] = app.state.get('n', 0) + 1
"""


def line_of(script: StartScript, name: str, version: int = 1) -> dict[str, str]:
    running = script(PROGRAM, name, str(version))
    seconds = float(running.line())
    running.say()
    assert running.end() == 0, running.errors
    lines = running.errors.splitlines()
    assert len(lines) == 1
    fields = parse_log(lines[0])
    assert fields.pop("ms") == f"{1000 * seconds:.1f}"
    return fields


def test_each_case_has_its_fields(script: StartScript, runtime: RuntimeDirectory) -> None:
    kernel = f"{os.uname().release}+sim1"
    same = {"app": "shop", "role": "writer", "kernel": kernel}
    assert line_of(script, "shop") == {**same, "state": "fresh", "arena": "created", "version": "1"}

    restored = line_of(script, "shop")
    assert persistmem.attach("shop").history("state")[-1].created.isoformat(timespec="seconds") == restored.pop("saved")
    same |= {"arena": "reattached", "saved_by": kernel}
    assert restored == {**same, "state": "restored", "generation": "1", "version": "1"}

    migrated = line_of(script, "shop", 2)
    assert migrated.pop("saved")
    assert migrated == {**same, "state": "migrated", "generation": "2", "version": "2", "migrated_from": "1"}

    simulate_reboot("7.3.4")
    carried = line_of(script, "shop", 2)
    assert carried.pop("saved")
    same |= {"arena": "carried over", "kernel_from": kernel, "kernel": "7.3.4"}
    assert carried == {**same, "state": "restored", "generation": "3", "version": "2"}

    damage("shop", 4)
    fell_back = line_of(script, "shop", 2)
    assert fell_back.pop("saved")
    assert "generation 4: checksum mismatch at byte" in fell_back.pop("damage")
    assert fell_back == {**same, "state": "fell back", "generation": "3", "version": "2"}

    writer = script(PROGRAM, "shop", "2")
    writer.line()
    assert line_of(script, "shop", 2)["role"] == "reader"


def test_program_without_a_log_is_not_bothered(script: StartScript, name: str) -> None:
    code = """
import sys
import persistmem
app = persistmem.App(sys.argv[1], '1MiB')
app.state(version=1)(dict)
with app:
    print('logging' in sys.modules, flush=True)
"""
    running = script(code, name)
    assert running.line() == "False"
    assert running.end() == 0
    assert running.errors == ""


def test_program_without_a_log_hears_of_damage_all_the_same(script: StartScript, name: str) -> None:
    app = persistmem.App(name, "1MiB", interval=0)
    app.state(version=1)(int)
    with app:
        app.save()
        app.state = 2
    damage(name, 2)
    code = """
import sys
import persistmem
app = persistmem.App(sys.argv[1])
app.state(version=1)(int)
with app: pass
"""
    running = script(code, name)
    assert running.end() == 0
    assert parse_log(running.errors.strip())["state"] == "fell back"


def test_names_and_texts_of_every_kind_can_be_read_back() -> None:
    found = persistmem.Found(
        'say "hi" = \\o/ \n\ttwo',
        persistmem.Origin("carried over", "7.2 é", "7.3"),
        "reader",
        1,
        damage=('commit slot 0: "quoted"', "a\nnew line", ""),
    )
    fields = parse_log(str(found))
    assert fields["app"] == 'say "hi" = \\o/ \n\ttwo'
    assert fields["damage"] == 'commit slot 0: "quoted"; a\nnew line; '
    assert (fields["kernel_from"], fields["kernel"]) == ("7.2 é", "7.3")


@given(st.dictionaries(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), st.text(), max_size=4))
def test_any_text_can_be_read_back_and_is_one_line(fields: dict[str, str]) -> None:
    line = log_line(dict(fields))
    assert len(line.splitlines()) <= 1
    assert line.isprintable()
    assert parse_log(line) == fields
