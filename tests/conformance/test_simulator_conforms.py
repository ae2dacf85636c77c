"""The simulator does what was seen of the kernel, line by line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from persistmem.liveupdate.abi import MemfdAbi

from . import memfd_cases, session_cases
from .machine import STAGES, cases, is_kernels_alone

CASES = [
    pytest.param(
        stage,
        name,
        id=f"{name}-{stage}-the-kexec",
        marks=[pytest.mark.skip(reason="the kernel's alone; tests/vm shows it")] if is_kernels_alone(case) else [],
    )
    for stage in STAGES
    for name, case in cases(stage, session_cases, memfd_cases).items()
]

Outcomes = dict[tuple[str, str], str | None]


@pytest.fixture(scope="module", params=list(MemfdAbi), ids=lambda abi: abi.value)
def outcomes(request: pytest.FixtureRequest) -> Outcomes:
    """What each stage of each case came to, in one run on a simulated machine."""
    assert __package__
    package_root = Path(__file__).resolve().parents[__package__.count(".") + 1]
    paths = [str(package_root), *filter(None, [os.environ.get("PYTHONPATH")])]
    run = subprocess.run(
        [sys.executable, "-m", f"{__package__}.simulated", request.param.value],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    lines = [json.loads(line) for line in run.stdout.splitlines()]
    return {(stage, name): error for stage, name, error in lines}


@pytest.mark.parametrize(("stage", "name"), CASES)
def test_seen_of_the_kernel(outcomes: Outcomes, stage: str, name: str) -> None:
    assert (stage, name) in outcomes, "it was not run"
    assert outcomes[stage, name] is None, outcomes[stage, name]
