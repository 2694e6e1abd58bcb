"""Ways round the gate, each tried over a raw socket: every one is refused, or counted like any other request.

What a row is refused with stands in it; that nothing slipped by is read from the upstream's tally and the store.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tests.engine.asking import mint
from tests.harness import (
    CHAT_USAGE,
    COST_NANOS,
    PATIENCE_S,
    TOKENS,
    Answer,
    Stage,
    around,
    chat_answer,
    chat_events,
    empty,
    eventually,
    held,
    plain,
    speak,
    sse,
    staged,
    statuses,
    streamed,
)

from llmweir.engine.key_hashes import _remembered_hash

UrlOf = Callable[[str], str]
Place = Callable[..., AbstractAsyncContextManager[Stage]]
CHAT = b'{"model":"gpt-4o","messages":[{"role":"user","content":"hi"}]}'
LINE = b"POST /v1/chat/completions HTTP/1.1"
KEY, OTHER_KEY = b"<key>", b"<other key>"
"""Stand for the keys of ann and of bob in a row's bytes."""
AUTH = b"authorization: Bearer <key>"


@pytest.fixture
def valkey(url_of: UrlOf) -> str:
    """The URL of an emptied store."""
    url = url_of("valkey")
    empty(url)
    return url


@pytest.fixture(params=[staged, around], ids=["in front", "around"])
async def stage(request: pytest.FixtureRequest, valkey: str, tmp_path: Path) -> AsyncIterator[Stage]:
    """A gate in front, then one around, with small bounds on bodies."""
    async with request.param(valkey, tmp_path, max_body_bytes=100_000, body_timeout_s=0.2) as stage:
        yield stage


def request(
    body: bytes = CHAT, *headers: bytes, line: bytes = LINE, auth: tuple[bytes, ...] = (AUTH,), length: bool = True
) -> bytes:
    lines = [line, b"host: gate", b"connection: close", *auth, *headers]
    if not any(header.lower().startswith(b"content-type") for header in headers):
        lines.append(b"content-type: application/json")
    if length:
        lines.append(b"content-length: %d" % len(body))
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def chunked(body: bytes, *headers: bytes, trailers: bytes = b"") -> bytes:
    chunks = b"".join(b"%x\r\n%b\r\n" % (1, body[at : at + 1]) for at in range(len(body)))
    return request(chunks + b"0\r\n" + trailers + b"\r\n", b"transfer-encoding: chunked", *headers, length=False)


def on_path(path: bytes) -> bytes:
    return request(line=b"POST " + path + b" HTTP/1.1")


class Tried(NamedTuple):
    """What is sent, and the statuses it may be answered with; a 200 must have been counted."""

    sent: bytes
    expected: tuple[int, ...]


def chat(**members: Any) -> bytes:
    return request(json.dumps({**json.loads(CHAT), **members}).encode())


FORM = b"content-type: application/x-www-form-urlencoded"
BODIES: dict[str, Tried] = {
    "as it should be": Tried(request(), (200,)),
    "two models": Tried(request(CHAT[:-1] + b',"model":"gpt-4o-mini"}'), (400,)),
    "two models, one escaped": Tried(request(CHAT[:-1] + rb',"mod\u0065l":"gpt-4o-mini"}'), (400,)),
    "two models, both the same": Tried(request(CHAT[:-1] + b',"model":"gpt-4o"}'), (400,)),
    "a model in another letter case": Tried(request(CHAT[:-1] + b',"Model":"gpt-4o-mini"}'), (400,)),
    "a model in other letters of the same case fold": Tried(
        request('{"\u017ftream":true,"model":"gpt-4o","messages":[]}'.encode()), (400,)
    ),
    "two bounds": Tried(request(CHAT[:-1] + b',"max_tokens":5,"max_tokens":500000}'), (400,)),
    "two streams": Tried(request(CHAT[:-1] + b',"stream":false,"stream":true}'), (400,)),
    "gzip": Tried(request(gzip.compress(CHAT), b"content-encoding: gzip"), (415,)),
    "gzip that says nothing": Tried(request(gzip.compress(CHAT)), (400,)),
    "deflate": Tried(request(zlib.compress(CHAT), b"content-encoding: deflate"), (415,)),
    "a coding made up": Tried(request(CHAT, b"content-encoding: none"), (415,)),
    "two codings": Tried(request(CHAT, b"content-encoding: identity", b"content-encoding: gzip"), (400,)),
    "UTF-16": Tried(request(CHAT.decode().encode("utf-16")), (400,)),
    "UTF-16 as declared": Tried(
        request(CHAT.decode().encode("utf-16-le"), b"content-type: application/json; charset=utf-16le"), (415,)
    ),
    "UTF-7 as declared": Tried(request(CHAT, b"content-type: application/json; charset=utf-7"), (415,)),
    "a byte order mark": Tried(request(b"\xef\xbb\xbf" + CHAT), (400,)),
    "bytes after the end": Tried(request(CHAT + b'{"model":"gpt-4o-mini"}'), (400,)),
    "a list": Tried(request(b"[" + CHAT + b"]"), (400,)),
    "nothing": Tried(request(b""), (400,)),
    "NaN": Tried(request(CHAT[:-1] + b',"temperature":NaN}'), (400,)),
    "comments": Tried(request(b"/* */" + CHAT), (400,)),
    "a model that is a number": Tried(chat(model=4), (400,)),
    "a model that is a list": Tried(chat(model=["gpt-4o"]), (400,)),
    "a model that is null": Tried(chat(model=None), (400,)),
    "an empty model": Tried(chat(model=""), (400,)),
    "a padded model": Tried(chat(model=" gpt-4o"), (400,)),
    "a model with a line break": Tried(chat(model="gpt-4o\nx"), (400,)),
    "a model with a NUL": Tried(chat(model="gpt-4o\0"), (400,)),
    "a model of a thousand characters": Tried(chat(model="g" * 1000), (400,)),
    "a stream that is a string": Tried(chat(stream="true"), (400,)),
    "a stream that is a number": Tried(chat(stream=1), (400,)),
    "a negative bound": Tried(chat(max_tokens=-1), (400,)),
    "a bound beyond all bounds": Tried(chat(max_tokens=10**18), (400,)),
    "a bound that is a fraction": Tried(chat(max_tokens=1.5), (400,)),
    "a bound that is a string": Tried(chat(max_tokens="5"), (400,)),
    "a negative number of answers": Tried(chat(n=-5), (400,)),
    "an answer made in the background": Tried(chat(background=True), (400,)),
    "stream options that are a list": Tried(chat(stream=True, stream_options=[]), (400,)),
    "a body in a form": Tried(request(CHAT, FORM), (415,)),
    "a form": Tried(request(b"model=gpt-4o&messages=hi", FORM), (415,)),
    "a multipart form": Tried(
        request(b'--b\r\ncontent-disposition: form-data; name="model"\r\n\r\ngpt-4o\r\n--b--\r\n',
                b"content-type: multipart/form-data; boundary=b"), (415,)),
    "two content types": Tried(
        request(CHAT, b"content-type: application/json", b"content-type: text/plain"), (400,)
    ),
    "nested without end": Tried(request(b'{"model":"gpt-4o","messages":' + b"[" * 40_000), (400,)),
    "nested deep": Tried(
        request(b'{"model":"gpt-4o","messages":' + b"[" * 40_000 + b"]" * 40_000 + b"}"), (200, 400)
    ),
    "too large": Tried(request(CHAT + b" " * 100_000), (413,)),
    "too large, a chunk at a time": Tried(chunked(CHAT + b" " * 100_000), (413,)),
    "a body that never comes": Tried(request().replace(CHAT, b""), (408,)),
    "a body that does not end": Tried(request(CHAT).replace(b"content-length: ", b"content-length: 1"), (408,)),
}  # fmt: skip


