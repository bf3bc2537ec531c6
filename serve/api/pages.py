"""The web pages: files of `web/` and the shipped scenes, nothing computed."""

from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import HTMLResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from serve.errors import NotFound

HERE = Path(__file__).parent
WEB = HERE / "web"
MAX_PATH = 1024
MAX_NAMES = 4096
"""Characters of a comparison's path: more than all known models' names together."""
MAX_SLASHES = 8
"""In it: names have none, and each makes every address in the page longer."""
SCENES = HERE.parent / "toy" / "scenes"
PAGE_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "font-src 'self'; img-src 'self' data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",  # asked for again each time, and answered 304 where nothing changed
}
"""No script or style but our own files: whatever a model says cannot become one."""


class Files(StaticFiles):
    """A folder, its files under the pages' own headers. A path that is longer than any of theirs is not looked up."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(PAGE_HEADERS)
            await send(message)

        if len(scope["path"]) > MAX_PATH:
            raise HTTPException(404)
        await super().__call__(scope, receive, with_headers)


def install(app: FastAPI) -> None:
    """Adds `/`, `/compare/...`, `/docs` and the files that they need."""
    app.mount("/web", Files(directory=WEB))
    app.mount("/scenes", Files(directory=SCENES))

    @app.get("/", include_in_schema=False)
    async def ask() -> Response:
        return _page("index.html", ".")

    @app.get("/compare", include_in_schema=False)
    async def pick() -> Response:
        return RedirectResponse("compare/")

    @app.get("/compare/{names:path}", include_in_schema=False)
    async def compare(names: str) -> Response:
        """`names`: of models, `-vs-` between them; the page itself reads them."""
        if len(names) > MAX_NAMES or names.count("/") > MAX_SLASHES:
            raise NotFound("There is no comparison of so many models.")
        return _page("index.html", "/".join([".."] * (1 + names.count("/"))))

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return _page("docs.html", ".")


def _page(name: str, root: str) -> HTMLResponse:
    """A page whose addresses start at `root`, relative to its own: so it works behind any prefix."""
    text = (WEB / name).read_text(encoding="utf-8")
    return HTMLResponse(text.replace('="./', f'="{root}/'), headers=PAGE_HEADERS)
