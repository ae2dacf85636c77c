"""Hit ratio and backend calls over time, with the upgrades marked, as a picture. Measures nothing."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from apps.memcached.fleet_load import STEP, Step
from apps.memcached.fleet_report import MEMCACHED, PERSISTMEM, Summary, Upgrade

# Okabe and Ito's palette: told apart by colour-blind readers, and by line style in grey.
_STYLES: Final = {PERSISTMEM: ("#0072B2", "-", 2.0), MEMCACHED: ("#D55E00", (0, (4, 1.2)), 1.6)}


def draw(
    steps: Mapping[str, Sequence[Step]],
    summaries: Mapping[str, Summary],
    upgrades: Sequence[Upgrade],
    path: Path,
) -> None:
    """Draw ``steps`` of each fleet into ``path``; its suffix says which format, as matplotlib knows them.

    Raises:
        OSError: it cannot be written there.
        ValueError: a format that matplotlib does not know.

    """
    import matplotlib as mpl  # noqa: PLC0415 - an extra, and slow to import

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure, (above, below) = plt.subplots(
        2, 1, figsize=(10, 6.4), sharex=True, layout="constrained", height_ratios=(3, 2)
    )
    for fleet, counted in steps.items():
        colour, line, width = _STYLES[fleet]
        style = {"color": colour, "linestyle": line, "linewidth": width, "drawstyle": "steps-post"}
        times = [index * STEP for index in range(len(counted))]
        caused = f"{summaries[fleet].caused:,} backend calls due to the upgrade"
        above.plot(
            times, [100 * step.hits / step.requests if step.requests else float("nan") for step in counted],
            label="with persistmem" if fleet == PERSISTMEM else "plain memcached", **style,
        )  # fmt: skip
        below.plot(times, [step.backend_calls / STEP for step in counted], label=caused, **style)
    for ax in (above, below):
        for upgrade in upgrades:
            ax.axvspan(upgrade.begun, upgrade.ended, color="#BBBBBB", alpha=0.5, linewidth=0)
        ax.grid(axis="y", color="#E4E4E4", linewidth=0.8)
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_visible(False)
        ax.legend(frameon=False, fontsize=10, loc="lower right" if ax is above else "upper right")
    for upgrade in upgrades:
        above.annotate(
            f"node {upgrade.node + 1}:\nnew kernel", ((upgrade.begun + upgrade.ended) / 2, 1), (0, 3),
            xycoords=("data", "axes fraction"), textcoords="offset points", ha="center", va="bottom", fontsize=9,
        )  # fmt: skip
    above.set_ylabel("hit ratio, %")
    above.set_ylim(top=100)
    below.set_ylabel("backend calls per second")
    below.set_ylim(bottom=0)
    below.set_xlabel("seconds; shaded: the node is down, in both fleets")
    below.set_xlim(0, max(len(counted) for counted in steps.values()) * STEP)
    figure.suptitle("A rolling kernel upgrade of a cache fleet, node by node", fontsize=13)
    figure.savefig(path, dpi=130)
    plt.close(figure)