HEADERS: dict[str, Tried] = {
    "chunked": Tried(chunked(CHAT), (200,)),
    "chunked with a key among the trailers": Tried(
        chunked(CHAT, b"trailer: authorization", trailers=b"authorization: Bearer <other key>\r\n"), (200, 400)
    ),
    "two Authorizations": Tried(request(auth=(AUTH, b"authorization: Bearer <other key>")), (400,)),
    "two x-api-keys": Tried(request(auth=(b"x-api-key: <key>", b"x-api-key: <other key>")), (400,)),
    "upper case": Tried(request(auth=(b"AUTHORIZATION: BEARER <key>",)), (200,)),
    "no space before the key": Tried(request(auth=(b"authorization:Bearer <key>",)), (200,)),
    "a folded header": Tried(request(auth=(b"authorization: Bearer\r\n <key>",)), (400, 401, 200)),
    "a folded header that hides another": Tried(request(CHAT, b"x-a: b\r\n content-encoding: gzip"), (200, 400)),
    "a space before the colon": Tried(request(CHAT, b"content-encoding : gzip"), (400,)),
    "two lengths": Tried(request(CHAT, b"content-length: 5"), (400,)),
    "two lengths in one": Tried(
        request(CHAT, b"content-length: %d, 5" % len(CHAT), length=False), (400,)
    ),
    "a length with a sign": Tried(request(CHAT, b"content-length: +%d" % len(CHAT), length=False), (400,)),
    "a length without end": Tried(request(CHAT, b"content-length: 1" + b"0" * 5000, length=False), (400,)),
    "a length and chunks": Tried(
        request(b"0\r\n\r\n" + request(), b"transfer-encoding: chunked"), (400,)
    ),
    "a length and chunks in a coding made up": Tried(
        request(CHAT, b"transfer-encoding: xchunked"), (400,)
    ),
    "no length, no chunks": Tried(request(CHAT, length=False), (400,)),
    "another method by a header": Tried(request(CHAT, b"x-http-method-override: GET"), (400,)),
    "a free method, overridden": Tried(
        request(b'{"contents":[]}', b"x-http-method-override: POST",
                line=b"GET /v1/models/gemini-2.5-flash:generateContent HTTP/1.1"), (400,)),
    "HTTP/1.0": Tried(request(line=LINE.replace(b"1.1", b"1.0")), (200,)),
    "HTTP/0.9": Tried(b"POST /v1/chat/completions\r\n\r\n", (400, 401)),
    "HTTP/2.0 by its line": Tried(request(line=LINE.replace(b"1.1", b"2.0")), (200, 400)),
    "an upgrade to HTTP/2": Tried(
        request(CHAT, b"upgrade: h2c", b"http2-settings: AAMAAABkAARAAAAAAAIAAAAA"), (200, 403)
    ),
    "no key": Tried(request(auth=()), (401,)),
    "an empty key": Tried(request(auth=(b"authorization: Bearer ",)), (401,)),
    "another scheme": Tried(request(auth=(b"authorization: Basic <key>",)), (401,)),
    "a key in the query": Tried(request(line=LINE.replace(b" HTTP", b"?key=<key> HTTP"), auth=()), (401,)),
    "a key in a cookie": Tried(request(auth=(b"cookie: authorization=<key>",)), (401,)),
    "an unknown key": Tried(request(auth=(b"authorization: Bearer sk-nobody",)), (401,)),
    "a key and more": Tried(request(auth=(b"authorization: Bearer <key>x",)), (401,)),
    "a key in other letters": Tried(request(auth=(b"authorization: Bearer SK-<key>",)), (401,)),
    "a key of odd bytes": Tried(request(auth=(b"authorization: Bearer sk-\xff\xfe}{u:ann}",)), (401,)),
    "a key that is a store's key": Tried(request(auth=(b"authorization: Bearer lw:{u:ann}",)), (401,)),
}  # fmt: skip


