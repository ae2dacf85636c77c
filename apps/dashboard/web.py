"""The pages: what was seen, as HTML, and the two things that can be done. Knows HTTP and templates, and asks no agent.

The one exception is an arena's own page, which looks closely when it is asked for, in a thread.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl
from uuid import UUID

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from apps.dashboard import charts
from apps.dashboard.guard import Sessions
from apps.dashboard.looking import CACHES_MAX, SeenArena, SeenCache, look_closely
from apps.dashboard.series import CacheKey, Sample
from apps.dashboard.upgrading import Upgrader
from apps.dashboard.uptimes import seconds_of_kernel, seconds_of_process
from apps.dashboard.watching import Watcher
from apps.dashboard.wording import ago, arrival, span
from persistmem import Error
from persistmem.cli.cache import percent
from persistmem.cli.map import Cell
from persistmem.cli.output import counted, duration, moment, printable
from persistmem.sizes import format_size

HERE: Final = Path(__file__).parent
FORM_MAX: Final = 4096
"""Bytes of the largest form."""
REFRESH_MIN: Final = 0.5
REFRESH_MAX: Final = 2.0
"""Seconds between two updates of an open page: as often as somebody looks, within these bounds."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How a dashboard was started."""

    host: str
    """Name of the machine, for people."""
    user: str
    """Whose arenas it shows, for people."""
    runtime: str
    """Directory of the agent that it asks."""
    names: tuple[str, ...]
    """What the machine may be called in a request."""
    cookie: str
    """Name of the cookie."""
    allow_actions: bool


@dataclass(frozen=True, slots=True)
class ShownCache:
    """A cache, and what it did lately."""

    name: str
    key: CacheKey
    seen: SeenCache
    last: Sample | None
    chart: charts.Chart


def make_app(
    settings: Settings,
    watcher: Watcher,
    upgrader: Upgrader,
    now: Callable[[], datetime],
    owner_of: Callable[[int], str],
) -> Starlette:
    """Return the application; :class:`apps.dashboard.guard.Guard` has to stand before it."""
    pages = _Pages(settings, watcher, upgrader, now, owner_of)
    return Starlette(
        routes=[
            Route("/", pages.overview, methods=["GET"]),
            Route("/arena/{uuid:uuid}", pages.arena, methods=["GET"]),
            Route("/verify", pages.verify_all, methods=["POST"]),
            Route("/arena/{uuid:uuid}/verify", pages.verify, methods=["POST"]),
            Route("/upgrade", pages.upgrade, methods=["POST"]),
            Mount("/static", StaticFiles(directory=HERE / "static")),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(settings.names), www_redirect=False)],
        exception_handlers={HTTPException: pages.problem},
    )


