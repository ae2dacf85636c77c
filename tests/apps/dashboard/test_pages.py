"""What an operator sees: everything there is, also when it is damaged, hostile, or gone."""

import os
import signal

from persistmem.attachment import drop_arena
from tests.agent.support import StartProgram, kill_agent
from tests.cli.support import CommandLine

from .support import Dashboard, StartDashboard, damage, keep

HOSTILE = "<script>alert(1)&amp;\"\\'"
HOSTILE_SNAPSHOT = "\"/\\'><img src=x onerror=alert(2)>"
READ_ON_AND_ON = """
import threading
enough = threading.Event()
def read():
    while not enough.wait(0.01):
        [cache['ada'] for _ in range(90)] and [cache.get(i) for i in range(10)]
reading = threading.Thread(target=read, daemon=True)
reading.start()
"""


def test_a_page_shows_arenas_with_owner_fill_generations_and_caches(
    start: StartDashboard, program: StartProgram
) -> None:
    application = program()
    application.run("arena = attach('profiles', '1MiB')")
    application.run("[arena.snapshot('people', {'ada': bytes(100_000 + i)}).number for i in range(3)]")
    application.run("cache = persistmem.Cache('shop', '4MiB')")
    application.run("cache.set_many({i: i for i in range(10)})")
    application.run("[cache.get(i) for i in range(12)]")
    full = 100 * (1 - application.run("arena.usage().free") / (1 << 20))
    dashboard = start()
    page = dashboard.page()

    assert dashboard.mode == "read-only"
    assert page.says(r"Arenas 2 5 MiB ")
    assert page.says(
        rf"profiles made \d{{4}}-\d\d-\d\d [\d:]+ UTC \S+ mode 0600 {full:.1f} % of 1 MiB people 3, 2 not verified yet"
    )
    assert page.says(r"shop made .* of 4 MiB cache cache not verified yet")
    assert page.says(r"luo \(simulated\) serving")
    assert page.says("None: the arenas have been in one kernel all the time")
    dashboard.until(r"overall 83\.3 % hits 10 reads/s \d+ writes/s 0 evicted/s 0 items 10 .* open in 1 process ")


def test_an_arenas_page_shows_every_generation_and_a_map(shared: Dashboard, program: StartProgram) -> None:
    application = program()
    application.run("arena = attach('profiles', '1MiB')")
    application.run("[arena.snapshot('people', bytes(300_000), keep=3).number for i in range(2)]")
    application.run("region = arena.region('counters', 4096)")
    shared.until("profiles made")
    page = shared.page(shared.arena("profiles"))

    assert page.says(r"people 2 [-\d]+ [:\d]+ UTC 293 KiB \d \S+\+sim1 not verified 1 [-\d]+ [:\d]+ UTC 293 KiB")
    assert page.says(r"a region counters 4 KiB 4 KiB held by readers b people 293 KiB generations 2, 1")
    assert page.says("b{32}")
    assert page.says("counters 4 KiB$")
    application.run("region.close(); arena.resize_region('counters', 8192, timeout=5)")
    assert shared.page(shared.arena("profiles")).says("counters 8 KiB$")


def test_a_cache_is_looked_at_again_and_again_without_being_used(shared: Dashboard, program: StartProgram) -> None:
    application = program()
    application.run("cache = persistmem.Cache('looked-at', '4MiB')")
    application.run("cache['ada'] = 36")
    shared.until(r"looked-at/cache . no reads now overall . hits 0 ")
    application.run(READ_ON_AND_ON)  # until it has been seen: "now" is over before a slow page is there
    shared.until(r"looked-at/cache 90.0 % hits now overall 90.0 % hits \d")
    application.run("enough.set(); reading.join()")
    shared.until(r"looked-at/cache . no reads now overall 90.0 % hits [\d,]*\d0 ")
    assert application.run("cache.stats().processes") == 1


def test_markup_in_names_is_text(start: StartDashboard, program: StartProgram) -> None:
    application = program()
    application.run(f"arena = attach({HOSTILE!r}, '4MiB'); arena.snapshot({HOSTILE_SNAPSHOT!r}, 1)")
    application.run(f"persistmem.Cache(arena, '1MiB', namespace={HOSTILE_SNAPSHOT + ' cache'!r})")
    application.run(f"attach({HOSTILE + '..'!r}, '1MiB')")
    dashboard = start("--allow-actions")
    [path, other] = [str(a["href"]) for a in dashboard.page().attributes("a") if str(a["href"]).startswith("/arena")]
    for each in (dashboard.page(), dashboard.page(path)):
        assert HOSTILE in each.text
        assert HOSTILE_SNAPSHOT in each.text
        assert f"{HOSTILE}/{HOSTILE_SNAPSHOT} cache" in each.text
        assert [script.get("src") for script in each.attributes("script")] == ["/static/page.js"]
        assert [image.get("src") for image in each.attributes("img")] == ["/static/icon.svg"]
        assert all(not name.startswith("on") for _, attributes in each.elements for name in attributes)
        assert f"Verify arena {HOSTILE}" in [button.get("aria-label") for button in each.attributes("button")]
    assert f"{HOSTILE}.." in dashboard.page(other).text