PATHS: dict[str, Tried] = {
    "a trailing slash": Tried(on_path(b"/v1/chat/completions/"), (200,)),
    "another letter case": Tried(on_path(b"/V1/Chat/Completions"), (200,)),
    "without the version": Tried(on_path(b"/chat/completions"), (200,)),
    "a query": Tried(on_path(b"/v1/chat/completions?model=gpt-4o-mini&stream=true"), (200,)),
    "a query with another path": Tried(on_path(b"/v1/chat/completions?/v1/models"), (200,)),
    "absolute": Tried(on_path(b"http://elsewhere/v1/chat/completions"), (200,)),
    "an encoded letter": Tried(on_path(b"/v1/ch%61t/completions"), (200,)),
    "two slashes in front": Tried(on_path(b"//v1/chat/completions"), (400,)),
    "two slashes within": Tried(on_path(b"/v1//chat/completions"), (400,)),
    "a dot": Tried(on_path(b"/v1/./chat/completions"), (400,)),
    "two dots": Tried(on_path(b"/v1/models/../chat/completions"), (400,)),
    "two dots with a parameter": Tried(on_path(b"/v1/models/..;x/chat/completions"), (400,)),
    "encoded dots": Tried(on_path(b"/v1/models/%2e%2e/chat/completions"), (400,)),
    "dots encoded twice": Tried(on_path(b"/v1/models/%252e%252e/chat/completions"), (400,)),
    "an encoded slash": Tried(on_path(b"/v1%2fchat/completions"), (400,)),
    "an encoded slash in capitals": Tried(on_path(b"/v1%2Fchat/completions"), (400,)),
    "a slash encoded twice": Tried(on_path(b"/v1%252fchat/completions"), (400,)),
    "a backslash": Tried(on_path(b"/v1\\chat/completions"), (400,)),
    "an encoded backslash": Tried(on_path(b"/v1%5cchat/completions"), (400,)),
    "an encoded NUL": Tried(on_path(b"/v1/chat/completions%00"), (400,)),
    "an encoded line break": Tried(on_path(b"/v1/chat/completions%0d%0a"), (400,)),
    "an encoded question mark": Tried(on_path(b"/v1/chat/completions%3fx=1"), (404, 200)),
    "a path parameter": Tried(on_path(b"/v1/chat/completions;x=1"), (404, 200)),
    "a path that starts as a free one": Tried(on_path(b"/v1/models/../chat/completions"), (400,)),
    "a fragment": Tried(on_path(b"/v1/chat/completions#/v1/models"), (200, 400)),
    "no slash": Tried(on_path(b"v1/chat/completions"), (400, 404)),
    "a star": Tried(request(line=b"OPTIONS * HTTP/1.1"), (400, 404, 200)),
    "CONNECT": Tried(request(line=b"CONNECT gate:80 HTTP/1.1"), (400, 404, 200)),
    "PUT": Tried(request(line=LINE.replace(b"POST", b"PUT")), (404, 200)),
    "HEAD": Tried(request(line=LINE.replace(b"POST", b"HEAD")), (404, 200)),
    "a method in small letters": Tried(request(line=LINE.replace(b"POST", b"post")), (400, 404)),
    "a method made up": Tried(request(line=LINE.replace(b"POST", b"CHAT")), (400, 404)),
}  # fmt: skip
ALL = {
    **{f"body: {name}": row for name, row in BODIES.items()},
    **{f"header: {name}": row for name, row in HEADERS.items()},
    **{f"path: {name}": row for name, row in PATHS.items()},
}


@pytest.mark.parametrize(("sent", "expected"), ALL.values(), ids=ALL)
async def test_an_evasion_is_refused_or_counted(stage: Stage, sent: bytes, expected: tuple[int, ...]) -> None:
    keys = {KEY: (await stage.user("ann")).encode(), OTHER_KEY: (await stage.user("bob")).encode()}
    for placeholder, key in keys.items():
        sent = sent.replace(placeholder, key)
    received = await stage.raw(sent)
    await stage.idle()
    answered = statuses(received)
    assert len(answered) == 1
    assert answered[0] in expected
    passed = len(stage.seen)
    requests, tokens, slots = await stage.used("ann")
    assert (requests, slots) == (passed, 0)
    assert passed == answered.count(200)
    assert await stage.used("bob") == (0, 0, 0)
    for seen in stage.seen:
        if seen.method == "POST" and seen.path.lower().rstrip("/").endswith("chat/completions"):
            assert tokens == TOKENS
            assert seen.json()["model"] == "gpt-4o"
            assert seen.body.count(b'"model"') == 1


def form(*parts: bytes, ending: bytes = b"--b--\r\n") -> bytes:
    file = b'Content-Disposition: form-data; name="file"; filename="a.mp3"\r\n\r\nsound'
    return b"".join(b"--b\r\n" + part + b"\r\n" for part in (*parts, file)) + ending


def part(name: bytes, value: bytes, *headers: bytes) -> bytes:
    disposition = b'Content-Disposition: form-data; name="' + name + b'"'
    return b"\r\n".join([disposition, *headers, b"", value])


