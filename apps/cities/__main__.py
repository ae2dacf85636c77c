"""``python -m apps.cities QUERY...``: a query is a name, or a place such as 47.37,8.54 for the cities nearest to it."""

import argparse
import json
import re
import sys

from apps.cities.search import CitySearch, Hit
from apps.cities.startup import start

_PLACE = re.compile(r"\s*([-+]?\d+(?:\.\d+)?)\s*,\s*([-+]?\d+(?:\.\d+)?)\s*", re.ASCII)


def answer(search: CitySearch, query: str) -> list[Hit]:
    """What ``query`` finds."""
    place = _PLACE.fullmatch(query)
    return search.nearest(float(place[1]), float(place[2])) if place else search.named(query)


def main() -> None:
    """Start, answer, and say how long it took."""
    parser = argparse.ArgumentParser(prog="python -m apps.cities", description="Search the cities of the world.")
    parser.add_argument("queries", nargs="*", metavar="QUERY", help="a name, or a place: 47.37,8.54")
    parser.add_argument("--json", action="store_true", help="print one object, for a program")
    arguments = parser.parse_args()
    started = start()
    answers = {query: [str(hit) for hit in answer(started.search, query)] for query in arguments.queries}
    if arguments.json:
        origin = {"kind": started.origin.kind, "from": started.origin.kernel_from, "to": started.origin.kernel_to}
        report = {"ready": started.ready, "steps": started.steps, "origin": origin, "answers": answers}
        sys.stdout.write(json.dumps(report, ensure_ascii=False) + "\n")
        return
    steps = ", ".join(f"{name} {seconds * 1e3:.0f} ms" for name, seconds in started.steps.items())
    sys.stderr.write(f"arena {started.origin.kind}; {steps}\n")
    for query, hits in answers.items():
        sys.stdout.write(f"{query}: {'; '.join(hits) or 'nothing'}\n")


if __name__ == "__main__":
    # The queries may be in any script, and so may the answers, whatever the locale says.
    sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    main()
