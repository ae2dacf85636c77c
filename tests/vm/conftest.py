"""Boots what the selected tests need, two machines at a time, and keeps what their consoles said for who failed."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from .machine import Job, Run, boot
from .requirements import MissingError, install_programs

AT_ONCE = 2
"""Emulated machines that run side by side; each is as fast as one core of this one."""

Runs = dict[Job, Future[Run]]


@pytest.fixture(scope="session")
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    """Every job that a selected test asks for, started."""
    params = [item.callspec.params for item in request.session.items if hasattr(item, "callspec")]
    jobs = dict.fromkeys(param["run"] for param in params if isinstance(param.get("run"), Job))
    try:
        install_programs()
    except MissingError as missing:
        pytest.skip(str(missing))
    with ThreadPoolExecutor(AT_ONCE) as pool:
        longest_first = sorted(jobs, key=lambda job: job.seconds_max, reverse=True)
        yield {job: pool.submit(boot, job, tmp_path_factory.mktemp("machine")) for job in longest_first}
        pool.shutdown(cancel_futures=True)


@pytest.fixture(scope="session")
def run(request: pytest.FixtureRequest, runs: Runs) -> Run:
    """What came of the job that the test is parametrized with; skips the test if its kernels cannot be had."""
    try:
        return runs[request.param].result()
    except MissingError as missing:
        pytest.skip(str(missing))


@pytest.fixture(autouse=True)
def console(request: pytest.FixtureRequest) -> None:
    """Show the console's log beside the failure of a test."""
    if "run" in request.fixturenames:
        machine: Run = request.getfixturevalue("run")
        request.node.add_report_section("setup", "console", machine.console)
