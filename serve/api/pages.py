"""Serves the web pages: static files of `web/` and the sample scenes."""

from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import HTMLResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from serve.api.arena_endpoints import OFF
from serve.errors import NotFound

HERE = Path(__file__).parent
WEB = HERE / "web"
MAX_PATH = 1024
MAX_NAMES = 4096
"""Longest path of a comparison, in characters; longer than all known models' names together."""
MAX_SLASHES = 8
"""Largest number of slashes in it: names have none, and each makes every URL in the page longer."""
SCENES = HERE.parent / "toy" / "scenes"
PAGE_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "font-src 'self'; img-src 'self' data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",  # revalidated each time; 304 where nothing changed
}
"""Only our own files may be scripts or styles, so that a model's text cannot become one."""


class Files(StaticFiles):
    """A folder of static files, sent with PAGE_HEADERS. Paths longer than MAX_PATH are not looked up."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(PAGE_HEADERS)
            await send(message)

        if len(scope["path"]) > MAX_PATH:
            raise HTTPException(404)
        await super().__call__(scope, receive, with_headers)


def add_pages(app: FastAPI, *, arena: bool = False) -> None:
    """Add `/`, `/compare/...`, `/report`, `/docs`, `/arena` where it is open, and the files that they need."""
    app.mount("/web", Files(directory=WEB))
    app.mount("/scenes", Files(directory=SCENES))

    @app.get("/", include_in_schema=False)
    async def ask() -> Response:
        return _page("index.html", ".", arena=arena)

    @app.get("/arena", include_in_schema=False)
    async def show_arena() -> Response:
        if not arena:
            raise NotFound(OFF, code="arena_off")
        return _page("arena.html", ".")

    @app.get("/report", include_in_schema=False)
    async def show_report() -> Response:
        return _page("report.html", ".")

    @app.get("/compare", include_in_schema=False)
    async def pick() -> Response:
        return RedirectResponse("compare/")

    @app.get("/compare/{names:path}", include_in_schema=False)
    async def compare(names: str) -> Response:
        """Return the page. names: of models, with `-vs-` in between; the page itself parses them."""
        if len(names) > MAX_NAMES or names.count("/") > MAX_SLASHES:
            raise NotFound("There is no comparison of so many models.")
        return _page("index.html", "/".join([".."] * (1 + names.count("/"))), arena=arena)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return _page("docs.html", ".")


def _page(name: str, root: str, *, arena: bool = False) -> HTMLResponse:
    """Return a page with its URLs relative to `root`, so that it works behind any prefix. arena: link to that page."""
    text = (WEB / name).read_text(encoding="utf-8")
    if arena:
        text = text.replace('id="to-arena" hidden', 'id="to-arena"')
    return HTMLResponse(text.replace('="./', f'="{root}/'), headers=PAGE_HEADERS)
