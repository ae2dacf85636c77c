"""``python -m tests.bench [PART]``: runs groups, prints the table, writes ``build/bench/results.json`` and ``.png``."""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from persistmem.attachment import stop_agent
from tests.bench import alternatives, app, arrays, attaching, imports, records, report, serving
from tests.bench.cache import groups as cache_groups
from tests.bench.cache.requests import TRACE_VARIABLE
from tests.bench.harness import FULL, QUICK, Row, Sizes, any_missed

GROUPS: dict[str, Callable[[Sizes], Iterator[Row]]] = {
    "records": records.measure,
    "arrays": arrays.measure,
    "attach": attaching.measure,
    "start": imports.measure,
    "alternatives": alternatives.measure,
}
APP_GROUPS: dict[str, Callable[[Sizes], Iterator[Row]]] = {"app": app.measure, "memcached": serving.measure}
PARTS = {"arenas": list(GROUPS), "apps": list(APP_GROUPS), "cache": list(cache_groups.NAMES)}


def main() -> int:
    """Exit status 1 if a bound is missed; never in quick mode, whose sizes the bounds are not for."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench")
    parser.add_argument("--quick", action="store_true", help="small sizes: shows that it runs, not how fast")
    parser.add_argument("part", choices=PARTS, nargs="?", help="everything, if none is named")
    parser.add_argument(
        "--only",
        choices=[*GROUPS, *APP_GROUPS, *cache_groups.NAMES],
        action="append",
        help="a group; may be given again",
    )
    parser.add_argument("--trace", type=Path, help=f"recorded requests, oracleGeneral; or say ${TRACE_VARIABLE}")
    parser.add_argument("--output", type=Path, default=Path("build/bench"), help="folder for JSON and plot")
    arguments = parser.parse_args()
    if arguments.trace:
        os.environ[TRACE_VARIABLE] = str(arguments.trace.absolute())
    chosen = PARTS[arguments.part] if arguments.part else [name for part in PARTS.values() for name in part]
    groups = GROUPS | APP_GROUPS | cache_groups.groups(arguments.output)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="persistmem-bench-") as runtime:
        os.environ["PERSISTMEM_RUNTIME_DIR"] = runtime
        os.environ["PERSISTMEM_STATE_DIR"] = f"{runtime}/state"
        # every process has compiled modules from its second run on, as a user's has, wherever they are installed
        os.environ["PYTHONPYCACHEPREFIX"] = f"{runtime}/bytecode"
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        try:
            for name in arguments.only or chosen:
                sys.stderr.write(f"{name} ...\n")
                sizes = QUICK if arguments.quick else FULL
                rows.extend(groups[name](sizes))
        finally:
            stop_agent(discard=True)
    quick = " (quick: smaller sizes, which the bounds are not for)" if arguments.quick else ""
    report.print_table(rows, title=f"persistmem benchmark{quick}")
    arguments.output.mkdir(parents=True, exist_ok=True)
    report.write_json(rows, arguments.output / "results.json")
    if any(row.bound for row in rows):
        report.plot(rows, arguments.output / "results.png")
    sys.stdout.write(f"{arguments.output}/results.json, {arguments.output}/results.png\n")
    return int(any_missed(rows) and not arguments.quick)


if __name__ == "__main__":
    sys.exit(main())