class _Pages:
    """The handlers."""

    def __init__(
        self,
        settings: Settings,
        watcher: Watcher,
        upgrader: Upgrader,
        now: Callable[[], datetime],
        owner_of: Callable[[int], str],
    ) -> None:
        self._settings = settings
        self._watcher = watcher
        self._upgrader = upgrader
        self._now = now
        self._sessions = Sessions(settings.cookie)
        self._templates = Environment(
            loader=FileSystemLoader(HERE / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            finalize=_shown,
        )
        self._templates.filters.update(
            counted=counted, duration=duration, moment=moment, owner=owner_of, percent=percent, runs=_runs,
            size=format_size, span=span,
        )  # fmt: skip

    def overview(self, request: Request) -> Response:
        """Show everything."""
        picture = self._watcher.picture
        caches = [cache for arena in picture.arenas for cache in self._caches_of(arena)]
        return self._page(request, "overview.html", caches=caches)

    def arena(self, request: Request) -> Response:
        """Show one arena."""
        arena = self._find(request)
        details, trouble = None, ""
        try:
            details = look_closely(arena.record)
        except (Error, OSError) as error:
            trouble = str(error)
        return self._page(
            request, "arena.html", arena=arena, details=details, trouble=trouble, caches=self._caches_of(arena)
        )

    async def verify(self, request: Request) -> Response:
        """Have one arena verified."""
        await self._check_form(request)
        arena = self._find(request)
        self._watcher.verifier.ask(arena.record)
        return RedirectResponse(f"/arena/{arena.record.uuid}", 303)

    async def verify_all(self, request: Request) -> Response:
        """Have all arenas verified."""
        await self._check_form(request)
        for arena in self._watcher.picture.arenas:
            self._watcher.verifier.ask(arena.record)
        return RedirectResponse("/", 303)

    async def upgrade(self, request: Request) -> Response:
        """Upgrade the simulated kernel."""
        form = await self._check_form(request)
        if not self._watcher.picture.is_simulated:
            raise HTTPException(
                409, "No agent runs on a simulated kernel. A real one is upgraded by 'persistmem reboot --kexec'."
            )
        self._upgrader.begin(form.get("release") or None)
        return RedirectResponse("/", 303)

    async def problem(self, request: Request, error: Exception) -> Response:
        """Say what is wrong."""
        assert isinstance(error, HTTPException)
        page = partial(self._page, request, "problem.html", status=error.status_code, problem=error.detail)
        response = await run_in_threadpool(page)
        response.headers.update(error.headers or {})
        return response

    def _find(self, request: Request) -> SeenArena:
        uuid: UUID = request.path_params["uuid"]
        picture = self._watcher.picture
        arena = picture.find(uuid)
        if arena is None:
            why = picture.trouble or ("It may have been removed." if picture.agent else "No agent runs.")
            raise HTTPException(404, f"There is no arena {uuid}. {why}")
        return arena

    def _caches_of(self, arena: SeenArena) -> list[ShownCache]:
        if arena.contents is None:
            return []
        picture, watcher = self._watcher.picture, self._watcher
        upgrades = [(h.left.timestamp(), h.kernel_to) for h in picture.handovers if h.left is not None]
        shown = []
        for cache in arena.contents.caches:
            key = CacheKey(arena.record.uuid, cache.namespace)
            samples = watcher.series.of(key)
            chart = charts.plot(
                samples, upgrades, end=picture.taken.timestamp(), span=watcher.span, every=watcher.interval
            )
            name = f"{arena.record.name}/{cache.namespace}"
            shown.append(ShownCache(name, key, cache, samples[-1] if samples else None, chart))
        return shown

    async def _check_form(self, request: Request) -> dict[str, str]:
        """Return a form of ours, if things may be done here at all."""
        if not self._settings.allow_actions:
            raise HTTPException(403, "This dashboard is read-only. Start it with --allow-actions to do things here.")
        form = await _read_form(request)
        if not self._sessions.accepts(request, form.get("token", "")):
            raise HTTPException(403, "The form is not of this session: load the page anew, and try again.")
        return form

    def _page(self, request: Request, template: str, status: int = 200, **context: object) -> Response:
        settings, watcher, now = self._settings, self._watcher, self._now()
        picture = watcher.picture
        token, session = self._sessions.token(request) if settings.allow_actions else ("", None)
        text = self._templates.get_template(template).render(
            settings=settings,
            status=status,
            picture=picture,
            late=(now - picture.taken).total_seconds() > 3 * watcher.interval + 1,
            ago=partial(ago, now=now),
            now=now,
            span_shown=watcher.span,
            interval=watcher.interval,
            refresh=min(max(watcher.interval, REFRESH_MIN), REFRESH_MAX),
            agent_up=seconds_of_process(picture.agent.pid) if picture.agent else None,
            kernel_up=seconds_of_kernel(picture),
            standing=watcher.verifier.standing,
            upgrader=self._upgrader,
            arrival=arrival,
            token=token,
            charts=charts,
            caches_max=CACHES_MAX,
            **context,
        )
        response = HTMLResponse(text, status)
        if session is not None:
            self._sessions.remember(response, session)
        return response


async def _read_form(request: Request) -> dict[str, str]:
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/x-www-form-urlencoded":
        raise HTTPException(415, "Expected a form.")
    data = b""
    try:
        async for chunk in request.stream():
            data += chunk
            if len(data) > FORM_MAX:
                raise HTTPException(413, f"Expected a form of at most {FORM_MAX} bytes.")
        return dict(parse_qsl(data.decode("ascii"), max_num_fields=10, errors="strict"))
    except (ValueError, ClientDisconnect) as error:
        raise HTTPException(400, "The form cannot be read.") from error


def _shown(value: object) -> str | Markup:
    """Have nothing on a page that people cannot see: names and releases come from memory that others wrote."""
    return value if isinstance(value, Markup) else printable(str(value))


def _runs(cells: tuple[Cell, ...]) -> list[tuple[str, str]]:
    """Put the cells of a map that look alike together: their style as a class of ours, and their symbols."""
    return [
        (style.replace(" ", "-"), "".join(cell.symbol for cell in run))
        for style, run in groupby(cells, key=lambda cell: cell.style)
    ]
