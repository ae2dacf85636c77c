"""``python -m apps.vectors serve``: the search as a web service. Each worker attaches the one index."""

import asyncio
from typing import Final

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from apps.vectors.index import Index
from apps.vectors.search import Answer
from persistmem.errors import Error, StaleArenaError

_COUNT_MAX: Final = 100
_TEXT_MAX: Final = 1000


class _Service:
    """The index, opened when it is first asked, and again when the kernel was replaced."""

    def __init__(self) -> None:
        self._index: Index | None = None

    def search(self, text: str, count: int) -> Answer:
        try:
            return self._open().search(text, count)
        except StaleArenaError:
            self._index = None
            return self._open().search(text, count)

    def _open(self) -> Index:
        if self._index is None:
            self._index = Index.attach()
        return self._index


_service = _Service()


async def _search(request: Request) -> JSONResponse:
    text, count = request.query_params.get("text", ""), request.query_params.get("count", "5")
    if not 0 < len(text) <= _TEXT_MAX or not count.isascii() or not count.isdigit() or not 0 < int(count) <= _COUNT_MAX:
        return JSONResponse(
            {"error": f"give text=, 1 to {_TEXT_MAX} characters, and if you like count=, 1 to {_COUNT_MAX}"}, 400
        )
    try:
        answer = await asyncio.to_thread(_service.search, text, int(count))
    except Error as error:
        return JSONResponse({"error": str(error)}, 503)
    hits = [{"score": round(hit.score, 4), "name": hit.name, "text": hit.text} for hit in answer.hits]
    return JSONResponse({"hits": hits, "damaged": [str(damage) for damage in answer.damaged]})


app = Starlette(routes=[Route("/search", _search)])


def run(workers: int, port: int) -> None:
    """Serve on the loopback interface until a signal ends it."""
    uvicorn.run("apps.vectors.web:app", host="127.0.0.1", port=port, workers=workers, access_log=False)
