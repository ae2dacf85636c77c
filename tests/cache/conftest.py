"""An agent of their own for the tests that go through a kernel upgrade."""

from tests.agent.conftest import program, runtime

__all__ = ["program", "runtime"]
