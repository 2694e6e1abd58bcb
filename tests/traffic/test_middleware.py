"""The way of a request through the gate, against a store that says what it is told to say."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, cast
from urllib.parse import quote

import pytest

from llmweir.decision import Admitted, Caller, CallerRefused, Decision, LimitRefused, LimitState, Standing
from llmweir.engine.asks import AliasOf, Ask, Settlement
from llmweir.engine.key_hashes import hash_key
from llmweir.engine.store import Store
from llmweir.engine.wire import ReplyError
from llmweir.errors import StoreUnavailableError
from llmweir.metrics import Metrics
from llmweir.pricing import PriceBook
from llmweir.traffic.asgi import Message, Receive, Scope, Send
from llmweir.traffic.body import BodyReader
from llmweir.traffic.estimate import Estimator
from llmweir.traffic.identify import HeadReader
from llmweir.traffic.middleware import DefaultUser, Gate, GateOptions
from llmweir.traffic.proxy import UpstreamBrokenError, UpstreamUnavailableError

CHAT = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hi"}]}
ANSWER = json.dumps({"usage": {"prompt_tokens": 20, "completion_tokens": 30}}).encode()
STANDING = Standing(*[2, 1, 61_000, -1, 0, -1, 0, -1, 0, -1, 0, -1, 0, -1, -1, 0, -1])
PROFILE = Caller(user_id="ann", user_alias="Ann", user_role="customer", teams=("t",), metadata={"a": 1})
ADMITTED = Admitted(STANDING, PROFILE)
NO_REQUESTS = LimitRefused(STANDING, LimitState("rpm", None, 2, 2, 1), "wait", 3890)
MASTER_KEY = "sk-master"


class Book:
    """Stands in for the store: answers with `decisions` in order, the last one again and again."""

    def __init__(self, *decisions: Decision | AliasOf | StoreUnavailableError | ReplyError) -> None:
        self.decisions = deque(decisions or [ADMITTED])
        self.owners: dict[str, str] = {hash_key("sk-ann"): "ann"}
        self.moved: dict[str, str] = {}
        self.asked: list[Ask] = []
        self.authorised: list[tuple[str, str]] = []
        self.settled: list[Settlement] = []

    def known_owner(self, key_hash: str) -> str | None:
        return None

    async def owner_of(self, key_hash: str, *, afresh: bool = False) -> str | None:
        return (self.moved if afresh else self.owners).get(key_hash)

    def alias_target(self, user_id: str, key_hash: str, model: str) -> str:
        return model

    def name_of(self, user_id: str, key_hash: str) -> str:
        return user_id

    async def admit(self, ask: Ask) -> Decision | AliasOf:
        self.asked.append(ask)
        return self._next()

    async def authorise(
        self, user_id: str, key_hash: str, *, data_plane: bool, default_digest: str = ""
    ) -> Caller | CallerRefused:
        self.authorised.append((user_id, default_digest))
        decision = self._next()
        if isinstance(decision, Admitted):
            return decision.profile
        assert isinstance(decision, CallerRefused)
        return decision

    def settle(self, settlement: Settlement) -> asyncio.Future[Any]:
        self.settled.append(settlement)
        return asyncio.get_running_loop().create_future()

    def _next(self) -> Decision | AliasOf:
        decision = self.decisions.popleft() if len(self.decisions) > 1 else self.decisions[0]
        if isinstance(decision, (StoreUnavailableError, ReplyError)):
            raise decision
        return decision


class App:
    """The app behind: keeps what it gets, and answers a chat."""

    def __init__(self, error: BaseException | None = None, *, after_start: bool = False) -> None:
        self.scopes: list[Scope] = []
        self.bodies: list[bytes] = []
        self.error = error
        self.after_start = after_start

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scopes.append(scope)
        if scope["type"] == "http":
            self.bodies.append((await receive()).get("body", b""))
            if self.error is None or self.after_start:
                headers = [(b"content-type", b"application/json")]
                await send({"type": "http.response.start", "status": 200, "headers": headers})
            if self.after_start:
                await send({"type": "http.response.body", "body": b"x", "more_body": True})
        if self.error is not None:
            raise self.error
        if scope["type"] == "http":
            await send({"type": "http.response.body", "body": ANSWER})

    @property
    def caller(self) -> Caller:
        caller = self.scopes[-1]["state"]["llmweir"]
        assert isinstance(caller, Caller)
        return caller


def gate_of(
    book: Book,
    app: Callable[..., Awaitable[None]],
    *,
    identify: Any = None,
    default_user: DefaultUser | None = None,
    **options: Any,
) -> Gate:
    return Gate(
        app,
        store=cast(Store, book),
        prices=PriceBook(),
        estimator=Estimator("expected", 100),
        heads=HeadReader(),
        bodies=BodyReader(10_000, 5),
        options=GateOptions(master_key=MASTER_KEY, **options),
        metrics=Metrics(),
        identify=identify,
        default_user=default_user,
    )


async def call(
    gate: Gate,
    *,
    method: str = "POST",
    path: str = "/v1/chat/completions",
    body: Any = CHAT,
    key: str | None = "sk-ann",
    headers: tuple[tuple[bytes, bytes], ...] = (),
    **scope: Any,
) -> tuple[int, dict[bytes, bytes], Any]:
    """Status, headers and body of an answer; status 0 where there is none."""
    sent: list[Message] = []
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    incoming = deque([{"type": "http.request", "body": content}])
    pairs = list(headers) if key is None else [(b"authorization", b"Bearer " + key.encode()), *headers]

    async def receive() -> Message:
        return incoming.popleft() if incoming else {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    asgi = {"type": "http", "method": method, "path": path, "raw_path": path.encode(), "headers": pairs, **scope}
    await gate(asgi, receive, send)
    if not sent:
        return 0, {}, None
    answer = b"".join(message.get("body", b"") for message in sent)
    return sent[0]["status"], dict(sent[0]["headers"]), json.loads(answer or b"null")


async def test_an_admitted_request_reaches_the_app_with_its_caller_and_is_settled() -> None:
    book, app = Book(), App()
    status, headers, _ = await call(gate_of(book, app), state={"kept": 1})
    assert status == 200
    assert headers[b"x-ratelimit-remaining-requests"] == b"1"
    assert json.loads(app.bodies[0]) == CHAT
    assert app.scopes[0]["state"]["kept"] == 1
    [ask], [settlement] = book.asked, book.settled
    assert (ask.user_id, ask.key_hash, ask.model, ask.target) == ("ann", hash_key("sk-ann"), "gpt-4o", "gpt-4o")
    assert settlement.request_id == ask.request_id == app.caller.request_id
    assert (settlement.input_tokens, settlement.output_tokens, settlement.failed) == (20, 30, False)
    assert app.caller == Caller(
        user_id="ann",
        user_alias="Ann",
        user_role="customer",
        teams=("t",),
        metadata={"a": 1},
        request_id=ask.request_id,
    )


async def test_every_request_has_an_id_of_its_own() -> None:
    book = Book()
    gate = gate_of(book, App())
    await asyncio.gather(*(call(gate) for _ in range(20)))
    other = Book()
    await call(gate_of(other, App()))
    assert len({ask.request_id for ask in book.asked + other.asked}) == 21


async def test_what_is_no_request_passes() -> None:
    app = App()
    gate = gate_of(Book(), app)
    await gate({"type": "lifespan"}, cast(Receive, None), cast(Send, None))
    assert app.scopes == [{"type": "lifespan"}]


DIALECTS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "OpenAI": ("/v1/chat/completions", lambda body: body["error"]["code"]),
    "Anthropic": ("/v1/messages", lambda body: body["error"]["type"]),
    "Gemini": ("/v1beta/models/m:generateContent", lambda body: body["error"]["status"]),
}
IN_DIALECT = {
    "no key": (None, Book(), 401, ("invalid_api_key", "authentication_error", "UNAUTHENTICATED")),
    "an unknown key": ("sk-x", Book(), 401, ("invalid_api_key", "authentication_error", "UNAUTHENTICATED")),
    "an expired key": (
        "sk-ann", Book(CallerRefused("key_expired")), 401,
        ("invalid_api_key", "authentication_error", "UNAUTHENTICATED"),
    ),
    "blocked": (
        "sk-ann", Book(CallerRefused("user_blocked")), 403, ("user_blocked", "permission_error", "PERMISSION_DENIED"),
    ),
    "a limit": ("sk-ann", Book(NO_REQUESTS), 429, ("rate_limit_exceeded", "rate_limit_error", "RESOURCE_EXHAUSTED")),
    "the store refuses a command": (
        "sk-ann", Book(ReplyError("OOM command not allowed")), 503,
        ("store_unavailable", "overloaded_error", "UNAVAILABLE"),
    ),
    "the store is away": (
        "sk-ann", Book(StoreUnavailableError("gone")), 503, ("store_unavailable", "overloaded_error", "UNAVAILABLE"),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("key", "book", "status", "names"), IN_DIALECT.values(), ids=IN_DIALECT)
@pytest.mark.parametrize("dialect", DIALECTS, ids=DIALECTS)
async def test_a_refusal_speaks_the_dialect_of_its_path(
    dialect: str, key: str | None, book: Book, status: int, names: tuple[str, str, str]
) -> None:
    path, name_of = DIALECTS[dialect]
    app = App()
    answered, headers, body = await call(gate_of(book, app), path=path, key=key, body={**CHAT, "model": "m"})
    assert (answered, name_of(body)) == (status, names[list(DIALECTS).index(dialect)])
    assert headers[b"content-type"] == b"application/json"
    assert headers[b"cache-control"] == b"no-store"
    assert headers[b"x-request-id"].startswith(b"req_")
    assert (b"x-ratelimit-limit-requests" in headers) == (status == 429)
    assert (b"anthropic-ratelimit-requests-limit" in headers) == (status == 429 and dialect == "Anthropic")
    assert app.scopes == []
    assert book.settled == []


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/chat/completions", "/v1beta/models/m:generateContent"])
async def test_problem_json_is_given_to_who_accepts_it(path: str) -> None:
    accept = ((b"accept", b"text/html, application/problem+json"),)
    answer = await call(gate_of(Book(NO_REQUESTS), App()), path=path, headers=accept, body={**CHAT, "model": "m"})
    status, headers, body = answer
    assert (status, headers[b"content-type"]) == (429, b"application/problem+json")
    assert (body["status"], body["violated-policies"]) == (429, ["user-rpm"])
    assert "error" in body


UNREADABLE: dict[str, tuple[dict[str, Any], int, str]] = {
    "a path of two readings": ({"path": "/v1/../x"}, 400, "invalid_path"),
    "a header twice": ({"headers": ((b"authorization", b"Bearer b"),)}, 400, "duplicate_header"),
    "a content coding": ({"headers": ((b"content-encoding", b"gzip"),)}, 415, "unsupported_content_encoding"),
    "a form": ({"headers": ((b"content-type", b"multipart/form-data"),)}, 415, "unsupported_content_type"),
    "not JSON": ({"body": b"{"}, 400, "invalid_json"),
    "no model": ({"body": {"messages": []}}, 400, "missing_model"),
    "too large": ({"body": b" " * 10_001}, 413, "body_too_large"),
}


@pytest.mark.parametrize(("request_", "status", "code"), UNREADABLE.values(), ids=UNREADABLE)
async def test_what_cannot_be_read_is_refused_before_any_limit_is_looked_at(
    request_: dict[str, Any], status: int, code: str
) -> None:
    book, app = Book(), App()
    answered, _, body = await call(gate_of(book, app), **request_)
    assert (answered, body["error"]["code"], body["error"]["type"]) == (status, code, "invalid_request_error")
    assert book.asked == []
    assert app.scopes == []


async def test_a_client_that_leaves_while_it_sends_is_not_answered() -> None:
    book = Book()
    gone = iter([{"type": "http.disconnect"}])

    async def receive() -> Message:
        return next(gone)

    async def send(message: Message) -> None:
        raise AssertionError

    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions",
             "headers": [(b"authorization", b"Bearer sk-ann")]}  # fmt: skip
    await gate_of(book, App())(scope, receive, send)
    assert book.asked == []


# Who is calling.


async def test_the_master_key_is_not_limited() -> None:
    book, app = Book(NO_REQUESTS), App()
    status, _, _ = await call(gate_of(book, app), key=MASTER_KEY, body=b"anything")
    assert status == 200
    assert app.bodies == [b"anything"]
    assert book.asked == []
    assert book.settled == []


async def test_the_master_key_itself_goes_no_further() -> None:
    app = App()
    assert (await call(gate_of(Book(), app), key=MASTER_KEY, headers=((b"x-kept", b"1"),)))[0] == 200
    assert app.scopes[0]["headers"] == [(b"x-kept", b"1")]


async def test_a_path_that_is_not_known_is_refused_to_the_master_key_too() -> None:
    app = App()
    gate = gate_of(Book(), app, unknown_paths="refuse", free_paths=("GET /v1/models*",))
    status, _, body = await call(gate, path="/users/new", key=MASTER_KEY)
    assert (status, body["error"]["code"], app.scopes) == (404, "path_not_gated", [])
    assert (await call(gate, method="GET", path="/v1/models", key=MASTER_KEY))[0] == 200


@pytest.mark.parametrize("error", [StoreUnavailableError("the app's own"), ReplyError("ERR of the app")], ids=repr)
@pytest.mark.parametrize("way", ["gated", "open", "free", "master"])
async def test_an_error_of_the_app_is_not_taken_for_the_gates_own(way: str, error: Exception) -> None:
    gate = gate_of(Book(), App(error), open_paths=("/open",), free_paths=("/free",))
    path = {"open": "/open", "free": "/free"}.get(way, "/v1/chat/completions")
    with pytest.raises(type(error)):
        await call(gate, path=path, key=MASTER_KEY if way == "master" else "sk-ann")


async def test_an_answer_cannot_be_sent_past_the_gate() -> None:
    app = App()
    extensions: dict[str, Any] = {
        "http.response.pathsend": {},
        "http.response.zerocopysend": {},
        "http.response.trailers": {},
    }
    assert (await call(gate_of(Book(), app), extensions=extensions))[0] == 200
    assert app.scopes[0]["extensions"] == {"http.response.trailers": {}}


async def test_without_a_master_key_nobody_is_taken_for_it() -> None:
    gate = gate_of(Book(), App())
    gate._master_key = None
    assert (await call(gate, key=MASTER_KEY))[0] == 401


IDENTIFIED: dict[str, tuple[Any, int]] = {
    "a name": (lambda scope: "bob", 200),
    "nobody": (lambda scope: None, 401),
    "an empty name": (lambda scope: "", 401),
}


@pytest.mark.parametrize(("identify", "status"), IDENTIFIED.values(), ids=IDENTIFIED)
@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
async def test_the_app_may_name_its_callers_itself(identify: Any, status: int, is_async: bool) -> None:
    async def slowly(scope: Scope) -> Any:
        await asyncio.sleep(0)
        return identify(scope)

    book, app = Book(), App()
    answered, _, body = await call(gate_of(book, app, identify=slowly if is_async else identify), key=None)
    assert answered == status
    if status == 200:
        assert (book.asked[0].user_id, book.asked[0].key_hash) == ("bob", "")
    else:
        assert body["error"]["code"] == "invalid_api_key"


DEFAULTS: dict[str, tuple[str, bool, bool]] = {
    "unknown, with defaults": ("unknown_user", True, True),
    "unknown, without": ("unknown_user", False, False),
    "of old defaults": ("stale_default", True, True),
    "blocked, with defaults": ("user_blocked", True, False),
}


@pytest.mark.parametrize(("reason", "has_default", "heals"), DEFAULTS.values(), ids=DEFAULTS)
@pytest.mark.parametrize("free", [False, True], ids=["metered", "free"])
async def test_a_caller_the_app_names_gets_the_default_limits(
    reason: str, has_default: bool, heals: bool, free: bool
) -> None:
    made: list[str] = []

    async def make(user_id: str) -> None:
        made.append(user_id)

    book, app = Book(CallerRefused(reason), ADMITTED), App()
    default = DefaultUser("digest", make) if has_default else None
    gate = gate_of(book, app, identify=lambda scope: "bob", default_user=default, free_paths=("/free",))
    status, _, _ = await call(gate, key=None, path="/free" if free else "/v1/chat/completions")
    assert (status == 200) == heals
    assert made == (["bob"] if heals else [])
    digests = {digest for _, digest in book.authorised} | {ask.default_digest for ask in book.asked}
    assert digests == {"digest" if has_default else ""}


@pytest.mark.parametrize("free", [False, True], ids=["metered", "free"])
async def test_a_default_that_does_not_help_is_not_tried_for_ever(free: bool) -> None:
    made: list[str] = []

    async def make(user_id: str) -> None:
        made.append(user_id)

    gate = gate_of(Book(CallerRefused("unknown_user")), App(), identify=lambda scope: "bob",
                   default_user=DefaultUser("d", make), free_paths=("/free",))  # fmt: skip
    assert (await call(gate, key=None, path="/free" if free else "/v1/chat/completions"))[0] == 401
    assert len(made) == 4


async def test_a_key_has_no_default_limits() -> None:
    async def make(user_id: str) -> None:
        raise AssertionError

    gate = gate_of(Book(CallerRefused("unknown_user")), App(), default_user=DefaultUser("d", make))
    assert (await call(gate))[0] == 401


MOVED: dict[str, tuple[str | None, int, list[str]]] = {
    "to another user": ("bob", 200, ["ann", "bob"]),
    "to nobody": (None, 401, ["ann"]),
    "nowhere": ("ann", 401, ["ann"]),
}


@pytest.mark.parametrize(("owner", "status", "asked"), MOVED.values(), ids=MOVED)
async def test_a_key_that_has_changed_hands_is_looked_up_afresh(
    owner: str | None, status: int, asked: list[str]
) -> None:
    book = Book(CallerRefused("unknown_key"), ADMITTED)
    if owner is not None:
        book.moved[hash_key("sk-ann")] = owner
    assert (await call(gate_of(book, App())))[0] == status
    assert [ask.user_id for ask in book.asked] == asked


# What reaches the app.


async def test_an_alias_is_resolved_and_the_holds_are_made_for_its_model() -> None:
    book, app = Book(AliasOf("gpt-4o-mini"), ADMITTED), App()
    status, _, _ = await call(gate_of(book, app), body={**CHAT, "model": "fast"}, headers=((b"content-length", b"66"),))
    assert status == 200
    assert [(ask.model, ask.target) for ask in book.asked] == [("fast", "fast"), ("fast", "gpt-4o-mini")]
    assert len({ask.request_id for ask in book.asked}) == 1
    assert json.loads(app.bodies[0])["model"] == "gpt-4o-mini"
    lengths = [value for name, value in app.scopes[0]["headers"] if name == b"content-length"]
    assert lengths == [b"%d" % len(app.bodies[0])]


async def test_an_alias_that_changes_at_every_look_is_given_up() -> None:
    book = Book(*(AliasOf(name) for name in "abcdef"))
    assert (await call(gate_of(book, App())))[0] == 401
    assert len(book.asked) == 4


ROOTS = {
    "at the root": ("", "/openai/deployments/fast/chat/completions"),
    "below a path": ("/api", "/api/openai/deployments/fast/chat/completions"),
    "below a path in other letters": ("/ä p", "/ä p/openai/deployments/fast/chat/completions"),
    "below a path the server took off": ("/api", "/openai/deployments/fast/chat/completions"),
}


@pytest.mark.parametrize(("root_path", "path"), ROOTS.values(), ids=ROOTS)
async def test_an_alias_in_a_path_is_resolved_there(root_path: str, path: str) -> None:
    book, app = Book(AliasOf("gpt-4o"), ADMITTED), App()
    gate = gate_of(book, app)
    status, _, _ = await call(gate, path=path, body={"messages": []}, root_path=root_path, raw_path=b"")
    assert status == 200
    assert app.scopes[0]["path"] == path.replace("fast", "gpt-4o")
    assert app.scopes[0]["raw_path"] == quote(path.replace("fast", "gpt-4o")).encode()


async def test_an_upstream_is_not_asked_for_a_content_coding() -> None:
    app = App()
    await call(gate_of(Book(), app), headers=((b"accept-encoding", b"gzip"), (b"x-a", b"1")))
    assert [name for name, _ in app.scopes[0]["headers"]] == [b"authorization", b"x-a"]


async def test_the_cache_controls_of_the_body_are_asked_for() -> None:
    book = Book()
    await call(gate_of(book, App()), body={**CHAT, "cache": {"no-cache": True, "ttl": 5}})
    assert book.asked[0].cache_controls == "no-cache\nttl"


# Paths.


async def test_an_open_path_passes_without_a_key_and_without_a_caller() -> None:
    book, app = Book(), App()
    status, _, _ = await call(gate_of(book, app, open_paths=("/open",)), path="/open", key=None)
    assert status == 200
    assert "state" not in app.scopes[0]
    assert book.asked == []
    assert book.authorised == []
    assert book.settled == []


async def test_a_free_path_knows_its_caller_and_counts_nothing() -> None:
    book, app = Book(), App()
    status, _, _ = await call(gate_of(book, app, free_paths=("/free",)), path="/free")
    assert status == 200
    assert app.caller.user_alias == "Ann"
    assert book.authorised == [("ann", "")]
    assert book.asked == []
    assert book.settled == []


@pytest.mark.parametrize(("unknown_paths", "status"), [("refuse", 404), ("count", 200)])
async def test_an_unknown_path_is_refused_or_counted_as_the_setting_says(unknown_paths: str, status: int) -> None:
    book, app = Book(), App()
    answered, _, body = await call(gate_of(book, app, unknown_paths=unknown_paths), path="/v1/files", body=b"not JSON")
    assert answered == status
    if status == 404:
        assert body["error"]["code"] == "path_not_gated"
        assert book.asked == []
    else:
        (ask,), (settlement,) = book.asked, book.settled
        assert (ask.model, ask.asked_tokens, ask.hold_tokens, ask.hold_nanos) == ("", 0, 0, 0)
        assert (settlement.input_tokens, settlement.output_tokens, settlement.failed) == (0, 0, False)
        assert app.bodies == [b"not JSON"]


# What goes wrong behind.

FAILURES: dict[str, tuple[BaseException, int]] = {
    "unreachable": (UpstreamUnavailableError(502, "gone"), 502),
    "late": (UpstreamUnavailableError(504, "late"), 504),
}


@pytest.mark.parametrize(("error", "status"), FAILURES.values(), ids=FAILURES)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/free", "/open"], ids=["metered", "free", "open"])
async def test_an_upstream_that_does_not_answer_is_a_refusal_and_nothing_is_charged(
    error: BaseException, status: int, path: str
) -> None:
    book = Book()
    gate = gate_of(book, App(error), free_paths=("/free",), open_paths=("/open",))
    answered, headers, body = await call(gate, path=path)
    assert (answered, body["error"]["type"], body["error"]["code"]) == (status, "server_error", "upstream_unavailable")
    assert [settlement.failed for settlement in book.settled] == [True] * (path == "/v1/chat/completions")
    assert (b"x-ratelimit-limit-requests" in headers) == (path == "/v1/chat/completions")


async def test_half_an_answer_that_was_held_back_becomes_a_refusal() -> None:
    book = Book()
    status, _, body = await call(gate_of(book, App(UpstreamBrokenError("half"), after_start=True)))
    assert (status, body["error"]["code"]) == (502, "upstream_unavailable")
    assert [settlement.failed for settlement in book.settled] == [True]


async def test_half_an_answer_that_has_begun_stays_the_servers_to_end() -> None:
    book = Book()
    with pytest.raises(UpstreamBrokenError):
        await call(gate_of(book, App(UpstreamBrokenError("half"), after_start=True)), body={**CHAT, "stream": True})
    assert len(book.settled) == 1


@pytest.mark.parametrize("error", [ValueError("a bug"), asyncio.CancelledError()], ids=["an error", "a cancellation"])
async def test_an_app_that_fails_is_settled_and_its_error_goes_on(error: BaseException) -> None:
    book = Book()
    with pytest.raises(type(error)):
        await call(gate_of(book, App(error)))
    [settlement] = book.settled
    assert settlement.failed == isinstance(error, ValueError)


async def test_a_request_that_cannot_be_handed_on_gives_its_hold_back(monkeypatch: pytest.MonkeyPatch) -> None:
    book = Book()
    gate = gate_of(book, App())
    monkeypatch.setattr("llmweir.traffic.middleware.for_app", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        await call(gate)
    assert [settlement.failed for settlement in book.settled] == [True]


# WebSockets.


async def connect(gate: Gate, *, path: str = "/ws", key: str | None = "sk-ann", upgrade: bool = True) -> list[Message]:
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    async def send(message: Message) -> None:
        sent.append(message)

    headers = [(b"upgrade", b"websocket")] if upgrade else []
    headers += [] if key is None else [(b"authorization", b"Bearer " + key.encode())]
    await gate({"type": "websocket", "path": path, "headers": headers}, receive, send)
    return sent


async def test_a_websocket_around_an_app_is_one_request_for_as_long_as_it_lasts() -> None:
    book, app = Book(), App()
    assert await connect(gate_of(book, app)) == []
    assert app.caller.user_id == "ann"
    [ask], [settlement] = book.asked, book.settled
    assert (ask.model, ask.hold_tokens) == ("", 0)
    assert settlement.request_id == ask.request_id


async def test_a_websocket_of_an_app_that_fails_is_settled_as_well() -> None:
    book = Book()
    with pytest.raises(ValueError, match="a bug"):
        await connect(gate_of(book, App(ValueError("a bug"))))
    assert len(book.settled) == 1


async def test_a_websocket_of_the_master_key_is_not_limited() -> None:
    book, app = Book(NO_REQUESTS), App()
    assert await connect(gate_of(book, app), key=MASTER_KEY) == []
    assert len(app.scopes) == 1
    assert book.asked == []


async def test_a_websocket_on_an_open_path_needs_no_key() -> None:
    book, app = Book(), App()
    assert await connect(gate_of(book, app, open_paths=("/ws",)), key=None) == []
    assert len(app.scopes) == 1
    assert book.asked == []


CLOSED: dict[str, tuple[Book, dict[str, Any], bool]] = {
    "no key": (Book(), {"key": None}, True),
    "a limit": (Book(NO_REQUESTS), {}, True),
    "blocked": (Book(CallerRefused("user_blocked")), {}, True),
    "the store is away": (Book(StoreUnavailableError("gone")), {}, True),
    "a path of two readings": (Book(), {"path": "/a/../b"}, True),
    "in front": (Book(), {}, False),
    "in front, without the header": (Book(), {"upgrade": False}, False),
    "in front, the master key": (Book(), {"key": MASTER_KEY, "upgrade": False}, False),
}


@pytest.mark.parametrize(("book", "request_", "accepts"), CLOSED.values(), ids=CLOSED)
async def test_a_websocket_that_may_not_come_in_is_closed(book: Book, request_: dict[str, Any], accepts: bool) -> None:
    app = App()
    gate = gate_of(book, app, accept_websockets=accepts)
    assert await connect(gate, **request_) == [{"type": "websocket.close", "code": 1008}]
    assert app.scopes == []
    assert book.settled == []


async def test_a_request_for_another_protocol_is_refused_where_websockets_are() -> None:
    app = App()
    gate = gate_of(Book(), app, accept_websockets=False)
    status, _, body = await call(gate, method="GET", path="/ws", headers=((b"upgrade", b"websocket"),))
    assert (status, body["error"]["code"]) == (403, "websocket_not_metered")
    assert app.scopes == []
