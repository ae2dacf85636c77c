"""Who may ask, and what browsers are told to refuse: wraps the application, and all that it answers.

Three kinds of strangers are kept out: other users of this machine (the kernel says who is at the other end), other
sites in this user's browser, and names that were made to point at this machine. Knows HTTP; nothing of what is shown.
"""

import hashlib
import hmac
import secrets
from collections.abc import Callable, Collection
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from apps.dashboard.peers import Endpoint, uid_of_peer

HEADERS: Final = {
    "content-security-policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self';"
        " form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    # not no-referrer: browsers would send "Origin: null" with our own forms
    "referrer-policy": "same-origin",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "cache-control": "no-store",
}
_SAFE: Final = ("GET", "HEAD")


class Guard:
    """Refuses what does not come from one of the users, or not from the dashboard's own pages."""

    def __init__(
        self,
        app: ASGIApp,
        uids: Collection[int],
        uid_of: Callable[[Endpoint, Endpoint], int | None] = uid_of_peer,
    ) -> None:
        """Wrap ``app`` for these users."""
        self._app = app
        self._uids = uids
        self._uid_of = uid_of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or have it answered."""
        refusal = self._refusal(scope)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await (refusal or self._app)(scope, receive, send_with_headers)

    def _refusal(self, scope: Scope) -> Response | None:
        # who has hung up already has no address any more
        uid = self._uid_of(tuple(scope["client"]), tuple(scope["server"])) if scope["client"] else None
        if uid not in self._uids:
            who = "nobody whom the kernel knows" if uid is None else f"uid {uid}"
            return PlainTextResponse(
                f"You are {who}, and this dashboard is for uid {', '.join(map(str, sorted(self._uids)))}. If it is to"
                " be yours, too, have it started with --user and your name.\n",
                403,
            )
        if scope["method"] not in _SAFE and not is_same_origin(Headers(scope=scope)):
            return PlainTextResponse(
                "This does not come from a page of the dashboard (Origin, Sec-Fetch-Site): nothing was done.\n", 403
            )
        return None


def is_same_origin(headers: Headers) -> bool:
    """Whether a browser says that a page of ours asks. One that does not say is not believed.

    Another port of this machine is another origin, though browsers call it the same site, and send it our cookies.
    """
    origin, site = headers.get("origin"), headers.get("sec-fetch-site")
    if site not in (None, "same-origin"):
        return False
    return origin == f"http://{headers.get('host')}" if origin is not None else site is not None


class Sessions:
    """A cookie for each browser, and a token for each cookie, which forms carry. Remembers nothing but one key."""

    def __init__(self, cookie: str) -> None:
        """``cookie`` is its name: browsers keep one jar for all ports of a machine."""
        self._cookie = cookie
        self._key = secrets.token_bytes(32)

    def token(self, request: Request) -> tuple[str, str | None]:
        """Return the token for the forms of a page, and the cookie's value if the browser has none yet."""
        session = request.cookies.get(self._cookie)
        if session:
            return self._token_of(session), None
        session = secrets.token_urlsafe(32)
        return self._token_of(session), session

    def remember(self, response: Response, session: str) -> None:
        """Have the browser keep the cookie until it ends."""
        response.set_cookie(self._cookie, session, httponly=True, samesite="strict")

    def accepts(self, request: Request, token: str) -> bool:
        """Whether a form's token belongs to the cookie that came with it."""
        session = request.cookies.get(self._cookie)
        return bool(session) and hmac.compare_digest(self._token_of(session or "").encode(), token.encode())

    def _token_of(self, session: str) -> str:
        return hmac.digest(self._key, session.encode(), hashlib.sha256).hex()
