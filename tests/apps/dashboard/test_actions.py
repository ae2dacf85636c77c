"""What can be done on the pages: verifying, in the background, and upgrading a simulated kernel."""

from persistmem.attachment import agent_status, attach
from tests.agent.support import StartProgram

from .support import Dashboard, Page, StartDashboard, damage, eventually, keep


def test_a_sound_arena_is_said_to_be_sound_and_what_came_later_not_to_be_verified(shared: Dashboard) -> None:
    keep("sound", carts=bytes(250_000))
    shared.until("sound made")
    path = shared.arena("sound")
    answer = shared.post(f"{path}/verify")
    assert (answer.status_code, answer.headers["location"]) == (303, path)
    shared.until(r"sound (just now|\d+ s ago) 244\.1 KiB in [\d.]+ m?s", path)
    assert shared.page(path).says(r"carts 1 .*\+sim1 sound")
    keep("sound", carts=b"x")
    assert shared.page(path).says(r"carts 2 .*\+sim1 not verified 1 .*\+sim1 sound")


def test_a_damaged_generation_is_named_and_the_sound_one_beside_it_is_not(shared: Dashboard) -> None:
    keep("damaged", carts=b"x" * 20_000)
    keep("damaged", carts=b"y" * 20_000)
    with attach("damaged") as arena:
        [newest] = [piece.offset for piece in arena.pieces() if piece.kind == "buffer" and piece.generations == (2,)]
    damage("damaged", newest + 100)
    shared.until("damaged made")
    shared.post("/verify")
    shared.until(rf"damaged (just now|\d+ s ago) .* generation 2: checksum mismatch at byte {newest} of the arena")
    assert shared.page(shared.arena("damaged")).says(r"carts 2 .*\+sim1 damaged 1 .*\+sim1 sound")


def test_verification_shows_how_far_it_is_and_holds_up_no_page(shared: Dashboard, program: StartProgram) -> None:
    program().run("attach('large', '200MiB').snapshot('all', bytearray(190 << 20))")
    shared.until("large made")
    path, token = shared.arena("large"), shared.token()

    def verify_and_look() -> Page | None:
        shared.client.post(f"{path}/verify", data={"token": token}, headers={"Origin": shared.url})
        page = shared.page(path)
        return page if any(bar["value"] != "0" for bar in page.attributes("progress")) else None

    page = eventually(verify_and_look, "progress")
    [bar] = page.attributes("progress")
    assert int(str(bar["value"])) <= int(str(bar["max"]))
    assert int(str(bar["max"])) >= 190 << 20
    assert page.says(r"verifying .* of 190 MiB")
    shared.until(r"sound (just now|\d s ago) 190 MiB in ", path)


def test_a_dashboard_can_verify_by_itself_now_and_then(start: StartDashboard) -> None:
    keep("shop", carts=1)
    dashboard = start("--verify-every", "1h")
    dashboard.until("shop .* sound ")
    keep("blog", posts=1)
    dashboard.until("blog .* sound .* shop .* sound ")
    dashboard.until(r"blog .* sound [1-9] s ago .* shop .* sound [1-9] s ago")


def test_an_upgrade_takes_every_arena_to_the_next_kernel_and_results_of_the_one_before_are_told_apart(
    start: StartDashboard, program: StartProgram
) -> None:
    application = program()
    application.run("arena = attach('shop', '1MiB'); arena.snapshot('carts', [1])")
    application.run("persistmem.before_kexec(lambda: arena.snapshot('carts', [1, 2])) and None")
    dashboard = start("--allow-actions")
    dashboard.post("/verify")
    dashboard.until(r"shop made .* sound (just now|\d+ s ago)")
    answer = dashboard.post("/upgrade", release="9.9.9-next")
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    dashboard.until(r"Upgraded at .*\+sim1 → 9\.9\.9-next: 1 arena, 1 MiB, arrived; dark for .*; nothing lost")
    dashboard.until(r"Kernel 9\.9\.9-next .* Handovers 1 .* shop carried over from .* sound .* on kernel \S+\+sim1")
    with attach("shop") as arena:
        assert arena.restore("carts") == [1, 2]
    dashboard.post("/verify")
    dashboard.until(r"shop carried over .* sound (just now|\d+ s ago) (?!.*on kernel)")


def test_an_upgrade_that_is_refused_says_why_and_changes_nothing(shared: Dashboard) -> None:
    keep("shop", carts=1)
    shared.until(r"shop made")
    shared.post("/upgrade", release="no kernel is called <i>this</i>")
    page = shared.until("The upgrade at .* failed: kernel release 'no kernel is called <i>this</i>'")
    assert not page.attributes("i")
    status = agent_status()
    assert status is not None
    assert status.handovers == 0
