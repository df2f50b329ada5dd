"""``GET /dashboard``: the built-in page and its files, by their exact names."""

from starlette.requests import Request
from starlette.responses import Response

from gateway.api.service import service_of
from gateway.errors import RouteNotFound
from gateway.page.assets import INDEX
from gateway.wire import MAX_ECHO


async def show_page(request: Request) -> Response:
    """Return the page; what it shows it asks for itself, with the key of who looks at it."""
    return _reply(request, INDEX)


async def show_page_file(request: Request, file: str) -> Response:
    """Return one of the page's files."""
    return _reply(request, file)


def _reply(request: Request, name: str) -> Response:
    asset = service_of(request).assets.get(name)
    if asset is None:
        raise RouteNotFound(f"no such path: /dashboard/{name[:MAX_ECHO]}")
    if asset.etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=asset.headers)
    return Response(asset.content, headers=asset.headers)