def test_without_an_agent_the_page_says_so_and_starts_none(start: StartDashboard, cli: CommandLine) -> None:
    dashboard = start("--allow-actions")
    assert dashboard.page().says(r"Agent none runs \S+; the first snapshot starts one")
    assert "Upgrade the simulated kernel" not in dashboard.page().text
    assert cli("status", "--json").json["running"] is False


def test_an_agent_that_ends_while_the_page_is_open_is_said_to_be_gone(start: StartDashboard, cli: CommandLine) -> None:
    keep("shop", carts=1)
    dashboard = start("--allow-actions")
    path, token = dashboard.arena("shop"), dashboard.token()
    cli("agent", "stop", "--discard")
    dashboard.until("Agent none runs .* No arenas")
    assert dashboard.post("/upgrade", token=token).status_code == 409
    gone = dashboard.client.get(path)
    assert gone.status_code == 404
    assert "No agent runs." in gone.text
    keep("blog", posts=1)
    dashboard.until("blog made")


def test_an_agent_that_was_killed_is_replaced_and_what_somebody_holds_is_there_again(
    start: StartDashboard, program: StartProgram
) -> None:
    application = program()
    application.run("arena = attach('shop', '1MiB'); arena.snapshot('carts', 1)")
    dashboard = start()
    pid = kill_agent()
    dashboard.until(rf"pid (?!{pid}\b)\d+ .* shop made .* carts 1 ")


def test_an_agent_that_does_not_answer_is_no_reason_not_to_answer(start: StartDashboard, cli: CommandLine) -> None:
    keep("shop", carts=1)
    dashboard = start("--allow-actions")
    path = dashboard.arena("shop")
    pid = cli.agent_pid()
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        late = dashboard.until("The agent does not answer. What you see is how it was")
        assert "shop made" in late.text
        assert dashboard.post(f"{path}/verify").headers["location"] == path
        assert "waits to be verified" in dashboard.page().text
    finally:
        os.kill(pid, signal.SIGCONT)
    dashboard.until("^(?!.*does not answer).*sound ")


def test_an_arena_that_is_removed_is_gone_from_the_page(shared: Dashboard) -> None:
    keep("removed", carts=1)
    shared.until("removed made")
    path = shared.arena("removed")
    drop_arena("removed")
    while (gone := shared.client.get(path)).status_code != 404:  # until it has been looked at
        assert "there is no arena" in gone.text
    assert "It may have been removed." in gone.text


def test_an_arena_is_never_taken_for_another_that_has_its_name_now(start: StartDashboard) -> None:
    keep("shop", carts=1)
    dashboard = start("--allow-actions", "--interval", "1h")
    path = dashboard.arena("shop")
    drop_arena("shop")
    keep("shop", carts=1)
    assert dashboard.page(path).says("cannot be read: .* another one has its name now")
    dashboard.post(f"{path}/verify")
    gone = dashboard.until("There is no arena", path)
    assert "sound" not in gone.text


def test_an_arena_that_cannot_be_read_is_named_with_the_reason_and_hides_no_other(shared: Dashboard) -> None:
    keep("readable", carts=1)
    keep("unreadable", carts=1)
    damage("unreadable", 0)
    shared.until(r" readable made .* carts 1 .* unreadable made .* cannot be read: \w+")
    path = shared.arena("unreadable")
    assert "This arena cannot be read: " in shared.page(path).text
    shared.post(f"{path}/verify")
    shared.until(r"cannot be read: .* damaged (just now|\d+ s ago)")


def test_handovers_that_others_made_are_shown_with_what_was_lost(start: StartDashboard, cli: CommandLine) -> None:
    keep("shop", carts=1)
    dashboard = start()
    cli("reboot", "--simulate", "--release", "<b>8.1.0&amp;")
    page = dashboard.until(r"1 \S+\+sim1 → <b>8\.1\.0&amp;")
    assert page.says(r"→ \S+ [-\d]+ [:\d]+ UTC 1 arena 1 MiB [\d.]+ m?s [\d.]+ m?s . [\d.]+ m?s nothing")
    assert page.says(r"shop carried over from \S+\+sim1")
    assert page.says(r"<b>8\.1\.0&amp; up \d+ s, simulated")
    assert not page.attributes("b")
    cli("reboot", "--simulate", "--release", "8.2.0", "--incompatible")
    page = dashboard.until(r"2 \S+ → 8\.2\.0 ")
    assert page.says(r"→ 8\.2\.0 [-\d]+ [:\d]+ UTC 0 arenas 0 B .* 1 arena shop : .*luo-v")


def test_there_is_nothing_else(shared: Dashboard) -> None:
    for path in ("/nothing", "/static/%2e%2e/web.py", "/static/nothing.css", "/static/", "/arena/", "/arena/1"):
        assert shared.client.get(path).status_code == 404
