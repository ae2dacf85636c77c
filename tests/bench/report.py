"""The results for people and programs: a table, a JSON file, a plot. Measures nothing."""

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

from tests.bench.harness import Row


def print_table(rows: Sequence[Row], *, title: str) -> None:
    """Print every row, by group, with its bound and whether it is met."""
    table = Table(box=box.SIMPLE, title=title, caption=machine(), expand=True)
    for heading in ("work", "measured", "bound", "met", "noise", "note"):
        table.add_column(heading, justify="right" if heading in ("measured", "bound", "noise") else "left")
    group = ""
    for row in rows:
        if row.group != group:
            group = row.group
            table.add_section()
            table.add_row(f"[bold]{group}")
        met = {None: "", True: "[green]yes", False: "[bold red]NO"}[row.met]
        bound = "" if row.bound is None else f"{row.bound.relation} {_amount(row.bound.limit, row.unit)}"
        noise = "" if row.noise is None else f"{row.noise[0]:.2f}..{row.noise[1]:.2f}"
        table.add_row(row.work, _amount(row.value, row.unit), bound, met, noise, row.note)
    console = Console(width=None if Console().is_terminal else 160)
    console.print(table)
    console.print("noise: the reference against itself in the same rounds, 10th to 90th percentile; 1.00..1.00 is none")


def write_json(rows: Sequence[Row], path: Path) -> None:
    """Write everything that was measured."""
    results = [{**asdict(row), "met": row.met} for row in rows]
    path.write_text(json.dumps({"machine": machine(), "rows": results}, indent=1) + "\n")


def plot(rows: Sequence[Row], path: Path) -> None:
    """Draw how much of each bound is used up, and how the alternatives compare."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    bounded = [row for row in rows if row.bound is not None and row.bound.limit and row.value > 0]
    others = [row for row in rows if row.group == "alternatives"]
    panels = [
        ("measured / bound: left of the line is within it", [(row.work, _used(row), bool(row.met)) for row in bounded]),
        (
            "time of the alternative / time of persistmem: right of the line, persistmem is faster",
            [(row.work, row.value, row.value >= 1) for row in others],
        ),
    ]
    panels = [panel for panel in panels if panel[1]]
    lines = [len(panel[1]) + 2 for panel in panels]
    figure, axes = plt.subplots(
        len(panels), 1, figsize=(11, 0.3 * sum(lines) + 0.5), height_ratios=lines, layout="constrained", squeeze=False
    )
    for ax, (title, points) in zip(axes[:, 0], panels, strict=True):
        _draw(ax, points)
        ax.set_title(title, fontsize=11)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def machine() -> str:
    """What was measured on."""
    load = os.getloadavg()[0]
    return f"{os.cpu_count()} CPUs, Linux {platform.release()}, Python {platform.python_version()}, load {load:.1f}"


def _draw(axes: "Axes", points: Sequence[tuple[str, float, bool]]) -> None:
    labels, values, good = zip(*points, strict=True)
    positions = range(len(labels))
    colours = ["#3a7d44" if ok else "#c8553d" for ok in good]
    axes.set_xscale("log")
    axes.axvline(1, color="black", linewidth=1)
    axes.hlines(positions, 1, values, color=colours, linewidth=3)
    axes.scatter(values, positions, color=colours, zorder=3)
    for position, value in zip(positions, values, strict=True):
        axes.annotate(
            f"{value:.2g}", (value, position), (7 if value >= 1 else -7, 0), textcoords="offset points",
            va="center", ha="left" if value >= 1 else "right", fontsize=8,
        )  # fmt: skip
    axes.set_xlim(min(values) / 2, max(1.5, *values) * 1.6)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_formatter(lambda *_: "")
    axes.set_yticks(positions, labels, fontsize=8)
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)


def _used(row: Row) -> float:
    assert row.bound is not None
    return row.bound.limit / row.value if row.bound.relation == ">=" else row.value / row.bound.limit


def _amount(value: float, unit: str) -> str:
    return f"{value:.2f} x" if unit == "x" else f"{value:.3g} {unit}"
