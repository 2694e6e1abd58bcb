"""`RateLimitMiddleware` around apps, and `front`, with the bundled Valkey."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.websockets import WebSocket

from llmweir.engine.embedded_folder import ValkeyFolder
from llmweir.errors import InvalidValueError, StoreUnavailableError
from llmweir.settings import Settings
from llmweir.traffic.asgi import App, Message, Receive, Scope, Send
from llmweir.wiring import RateLimitMiddleware, Weir, front

pytestmark = pytest.mark.asyncio

ADMIN = {"authorization": "Bearer sk-master"}
MASTER = "sk-master"
PATIENCE_S = 20.0


class Lifespan:
    """A server's side of the lifespan of one app."""

    def __init__(self, app: App) -> None:
        self.said: list[Message] = []
        self._asked: asyncio.Queue[Message] = asyncio.Queue()
        self._changed = asyncio.Event()
        scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}
        self.task = asyncio.ensure_future(app(scope, self._asked.get, self._send))

    async def _send(self, message: Message) -> None:
        self.said.append(message)
        self._changed.set()

    async def ask(self, what: str) -> str:
        """Asks for the startup or the shutdown and returns the type of the answer, or "none"."""
        self._changed.clear()
        self._asked.put_nowait({"type": f"lifespan.{what}"})
        changed = asyncio.ensure_future(self._changed.wait())
        await asyncio.wait({changed, self.task}, timeout=PATIENCE_S, return_when=asyncio.FIRST_COMPLETED)
        changed.cancel()
        return str(self.said[-1]["type"]) if self._changed.is_set() else "none"


@contextlib.asynccontextmanager
async def client_of(app: Weir) -> AsyncIterator[httpx.AsyncClient]:
    lifespan = Lifespan(app)
    assert await lifespan.ask("startup") == "lifespan.startup.complete"
    transport = httpx.ASGITransport(app)
    try:
        async with httpx.AsyncClient(transport=transport, base_url="http://app", timeout=PATIENCE_S) as client:
            yield client
    finally:
        answer = await lifespan.ask("shutdown")
        await lifespan.task
    assert answer == "lifespan.shutdown.complete"


async def who(request: Request) -> JSONResponse:
    caller = request.scope.get("state", {}).get("llmweir")
    return JSONResponse({"user_id": caller.user_id if caller else None})


