"""``python -m tests.apps.dashboard.screenshots``: takes docs/dashboard.png and docs/dashboard-dark.png.

An application with a cache under load, a kernel upgrade, and the application again. Takes half a minute.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Final

from persistmem.attachment import stop_agent
from tests.agent.support import Program

from .browser import Browser, Page, chromium, expect
from .support import PATIENCE, ROOT, Dashboard

SECONDS: Final = 13.0
"""Seconds of load before the upgrade, and after it."""

LOAD: Final = f"""
import os, random, time
random.seed(os.getpid())
pages = persistmem.Cache("shop", namespace="pages")
end = time.monotonic() + {SECONDS}
while time.monotonic() < end:
    for key in (min(int(random.paretovariate(0.5)), 60_000) for _ in range(60)):
        if pages.get(key) is None:
            pages[key] = bytes(400)
    time.sleep(0.01)
"""


def main() -> None:
    """Take them."""
    parser = argparse.ArgumentParser(prog="python -m tests.apps.dashboard.screenshots", description=__doc__)
    parser.add_argument("directory", nargs="?", type=Path, default=ROOT / "docs", help="where to put them")
    directory = parser.parse_args().directory.absolute()
    with tempfile.TemporaryDirectory(prefix="persistmem-") as runtime:
        os.environ.update(PERSISTMEM_RUNTIME_DIR=runtime, PERSISTMEM_STATE_DIR=f"{runtime}/state")
        try:
            _take(directory)
        finally:
            stop_agent(discard=True)


def _take(directory: Path) -> None:
    application = Program()
    application.run("import os, persistmem; shop = attach('shop', '24MiB')")
    application.run("persistmem.Cache(shop, '16MiB', namespace='pages').close()")
    application.run("[shop.snapshot('carts', {i: [i] * 9 for i in range(n)}).number for n in (900, 1200, 1500)]")
    application.run("recommender = attach('recommender', '128MiB')")
    application.run("[recommender.snapshot('profiles', os.urandom(24 << 20)).number for _ in range(2)]")
    application.run("recommender.snapshot('vectors', os.urandom(30 << 20)).number")
    application.run("attach('sessions', '8MiB').snapshot('default', {'ada': 36}).number")
    dashboard = Dashboard("--allow-actions")
    application.begin(LOAD)
    with chromium() as browser:
        page = _open(browser, dashboard, dark=False)
        application.answer()
        page.get_by_text("Upgrade the simulated kernel").click()
        page.get_by_label("Release of the next kernel").fill("7.3.4")
        page.get_by_role("button", name="Upgrade now").click()
        expect(page.get_by_text("nothing lost")).to_be_visible()
        application.end()
        again = Program()
        again.begin(LOAD)
        page.get_by_role("button", name="Verify arena recommender").click()
        page.get_by_role("button", name="Verify arena shop").click()
        expect(page.get_by_role("row", name="recommender")).to_contain_text("sound")
        expect(page.get_by_role("row", name="shop")).to_contain_text("sound")
        page.get_by_role("button", name="Verify arena shop").blur()
        page.mouse.move(0, 0)
        page.wait_for_timeout(1000 * (SECONDS - 3))
        page.screenshot(path=directory / "dashboard.png", full_page=True)
        _open(browser, dashboard, dark=True).screenshot(path=directory / "dashboard-dark.png", full_page=True)
        again.answer()
        again.end()
    dashboard.end()
    print(f"{directory}/dashboard.png, {directory}/dashboard-dark.png", file=sys.stderr)


def _open(browser: Browser, dashboard: Dashboard, *, dark: bool) -> Page:
    page = browser.new_page(viewport={"width": 1280, "height": 720}, color_scheme="dark" if dark else "light")
    page.set_default_timeout(1000 * PATIENCE)
    page.goto(dashboard.url)
    return page


if __name__ == "__main__":
    main()
