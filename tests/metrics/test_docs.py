"""``docs/metrics.md``: its table is the code's, and its alerts do what they say."""

import json
import re
import subprocess
from pathlib import Path

from persistmem.metrics.families import FAMILIES
from tests.cli.support import PATIENCE

from .support import ROOT, check_expressions, check_rules, needs

PAGE = (ROOT / "docs/metrics.md").read_text(encoding="utf-8")
(RULES,) = (block for block in re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE) if "alert:" in block)


def test_the_table_is_what_is_exported() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (.*?) ?\| (.*) \|$", PAGE, re.MULTILINE)
    documented = [(name, kind, tuple(re.findall(r"`(\w+)`", labels)), text) for name, kind, labels, text in rows]
    assert documented == [(family.name, family.kind, family.labels, family.help) for family in FAMILIES]


def test_the_rules_are_of_metrics_that_there_are_and_prometheus_takes_them(tmp_path: Path) -> None:
    check_expressions(re.findall(r"expr: (.*)", RULES.replace("expr: |\n", "expr: ")))
    assert set(re.findall(r"\bpersistmem_\w+", RULES)) <= {family.name for family in FAMILIES}
    check_rules(tmp_path, RULES)


FIRING = {
    "PersistmemAgentDown": (
        {'persistmem_agent_up{instance="host:9876"}': "0x60"},
        {"instance": "host:9876"},
        "No agent of persistmem answers on host:9876.",
    ),
    "PersistmemArenaDamaged": (
        {'persistmem_arena_damaged{arena="shop"}': "1x60"},
        {"arena": "shop"},
        "Arena shop is damaged: run 'persistmem verify' for it.",
    ),
    "PersistmemCacheDamaged": (
        {'persistmem_cache_damaged_records_total{arena="shop", cache="pages"}': "0x30 1x30"},
        {"arena": "shop", "cache": "pages"},
        "Cache shop/pages met damaged records: check the machine's memory.",
    ),
    "PersistmemArenaNearlyFull": (
        {
            'persistmem_arena_used_bytes{arena="shop"}': "195x60",
            'persistmem_arena_region_bytes{arena="shop"}': "100x60",
            'persistmem_arena_size_bytes{arena="shop"}': "200x60",
        },
        {"arena": "shop"},
        "Arena shop is 95% full: the next snapshot may find no room.",
    ),
    "PersistmemSnapshotTooOld": (
        {'persistmem_arena_last_snapshot_timestamp_seconds{arena="shop"}': "-600x60"},
        {"arena": "shop"},
        "The last snapshot in arena shop is 1h 10m 0s old.",
    ),
    "PersistmemHandoverLostArenas": (
        {'persistmem_last_handover_arenas{outcome="lost"}': "2x60"},
        {"outcome": "lost"},
        "The last kernel upgrade lost 2 arenas: 'persistmem history' names them, and says why.",
    ),
    "PersistmemArenasMissing": (
        {"persistmem_missing_arenas": "2x60"},
        {},
        "The agent was killed, and nobody has handed back 2 of its arenas.",
    ),
    "PersistmemNotRead": (
        {"persistmem_scrape_errors": "1x60"},
        {},
        "Damaged, or not to be read: 1. The log of 'persistmem metrics' says what, and why.",
    ),
}
"""What makes each alert fire within an hour, with which labels, and what it says."""

QUIET = {
    "persistmem_agent_up": "1x60",
    'persistmem_arena_damaged{arena="shop"}': "0x60",
    'persistmem_cache_damaged_records_total{arena="shop", cache="cache"}': "7x60",
    'persistmem_arena_used_bytes{arena="shop"}': "1015x60",
    'persistmem_arena_region_bytes{arena="shop"}': "1000x60",
    'persistmem_arena_size_bytes{arena="shop"}': "1048x60",
    'persistmem_arena_last_snapshot_timestamp_seconds{arena="shop"}': "0+60x60",
    'persistmem_last_handover_arenas{outcome="lost"}': "0x60",
    'persistmem_last_handover_arenas{outcome="memory"}': "2x60",
    "persistmem_missing_arenas": "0x60",
    "persistmem_scrape_errors": "0x60",
}
"""An hour in which nothing is wrong, though a cache has all of its arena."""


def case(alert: str, series: dict[str, str], expected: list[dict[str, object]]) -> dict[str, object]:
    return {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "alert_rule_test": [{"eval_time": "1h", "alertname": alert, "exp_alerts": expected}],
    }


def test_alerts_fire_when_they_should_and_only_then(tmp_path: Path) -> None:
    assert list(FIRING) == re.findall(r"alert: (\w+)", RULES)
    cases = [case(alert, QUIET, []) for alert in FIRING]
    for alert, (series, labels, summary) in FIRING.items():
        cases.append(case(alert, series, [{"exp_labels": labels, "exp_annotations": {"summary": summary}}]))
    (tmp_path / "rules.yml").write_text(RULES)
    (tmp_path / "test.yml").write_text(
        json.dumps({"rule_files": ["rules.yml"], "evaluation_interval": "1m", "tests": cases})
    )
    command = [needs("promtool"), "test", "rules", "test.yml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
