"""The app as its users start it, with an agent of its own."""

import pytest

from tests.cli.conftest import cli
from tests.cli.support import CommandLine

from .support import App

__all__ = ["app", "cli"]


@pytest.fixture
def app(cli: CommandLine) -> App:
    """``python -m apps.vectors``, with hashed n-grams."""
    return App(cli)
