"""Asks the door about every request before its body is read."""

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.admission.door import Door
from gateway.api.border import error_response
from gateway.errors import ApiError


class Guard:
    """Answers what must not come in; all paths are guarded that are not open by name."""

    def __init__(self, app: ASGIApp, door: Door) -> None:
        self._app = app
        self._door = door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        client = scope["client"][0] if scope.get("client") else None
        try:
            key = self._door.check(scope["path"], Headers(scope=scope), client)
        except ApiError as error:
            await error_response(error)(scope, receive, send)
            return
        scope.setdefault("state", {})["api_key"] = key
        with self._door.inside():
            await self._app(scope, receive, send)