MODEL = part(b"model", b"gpt-4o")
BOUNDARY = b"content-type: multipart/form-data; boundary=b"
FORMS: dict[str, tuple[bytes, bytes, int]] = {
    "as it should be": (form(MODEL), BOUNDARY, 200),
    "two models": (form(MODEL, part(b"model", b"gpt-4o-mini")), BOUNDARY, 400),
    "two models, one in another case": (form(MODEL, part(b"Model", b"gpt-4o-mini")), BOUNDARY, 400),
    "two models, one a list": (form(MODEL, part(b"model[]", b"gpt-4o-mini")), BOUNDARY, 400),
    "two models, one a file": (form(MODEL, part(b'model"; filename="x', b"gpt-4o-mini")), BOUNDARY, 400),
    "two models, one by an extended name": (form(MODEL, part(b"x\"; name*=utf-8''model; y=\"", b"o1")), BOUNDARY, 400),
    "no model": (form(), BOUNDARY, 400),
    "a model in another coding": (form(part(b"model", b"Z3B0", b"Content-Transfer-Encoding: base64")), BOUNDARY, 400),
    "two boundaries": (form(MODEL), BOUNDARY + b"; boundary=c", 415),
    "no boundary": (form(MODEL), b"content-type: multipart/form-data", 415),
    "another boundary": (form(MODEL), b"content-type: multipart/form-data; boundary=c", 400),
    "cut off": (form(MODEL, ending=b""), BOUNDARY, 400),
    "JSON": (CHAT, b"content-type: application/json", 415),
    "a form in the query's coding": (b"model=gpt-4o", FORM, 415),
}


@pytest.mark.parametrize(("body", "content_type", "status"), FORMS.values(), ids=FORMS)
async def test_a_form_is_read_for_certain_or_refused(
    stage: Stage, body: bytes, content_type: bytes, status: int
) -> None:
    key = (await stage.user("ann", models=["gpt-4o"])).encode()
    sent = request(body, content_type, line=b"POST /v1/audio/transcriptions HTTP/1.1").replace(KEY, key)
    assert statuses(await stage.raw(sent)) == [status]
    await stage.idle()
    passed = int(status == 200)
    assert [seen.body for seen in stage.seen] == [body] * passed
    assert await stage.used("ann") == (passed, TOKENS * passed, 0)


async def test_a_refused_body_is_not_read_as_the_next_request(stage: Stage) -> None:
    key = (await stage.user("ann", rpm_limit=1)).encode()
    inner = request().replace(KEY, key)
    for outer in (request(inner, b"content-encoding: gzip"), request(inner), request(inner, auth=())):
        sent = outer.replace(b"connection: close\r\n", b"", 1).replace(KEY, key)
        received = await stage.raw(sent, patience_s=0.3)
        assert len(statuses(received)) == 1
    assert stage.seen == []
    assert await stage.used("ann") == (0, 0, 0)


async def test_a_body_with_a_byte_that_is_not_utf_8_is_refused(stage: Stage) -> None:
    key = (await stage.user("ann")).encode()
    sent = request(CHAT.replace(b"hi", b"\xff")).replace(KEY, key)
    assert statuses(await stage.raw(sent)) == [400]


async def test_pipelined_requests_are_each_counted(stage: Stage) -> None:
    key = (await stage.user("ann", rpm_limit=3)).encode()
    one = request().replace(KEY, key)
    open_one = one.replace(b"connection: close\r\n", b"")
    received = await stage.raw(open_one * 4 + one)
    await stage.idle()
    assert statuses(received) == [200, 200, 200, 429, 429]
    assert len(stage.seen) == 3
    assert await stage.used("ann") == (3, 3 * TOKENS, 0)


async def test_of_two_keys_the_one_that_is_charged_is_authorization(stage: Stage) -> None:
    ann, bob = await stage.user("ann"), await stage.user("bob")
    sent = request(auth=(b"x-api-key: " + bob.encode(), b"authorization: Bearer " + ann.encode()))
    assert statuses(await stage.raw(sent)) == [200]
    await stage.idle()
    assert await stage.used("ann") == (1, TOKENS, 0)
    assert await stage.used("bob") == (0, 0, 0)


async def test_no_key_of_the_caller_reaches_the_upstream(valkey: str, tmp_path: Path) -> None:
    async with staged(valkey, tmp_path, upstream_api_key="sk-upstream") as stage:
        key = (await stage.user("ann")).encode()
        names = (b"authorization: Bearer ", b"x-api-key: ", b"api-key: ", b"Ocp-Apim-Subscription-Key: ")
        sent = request(line=LINE.replace(b" HTTP", b"?a=1&key=" + key + b" HTTP"), auth=tuple(n + key for n in names))
        assert statuses(await stage.raw(sent)) == [200]
        [seen] = stage.seen
        assert key not in b"\n".join([seen.query, seen.raw_path, *(value for _, value in seen.headers)])
        assert seen.header(b"authorization") == b"Bearer sk-upstream"


async def test_headers_of_ours_that_the_caller_sends_are_removed(valkey: str, tmp_path: Path) -> None:
    async with staged(valkey, tmp_path) as stage:
        key = (await stage.user("ann", metadata={"a": 1})).encode()
        forged = (b"x-llmweir-user-id: root", b"X-LLMWEIR-User-Role: proxy_admin", b"x_llmweir_user_id: root",
                  b"x-llmweir-permissions: {}", b"x-llmweir-metadata: {}")  # fmt: skip
        sent = request(CHAT, *forged).replace(KEY, key)
        assert statuses(await stage.raw(sent)) == [200]
        ours = {name: value for name, value in stage.seen[0].headers if b"llmweir" in name}
        assert ours.pop(b"x-llmweir-request-id")
        assert ours == {
            b"x-llmweir-user-id": b"ann",
            b"x-llmweir-user-role": b"internal_user",
            b"x-llmweir-metadata": b'{"a":1}',
        }


