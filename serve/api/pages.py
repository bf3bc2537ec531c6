"""Serves the web pages: static files of `web/` and the sample scenes."""

import urllib.parse
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from fastapi import APIRouter
from fastapi.responses import HTMLResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from serve.api.arena_endpoints import OFF
from serve.api.docs_page import routes_as_html
from serve.api.evaluation_endpoints import OFF as EVALUATIONS_OFF
from serve.api.page_files import WEB, whole_page
from serve.api.result_endpoints import OFF as RESULTS_OFF
from serve.api.services import services
from serve.errors import NotFound
from serve.tasks import ADDRESSES

HERE = Path(__file__).parent
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


CARD_HEADERS = PAGE_HEADERS | {
    "content-security-policy": "default-src 'none'; style-src 'self'; img-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors *"
}
"""Other sites may frame a shared result's card, which runs no script."""
NOTHING: Mapping[str, bool] = MappingProxyType({})
PAGES = {
    "": "Ask",
    "arena": "Arena",
    "evaluations": "Evaluations",
    "report": "Report",
    "compare/": "Compare",
    "docs": "API",
}
"""The menu of every page: path and title, in order. What the operator has not set up is left out."""


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


def add_pages(api: APIRouter) -> None:
    """Add `/`, `/compare/...`, `/report`, `/docs`, and the files that they need.

    `/arena`, `/evaluations` and shared results at `/r/...` answer 404 where the operator has not set them up.
    """
    api.mount("/web", GZipMiddleware(Files(directory=WEB), minimum_size=1000))
    api.mount("/scenes", Files(directory=SCENES))

    @api.get("/", include_in_schema=False)
    async def ask(http: HttpRequest) -> Response:
        return _page(http, "index.html", ".", "", _revealed(http))

    @api.get("/evaluations", include_in_schema=False)
    async def show_evaluations(http: HttpRequest) -> Response:
        if services(http).evaluations is None:
            raise NotFound(EVALUATIONS_OFF, code="evaluations_off")
        return _page(http, "evaluations.html", ".", "evaluations")

    @api.get("/r/{result}", include_in_schema=False)
    async def show_result(http: HttpRequest, result: str) -> Response:
        if services(http).results is None:
            raise NotFound(RESULTS_OFF, code="results_off")
        return _page(http, "result.html", "..")

    @api.get("/r/{result}/card", include_in_schema=False)
    async def show_card(http: HttpRequest, result: str) -> Response:
        """Return a result as a page for other sites' frames: its picture with the answers, linked with its page."""
        if services(http).results is None:
            raise NotFound(RESULTS_OFF, code="results_off")
        page = _page(http, "card.html", "../..")
        text = bytes(page.body).decode().replace("RESULT", urllib.parse.quote(result[:100], safe=""))
        return HTMLResponse(text, headers=CARD_HEADERS)

    @api.get("/arena", include_in_schema=False)
    async def show_arena(http: HttpRequest) -> Response:
        if services(http).votes is None:
            raise NotFound(OFF, code="arena_off")
        return _page(http, "arena.html", ".", "arena")

    @api.get("/report", include_in_schema=False)
    async def show_report(http: HttpRequest) -> Response:
        return _page(http, "report.html", ".", "report")

    @api.get("/compare", include_in_schema=False)
    async def pick() -> Response:
        return RedirectResponse("compare/")

    @api.get("/compare/{names:path}", include_in_schema=False)
    async def compare(http: HttpRequest, names: str) -> Response:
        """Return the page. names: of models, with `-vs-` in between; the page itself parses them."""
        if len(names) > MAX_NAMES or names.count("/") > MAX_SLASHES:
            raise NotFound("There is no comparison of so many models.")
        root = "/".join([".."] * (1 + names.count("/")))
        return _page(http, "index.html", root, "compare/", _revealed(http))

    @api.get("/docs", include_in_schema=False)
    def docs(http: HttpRequest) -> Response:  # no coroutine, so it runs in a thread: the first call takes 0.3 s
        page = _page(http, "docs.html", ".", "docs")
        text = bytes(page.body).decode().replace("<!--routes-->", routes_as_html(http.app.openapi()))
        return HTMLResponse(text, headers=PAGE_HEADERS)

    for known_as, task in ADDRESSES.items():
        api.add_api_route(f"/{known_as}/{{names:path}}", _comparison_of(task), include_in_schema=False)


def _revealed(http: HttpRequest) -> dict[str, bool]:
    """Return, by its id in a page, whether what is hidden unless it is set up is there."""
    return {"publish": services(http).results is not None}


def _menu(http: HttpRequest, current: str | None) -> str:
    """Return the links of the menu. current: the path of the page that shows it."""
    app = services(http)
    closed = {"arena": app.votes is None, "evaluations": app.evaluations is None}
    links = []
    for path, title in PAGES.items():
        if not closed.get(path):
            name = path.strip("/") or "ask"
            here = ' aria-current="page"' if path == current else ""
            links.append(f'<a href="./{path}" id="to-{name}"{here}>{title}</a>')
    return " ".join(links)


def _comparison_of(task: str) -> Callable[[str, HttpRequest], Awaitable[Response]]:
    async def compare(names: str, http: HttpRequest) -> Response:
        """Send to the comparison of these models, with the task chosen."""
        if len(names) > MAX_NAMES or names.count("/") > MAX_SLASHES:
            raise NotFound("There is no comparison of so many models.")
        up, query = "../" * (1 + names.count("/")), http.url.query[:MAX_NAMES]
        return RedirectResponse(f"{up}compare/{urllib.parse.quote(names)}?task={task}{'&' if query else ''}{query}")

    return compare


def _page(
    http: HttpRequest,
    name: str,
    root: str,
    current: str | None = None,
    revealed: Mapping[str, bool] = NOTHING,
) -> HTMLResponse:
    """Return a page with its URLs relative to `root`, so that it works behind any prefix.

    current: its path in the menu. revealed: the ids of what is hidden unless it is set up.
    """
    text = whole_page(name).replace("<!--pages-->", _menu(http, current))
    for element in (element for element, is_there in revealed.items() if is_there):
        text = text.replace(f'id="{element}" hidden', f'id="{element}"')
    return HTMLResponse(text.replace('="./', f'="{root}/'), headers=PAGE_HEADERS)
