"""Draws ``docs/grafana-dashboard.png``: what the dashboard's queries return, in each panel's place. Not Grafana's look.

Two minutes in the life of a shop, with a kernel upgrade in their midst, scraped by a real Prometheus.
"""

import json
import os
import random
import shutil
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import persistmem
from persistmem.attachment import simulate_reboot, stop_agent
from tests.cli.support import CommandLine

from .support import ROOT, Endpoint, Prometheus
from .test_dashboard import DASHBOARD, PANELS, chosen

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SECONDS: Final = 120
INTERVAL: Final = "10s"
COLUMN, LINE = 0.72, 0.36
"""Inches of a panel's units."""


def live(seconds: float) -> None:
    """A cache that is too small for its keys, and snapshots of two applications."""
    draw = random.Random(1)
    until = time.monotonic() + seconds
    with (
        persistmem.Cache("pages", "8MiB") as cache,
        persistmem.attach("carts", "16MiB") as carts,
        persistmem.attach("profiles", "64MiB") as profiles,
    ):
        carts.snapshot("open", bytes(2 << 20))
        profiles.snapshot("all", draw.randbytes(9 << 20))
        while (now := time.monotonic()) < until:
            for _ in range(400):
                key = int(draw.paretovariate(0.35))
                if cache.get(key) is None:
                    cache.set(key, bytes(500), ttl=30 if key % 10 == 0 else None)
            if draw.random() < 0.01:
                carts.snapshot("open", draw.randbytes(1 << 20))
            time.sleep(max(0.0, 0.02 - (time.monotonic() - now)))


def ask(prometheus: Prometheus, expression: str, start: float, end: float) -> list[dict[str, Any]]:
    """What a range query returns, with a point for each second."""
    arguments = urllib.parse.urlencode({"query": expression, "start": start, "end": end, "step": "1s"})
    with urllib.request.urlopen(f"{prometheus.url}query_range?{arguments}") as answer:
        found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
    return found


def legend(pattern: str, metric: dict[str, str]) -> str:
    for label, value in metric.items():
        pattern = pattern.replace(f"{{{{{label}}}}}", value)
    return pattern


def shown(value: float, unit: str) -> str:
    match unit:
        case "bytes":
            return f"{value / 2**20:.1f} MiB"
        case "percentunit":
            return f"{value:.0%}"
        case "s":
            return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.0f} ms"
        case "ops":
            return f"{value:,.0f}/s"
        case "dateTimeFromNow":
            return f"{time.time() - value / 1e3:.0f} s ago"
    return f"{value:,.0f}"


def draw_stat(axes: "Axes", panel: dict[str, Any], prometheus: Prometheus) -> None:
    target, defaults = panel["targets"][0], panel["fieldConfig"]["defaults"]
    (found,) = prometheus.query(chosen(target["expr"], INTERVAL))
    value = float(found["value"][1])
    text = legend(target["legendFormat"], found["metric"]) or f"{value:g}"
    color = "tab:blue"
    for mapping in defaults.get("mappings", []):
        text, color = (mapping["options"][text][name] for name in ("text", "color"))
    for step in defaults.get("thresholds", {"steps": []})["steps"]:
        if "mappings" not in defaults and (step["value"] is None or value >= step["value"]):
            color = f"tab:{step['color']}"
    axes.axis("off")
    axes.text(0.5, 0.4, text, ha="center", va="center", fontsize=11 if len(text) > 9 else 20, color=color)


def draw_series(axes: "Axes", panel: dict[str, Any], prometheus: Prometheus, start: float, end: float) -> None:
    unit = panel["fieldConfig"]["defaults"]["unit"]
    for target in panel["targets"]:
        for found in ask(prometheus, chosen(target["expr"], INTERVAL), start, end):
            label = legend(target["legendFormat"], found["metric"])
            moments = [float(moment) - start for moment, _ in found["values"]]
            axes.plot(moments, [float(value) for _, value in found["values"]], label=label)
    axes.set_ylim(0, panel["fieldConfig"]["defaults"].get("max"))
    axes.yaxis.set_major_formatter(lambda value, _: shown(value, unit))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0f} s")
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.2)
    axes.legend(fontsize=6, loc="best")