async def test_a_websocket_in_front_is_refused(valkey: str, tmp_path: Path) -> None:
    async with staged(valkey, tmp_path) as stage:
        key = (await stage.user("ann")).encode()
        head = [b"GET /v1/realtime?model=gpt-4o HTTP/1.1", b"host: gate", b"upgrade: websocket"]
        head += [b"connection: upgrade", b"sec-websocket-version: 13", b"authorization: Bearer " + key]
        upgrade = b"\r\n".join([*head, b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==", b"", b""])
        received = await stage.raw(upgrade, patience_s=1)
        assert statuses(received) == [403]
        assert stage.seen == []


KEY_STATES: dict[str, tuple[dict[str, Any], int, str]] = {
    "of a blocked user": ({"blocked": True}, 403, "user_blocked"),
    "of a viewer": ({"user_role": "internal_user_viewer"}, 403, "role_not_allowed"),
}


@pytest.mark.parametrize(("fields", "status", "code"), KEY_STATES.values(), ids=KEY_STATES)
async def test_a_key_that_is_no_longer_good_lets_nobody_in(
    stage: Stage, fields: dict[str, Any], status: int, code: str
) -> None:
    key = await stage.user("ann")
    assert (await stage.chat(key)).status_code == 200
    await stage.update("ann", **fields)
    refused = await stage.chat(key)
    assert (refused.status_code, refused.json()["error"]["code"]) == (status, code)
    assert len(stage.seen) == 1


async def test_an_expired_key_lets_nobody_in(stage: Stage) -> None:
    await stage.user("ann")
    users, store = stage.weir.engine.users, stage.weir.engine.store
    users.data.clock = store._clock = lambda: 1_800_000_000_000
    key = (await mint(users, "ann", duration="1s")).secret
    assert (await stage.chat(key)).status_code == 200
    store._clock = lambda: 1_800_000_001_000
    refused = await stage.chat(key)
    assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
    assert len(stage.seen) == 1


ROLES = {
    "proxy_admin": 200, "proxy_admin_viewer": 200, "internal_user": 200, "internal_user_viewer": 403,
    "team": 200, "customer": 200,
}  # fmt: skip


@pytest.mark.parametrize(("role", "status"), ROLES.items(), ids=ROLES)
async def test_a_role_decides_who_may_send_requests_to_models(stage: Stage, role: str, status: int) -> None:
    key = await stage.user("ann", user_role=role)
    assert (await stage.chat(key)).status_code == status


MODELS: dict[str, tuple[dict[str, Any], str, int]] = {
    "listed": ({"models": ["gpt-4o"]}, "gpt-4o", 200),
    "not listed": ({"models": ["gpt-4o"]}, "gpt-4o-mini", 403),
    "below a prefix": ({"models": ["gpt-*"]}, "gpt-4o", 200),
    "not below a prefix": ({"models": ["gpt-*"]}, "claude-test-1", 403),
    "a wildcard asked for": ({"models": ["gpt-4o"]}, "gpt-*", 403),
    "a star asked for": ({"models": ["gpt-4o"]}, "*", 403),
    "in another letter case": ({"models": ["gpt-4o"]}, "GPT-4o", 403),
    "with a provider in front": ({"models": ["gpt-4o"]}, "openai/gpt-4o", 403),
    "with a pattern of another language": ({"models": ["gpt-4o"]}, "gpt-4.", 403),
    "none at all": ({"models": ["no-default-models"]}, "gpt-4o", 403),
    "the entry that allows none": ({"models": ["no-default-models"]}, "no-default-models", 403),
    "an alias of a listed one": ({"models": ["gpt-4o"], "aliases": {"fast": "gpt-4o"}}, "fast", 200),
    "an alias of one not listed": ({"models": ["gpt-4o", "fast"], "aliases": {"fast": "gpt-4o-mini"}}, "fast", 403),
    "a listed name that is an alias of another": ({"models": ["gpt-4o"], "aliases": {"gpt-4o": "o1"}}, "gpt-4o", 403),
    "an alias of an alias": ({"models": ["c"], "aliases": {"a": "b", "b": "c"}}, "a", 403),
}


@pytest.mark.parametrize(("fields", "model", "status"), MODELS.values(), ids=MODELS)
async def test_the_allow_list_is_for_the_model_that_the_upstream_gets(
    stage: Stage, fields: dict[str, Any], model: str, status: int
) -> None:
    key = await stage.user("ann", **fields)
    answer = await stage.chat(key, model=model)
    assert answer.status_code == status
    assert [seen.json()["model"] for seen in stage.seen] == ([fields["aliases"].get(model, model)]
        if status == 200 and "aliases" in fields else [model] * (status == 200))  # fmt: skip


async def test_an_alias_in_a_path_is_resolved_behind_a_root_path_too(valkey: str, tmp_path: Path) -> None:
    async with around(valkey, tmp_path) as stage:
        key = await stage.user("ann", aliases={"fast": "gpt-4o"})
        served = stage.weir._gate
        assert served is not None

        async def mounted(scope: Any, receive: Any, send: Any) -> None:
            await served({**scope, "root_path": "/api v1", "path": "/api v1" + scope["path"]}, receive, send)

        stage.weir._gate = mounted
        answer = await stage.chat(key, path="/openai/deployments/fast/chat/completions", model="fast")
        assert answer.status_code == 200
        assert stage.seen[0].path == "/api v1/openai/deployments/gpt-4o/chat/completions"
        assert stage.seen[0].raw_path == b"/api%20v1/openai/deployments/gpt-4o/chat/completions"


PATH_MODELS: dict[str, tuple[str, dict[str, Any], int]] = {
    "the path alone": ("/openai/deployments/gpt-4o/chat/completions", {"model": None}, 200),
    "both alike": ("/openai/deployments/gpt-4o/chat/completions", {"model": "gpt-4o"}, 200),
    "another in the body": ("/openai/deployments/gpt-4o/chat/completions", {"model": "gpt-4o-mini"}, 400),
    "one not allowed in the path": ("/openai/deployments/o1/chat/completions", {"model": None}, 403),
    "a slash in the deployment": ("/openai/deployments/gpt-4o/../o1/chat/completions", {"model": None}, 400),
    "another case": ("/OpenAI/Deployments/gpt-4o/Chat/Completions", {"model": "o1"}, 400),
    "Gemini, another in the body": ("/v1beta/models/gpt-4o:generateContent", {"model": "o1"}, 400),
    "Gemini, not allowed": ("/v1beta/models/o1:generateContent", {"model": None}, 403),
    "Gemini, an action in another case": ("/v1beta/models/o1:GenerateContent", {"model": None}, 403),
}


@pytest.mark.parametrize(("path", "body", "status"), PATH_MODELS.values(), ids=PATH_MODELS)
async def test_a_model_in_the_path_counts_and_must_agree_with_the_body(
    stage: Stage, path: str, body: dict[str, Any], status: int
) -> None:
    key = await stage.user("ann", models=["gpt-4o"])
    sent = json.dumps(body).encode()
    received = await stage.raw(on_path(path.encode()).replace(CHAT, sent).replace(
        b"content-length: %d" % len(CHAT), b"content-length: %d" % len(sent)).replace(KEY, key.encode()))  # fmt: skip
    assert statuses(received) == [status]
    assert len(stage.seen) == (status == 200)


SIZES: dict[str, tuple[dict[str, Any], int, str]] = {
    "a million answers": ({"n": 10**6}, 429, "request_too_large"),
    "a bound above the limit": ({"max_tokens": 10**9}, 429, "request_too_large"),
    "the dearer of two bounds": ({"max_tokens": 5, "max_completion_tokens": 10**6}, 429, "request_too_large"),
    "a prompt above the limit": ({"messages": [{"role": "user", "content": "x" * 90_000}]}, 429, "request_too_large"),
}


@pytest.mark.parametrize(("body", "status", "code"), SIZES.values(), ids=SIZES)
async def test_what_asks_for_more_than_the_limit_itself_can_never_fit(
    stage: Stage, body: dict[str, Any], status: int, code: str
) -> None:
    key = await stage.user("ann", tpm_limit=1000, max_budget=1)
    refused = await stage.chat(key, **body)
    assert (refused.status_code, refused.json()["error"]["code"]) == (status, code)
    assert refused.headers["x-should-retry"] == "false"
    assert "retry-after" not in refused.headers
    assert stage.seen == []


# What the upstream answers, and what is charged for it.


def exactly(tokens: int) -> Callable[[int], bool]:
    return lambda charged: charged == tokens


def between(least: int, most: int) -> Callable[[int], bool]:
    return lambda charged: least <= charged <= most


WORDS = ("twelve bytes",) * 10
"""Text of 120 bytes in ten chunks: about 30 tokens at four bytes each."""
PRODUCED = between(30 + 5, 30 + 40)
"""What such an answer is charged where its usage is not known: its own text, and the few words of the question."""
ABSURD: dict[str, Any] = {"prompt_tokens": -5, "completion_tokens": 10**12, "total_tokens": "many"}
TWICE = (
    b'{"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":1},"usage":' + json.dumps(CHAT_USAGE).encode() + b"}"
)
GZIP = {"content-encoding": "gzip"}


def zipped(*events: bytes) -> Answer:
    return streamed(gzip.compress(b"".join(events)), headers=GZIP)


UPSTREAMS: dict[str, tuple[bool, Answer, Callable[[int], bool]]] = {
    "usage": (False, plain(chat_answer()), exactly(TOKENS)),
    "usage, streamed": (True, speak, exactly(TOKENS)),
    "an error": (False, plain({"error": {}}, status=500), exactly(0)),
    "an error to a stream": (True, plain({"error": {}}, status=529), exactly(0)),
    "a refusal of its own": (False, plain({"error": {}}, status=429), exactly(0)),
    "an error with usage": (False, plain(chat_answer(), status=400), exactly(0)),
    "no usage": (False, plain(chat_answer(None, "".join(WORDS))), PRODUCED),
    "no usage, streamed": (True, streamed(*chat_events(WORDS, usage=False)), PRODUCED),
    "absurd usage": (False, plain(chat_answer(ABSURD, "".join(WORDS))), PRODUCED),
    "absurd usage, streamed": (
        True,
        streamed(*chat_events(WORDS, usage=False)[:-1], *sse({"choices": [], "usage": ABSURD}, "[DONE]")),
        PRODUCED,
    ),
    "usage twice": (False, plain(TWICE), exactly(TOKENS)),
    "usage twice, streamed": (
        True, streamed(*chat_events(usage=True)[:-1], *chat_events(usage=True)), exactly(TOKENS),
    ),
    "usage that grows": (
        True,
        streamed(*sse({"choices": [], "usage": {"prompt_tokens": 1, "total_tokens": 2}}), *chat_events(usage=True)),
        exactly(TOKENS),
    ),
    "not JSON": (False, plain(b"x" * 120), PRODUCED),
    "nothing": (False, plain(b""), between(1, 40)),
    "a stream nobody asked for": (False, streamed(*chat_events(usage=True)), exactly(TOKENS)),
    "a plain answer to a stream": (True, plain(chat_answer()), exactly(TOKENS)),
    "a stream cut off": (True, streamed(*chat_events(WORDS, usage=False)[:10], broken=True), PRODUCED),
    "a stream cut off after its usage": (True, streamed(*chat_events(usage=True)[:-1], broken=True), exactly(TOKENS)),
    "a stream without an end": (True, streamed(*chat_events(WORDS, usage=False)[:-2]), PRODUCED),
    "an empty stream": (True, streamed(), between(1, 40)),
    "gzip": (False, plain(gzip.compress(json.dumps(chat_answer()).encode()), headers=GZIP), exactly(TOKENS)),
    "deflate": (
        False,
        plain(zlib.compress(json.dumps(chat_answer()).encode()), headers={"content-encoding": "deflate"}),
        exactly(TOKENS),
    ),
    "gzip that is none": (False, plain(b"not gzip", headers=GZIP), between(1000, 1100)),
    "a coding nobody knows": (False, plain(b"x", headers={"content-encoding": "br"}), between(1000, 1100)),
    "gzip, streamed": (True, zipped(*chat_events(usage=True)), exactly(TOKENS)),
    "gzip, streamed, no usage": (True, zipped(*chat_events(WORDS, usage=False)), PRODUCED),
    "a coding nobody knows, streamed": (
        True, streamed(b"x", headers={"content-encoding": "br"}), between(1000, 1100),
    ),
    "a content type in capitals": (
        True, streamed(*chat_events(usage=True), headers={"content-type": "Text/Event-Stream; charset=utf-8"}),
        exactly(TOKENS),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("stream", "answer", "is_right"), UPSTREAMS.values(), ids=UPSTREAMS)
@pytest.mark.parametrize("place", [staged, around], ids=["in front", "around"])
async def test_whatever_the_upstream_answers_is_charged_for_what_it_is(
    valkey: str, tmp_path: Path, place: Place, stream: bool, answer: Answer, is_right: Callable[[int], bool]
) -> None:
    async with place(valkey, tmp_path, answer=answer) as stage:
        key = await stage.user("ann", tpm_limit=10**6, max_budget=10)
        body = {**json.loads(CHAT), "stream": stream}
        received = await stage.raw(request(json.dumps(body).encode()).replace(KEY, key.encode()))
        await stage.idle()
        assert len(statuses(received)) == 1
        requests, tokens, slots = await stage.used("ann")
        assert (requests, slots) == (1, 0)
        assert is_right(tokens), tokens
        spend = await stage.spend_nanos("ann")
        assert tokens * 2500 <= spend <= tokens * 10_000
        if tokens == TOKENS:
            assert spend == COST_NANOS


async def test_an_upstream_that_breaks_off_before_the_client_has_seen_anything_is_a_502(
    valkey: str, tmp_path: Path
) -> None:
    async def half(seen: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"100")]})
        await send({"type": "http.response.body", "body": b'{"half":', "more_body": True})
        raise ConnectionError

    async with staged(valkey, tmp_path, answer=half) as stage:
        key = await stage.user("ann", max_budget=1)
        answer = await stage.chat(key)
        await stage.idle()
        assert (answer.status_code, answer.json()["error"]["code"]) == (502, "upstream_unavailable")
        assert await stage.used("ann") == (1, 0, 0)
        assert await stage.spend_nanos("ann") == 0


