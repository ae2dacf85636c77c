"""The service in docs/systemd.md is one: its program and its unit run as they are written there."""

import re
from pathlib import Path

from persistmem.carriers.unit import PRESERVE_VERSION

from .manager import ServiceManager

PAGE = Path(__file__).parents[2] / "docs/systemd.md"
TELL = "import json; print(json.dumps([arena.origin.kind, len(seen)]), flush=True)\n"


def test_the_service_in_twelve_lines_has_its_state_again(manager: ServiceManager) -> None:
    text = PAGE.read_text()
    program, unit = (re.findall(rf"```{kind}\n(.*?)```", text, re.DOTALL)[0] for kind in ("python", "ini"))
    assert len([line for line in (program + unit).splitlines() if line]) == 12
    loop = program.index("while True:")
    settings = unit.partition("shop.py\n")[2].partition("[Install]")[0]
    if manager.version < PRESERVE_VERSION:
        settings += "Environment=PERSISTMEM_CARRIER=systemd\n"
    manager.run_program(program[:loop] + TELL + program[loop:], settings)
    assert manager.line() == ["created", 0]
    manager.systemctl("restart", "shop.service")
    kind, count = manager.line()
    assert kind == "reattached"
    assert count >= 1
