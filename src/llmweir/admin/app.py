"""The admin API: a small Starlette app over its table of routes."""

from __future__ import annotations

import re
import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from llmweir.admin.access import Access, Identity, Right, require
from llmweir.admin.errors import AdminError, as_admin_error
from llmweir.admin.paths import AdminPaths
from llmweir.admin.requests import read_body, read_query
from llmweir.admin.routes import JSON, AdminRoute, Answer, Call

_NOBODY = Identity()


class AdminApi:
    """The operations of a table of routes under `prefix`, each for those who have the right to it.

    A call is looked at in this order: the key, the right, the query, the body; only then is anything done.
    """

    def __init__(
        self, routes: Iterable[AdminRoute], access: Access, *, prefix: str = "", body_timeout_s: float = 30.0
    ) -> None:
        self._access = access
        self._prefix = prefix
        self._body_timeout_s = body_timeout_s
        self._operations: dict[str, dict[str, AdminRoute]] = {}
        table = tuple(routes)
        self.paths = AdminPaths(table, prefix)
        for route in table:
            self._operations.setdefault(route.path, {})[route.method] = route

    def app(self) -> Starlette:
        """The ASGI app; what it does not know is 404 or 405 in the shape of every other refusal."""
        routes = [self._route(path, operations) for path, operations in self._operations.items()]
        app = Starlette(routes=routes, exception_handlers={HTTPException: _not_routed, Exception: _failed})
        app.router.redirect_slashes = False
        return app

    def _route(self, path: str, operations: Mapping[str, AdminRoute]) -> Route:
        pattern = self._prefix + path.replace("}", ":path}")  # an API key of one's own choice may hold a slash
        route = Route(pattern, self._endpoint(operations), methods=list(operations))
        # Quoted line feeds are characters like any other: in a parameter, and at the end of a path, which is another.
        route.path_regex = re.compile(route.path_regex.pattern.removesuffix("$") + r"\Z", re.DOTALL)
        return route

    def _endpoint(self, operations: Mapping[str, AdminRoute]) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            route = operations["GET" if request.method == "HEAD" else request.method]
            try:
                answer = await self._answered(route, request)
            except Exception as error:
                refused = as_admin_error(error)
                if refused is None:
                    raise
                answer = route.error_page(refused) if route.error_page is not None else _refusal(refused)
            return _response(answer, route.answers_in if isinstance(answer.content, bytes) else JSON)

        return endpoint

    async def _answered(self, route: AdminRoute, request: Request) -> Answer:
        client = request.client.host if request.client is not None else ""
        identity = _NOBODY
        if route.right is not Right.OPEN:
            identity = await self._access.identify(request.headers.raw, client)
            require(identity, route.right)
        query = read_query(route, request)
        body = await read_body(route, request, self._body_timeout_s)
        base_path = request.scope.get("root_path", "") + self._prefix
        path: Mapping[str, str] = request.path_params
        return await route.handle(
            Call(
                identity=identity,
                body=body,
                query=query,
                path=path,
                client=client,
                base_path=base_path,
                headers=request.headers,
            )
        )


def _refusal(refused: AdminError) -> Answer:
    return Answer(refused.content, refused.status, refused.headers)


async def _not_routed(_: Request, error: Exception) -> Response:
    """What Starlette itself refuses: a path of no route (404), a method that a path does not have (405)."""
    assert isinstance(error, HTTPException)  # noqa: S101 (it is registered for these)
    message = "There is no such path." if error.status_code == 404 else "This path does not take this method."
    return _response(_refusal(AdminError(error.status_code, message, headers=dict(error.headers or {}))), JSON)


async def _failed(_: Request, __: Exception) -> Response:
    """Answers a fault of the program; the server logs the error, which is raised on."""
    return _response(_refusal(AdminError(500, "Something went wrong here; the log of the server says what.")), JSON)


def _response(answer: Answer, media: str) -> Response:
    content = answer.content if isinstance(answer.content, bytes) else msgspec.json.encode(answer.content)
    headers = {"cache-control": "no-store", "x-request-id": uuid.uuid4().hex, **answer.headers}
    return Response(content, answer.status, headers, media_type=media)
