"""The dashboard in Chromium, as operators use it: with mouse or keyboard, without scripts, on a narrow screen."""

import re
from collections.abc import Iterator

import pytest

from persistmem import Cache
from tests.agent.support import StartProgram

from .browser import CHROMIUM, CONTRAST, Browser, Page, chromium, expect, watched
from .support import PATIENCE, Dashboard, StartDashboard, damage, keep
from .test_pages import HOSTILE

pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason=f"{CHROMIUM} is missing: apt-get install chromium")
expect.set_options(timeout=1000 * PATIENCE)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A tab in which nothing must go wrong."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    wrong = watched(page)
    yield page
    assert wrong == []
    context.close()


def test_load_verify_upgrade_and_warm_again(start: StartDashboard, program: StartProgram, page: Page) -> None:
    application = program()
    application.run("arena = attach('profiles', '1MiB'); arena.snapshot('people', {'ada': 36})")
    application.run("cache = persistmem.Cache('shop', '4MiB'); cache.set_many({i: i for i in range(100)})")
    assert application.run("len(cache.get_many(range(100)))") == 100
    dashboard = start("--allow-actions")

    page.goto(dashboard.url)
    shop = page.get_by_role("article", name="Cache shop/cache")
    expect(shop.locator("[data-figure=hits]")).to_have_text("100")
    profiles = page.get_by_role("row", name="profiles")
    expect(profiles).to_contain_text("people 1")
    profiles.get_by_role("button", name="Verify arena profiles").click()
    expect(profiles).to_contain_text("sound")

    page.get_by_text("Upgrade the simulated kernel").click()
    page.get_by_label("Release of the next kernel").fill("9.9.9-next")
    page.get_by_role("button", name="Upgrade now").click()
    expect(page.get_by_text("nothing lost")).to_be_visible()
    expect(page.get_by_role("row", name="→ 9.9.9-next")).to_contain_text("2 arenas")
    expect(profiles).to_contain_text("carried over from")
    expect(profiles).to_contain_text("on kernel")  # sound, but that was said before
    page.get_by_role("button", name="Verify all").click()
    expect(profiles).not_to_contain_text("on kernel")
    expect(profiles).to_contain_text("sound")
    expect(page.get_by_role("row", name="shop")).to_contain_text("sound")
    expect(shop).to_contain_text("kernel 9.9.9-next")

    application.end()
    again = program()
    assert again.run("attach('profiles').restore('people')['ada']") == 36
    again.run("cache = persistmem.Cache('shop')")
    assert again.run("len(cache.get_many(range(100)))") == 100
    expect(shop.locator("[data-figure=hits]")).to_have_text("200")
    expect(shop).to_contain_text(re.compile(r"overall\s*100 %"))


def test_updates_leave_focus_and_open_panels_where_they_are(shared: Dashboard, page: Page) -> None:
    keep("m-focus", carts=1)
    shared.until("m-focus made")
    page.goto(shared.url)
    page.get_by_text("Upgrade the simulated kernel").click()
    page.get_by_label("Release of the next kernel").fill("9.9")
    page.get_by_role("button", name="Verify arena m-focus").focus()
    keep("a-comes-first", carts=1)
    expect(page.get_by_role("row", name="a-comes-first")).to_be_visible()
    expect(page.get_by_role("button", name="Verify arena m-focus")).to_be_focused()
    expect(page.get_by_label("Release of the next kernel")).to_have_value("9.9")
    page.keyboard.press("Enter")
    expect(page.get_by_role("row", name="m-focus")).to_contain_text("sound")
    expect(page.get_by_role("row", name="a-comes-first")).to_contain_text("not verified yet")
    expect(page.get_by_role("button", name="Verify arena m-focus")).to_be_focused()


def test_a_dashboard_that_ends_while_its_page_is_open_is_said_not_to_answer(
    start: StartDashboard, browser: Browser
) -> None:
    dashboard = start()
    page = browser.new_page()
    page.goto(dashboard.url)
    expect(page.locator("#live")).to_have_text("live")
    dashboard.end()
    expect(page.locator("#live")).to_have_text("the dashboard does not answer; what you see may be old")
    page.close()


def test_everything_works_without_scripts(shared: Dashboard, browser: Browser) -> None:
    keep("scriptless", carts=1)
    shared.until("scriptless made")
    page = browser.new_page(java_script_enabled=False)
    page.goto(shared.url)
    page.get_by_role("button", name="Verify arena scriptless").click()
    expect(page.get_by_role("heading", name="scriptless")).to_be_visible()
    shared.until("sound", shared.arena("scriptless"))
    page.reload()
    expect(page.locator(".facts")).to_contain_text("sound")
    page.close()


@pytest.fixture(scope="module")
def unusual(shared: Dashboard) -> list[str]:
    """Paths of pages that are hard to lay out."""
    keep("w" * 200, **{"s" * 200: 1})
    keep("broken", carts=b"x" * 20_000)
    keep(HOSTILE, carts=1)
    Cache("a cache", "1MiB").close()
    damage("broken", 0)
    shared.until("w{200} made .*/cache ")
    shared.post("/verify")
    shared.until("cannot be read: .* damaged")
    return ["/", shared.arena("w" * 200), shared.arena("broken"), "/nothing"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_can_be_read_on_wide_and_narrow_screens_in_light_and_dark(
    shared: Dashboard, unusual: list[str], browser: Browser, scheme: str
) -> None:
    context = browser.new_context(color_scheme="light" if scheme == "light" else "dark")
    page = context.new_page()
    wrong = watched(page)
    grounds = set()
    for path in unusual:
        page.goto(shared.url + path)
        if path == "/":
            page.get_by_text("Upgrade the simulated kernel").click()
        for width in (1280, 600):
            page.set_viewport_size({"width": width, "height": 900})
            assert page.evaluate("document.documentElement.scrollWidth") <= width, path
        assert page.evaluate(CONTRAST) == []
        grounds.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    [ground] = grounds
    assert (sum(map(int, ground[4:-1].split(", "))) > 600) == (scheme == "light")
    assert [message for message in wrong if "404" not in message] == []
    context.close()
