"""The way of a request: identify, read, estimate, admit, call the app, settle. The story; its steps live elsewhere."""

from __future__ import annotations

import asyncio
import inspect
import re
import secrets
import time
from collections.abc import Awaitable, Callable
from hmac import compare_digest
from itertools import count
from typing import Final, Literal, TypeVar

import msgspec

from llmweir.decision import Admitted, Caller, CallerRefused, Decision, LetThrough, LimitRefused, Refusal
from llmweir.engine.any_link import says_unavailable
from llmweir.engine.asks import AliasOf, Ask
from llmweir.engine.key_hashes import hash_key
from llmweir.engine.store import Store
from llmweir.engine.wire import ReplyError
from llmweir.errors import StoreUnavailableError, UnreadableRequestError
from llmweir.metrics import Metrics
from llmweir.pricing import PriceBook, Rates
from llmweir.traffic import refusals
from llmweir.traffic.answer import ANSWERED, Refused, answer, refusal_and_standing
from llmweir.traffic.asgi import App, Receive, Scope, Send, path_of
from llmweir.traffic.body import BodyReader, ClientLeftError, Replay
from llmweir.traffic.estimate import NO_HOLD, Estimator
from llmweir.traffic.formats.base import Format
from llmweir.traffic.handover import for_app, give_caller, without_key
from llmweir.traffic.headers import standing_headers
from llmweir.traffic.identify import HeadReader, Identify
from llmweir.traffic.observe import Observer, Reservation
from llmweir.traffic.paths import replace_model
from llmweir.traffic.proxy import UpstreamBrokenError, UpstreamUnavailableError
from llmweir.traffic.request import GatedRequest
from llmweir.traffic.rules import PathRules, Verdict

_USER_ID = re.compile(r"[^\x00-\x1f\x7f-\x9f\ud800-\udfff]{1,256}")
_MOST_ADMISSION_CALLS = 4
_DEGRADED = (b"x-llmweir-degraded", b"store-unavailable")
_PASSES: Final = (Admitted, LetThrough)
_T = TypeVar("_T")


class GateOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How the gate behaves; the fields are settings of the same names."""

    master_key: str | None = None
    open_paths: tuple[str, ...] = ()
    free_paths: tuple[str, ...] = ()
    unknown_paths: Literal["refuse", "count"] = "count"
    budget_exceeded_status: int = 429
    accept_websockets: bool = True
    on_store_failure: Literal["closed", "open"] = "closed"
    store_timeout_ms: int = 500


class DefaultUser(msgspec.Struct, frozen=True):
    """The limits of callers that the app names and no record knows: `make` writes such a record, as of `digest`."""

    digest: str
    make: Callable[[str], Awaitable[None]]


class Gate:
    """An ASGI app in front of `app` that lets through what the caller's limits have room for.

    It keeps nothing of a request once that is over; what it learns of models and callers lies in its parts.
    """

    def __init__(  # noqa: PLR0913 - its parts
        self,
        app: App,
        *,
        store: Store,
        prices: PriceBook,
        estimator: Estimator,
        heads: HeadReader,
        bodies: BodyReader,
        options: GateOptions,
        metrics: Metrics,
        identify: Identify | None = None,
        default_user: DefaultUser | None = None,
    ) -> None:
        self._app = app
        self._store = store
        self._prices = prices
        self._estimator = estimator
        self._heads = heads
        self._bodies = bodies
        self._options = options
        self._metrics = metrics
        self._identify = identify
        self._default_user = default_user
        self._default_digest = default_user.digest if default_user is not None else ""
        self._rules = PathRules(options.open_paths, options.free_paths)
        self._master_key = options.master_key.encode() if options.master_key else None
        self._opens = options.on_store_failure == "open"
        self._store_timeout_s = options.store_timeout_ms / 1000
        self._request_prefix = f"req_{secrets.token_hex(8)}"
        self._request_numbers = count(1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one HTTP request or WebSocket; everything else passes."""
        if scope["type"] != "http":
            await (self._websocket if scope["type"] == "websocket" else self._app)(scope, receive, send)
            return
        request = GatedRequest(scope, receive, send, f"{self._request_prefix}{next(self._request_numbers):x}")
        try:
            path = path_of(scope)
            verdict = self._rules.judge(scope["method"], path, scope.get("raw_path") or b"")
            request.route = verdict.route
            if verdict.access == "open":
                await self._pass(request)
                return
            is_limited = self._recognise(request)
            if is_limited is None:
                is_limited = await self._look_up(request)
            self._check_known(verdict)
            if not is_limited:
                await self._pass(request, without_key(scope, self._master_key or b""))
            elif verdict.access == "free":
                give_caller(scope, await self._authorise(request), request.request_id)
                await self._pass(request)
            else:
                if request.route.format is not None:
                    await self._read(request, request.route.format)
                admitted, reservation = await self._admit(request)
                await self._pass_on(request, admitted, reservation)
        except ANSWERED as error:
            refusal, standing = refusal_and_standing(error, request.is_passed)
            self._count(refusal)
            await answer(request, refusal, standing)
        except ClientLeftError:
            return

    def _recognise(self, request: GatedRequest) -> bool | None:
        """Finds out who is calling; False for the master key, Refused for nobody, None: somebody to be looked up."""
        request.head = head = self._heads.read(request.scope["headers"])
        if head.upgrades and not self._options.accept_websockets:
            raise _websocket_refused()
        if self._identify is not None:
            return None
        api_key = head.api_key
        if api_key is None:
            raise Refused(refusals.unauthenticated("no_key"))
        if self._master_key is not None and compare_digest(api_key.encode("latin-1"), self._master_key):
            return False
        request.key_hash = hash_key(api_key)
        request.user_id = self._store.known_owner(request.key_hash) or ""
        return True if request.user_id else None

    async def _look_up(self, request: GatedRequest) -> bool:
        """Asks the app, or the store, who is calling; Refused for nobody."""
        if self._identify is None:
            owner = await self._owner_of(request)
            if owner is None:
                raise Refused(refusals.unauthenticated("unknown_key"))
            request.user_id = owner
            return True
        named = self._identify(request.scope)
        user_id = await named if inspect.isawaitable(named) else named
        if user_id is not None and not isinstance(user_id, str):
            raise TypeError(f"identify returns a user id or None, not {type(user_id).__name__}")
        if user_id is None or not _USER_ID.fullmatch(user_id):
            raise Refused(refusals.unauthenticated("unknown_user"))
        request.user_id = user_id
        return True

    async def _owner_of(self, request: GatedRequest) -> str | None:
        try:
            return await self._within(request, self._store.owner_of(request.key_hash))
        except (StoreUnavailableError, ReplyError) as error:
            caller = self._known_caller(request, error)
            if caller is None:
                raise
            return caller.user_id

    def _known_caller(self, request: GatedRequest, error: Exception) -> Caller | None:
        """Who may come in while the store is away, as `error` says: nobody, or whoever was let in before."""
        if not self._opens or not says_unavailable(error):
            return None
        return self._store.known_caller(request.key_hash, request.user_id)

    async def _within(self, request: GatedRequest, asking: Awaitable[_T]) -> _T:
        """Asks the store one of several things: the time it may take is for all of them together."""
        left_s, begun_s = max(0.001, request.store_left_s or self._store_timeout_s), time.monotonic()
        try:
            async with asyncio.timeout(left_s):
                return await asking
        except TimeoutError as error:
            raise StoreUnavailableError("it does not answer in time") from error
        finally:
            request.store_left_s = max(0.001, left_s - (time.monotonic() - begun_s))

    def _check_known(self, verdict: Verdict) -> None:
        """Raises UnreadableRequestError for a path of no known format, where those are refused."""
        is_unknown = verdict.route.format is None and verdict.access == "gated"
        if is_unknown and self._options.unknown_paths == "refuse":
            message = "This method and path are not known, so they cannot be metered (see unknown_paths)."
            raise UnreadableRequestError(404, "path_not_gated", message)

    async def _read(self, request: GatedRequest, format_: Format) -> None:
        """Reads the body and what it says of its own cost."""
        head = request.head
        if head.content_encoding not in (b"", b"identity"):
            raise UnreadableRequestError(
                415, "unsupported_content_encoding", "A body in a content coding cannot be metered; send it plain."
            )
        request.body = await self._bodies.read(request.receive, head.declared_bytes)
        request.facts = format_.facts(request.body, head.content_type, request.route.path_model)

    async def _admit(self, request: GatedRequest) -> tuple[Admitted | LetThrough, Reservation]:
        """Admits a request, or raises Refused.

        It takes a second call only where an alias has just changed, or something had to be healed first.
        """
        facts, route = request.facts, request.route
        model = self._store.alias_target(request.user_id, request.key_hash, facts.model)
        if model != facts.model and route.path_model is not None:
            replace_model(path_of(request.scope), model)  # refused here where it leads out of the path, uncounted
        rates: Rates | None = None
        hold = NO_HOLD
        for _ in range(_MOST_ADMISSION_CALLS):
            if route.format is not None:
                rates = self._prices.rates(model)
                hold = self._estimator.hold(facts, request.user_id, model, rates, route.format.output_is_free)
            ask = Ask(
                request.request_id,
                request.user_id,
                request.key_hash,
                facts.model,
                model,
                hold.asked_tokens,
                hold.hold_tokens,
                hold.asked_nanos,
                hold.hold_nanos,
                "\n".join(facts.cache_controls),
                self._default_digest,
            )
            decision: Decision | AliasOf | LetThrough | None
            begun_s = time.monotonic()
            asking = self._store.admit(ask)
            try:
                decision = await (self._within(request, asking) if request.store_left_s else asking)
            except (StoreUnavailableError, ReplyError) as error:
                decision = self._let_through(request, ask, error)
                if decision is None:
                    raise
            if isinstance(decision, _PASSES):
                request_id = request.request_id if decision.standing is not None else decision.request_id
                reservation = Reservation(
                    self._store, self._estimator, request_id, request.user_id, model, facts, hold, rates, self._metrics
                )
                return decision, reservation
            request.store_left_s = request.store_left_s or self._store_timeout_s - (time.monotonic() - begun_s)
            model = await self._model_to_ask_again_with(request, decision, model)
        raise Refused(refusals.unauthenticated("unknown_user"))

    async def _model_to_ask_again_with(
        self, request: GatedRequest, decision: CallerRefused | LimitRefused | AliasOf, model: str
    ) -> str:
        """Mends what can be mended after a first answer, or raises Refused."""
        if isinstance(decision, LimitRefused):
            who = self._store.name_of(request.user_id, request.key_hash)
            refusal = refusals.limit_refused(decision, who, model, self._options.budget_exceeded_status)
            raise Refused(refusal, decision.standing)
        if isinstance(decision, AliasOf):
            if request.route.path_model is not None:
                replace_model(path_of(request.scope), decision.model)  # refused here, as before
            return decision.model
        await self._within(request, self._heal(request, decision))
        return model

    def _let_through(self, request: GatedRequest, ask: Ask, error: Exception) -> LetThrough | None:
        """Lets a caller through who was let in before, while the store is away; None where that may not be."""
        caller = self._known_caller(request, error)
        if caller is None:
            return None
        request.user_id = caller.user_id  # another worker may have seen the key change hands
        ask = msgspec.structs.replace(ask, request_id=f"{ask.request_id}-open", user_id=caller.user_id)
        if not self._store.let_through(ask):
            return None
        self._metrics.let_through += 1
        return LetThrough(caller, ask.request_id)

    async def _authorise(self, request: GatedRequest) -> Caller:
        for _ in range(_MOST_ADMISSION_CALLS):
            asking = self._store.authorise(
                request.user_id, request.key_hash, data_plane=True, default_digest=self._default_digest
            )
            try:
                caller = await self._within(request, asking)
            except (StoreUnavailableError, ReplyError) as error:
                known = self._known_caller(request, error)
                if known is None:
                    raise
                return known
            if isinstance(caller, Caller):
                return caller
            await self._within(request, self._heal(request, caller))
        raise Refused(refusals.unauthenticated("unknown_user"))

    async def _heal(self, request: GatedRequest, refused: CallerRefused) -> None:
        """Mends what made the store refuse a caller, so that it may be asked again, or raises Refused.

        An unknown caller the app named gets the default limits; a key that has changed hands is looked up afresh.
        """
        if refused.reason in ("unknown_user", "stale_default") and not request.key_hash and self._default_user:
            await self._default_user.make(request.user_id)
            return
        if refused.reason in ("unknown_user", "unknown_key") and request.key_hash:
            owner = await self._store.owner_of(request.key_hash, afresh=True)
            if owner is not None and owner != request.user_id:
                request.user_id = owner
                return
        raise Refused(refusals.caller_refused(refused.reason, request.facts.model))

    async def _pass(self, request: GatedRequest, scope: Scope | None = None) -> None:
        """Calls the app behind for a request that is not metered; what it raises is its own."""
        request.is_passed = True
        await self._app(scope if scope is not None else request.scope, request.receive, request.send)

    async def _pass_on(self, request: GatedRequest, admitted: Admitted | LetThrough, reservation: Reservation) -> None:
        """Calls the app behind, and settles whatever comes of it."""
        standing = admitted.standing
        observer = Observer(
            request.send,
            reservation,
            admitted.is_tight,
            standing_headers(standing, request.route.dialect) if standing is not None else [_DEGRADED],
            request.route,
            request.facts,
        )
        scope, receive = request.scope, request.receive
        raised: BaseException | None = None
        try:
            if request.body is not None:
                scope, body = for_app(request, reservation.model)
                receive = Replay(body, receive)
            give_caller(scope, admitted.profile, request.request_id)
            request.is_passed = True
            await self._app(scope, receive, observer.send)
        except BaseException as error:
            raised = error
            if not isinstance(error, (UpstreamUnavailableError, UpstreamBrokenError)) or observer.has_begun:
                raise
            status = error.status if isinstance(error, UpstreamUnavailableError) else 502
            raise Refused(refusals.upstream_unavailable(status), standing) from error
        finally:
            observer.left(raised)

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Counts a WebSocket as one request that holds a slot for as long as it lasts, where they are accepted."""
        request = GatedRequest(scope, receive, send, f"{self._request_prefix}{next(self._request_numbers):x}")
        try:
            verdict = self._rules.judge("GET", path_of(scope), scope.get("raw_path") or b"")
            if not self._options.accept_websockets:
                raise _websocket_refused()
            is_limited: bool | None = False
            if verdict.access != "open":
                is_limited = self._recognise(request)
                if is_limited is None:
                    is_limited = await self._look_up(request)
                self._check_known(verdict)
            admitted, reservation = await self._admit(request) if is_limited else (None, None)
        except ANSWERED as error:
            self._count(refusal_and_standing(error)[0])
            await receive()
            await send({"type": "websocket.close", "code": 1008})
            return
        if admitted is not None:
            give_caller(scope, admitted.profile, request.request_id)
        try:
            await self._app(scope, receive, send)
        finally:
            if reservation is not None:
                reservation.nothing()

    def _count(self, refusal: Refusal) -> None:
        """Counts a refusal of the gate's own; what the upstream failed was admitted before."""
        if refusal.code != refusals.UPSTREAM_UNAVAILABLE:
            self._metrics.count_refused(refusal.code)


def _websocket_refused() -> UnreadableRequestError:
    return UnreadableRequestError(403, "websocket_not_metered", "WebSockets cannot be metered here.")
