"""Builds the whole from the settings: around an app (`RateLimitMiddleware`) or in front of an upstream (`front`)."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from typing import Any

import msgspec
from pydantic import ValidationError

from llmweir import __version__
from llmweir.admin.app import AdminApi
from llmweir.admin.build import AdminOptions, admin_api
from llmweir.errors import InvalidValueError
from llmweir.metrics import Exposition
from llmweir.pricing import PriceBook
from llmweir.records import NewUser, problems
from llmweir.settings import Paths, Settings
from llmweir.traffic.asgi import App, Receive, Scope, Send, path_of
from llmweir.traffic.body import BodyReader
from llmweir.traffic.estimate import Estimator
from llmweir.traffic.identify import HeadReader, Identify
from llmweir.traffic.lifespan import wrap_lifespan
from llmweir.traffic.middleware import DefaultUser, Gate, GateOptions
from llmweir.traffic.proxy import ReverseProxy
from llmweir.worker import Engine

_LAST_REQUESTS_S = 2.0
"""How long requests that the server has cancelled may take to settle."""


class Weir:
    """An ASGI app: the gate in front of `app`, the admin API beside it, and the engine that lives as long as both."""

    def __init__(
        self,
        app: App,
        settings: Settings,
        paths: Paths,
        *,
        identify: Identify | None = None,
        accept_websockets: bool,
    ) -> None:
        self._app = app
        self._settings = settings
        self._paths = paths
        self._identify = identify
        self._accept_websockets = accept_websockets
        self._prices = PriceBook(settings.price_file, settings.unpriced_models)
        self._default_user = _default_user_of(settings)
        self._estimator = Estimator(settings.reserve, settings.default_max_output_tokens)
        self._engine = Engine(settings)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._starting = asyncio.Lock()
        self._gate: App | None = None
        self._admin_api: AdminApi | None = None
        self._admin: App | None = None
        self._admin_paths: frozenset[str] = frozenset()
        self._admin_path_starts: tuple[str, ...] = ()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves a request, or the lifespan."""
        if scope["type"] == "lifespan":
            await wrap_lifespan(self._app, scope, receive, send, start=self.start, stop=self.aclose)
            return
        if self._gate is None or self._loop is not asyncio.get_running_loop():
            await self.start()
        path, app = path_of(scope), self._gate
        if path in self._admin_paths or path.startswith(self._admin_path_starts):
            app = self._app_of(path, scope["type"])
        assert app is not None  # noqa: S101 (it has started)
        await app(scope, receive, send)

    def _app_of(self, path: str, kind: str) -> App | None:
        """Who serves a path that may be the admin API's."""
        api = self._admin_api
        return self._admin if kind == "http" and api is not None and path in api.paths else self._gate

    @property
    def engine(self) -> Engine:
        """The store and the users behind this app; usable once it has started."""
        return self._engine

    async def start(self) -> None:
        """Starts the engine, once; the first request does so where no lifespan came before it.

        It belongs to its event loop: under another one (a test client may give each request its own) it starts anew.
        """
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop, self._starting, self._gate, self._admin = loop, asyncio.Lock(), None, None
        async with self._starting:
            if self._gate is not None:
                return
            try:
                await self._engine.start()
            except BaseException:
                await self._engine.aclose()
                raise
            settings = self._settings
            heads = HeadReader(settings.key_header)
            master_key = settings.master_key.get_secret_value() if settings.master_key is not None else None
            self._serve_admin(heads, master_key)
            self._gate = Gate(
                self._app,
                store=self._engine.store,
                prices=self._prices,
                estimator=self._estimator,
                heads=heads,
                bodies=BodyReader(settings.max_body_bytes, settings.body_timeout_s),
                options=GateOptions(
                    master_key=master_key,
                    open_paths=self._paths.open_paths,
                    free_paths=settings.free_paths,
                    unknown_paths=self._paths.unknown_paths,
                    budget_exceeded_status=settings.budget_exceeded_status,
                    accept_websockets=self._accept_websockets,
                    on_store_failure=settings.on_store_failure,
                    store_timeout_ms=settings.store_timeout_ms,
                ),
                metrics=self._engine.metrics,
                identify=self._identify,
                default_user=self._gate_default_user(),
            )

    async def aclose(self) -> None:
        """Stops the engine once what still runs is settled; a later request starts it again."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_REQUESTS_S):
                while self._gate and self._engine.store.is_busy:  # noqa: ASYNC110 (an event would cost every request)
                    await asyncio.sleep(0.01)
        self._gate = self._admin = None
        await self._engine.aclose()

    def _serve_admin(self, heads: HeadReader, master_key: str | None) -> None:
        settings = self._settings
        options = AdminOptions(
            master_key=master_key,
            prefix=self._paths.admin_prefix,
            read_key=lambda headers: heads.read(headers).api_key,
            key_headers=heads.key_headers,
            body_timeout_s=settings.body_timeout_s,
            smtp_url=settings.smtp_url.get_secret_value() if settings.smtp_url is not None else None,
            public_url=settings.public_url,
            metrics_public=settings.metrics_public,
            is_open_without_store=settings.on_store_failure == "open",
            version=__version__,
        )
        engine = self._engine
        scrape = Exposition(engine.metrics, __version__, engine.look).text
        api = admin_api(engine.link, engine.users, engine.keys, scrape, options)
        self._admin, self._admin_paths, self._admin_path_starts = api.app(), api.paths.exact, api.paths.starts
        self._admin_api = api

    def _gate_default_user(self) -> DefaultUser | None:
        if self._default_user is None:
            return None
        body, digest = self._default_user

        async def make(user_id: str) -> None:
            await self._engine.users.put_default(body, user_id, digest)

        return DefaultUser(digest, make)


class RateLimitMiddleware(Weir):
    """Wraps an ASGI app: callers are known by API key, or by the app's own `identify`, and held to their limits.

    Every setting is a keyword argument by the same name. `identify(scope)`, sync or async, returns a user id, or None
    for 401. Raises InvalidValueError for a setting that is not valid.
    """

    def __init__(self, app: App, *, identify: Identify | None = None, **settings: Any) -> None:
        read = Settings(**settings)
        super().__init__(app, read, read.for_around(), identify=identify, accept_websockets=True)


def front(settings: Settings) -> Weir:
    """The gate in front of the upstream of the settings, as `serve` runs it."""
    if settings.upstream is None:
        raise InvalidValueError("upstream is needed: the base URL in front of which llmweir stands.")
    upstream_key = settings.upstream_api_key
    proxy = ReverseProxy(
        settings.upstream,
        upstream_api_key=upstream_key.get_secret_value() if upstream_key is not None else None,
        forward_caller_key=settings.forward_caller_key,
        caller_key_header=settings.key_header,
        upstream_timeout_s=settings.upstream_timeout_s,
    )
    return Weir(proxy, settings, settings.for_front(), accept_websockets=False)


def _default_user_of(settings: Settings) -> tuple[NewUser, str] | None:
    if settings.default_user is None:
        return None
    text = msgspec.json.encode(settings.default_user, order="sorted")
    try:
        body = NewUser.model_validate_json(text)
    except ValidationError as error:
        found = "; ".join(f"{'.'.join(map(str, p['loc'][1:]))}: {p['msg']}" for p in problems(error))  # type: ignore[index]
        raise InvalidValueError(f"default_user: {found}") from error
    return body, hashlib.sha256(text).hexdigest()[:16]