@pytest.mark.parametrize("path", ["/v1/models", "/v1/chat/completions"], ids=["free", "metered"])
async def test_an_upstream_that_is_away_is_a_502_and_costs_nothing(valkey: str, tmp_path: Path, path: str) -> None:
    async with staged(valkey, tmp_path) as stage:
        key = await stage.user("ann", max_budget=1)
        proxy: Any = stage.weir._app
        proxy._port = 1
        headers = {"authorization": f"Bearer {key}"}
        free = path == "/v1/models"
        answer = await (stage.http.get(path, headers=headers) if free else stage.chat(key))
        await stage.idle()
        assert (answer.status_code, answer.json()["error"]["code"]) == (502, "upstream_unavailable")
        assert answer.json()["error"]["type"] == "server_error"
        assert await stage.used("ann") == (0 if free else 1, 0, 0)


# Clients that leave.


async def connect(stage: Stage, sent: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", stage.port)
    writer.write(sent)
    return reader, writer


async def test_a_client_that_leaves_a_stream_is_charged_for_what_was_produced_and_frees_its_slot_at_once(
    valkey: str, tmp_path: Path
) -> None:
    never = asyncio.Event()
    events = chat_events(WORDS, usage=False)[:10]
    async with staged(valkey, tmp_path, answer=streamed(*events, hold=never)) as stage:
        key = await stage.user("ann", max_parallel_requests=1, tpm_limit=10**6, max_budget=1)
        body = {**json.loads(CHAT), "stream": True}
        reader, writer = await connect(stage, request(json.dumps(body).encode()).replace(KEY, key.encode()))
        got = b""
        while got.count(b"twelve bytes") < 10:
            got += await asyncio.wait_for(reader.read(65_536), PATIENCE_S)
        writer.transport.abort()
        await eventually(lambda: stage.upstream.ended == 1)
        stage.upstream.answer = speak

        async def free() -> bool:
            return (await stage.chat(key)).status_code == 200

        async with asyncio.timeout(1):
            await eventually(free)
        await stage.idle()
        requests, tokens, slots = await stage.used("ann")
        assert (requests, slots) == (2, 0)
        assert PRODUCED(tokens - TOKENS), tokens


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
async def test_a_client_that_leaves_before_the_answer_pays_what_was_held(
    valkey: str, tmp_path: Path, stream: bool
) -> None:
    never = asyncio.Event()
    async with staged(valkey, tmp_path, answer=held(never, speak)) as stage:
        key = await stage.user("ann", max_parallel_requests=1, tpm_limit=10**6, max_budget=1)
        body = json.dumps({**json.loads(CHAT), "stream": stream, "max_tokens": 70}).encode()
        _, writer = await connect(stage, request(body).replace(KEY, key.encode()))
        await eventually(lambda: len(stage.seen) == 1)
        holding = await stage.standing("ann")
        writer.transport.abort()
        await eventually(lambda: stage.upstream.ended == 1)

        async def free() -> bool:
            return (await stage.standing("ann")).parallel_used == 0

        async with asyncio.timeout(1):
            await eventually(free)
        after = await stage.standing("ann")
        assert after.tpm_used == holding.tpm_used >= 70
        assert after.budget_used_nanos == holding.budget_used_nanos >= 70 * 10_000
        assert after.rpm_used == 1


async def test_a_client_that_leaves_while_it_sends_costs_nothing(stage: Stage) -> None:
    key = await stage.user("ann")
    _, writer = await connect(stage, request().replace(CHAT, CHAT[:20]).replace(KEY, key.encode()))
    await asyncio.sleep(0.02)
    writer.transport.abort()
    await asyncio.sleep(0.02)
    assert stage.seen == []
    assert await stage.used("ann") == (0, 0, 0)


async def test_a_caller_who_asks_one_after_the_other_never_meets_its_own_last_request(
    valkey: str, tmp_path: Path
) -> None:
    async with staged(valkey, tmp_path) as stage:
        key = await stage.user("ann", max_parallel_requests=1)
        for number in range(40):
            assert (await stage.chat(key, stream=number % 2 == 1)).status_code == 200
        assert len(stage.seen) == 40


async def test_the_input_of_a_cached_prompt_is_not_charged_in_full_when_the_client_leaves(
    valkey: str, tmp_path: Path
) -> None:
    start = {"type": "message_start", "message": {"usage": {
        "input_tokens": 10, "cache_read_input_tokens": 10_000, "output_tokens": 1}}}  # fmt: skip
    async with staged(valkey, tmp_path, answer=streamed(*sse(start), broken=True)) as stage:
        key = await stage.user("ann", tpm_limit=10**6, max_budget=1)
        body = b'{"model":"claude-test-1","max_tokens":50,"messages":[],"stream":true}'
        sent = request(body, line=b"POST /v1/messages HTTP/1.1").replace(KEY, key.encode())
        await stage.raw(sent)
        await stage.idle()
        assert await stage.spend_nanos("ann") == 10 * 3000 + 10_000 * 300 + 15_000
        assert (await stage.used("ann"))[1] == 10_011


@pytest.mark.parametrize(
    "target", ["../x", "cheap/../dear", "cheap/..;a/dear", "cheap//dear", "a%2e%2e%2fb", r"a\..\b"]
)
@pytest.mark.parametrize("path", ["/v1beta/models/fast:generateContent", "/openai/deployments/fast/chat/completions"])
async def test_an_alias_of_ones_own_key_does_not_lead_out_of_the_path(stage: Stage, path: str, target: str) -> None:
    await stage.user("ann", models=["*"])
    key = (await mint(stage.weir.engine.users, "ann", aliases={"fast": target})).secret
    body: dict[str, object] = {"contents": []} if "generateContent" in path else {"messages": []}
    refused = await stage.http.post(path, json=body, headers={"authorization": f"Bearer {key}"})
    assert refused.status_code == 400
    assert "invalid_path" in refused.text or "segments" in refused.text
    await stage.idle()
    assert stage.seen == []
    assert await stage.used("ann") == (0, 0, 0)


async def test_a_model_whose_input_costs_nothing_is_not_let_through_on_a_spent_budget(
    valkey: str, tmp_path: Path
) -> None:
    (tmp_path / "own.json").write_text('{"tiny": {"input": 0, "output": 10}, "gratis": {"input": 0, "output": 0}}')
    async with staged(valkey, tmp_path, price_file=tmp_path / "own.json") as stage:
        key = await stage.user("ann", max_budget=0)
        assert (await stage.chat(key, model="tiny", max_tokens=0)).status_code == 429
        assert (await stage.chat(key, model="gratis", max_tokens=0)).status_code == 200
        await stage.idle()
        assert await stage.spend_nanos("ann") == 0


async def test_a_caller_cannot_fill_the_memory_of_a_worker_with_names_made_up(stage: Stage) -> None:
    key = await stage.user("ann")
    for number in range(20):
        assert (await stage.chat(key, cache={f"{number}" * 20_000: 1})).status_code == 200
    store = stage.weir.engine.store
    assert sum(len(packed) for packed in store._admissions.values()) < 20_000


async def test_a_caller_cannot_fill_the_memory_of_a_worker_with_keys_made_up(stage: Stage) -> None:
    before = _remembered_hash.cache_info().currsize
    for number in range(20):
        assert (await stage.chat(f"{number:03d}" * 1_000)).status_code == 401
    assert _remembered_hash.cache_info().currsize == before
