"""What importing persistmem, and asking its command line for help, costs in fresh interpreters."""

import subprocess
import sys
from collections.abc import Iterator

from tests.bench.harness import Bound, Row, Sizes, interleave, timed

GROUP = "start"

_TIMED = "import time; start = time.perf_counter(); {}; print(time.perf_counter() - start)"
_NUMPY = "import persistmem, sys; persistmem.Arena; print('numpy' in sys.modules)"


def measure(sizes: Sizes) -> Iterator[Row]:
    """The rows of this group."""

    def run(*arguments: str) -> str:
        command = [sys.executable, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def importing(statements: str) -> float:
        return float(run("-c", _TIMED.format(statements)))

    works = {
        "import persistmem": lambda: importing("import persistmem"),
        "everything": lambda: importing("import persistmem; persistmem.Arena"),
        "attach": lambda: importing("import persistmem; persistmem.attach"),
        "import msgpack, xxhash": lambda: importing("import msgpack, xxhash"),
    }
    samples = interleave(works, "import msgpack, xxhash", sizes.rounds_process)
    for work, name, bound in (
        ("import persistmem", "import persistmem", Bound("<=", 3)),
        ("everything", "import persistmem; persistmem.Arena", None),
        ("attach", "import persistmem; persistmem.attach", None),
    ):
        yield Row(
            GROUP, f"{name} / import msgpack, xxhash", samples.ratio(work), "x", bound, samples.noise(),
            f"{samples.median(work) * 1e3:.1f} ms / {samples.median('import msgpack, xxhash') * 1e3:.1f} ms",
            samples.seconds,
        )  # fmt: skip
    numpy = run("-c", _NUMPY).strip() == "True"
    yield Row(GROUP, "numpy imported by persistmem", float(numpy), "modules", Bound("<=", 0))

    helps = interleave(
        {
            "persistmem --help": lambda: timed(lambda: run("-m", "persistmem", "--help")),
            "typer": lambda: timed(lambda: run("-m", "tests.bench.two_commands", "--help")),
            "python -c pass": lambda: timed(lambda: run("-c", "pass")),
        },
        "typer",
        sizes.rounds_process,
    )
    yield Row(
        GROUP, "persistmem --help / a two-command typer program's", helps.ratio("persistmem --help"), "x",
        Bound("<=", 1.25), helps.noise(),
        f"{helps.median('persistmem --help') * 1e3:.0f} ms / {helps.median('typer') * 1e3:.0f} ms, of which the "
        f"interpreter {helps.median('python -c pass') * 1e3:.0f} ms", helps.seconds,
    )  # fmt: skip
