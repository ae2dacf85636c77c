"""Hit ratios and first hits, for people: tables and plots. Measures nothing."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from rich import box
from rich.console import Console
from rich.table import Table

from tests.bench.cache.results import OURS, HitRatios, Reattached

_STYLES: Final = {
    OURS: ("#1f4e8c", "-", 2.4),
    "S3-FIFO": ("#e07b39", "-", 1.3),
    "SIEVE": ("#3a7d44", "-", 1.3),
    "ARC": ("#8a5a9e", "-", 1.3),
    "CLOCK": ("#999999", "--", 1.3),
    "LRU": ("#444444", ":", 1.3),
    "Belady": ("#c8553d", "--", 1.0),
}


def print_hits(found: HitRatios) -> None:
    """Print one workload's ratios, by policy and size."""
    table = Table(
        box=box.SIMPLE,
        title=f"hit ratio, {found.workload}: {found.requests:,} requests for {found.objects:,} objects",
        caption="a size is how many objects fit, and what part of all; Belady's policy knows the future",
    )
    table.add_column("policy")
    for size in found.sizes:
        table.add_column(f"{size:,}\n{size / found.objects:.1%}", justify="right")
    for policy in sorted(found.ratios, key=lambda policy: found.ratios[policy]):
        style = "bold" if policy == OURS else None
        table.add_row(policy, *(f"{ratio:.2%}" for ratio in found.ratios[policy]), style=style)
    Console(width=None if Console().is_terminal else 120).print(table)


def plot_hits(results: Sequence[HitRatios], path: Path) -> None:
    """Draw the ratios by size, a panel for each workload."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    columns = min(3, len(results))
    lines = -(-len(results) // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(4.6 * columns, 3.6 * lines), layout="constrained", squeeze=False
    )
    for ax in axes.flat[len(results) :]:
        ax.set_visible(False)
    for ax, found in zip(axes.flat, results, strict=False):
        parts = [100 * size / found.objects for size in found.sizes]
        for policy, (colour, line, width) in _STYLES.items():
            if policy in found.ratios:
                ax.plot(
                    parts, found.ratios[policy], label=policy, color=colour,
                    linestyle=line, linewidth=width, marker="." if policy == OURS else None,
                    zorder=3 if policy == OURS else 2,
                )  # fmt: skip
        ax.set_xscale("log")
        ax.set_title(found.workload, fontsize=10)
        ax.set_ylim(bottom=0)
        ax.xaxis.set_major_formatter(lambda value, _: f"{value:.2g}" if value < 1 else f"{value:.0f}")
        ax.xaxis.set_minor_formatter(lambda *_: "")
        ax.set_xticks(parts)
        ax.tick_params(labelsize=8)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0, 0].legend(fontsize=8, frameon=False)
    figure.supxlabel("objects that fit, in per cent of all", fontsize=9)
    figure.supylabel("hit ratio", fontsize=9)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def plot_reattached(results: Sequence[Reattached], path: Path) -> None:
    """Draw the time to the first value of each store."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, ax = plt.subplots(figsize=(9, 0.6 * len(results) + 1.4), layout="constrained")
    medians = [1e3 * statistics.median(found.seconds) for found in results]
    positions = range(len(results))
    colours = ["#1f4e8c" if found.store == OURS else "#999999" for found in results]
    ax.barh(positions, medians, color=colours, height=0.6)
    for position, found, median in zip(positions, results, medians, strict=True):
        told = f"{median:,.3g} ms" if median < 1000 else f"{median / 1000:,.3g} s"
        ax.annotate(
            told, (max(found.seconds) * 1e3, position), (6, 0),
            textcoords="offset points", va="center", fontsize=9,
        )  # fmt: skip
        ax.plot(
            [1e3 * value for value in found.seconds], [position] * len(found.seconds), "|", color="black", markersize=7
        )
    ax.set_xscale("log")
    ax.set_xlim(right=max(medians) * 4)
    ax.axvline(5, color="#c8553d", linewidth=1, linestyle="--")
    ax.set_yticks(positions, [f"{found.store}\n{found.note}" for found in results], fontsize=8)
    ax.invert_yaxis()
    ax.set_xlabel("milliseconds, logarithmic; the dashed line is what persistmem promises", fontsize=8)
    ax.set_title(f"a new process's first value from {results[0].items:,} items that were there before", fontsize=10)
    ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    plt.close(figure)
