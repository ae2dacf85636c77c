"""The fleets as they are now, for a terminal; where there is none, a line for each event. Measures nothing."""

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from apps.memcached.fleet_load import STEP, State, Visitors
from apps.memcached.fleet_report import PERSISTMEM, ratios

_BLOCKS: Final = " ▁▂▃▄▅▆▇█"
_LINES: Final = 4
_LOWEST: Final = 0.5
_STYLES: Final = {PERSISTMEM: "blue"}
_OTHER_STYLE: Final = "yellow"
_MARKS: Final = {State.UP: "●", State.STARTED: "◐", State.DOWN: "○"}


class Display:
    """Hit ratio, backend calls and nodes of each fleet, four times a second."""

    def __init__(self, console: Console, seconds: float) -> None:
        self._console = console
        self._seconds = seconds
        self._visitors: Mapping[str, Visitors] = {}
        self._clock: Callable[[], float] = lambda: 0.0
        self.doing = ""

    def watch(self, visitors: Mapping[str, Visitors], clock: Callable[[], float]) -> AbstractContextManager[object]:
        """Show them until the ``with`` ends."""
        self._visitors = visitors
        self._clock = clock
        if not self._console.is_terminal:
            return nullcontext()
        return Live(self, console=self._console, refresh_per_second=4)

    def say(self, event: str) -> None:
        """Tell what happened, in a line that stays."""
        self._console.print(f"{self._clock():6.1f} s  {event}", highlight=False, soft_wrap=True)

    def __rich__(self) -> RenderableType:
        now = self._clock()
        width = max(20, self._console.width - 8)
        parts: list[RenderableType] = []
        for fleet, visitors in self._visitors.items():
            parts += [self._headline(fleet, visitors, now), *self._chart(fleet, visitors, width), Text()]
        progress = Table.grid(padding=(0, 1))
        bar = ProgressBar(total=self._seconds, completed=min(now, self._seconds), width=width // 3)
        progress.add_row(bar, Text(f"{now:.0f} of {self._seconds:.0f} s", style="bold"), self.doing)
        return Group(*parts, progress)

    def _headline(self, fleet: str, visitors: Visitors, now: float) -> Text:
        whole = int(now / STEP)
        steps = visitors.steps[max(0, whole - round(1 / STEP)) : whole]
        ratio = next((f"{ratio:.1%}" for ratio in ratios(steps)[-1:] if not math.isnan(ratio)), "-")
        calls = round(sum(step.backend_calls for step in steps) / (len(steps) * STEP)) if steps else 0
        nodes = " ".join(_MARKS[state] for state in visitors.states)
        return Text.assemble(
            (f"{fleet:12}", f"bold {_style(fleet)}"),
            f"hit ratio {ratio:>6}   backend {calls:>5,} calls/s   nodes {nodes}",
        )

    def _chart(self, fleet: str, visitors: Visitors, width: int) -> list[Text]:
        """An area of blocks, from ``_LOWEST`` to a hit ratio of 1, over the whole time."""
        found = ratios(visitors.steps[: int(self._clock() / STEP)])
        steps = self._seconds / STEP
        columns = [found[int(column * steps / width)] for column in range(width) if column * steps / width < len(found)]
        eighths = [
            0 if math.isnan(ratio) else round(8 * _LINES * (max(ratio, _LOWEST) - _LOWEST) / (1 - _LOWEST))
            for ratio in columns
        ]
        lines = []
        for line in reversed(range(_LINES)):
            scale = {_LINES - 1: "100 %", 0: f"{_LOWEST * 100:3.0f} %"}.get(line, "")
            area = "".join(_BLOCKS[min(8, max(0, count - 8 * line))] for count in eighths)
            lines.append(Text.assemble((f"{scale:>6} ", "dim"), (area, _style(fleet))))
        return lines


def _style(fleet: str) -> str:
    return _STYLES.get(fleet, _OTHER_STYLE)
