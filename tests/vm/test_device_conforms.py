"""The real device does what the conformance suite says, on each kernel and from one to the other."""

import pytest

from tests.conformance import memfd_cases, session_cases
from tests.conformance.machine import STAGES, cases

from .machine import Job, Run

pytestmark = pytest.mark.vm

PAIRS = [("7.2.13", "7.2.13"), ("7.3.4", "7.3.4"), ("7.2.13", "7.3.4")]
JOBS = [Job("tests.vm.conformance_guest", pair) for pair in PAIRS]
CASES = [
    pytest.param(stage, name, id=f"{name}-{stage}-the-kexec")
    for stage in STAGES
    for name in cases(stage, session_cases, memfd_cases)
]


@pytest.mark.parametrize("run", JOBS, indirect=True, ids=lambda job: "-to-".join(job.kernels))
@pytest.mark.parametrize(("stage", "name"), CASES)
def test_seen_of_the_kernel(run: Run, stage: str, name: str) -> None:
    outcomes = [report[2] for report in run.reports if report[:2] == [stage, name]]
    assert outcomes, "it was not run"
    assert outcomes == [None], outcomes[0]


@pytest.mark.parametrize("run", JOBS, indirect=True, ids=lambda job: "-to-".join(job.kernels))
def test_the_suite_ran_on_the_kernels_that_it_claims(run: Run, request: pytest.FixtureRequest) -> None:
    job: Job = request.node.callspec.params["run"]
    releases = [release for _, name, release in run.reports if name == "kernel"]
    assert releases == [f"{version}-luo" for version in job.kernels]