def draw_bars(axes: "Axes", panel: dict[str, Any], prometheus: Prometheus) -> None:
    target, unit = panel["targets"][0], panel["fieldConfig"]["defaults"]["unit"]
    found = prometheus.query(chosen(target["expr"], INTERVAL))
    values = [float(each["value"][1]) for each in found]
    bars = axes.barh([legend(target["legendFormat"], each["metric"]) for each in found], values)
    axes.bar_label(bars, [shown(value, unit) for value in values], fontsize=8, padding=3)
    axes.set_xlim(0, 1.2 * max(values))
    axes.tick_params(labelsize=8)
    axes.xaxis.set_visible(False)


def draw_table(axes: "Axes", panel: dict[str, Any], prometheus: Prometheus) -> None:
    """As its transformations merge and order it."""
    properties = {
        override["matcher"]["options"]: {each["id"]: each["value"] for each in override["properties"]}
        for override in panel["fieldConfig"]["overrides"]
    }
    rows: dict[str, dict[str, str]] = {}
    for target in panel["targets"]:
        column = f"Value #{target['refId']}"
        for found in prometheus.query(chosen(target["expr"], INTERVAL)):
            row = rows.setdefault(found["metric"]["arena"], {})
            row.update(found["metric"])
            about = properties.get(column, {})
            text = shown(float(found["value"][1]), about.get("unit", ""))
            (names,) = [mapping["options"] for mapping in about.get("mappings", [])] or [{}]
            row[column] = names[text]["text"] if text in names else text
    columns = panel["transformations"][1]["options"]["indexByName"]
    axes.axis("off")
    table = axes.table(
        [[row.get(column, "-") for column in columns] for _, row in sorted(rows.items())],
        colLabels=[properties[column]["displayName"] for column in columns],
        loc="center",
        cellLoc="left",
    )
    table.auto_set_font_size(False)
    table.set_fontsize(8)
    table.scale(1, 1.6)


def draw(prometheus: Prometheus, start: float, end: float, path: Path) -> None:
    """Draw all panels."""
    from matplotlib import pyplot, use

    use("Agg")
    height = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in PANELS)
    figure = pyplot.figure(figsize=(24 * COLUMN, height * LINE), dpi=80)
    for panel in PANELS:
        x, y, width, high = (panel["gridPos"][side] for side in ("x", "y", "w", "h"))
        if panel["type"] == "row":
            figure.text(0.01, 1 - (y + 0.7) / height, panel["title"], fontsize=13, weight="bold")
            continue
        low, top = (1.5, 1.2) if high > 4 else (0.2, 1)
        left = {"timeseries": 1.2, "bargauge": 1.4}.get(panel["type"], 0.2)
        axes = figure.add_axes(
            ((x + left) / 24, 1 - (y + high - low) / height, (width - left - 0.4) / 24, (high - low - top) / height)
        )
        axes.set_title(panel["title"], fontsize=9, loc="left")
        match panel["type"]:
            case "stat":
                draw_stat(axes, panel, prometheus)
            case "timeseries":
                draw_series(axes, panel, prometheus, start, end)
            case "bargauge":
                draw_bars(axes, panel, prometheus)
            case "table":
                draw_table(axes, panel, prometheus)
    figure.savefig(path)


def main() -> None:
    """Live, upgrade, live on, and draw."""
    runtime, work = (Path(tempfile.mkdtemp(prefix="persistmem-picture-")) for _ in range(2))
    os.environ["PERSISTMEM_RUNTIME_DIR"], os.environ["PERSISTMEM_STATE_DIR"] = str(runtime), str(work / "state")
    try:
        with (
            Endpoint(CommandLine(work, runtime), "0") as served,
            Prometheus(work, served.url.split("/")[2]) as prometheus,
        ):
            start = time.time()
            live(SECONDS / 2)
            simulate_reboot()
            live(SECONDS / 2)
            draw(prometheus, start + 5, time.time(), ROOT / "docs/grafana-dashboard.png")
    finally:
        stop_agent(discard=True)
        shutil.rmtree(runtime)
        shutil.rmtree(work)
    print(f"{DASHBOARD['title']}: drawn", file=sys.stderr)


if __name__ == "__main__":
    main()
