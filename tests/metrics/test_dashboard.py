"""``docs/grafana-dashboard.json``: Grafana takes it, and every panel shows something."""

import copy
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import persistmem
from persistmem.attachment import attach, simulate_reboot
from tests.cli.support import CommandLine

from .grafana import faults
from .support import ROOT, Prometheus, StartEndpoint, check_expressions, check_rules, make_shop

DASHBOARD: dict[str, Any] = json.loads((ROOT / "docs/grafana-dashboard.json").read_text())
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
VARIABLES: list[dict[str, Any]] = DASHBOARD["templating"]["list"]
INTERVAL = "$__rate_interval"
COLUMNS = 24


def expressions() -> Iterator[tuple[str, str]]:
    """Each query, and what it is for."""
    for panel in PANELS:
        for target in panel.get("targets", []):
            yield f"{panel['title']}, {target['refId']}", target["expr"]
    for annotation in DASHBOARD["annotations"]["list"]:
        yield annotation["name"], annotation["expr"]


def chosen(expression: str, interval: str) -> str:
    """As Grafana sends it, with everything chosen."""
    for variable in VARIABLES:
        expression = expression.replace(f"${variable['name']}", ".*")
    return expression.replace(INTERVAL, interval)


def test_grafanas_own_types_find_no_fault_with_it() -> None:
    assert faults(DASHBOARD) == []


@pytest.mark.parametrize(
    "spoil",
    [
        lambda dashboard: dashboard.update(panles=[]),
        lambda dashboard: dashboard.update(schemaVersion="39"),
        lambda dashboard: dashboard["panels"][0]["options"].update(colorMode="backgrund"),
        lambda dashboard: dashboard["panels"][0]["targets"][0].update(expresion="up"),
        lambda dashboard: dashboard["panels"][0]["gridPos"].update(x="left"),
    ],
)
def test_they_would_find_one(spoil: Callable[[dict[str, Any]], None]) -> None:
    spoiled = copy.deepcopy(DASHBOARD)
    spoil(spoiled)
    assert len(faults(spoiled)) == 1


def test_panels_have_ids_of_their_own_and_lie_side_by_side() -> None:
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    taken: dict[tuple[int, int], str] = {}
    for panel in PANELS:
        place = panel["gridPos"]
        assert 0 <= place["x"] <= place["x"] + place["w"] <= COLUMNS
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert (x, y) not in taken, f"{panel['title']} lies over {taken[x, y]}"
                taken[x, y] = panel["title"]


def test_it_asks_which_prometheus_and_uses_no_other() -> None:
    (source,) = (variable["name"] for variable in VARIABLES if variable["type"] == "datasource")
    expected = {"type": "prometheus", "uid": f"${{{source}}}"}
    asking = [panel for panel in PANELS if panel["type"] != "row"] + DASHBOARD["annotations"]["list"]
    asking += [target for panel in PANELS for target in panel.get("targets", [])]
    asking += [variable for variable in VARIABLES if variable["type"] == "query"]
    assert all(each["datasource"] == expected for each in asking)


def test_every_query_is_of_metrics_labels_and_variables_that_there_are(cli: CommandLine) -> None:
    found = dict(expressions())
    check_expressions(found.values())
    variables = {variable["name"] for variable in VARIABLES}
    for expression in found.values():
        assert set(re.findall(r"\$(\w+)", expression)) <= variables | {INTERVAL.removeprefix("$")}
    for variable in VARIABLES:
        if variable["type"] == "query":
            ((metric, label),) = re.findall(r"label_values\((.*), (\w+)\)", variable["query"]["query"])
            check_expressions([metric, f"by ({label}) {metric}"])
    rules = [{"record": "a:b", "expr": chosen(expression, "1m")} for expression in found.values()]
    check_rules(cli.directory, json.dumps({"groups": [{"name": "all", "rules": rules}]}))


def test_every_query_has_an_answer_from_a_prometheus_that_scrapes(cli: CommandLine, endpoint: StartEndpoint) -> None:
    make_shop()
    name = 'a "shop" \\ 日本'
    attach(name, "1MiB").close()
    target = endpoint().url.split("/")[2]
    with Prometheus(cli.directory, target) as prometheus:
        (found,) = prometheus.wait_for('persistmem_arena_info{arena=~".*shop.*日本"}')
        assert found["metric"]["arena"] == name
        assert (found["metric"]["instance"], found["metric"]["job"]) == (target, "persistmem")
        with persistmem.Cache("shop") as cache:
            cache.get("key 1")
        prometheus.wait_for("rate(persistmem_cache_hits_total[1m]) > 0")
        simulate_reboot()
        prometheus.wait_for("persistmem_handovers_total > 0")
        for _, expression in expressions():  # a scrape that was too slow leaves none an answer until the next
            prometheus.wait_for(chosen(expression, "1m"))
