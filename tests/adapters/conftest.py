"""An agent of their own for each module's tests; Django's settings; the marker of dogpile's tests."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import django
import pytest
from django.conf import settings

from persistmem.attachment import agent_status, stop_agent
from tests.waiting import readable

PATIENCE = 30


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "time_intensive: dogpile.testing's name for tests that take seconds")
    settings.configure(
        SECRET_KEY="not a secret",
        USE_TZ=True,
        ALLOWED_HOSTS=["testserver"],
        INSTALLED_APPS=["django.contrib.sessions"],
        TEMPLATES=[{"BACKEND": "django.template.backends.django.DjangoTemplates"}],
    )
    django.setup()


@pytest.fixture(scope="module", autouse=True)
def agent() -> Iterator[None]:
    """A runtime directory that only this module uses; what its agent keeps is discarded in the end."""
    runtime = Path(tempfile.mkdtemp(prefix="persistmem-test-"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PERSISTMEM_RUNTIME_DIR", str(runtime))
        yield
        status = agent_status()
        if status is not None:
            process = os.pidfd_open(status.pid)
            stop_agent(discard=True)
            assert readable(process, seconds=PATIENCE), "the agent does not end"
            os.close(process)
    shutil.rmtree(runtime)