async def echo(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.send_text(await websocket.receive_text())
    await websocket.close()


def starlette(**more: Any) -> Starlette:
    routes = [Route("/who", who), Route("/health", who), Route("/healthz", who), WebSocketRoute("/echo", echo)]
    return Starlette(routes=routes, **more)


async def http_only(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] != "http":
        raise NotImplementedError(scope["type"])
    await PlainTextResponse("ok")(scope, receive, send)


async def returns_from_lifespan(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "http":
        await PlainTextResponse("ok")(scope, receive, send)


async def raises_in_startup(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        await receive()
        raise RuntimeError("no database")
    await PlainTextResponse("ok")(scope, receive, send)


async def ends_early(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        return
    await PlainTextResponse("ok")(scope, receive, send)


@pytest.mark.parametrize(
    "app",
    [
        pytest.param(starlette(), id="lifespan"),
        pytest.param(http_only, id="raises"),
        pytest.param(returns_from_lifespan, id="returns"),
        pytest.param(raises_in_startup, id="raises in startup"),
        pytest.param(ends_early, id="ends after startup"),
    ],
)
async def test_any_app_is_served_between_start_and_stop(app: App, tmp_path: Path) -> None:
    weir = RateLimitMiddleware(app, data_dir=tmp_path, identify=lambda scope: "ana", default_user={"rpm_limit": 1})
    async with client_of(weir) as client:
        assert ValkeyFolder(tmp_path).server_answers()
        assert [(await client.get("/who")).status_code for _ in range(2)] == [200, 429]
    assert not ValkeyFolder(tmp_path).server_answers()


async def test_an_app_whose_startup_fails_says_so_and_leaves_no_server(tmp_path: Path) -> None:
    @contextlib.asynccontextmanager
    async def broken(app: Starlette) -> AsyncIterator[None]:
        if app.routes:
            raise RuntimeError("no database")
        yield

    lifespan = Lifespan(RateLimitMiddleware(starlette(lifespan=broken), data_dir=tmp_path))
    assert await lifespan.ask("startup") == "lifespan.startup.failed"
    with pytest.raises(RuntimeError):
        await lifespan.task
    assert [message["type"] for message in lifespan.said] == ["lifespan.startup.failed"]
    assert not ValkeyFolder(tmp_path).server_answers()


async def test_an_app_whose_shutdown_fails_says_so_after_the_engine_has_stopped(tmp_path: Path) -> None:
    @contextlib.asynccontextmanager
    async def broken(app: Starlette) -> AsyncIterator[None]:
        yield
        raise RuntimeError("no way out")

    lifespan = Lifespan(RateLimitMiddleware(starlette(lifespan=broken), data_dir=tmp_path))
    assert await lifespan.ask("startup") == "lifespan.startup.complete"
    assert await lifespan.ask("shutdown") == "lifespan.shutdown.failed"
    assert not ValkeyFolder(tmp_path).server_answers()


async def test_a_store_that_cannot_start_fails_the_startup() -> None:
    lifespan = Lifespan(RateLimitMiddleware(starlette(), data_dir="/proc/nowhere"))
    assert await lifespan.ask("startup") == "lifespan.startup.failed"
    assert "the bundled Valkey does not run" in lifespan.said[0]["message"]
    with pytest.raises(StoreUnavailableError):
        await lifespan.task


async def test_without_a_lifespan_the_first_request_starts_it(tmp_path: Path) -> None:
    weir = RateLimitMiddleware(starlette(), data_dir=tmp_path)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(weir), base_url="http://app") as client:
        assert (await client.get("/who")).status_code == 401
    await weir.aclose()
    assert not ValkeyFolder(tmp_path).server_answers()


async def nobody(scope: Scope) -> str | None:
    return None


async def somebody(scope: Scope) -> str | None:
    return "ana"


@pytest.mark.parametrize(
    ("identify", "status"),
    [
        pytest.param(lambda scope: "ana", 200, id="sync"),
        pytest.param(somebody, 200, id="async"),
        pytest.param(lambda scope: None, 401, id="sync None"),
        pytest.param(nobody, 401, id="async None"),
        pytest.param(lambda scope: "unknown", 401, id="unknown"),
    ],
)
async def test_the_app_may_name_its_own_callers(identify: Callable[[Scope], Any], status: int, tmp_path: Path) -> None:
    weir = RateLimitMiddleware(starlette(), data_dir=tmp_path, identify=identify, master_key=MASTER)
    async with client_of(weir) as client:
        await client.post("/llmweir/user/new", headers=ADMIN, json={"user_id": "ana", "auto_create_key": False})
        answer = await client.get("/who")
        assert answer.status_code == status
        if status == 200:
            assert answer.json() == {"user_id": "ana"}


async def test_default_limits_hold_and_follow_a_change_of_the_setting(tmp_path: Path) -> None:
    def app(rpm: int) -> RateLimitMiddleware:
        return RateLimitMiddleware(
            starlette(), data_dir=tmp_path, identify=lambda scope: "ana", default_user={"rpm_limit": rpm}
        )

    async with client_of(app(2)) as client:
        assert [(await client.get("/who")).status_code for _ in range(3)] == [200, 200, 429]
    async with client_of(app(3)) as client:
        assert [(await client.get("/who")).status_code for _ in range(2)] == [200, 429]


async def test_a_default_user_that_is_no_record_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidValueError, match="default_user: rpm"):
        RateLimitMiddleware(starlette(), data_dir=tmp_path, default_user={"rpm": 1})


async def test_open_paths_need_no_key_and_the_admin_api_lies_under_its_prefix(tmp_path: Path) -> None:
    async with client_of(RateLimitMiddleware(starlette(), data_dir=tmp_path, master_key=MASTER)) as client:
        assert (await client.get("/health")).json() == {"user_id": None}
        assert (await client.get("/healthz")).status_code == 200
        assert (await client.get("/who")).status_code == 401
        assert (await client.get("/llmweir/health/readiness")).json()["status"] == "healthy"
        assert (await client.post("/user/new", headers=ADMIN, json={})).status_code == 404
        made = await client.post("/llmweir/user/new", headers=ADMIN, json={"user_id": "ana"})
        key = {"authorization": f"Bearer {made.json()['key']}"}
        assert (await client.get("/who", headers=key)).json() == {"user_id": "ana"}
    async with client_of(RateLimitMiddleware(starlette(), data_dir=tmp_path, open_paths=("/who",))) as client:
        assert [(await client.get(path)).status_code for path in ("/who", "/health")] == [200, 401]


async def test_the_admin_api_is_found_under_a_mount(tmp_path: Path) -> None:
    weir = RateLimitMiddleware(starlette(), data_dir=tmp_path)
    outer = Starlette(routes=[Mount("/sub", weir)])
    async with httpx.AsyncClient(transport=httpx.ASGITransport(outer), base_url="http://app") as client:
        assert (await client.get("/sub/llmweir/health/liveliness")).json()["status"] == "alive"
    await weir.aclose()


class Socket:
    """A client's side of one WebSocket."""

    def __init__(self, app: App) -> None:
        self.said: asyncio.Queue[Message] = asyncio.Queue()
        self.ask: asyncio.Queue[Message] = asyncio.Queue()
        self.ask.put_nowait({"type": "websocket.connect"})
        scope = {
            "type": "websocket", "path": "/echo", "raw_path": b"/echo", "query_string": b"", "headers": [],
            "subprotocols": [],
        }  # fmt: skip
        self.task = asyncio.ensure_future(app(scope, self.ask.get, self._send))

    async def _send(self, message: Message) -> None:
        self.said.put_nowait(message)

    async def answer(self) -> str:
        return str((await asyncio.wait_for(self.said.get(), PATIENCE_S))["type"])


async def test_a_websocket_counts_as_one_request_and_holds_a_slot(tmp_path: Path) -> None:
    limits = {"rpm_limit": 3, "max_parallel_requests": 1}
    weir = RateLimitMiddleware(starlette(), data_dir=tmp_path, identify=lambda scope: "ana", default_user=limits)
    async with client_of(weir) as client:
        first = Socket(weir)
        assert await first.answer() == "websocket.accept"
        second = Socket(weir)
        assert await second.answer() == "websocket.close"
        assert (await client.get("/who")).json()["error"]["code"] == "parallel_limit_exceeded"
        first.ask.put_nowait({"type": "websocket.receive", "text": "hello"})
        assert [await first.answer(), await first.answer()] == ["websocket.send", "websocket.close"]
        await asyncio.gather(first.task, second.task)
        answers = [await client.get("/who") for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 429]


async def test_a_websocket_of_nobody_is_refused(tmp_path: Path) -> None:
    weir = RateLimitMiddleware(starlette(), data_dir=tmp_path)
    async with client_of(weir):
        assert await Socket(weir).answer() == "websocket.close"


async def test_in_front_a_websocket_is_refused_with_403(tmp_path: Path) -> None:
    weir = front(Settings(upstream="http://127.0.0.1:1", data_dir=tmp_path))
    async with client_of(weir) as client:
        upgrade = {"connection": "upgrade", "upgrade": "websocket"}
        answer = await client.get("/v1/realtime", headers=upgrade)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "websocket_not_metered")


async def test_in_front_an_upstream_is_needed() -> None:
    with pytest.raises(InvalidValueError, match="upstream is needed"):
        front(Settings())


async def test_two_middlewares_on_one_folder_share_one_valkey(tmp_path: Path) -> None:
    def app() -> RateLimitMiddleware:
        return RateLimitMiddleware(
            starlette(), data_dir=tmp_path, identify=lambda scope: "ana", default_user={"rpm_limit": 2}
        )

    async with client_of(app()) as one:
        async with client_of(app()) as other:
            answers = [await client.get("/who") for client in (one, other, one, other)]
            assert [answer.status_code for answer in answers] == [200, 200, 429, 429]
        assert ValkeyFolder(tmp_path).server_answers()
        assert (await one.get("/who")).status_code == 429
    assert not ValkeyFolder(tmp_path).server_answers()
