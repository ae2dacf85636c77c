"""Starts and memory, drawn. Measures nothing."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from apps.vectors.memory import Memory

_OURS: Final = "#1f4e8c"
_OTHERS: Final = "#999999"
_SHADES: Final = ("#1f4e8c", "#4b78b3", "#7ea3d1", "#b3cbe6")
_GREYS: Final = ("#777777", "#949494", "#b1b1b1", "#cecece")


def plot_starts(seconds: Mapping[str, float], ours: Sequence[str], title: str, path: Path) -> None:
    """Draw how long each kind of start takes, on a logarithmic axis."""
    import matplotlib as mpl  # noqa: PLC0415 - it is an extra, and slow to import

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure, ax = plt.subplots(figsize=(9, 0.55 * len(seconds) + 1.3), layout="constrained")
    positions = range(len(seconds))
    bars = [1e3 * value for value in seconds.values()]
    ax.barh(positions, bars, height=0.6, color=[_OURS if name in ours else _OTHERS for name in seconds])
    for position, value in zip(positions, bars, strict=True):
        told = f"{value:,.2g} ms" if value < 100 else f"{value:,.0f} ms" if value < 1000 else f"{value / 1000:,.0f} s"
        ax.annotate(told, (value, position), (6, 0), textcoords="offset points", va="center", fontsize=9)
    ax.set_xscale("log")
    ax.set_xlim(1, max(bars) * 4)
    ax.set_yticks(positions, list(seconds), fontsize=9)
    ax.invert_yaxis()
    ax.set_xlabel("milliseconds until texts can be searched, logarithmic", fontsize=8)
    ax.set_title(title, fontsize=10)
    ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def plot_memory(memory: Mapping[str, Sequence[Memory]], ours: str, title: str, path: Path) -> None:
    """Draw what each set of processes takes together, and what it would take if nothing were shared."""
    import matplotlib as mpl  # noqa: PLC0415

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure, ax = plt.subplots(figsize=(9, 0.75 * len(memory) + 1.6), layout="constrained")
    for position, (name, processes) in enumerate(memory.items()):
        left = 0.0
        for number, process in enumerate(processes):
            shades = _SHADES if name == ours else _GREYS
            share = process.pss / (1 << 20)
            ax.barh(position, share, left=left, height=0.55, color=shades[number % len(shades)])
            left += share
        resident = sum(process.rss for process in processes) / (1 << 20)
        ax.barh(position, resident, height=0.55, fill=False, edgecolor="black", linewidth=0.8, linestyle=":")
        ax.annotate(
            f"{left:,.0f} MiB", (max(left, resident), position), (6, 0), textcoords="offset points",
            va="center", fontsize=9,
        )  # fmt: skip
    ax.set_yticks(range(len(memory)), list(memory), fontsize=9)
    ax.invert_yaxis()
    ax.set_xlim(right=1.12 * max(sum(each.rss for each in processes) for processes in memory.values()) / (1 << 20))
    ax.set_xlabel(
        "MiB: the shares (PSS) of all processes, one beside the other; dotted, the sum of their RSS", fontsize=8
    )
    ax.set_title(title, fontsize=10)
    ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    plt.close(figure)
