"""The providers' own Python SDKs against a served gate: what they get, what they raise, and when they try again."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
from google import genai
from google.genai import errors as genai_errors
from google.genai import types as genai_types
from tests.harness import (
    COST_NANOS,
    INPUT_TOKENS,
    OUTPUT_TOKENS,
    TOKENS,
    Stage,
    chat_events,
    empty,
    eventually,
    held,
    plain,
    speak,
    staged,
    streamed,
)

# Google's SDK subclasses aiohttp's session, which aiohttp warns of.
pytestmark = pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession:DeprecationWarning")

UrlOf = Callable[[str], str]
MESSAGES: Any = [{"role": "user", "content": "hi"}]
CLAUDE = "claude-test-1"
GEMINI = "gemini-2.5-flash"


@pytest.fixture
def valkey(url_of: UrlOf) -> str:
    """The URL of an emptied store."""
    url = url_of("valkey")
    empty(url)
    return url


@pytest.fixture
async def stage(valkey: str, tmp_path: Path) -> AsyncIterator[Stage]:
    async with staged(valkey, tmp_path) as stage:
        yield stage


def openai_client(stage: Stage, key: str, *, retries: int = 0) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(api_key=key, base_url=f"{stage.url}/v1", max_retries=retries)


def anthropic_client(stage: Stage, key: str, *, retries: int = 0) -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(api_key=key, base_url=stage.url, max_retries=retries)


def gemini_client(stage: Stage, key: str) -> genai.Client:
    return genai.Client(api_key=key, http_options=genai_types.HttpOptions(base_url=stage.url))


# Answers.


async def chat(client: openai.AsyncOpenAI) -> str | None:
    answer = await client.chat.completions.create(model="gpt-4o", messages=MESSAGES)
    assert answer.usage is not None
    assert answer.usage.total_tokens == TOKENS
    return answer.choices[0].message.content


async def completions(client: openai.AsyncOpenAI) -> str | None:
    return (await client.completions.create(model="gpt-4o", prompt="hi")).choices[0].text


async def responses(client: openai.AsyncOpenAI) -> str | None:
    return (await client.responses.create(model="gpt-4o", input="hi")).output_text


async def responses_streamed(client: openai.AsyncOpenAI) -> str | None:
    stream = await client.responses.create(model="gpt-4o", input="hi", stream=True)
    return "".join([event.delta async for event in stream if event.type == "response.output_text.delta"])


async def chat_streamed(client: openai.AsyncOpenAI) -> str | None:
    stream = await client.chat.completions.create(model="gpt-4o", messages=MESSAGES, stream=True)
    return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])


async def chat_stream_helper(client: openai.AsyncOpenAI) -> str | None:
    async with client.chat.completions.stream(model="gpt-4o", messages=MESSAGES) as stream:
        return (await stream.get_final_completion()).choices[0].message.content


OPENAI_CALLS: dict[str, tuple[Callable[[openai.AsyncOpenAI], Awaitable[str | None]], str]] = {
    "chat": (chat, "hello there you"),
    "chat, streamed": (chat_streamed, "hello there you"),
    "chat, by the stream helper": (chat_stream_helper, "hello there you"),
    "completions": (completions, "hello"),
    "responses": (responses, "hello"),
    "responses, streamed": (responses_streamed, "hello"),
}


@pytest.mark.parametrize(("call", "text"), OPENAI_CALLS.values(), ids=OPENAI_CALLS)
async def test_openai_gets_its_answer_and_the_caller_is_charged(
    stage: Stage, call: Callable[[openai.AsyncOpenAI], Awaitable[str | None]], text: str
) -> None:
    key = await stage.user("ann", rpm_limit=10, max_budget=1)
    async with openai_client(stage, key) as client:
        assert await call(client) == text
    await stage.idle()
    assert await stage.used("ann") == (1, TOKENS, 0)
    assert await stage.spend_nanos("ann") == COST_NANOS


async def test_openai_gets_its_embeddings(stage: Stage) -> None:
    key = await stage.user("ann", max_budget=1)
    async with openai_client(stage, key) as client:
        answer = await client.embeddings.create(model="text-embedding-3-small", input="hi", encoding_format="float")
    assert answer.data[0].embedding == [0.5, 0.25]
    await stage.idle()
    assert await stage.used("ann") == (1, INPUT_TOKENS, 0)
    assert await stage.spend_nanos("ann") == INPUT_TOKENS * 20


@pytest.mark.parametrize("wants_usage", [None, False, True], ids=["unsaid", "not wanted", "wanted"])
async def test_openai_sees_exactly_the_events_it_would_have_seen(stage: Stage, wants_usage: bool | None) -> None:
    key = await stage.user("ann")
    options: Any = openai.omit if wants_usage is None else {"include_usage": wants_usage}
    seen = []
    for base_url in (f"{stage.url}/v1", f"http://127.0.0.1:{_upstream_port(stage)}/v1"):
        async with openai.AsyncOpenAI(api_key=key, base_url=base_url, max_retries=0) as client:
            stream = await client.chat.completions.create(
                model="gpt-4o", messages=MESSAGES, stream=True, stream_options=options
            )
            seen.append([chunk.to_json() async for chunk in stream])
    through, straight = seen
    assert through == straight
    assert ('"usage": {' in through[-1]) == (wants_usage is True)
    await stage.idle()
    assert await stage.used("ann") == (1, TOKENS, 0)


async def test_the_bytes_of_a_stream_are_those_of_an_upstream_that_was_not_asked_for_usage(stage: Stage) -> None:
    key = await stage.user("ann")
    answer = await stage.chat(key, stream=True)
    assert answer.content == b"".join(chat_events(usage=False))
    assert stage.seen[0].json()["stream_options"] == {"include_usage": True}


def test_openai_works_without_asyncio(valkey: str, tmp_path: Path) -> None:
    def ask(stage: Stage, key: str) -> tuple[str | None, str]:
        with openai.OpenAI(api_key=key, base_url=f"{stage.url}/v1", max_retries=0) as client:
            answer = client.chat.completions.create(model="gpt-4o", messages=MESSAGES)
            stream = client.chat.completions.create(model="gpt-4o", messages=MESSAGES, stream=True)
            return answer.choices[0].message.content, "".join(c.choices[0].delta.content or "" for c in stream)

    async def serve() -> None:
        async with staged(valkey, tmp_path) as stage:
            key = await stage.user("ann")
            assert await asyncio.to_thread(ask, stage, key) == ("hello there you", "hello there you")
            await stage.idle()
            assert await stage.used("ann") == (2, 2 * TOKENS, 0)

    asyncio.run(serve())


async def test_anthropic_gets_its_answer_and_its_stream(stage: Stage) -> None:
    key = await stage.user("ann", max_budget=1)
    async with anthropic_client(stage, key) as client:
        answer = await client.messages.create(model=CLAUDE, max_tokens=50, messages=MESSAGES)
        assert answer.content[0].to_dict()["text"] == "hello"
        async with client.messages.stream(model=CLAUDE, max_tokens=50, messages=MESSAGES) as stream:
            assert "".join([text async for text in stream.text_stream]) == "hello"
            assert (await stream.get_final_message()).usage.output_tokens == OUTPUT_TOKENS
        counted = await client.messages.with_raw_response.create(model=CLAUDE, max_tokens=50, messages=MESSAGES)
        assert counted.headers["x-llmweir-budget-limit-usd"] == "1"
    await stage.idle()
    assert await stage.used("ann") == (3, 3 * TOKENS, 0)
    assert await stage.spend_nanos("ann") == 3 * (INPUT_TOKENS * 3000 + OUTPUT_TOKENS * 15_000)


async def test_gemini_gets_its_answer_and_its_stream(stage: Stage) -> None:
    key = await stage.user("ann", max_budget=1)
    client = gemini_client(stage, key)
    answer = await client.aio.models.generate_content(model=GEMINI, contents="hi")
    assert answer.text == "hello"
    chunks = await client.aio.models.generate_content_stream(model=GEMINI, contents="hi")
    assert [chunk.text async for chunk in chunks] == ["hello"]
    await client.aio.aclose()
    client.close()
    await stage.idle()
    assert await stage.used("ann") == (2, 2 * TOKENS, 0)
    assert await stage.spend_nanos("ann") == 2 * (INPUT_TOKENS * 300 + OUTPUT_TOKENS * 2500)


# Refusals: what each SDK raises for each row of the table.

Row = tuple[dict[str, Any], dict[str, Any], int, str, str]
REFUSALS: dict[str, Row] = {
    "blocked": ({"blocked": True}, {}, 403, "invalid_request_error", "user_blocked"),
    "model": ({"models": ["o1"]}, {}, 403, "invalid_request_error", "model_not_allowed"),
    "role": ({"user_role": "internal_user_viewer"}, {}, 403, "invalid_request_error", "role_not_allowed"),
    "cache control": (
        {"allowed_cache_controls": ["ttl"]}, {"cache": {"no-store": True}}, 403,
        "invalid_request_error", "cache_control_not_allowed",
    ),
    "rpm": ({"rpm_limit": 1}, {}, 429, "requests", "rate_limit_exceeded"),
    "model rpm": ({"model_rpm_limit": {"*": 1}}, {}, 429, "requests", "rate_limit_exceeded"),
    "tpm": ({"tpm_limit": TOKENS + 5}, {}, 429, "tokens", "rate_limit_exceeded"),
    "model tpm": ({"model_tpm_limit": {"*": TOKENS + 5}}, {}, 429, "tokens", "rate_limit_exceeded"),
    "budget": ({"max_budget": 0.00008}, {}, 429, "insufficient_quota", "insufficient_quota"),
    "model budget": ({"model_max_budget": {"*": 0.00008}}, {}, 429, "insufficient_quota", "insufficient_quota"),
    "too large": ({"tpm_limit": 20}, {"max_tokens": 500}, 429, "tokens", "request_too_large"),
    "no price": ({"max_budget": 1}, {"model": "unheard-of"}, 400, "invalid_request_error", "model_not_priced"),
    "not readable": ({}, {"stream": "yes"}, 400, "invalid_request_error", "invalid_value"),
}  # fmt: skip
OPENAI_ERRORS = {
    400: openai.BadRequestError, 401: openai.AuthenticationError, 403: openai.PermissionDeniedError,
    404: openai.NotFoundError, 429: openai.RateLimitError, 503: openai.InternalServerError,
}  # fmt: skip
ANTHROPIC_ERRORS = {
    400: (anthropic.BadRequestError, "invalid_request_error"),
    401: (anthropic.AuthenticationError, "authentication_error"),
    403: (anthropic.PermissionDeniedError, "permission_error"),
    404: (anthropic.NotFoundError, "not_found_error"),
    429: (anthropic.RateLimitError, "rate_limit_error"),
    503: (anthropic.InternalServerError, "overloaded_error"),
}
GEMINI_STATUSES = {
    400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 429: "RESOURCE_EXHAUSTED",
}  # fmt: skip


async def used_up(stage: Stage, fields: dict[str, Any], path: str, body: dict[str, Any]) -> str:
    """A user whose limits have room for one call, after that call."""
    key = await stage.user("ann", user_alias="Ann", **fields)
    await stage.http.post(path, json=body, headers={"authorization": f"Bearer {key}"})
    await stage.idle()
    return key


@pytest.mark.parametrize(("fields", "body", "status", "kind", "code"), REFUSALS.values(), ids=REFUSALS)
async def test_openai_raises_what_the_table_says(
    stage: Stage, fields: dict[str, Any], body: dict[str, Any], status: int, kind: str, code: str
) -> None:
    asked = {"model": "gpt-4o", "messages": MESSAGES}
    key = await used_up(stage, fields, "/v1/chat/completions", asked)
    async with openai_client(stage, key) as client:
        with pytest.raises(OPENAI_ERRORS[status]) as raised:
            await client.chat.completions.create(model=body.get("model", "gpt-4o"), messages=MESSAGES, extra_body=body)
    error: Any = raised.value
    assert (error.status_code, error.type, error.code) == (status, kind, code)
    assert error.request_id == error.response.headers["x-request-id"]
    if status == 429:
        assert "user Ann" in error.message
        stops = error.response.headers.get("x-should-retry") == "false"
        assert stops == (code in ("insufficient_quota", "request_too_large"))
        assert stops == ("retry-after" not in error.response.headers)


@pytest.mark.parametrize(("fields", "body", "status", "kind", "code"), REFUSALS.values(), ids=REFUSALS)
async def test_anthropic_raises_what_the_table_says(
    stage: Stage, fields: dict[str, Any], body: dict[str, Any], status: int, kind: str, code: str
) -> None:
    asked = {"model": CLAUDE, "messages": MESSAGES, "max_tokens": 30}
    key = await used_up(stage, fields, "/v1/messages", asked)
    expected, name = ANTHROPIC_ERRORS[status]
    if code == "insufficient_quota":
        name = "billing_error"
    async with anthropic_client(stage, key) as client:
        with pytest.raises(expected) as raised:
            await client.messages.create(
                model=body.get("model", CLAUDE), messages=MESSAGES, max_tokens=body.get("max_tokens", 30),
                extra_body=body,
            )  # fmt: skip
    error: Any = raised.value
    assert error.status_code == status
    assert error.body["type"] == "error"
    assert error.body["error"]["type"] == name
    assert error.body["request_id"] == error.response.headers["x-request-id"]


GEMINI_REFUSALS = {name: row for name, row in REFUSALS.items() if name not in ("cache control", "not readable")}


@pytest.mark.parametrize(("fields", "body", "status", "kind", "code"), GEMINI_REFUSALS.values(), ids=GEMINI_REFUSALS)
async def test_gemini_raises_what_the_table_says(
    stage: Stage, fields: dict[str, Any], body: dict[str, Any], status: int, kind: str, code: str
) -> None:
    key = await used_up(stage, fields, f"/v1beta/models/{GEMINI}:generateContent", {"contents": []})
    client = gemini_client(stage, key)
    config = genai_types.GenerateContentConfig(max_output_tokens=body.get("max_tokens"))
    with pytest.raises(genai_errors.ClientError) as raised:
        await client.aio.models.generate_content(model=body.get("model", GEMINI), contents="hi", config=config)
    await client.aio.aclose()
    client.close()
    error = raised.value
    assert (error.code, error.status) == (status, GEMINI_STATUSES[status])
    details = {detail["@type"].rpartition(".")[2]: detail for detail in error.details["error"]["details"]}
    assert ("QuotaFailure" in details) == (status == 429)
    assert ("RetryInfo" in details) == (code == "rate_limit_exceeded")


async def test_an_unknown_key_and_an_unknown_path_are_raised_as_such(stage: Stage) -> None:
    key = await stage.user("ann")
    async with openai_client(stage, "sk-nobody") as nobody, openai_client(stage, key) as ann:
        with pytest.raises(openai.AuthenticationError) as unknown:
            await nobody.chat.completions.create(model="gpt-4o", messages=MESSAGES)
        assert unknown.value.code == "invalid_api_key"
        with pytest.raises(openai.NotFoundError) as not_gated:
            await ann.files.list()
        assert not_gated.value.code == "path_not_gated"
    async with anthropic_client(stage, "sk-nobody") as nobody_else:
        with pytest.raises(anthropic.AuthenticationError):
            await nobody_else.messages.create(model=CLAUDE, max_tokens=5, messages=MESSAGES)


async def test_a_store_that_is_away_is_an_internal_server_error_of_each(stage: Stage) -> None:
    key = await stage.user("ann")
    async with openai_client(stage, key) as client, anthropic_client(stage, key) as other:
        await client.chat.completions.create(model="gpt-4o", messages=MESSAGES)
        await stage.idle()
        await stage.weir.engine.link.aclose()
        with pytest.raises(openai.InternalServerError) as raised:
            await client.chat.completions.create(model="gpt-4o", messages=MESSAGES)
        assert (raised.value.status_code, raised.value.type, raised.value.code) == (
            503, "server_error", "store_unavailable",
        )  # fmt: skip
        assert raised.value.response.headers["retry-after"] == "1"
        with pytest.raises(anthropic.InternalServerError) as overloaded:
            await other.messages.create(model=CLAUDE, max_tokens=5, messages=MESSAGES)
        body: Any = overloaded.value.body
        assert body["error"]["type"] == "overloaded_error"


# Retries.


async def test_a_slot_that_comes_free_is_waited_for_as_long_as_told(stage: Stage) -> None:
    go = asyncio.Event()
    stage.upstream.answer = held(go, speak)
    key = await stage.user("ann", max_parallel_requests=1)
    attempts = counted(stage)
    async with openai_client(stage, key, retries=2) as client:
        first = asyncio.create_task(client.chat.completions.create(model="gpt-4o", messages=MESSAGES))
        await eventually(lambda: len(stage.seen) == 1)
        second = asyncio.create_task(client.chat.completions.create(model="gpt-4o", messages=MESSAGES))
        await eventually(lambda: len(attempts) == 2)
        go.set()
        await asyncio.gather(first, second)
    assert len(attempts) == 3
    waited_s = attempts[2] - attempts[1]
    assert 0.95 <= waited_s < 1.6
    await stage.idle()
    assert (await stage.used("ann"))[0] == 2


@pytest.mark.parametrize("sdk", ["openai", "anthropic"])
async def test_a_true_short_wait_is_obeyed_and_is_enough(stage: Stage, sdk: str) -> None:
    key = await stage.user("ann", rpm_limit=1)
    body = {"model": "gpt-4o", "messages": MESSAGES}
    headers = {"authorization": f"Bearer {key}"}
    now_ms = 1_800_000_000_000
    stage.weir.engine.store._clock = lambda: now_ms
    await stage.http.post("/v1/chat/completions", json=body, headers=headers)
    refused = await stage.http.post("/v1/chat/completions", json=body, headers=headers)
    # All but 300 ms of the wait go by on the store's clock.
    started_s = asyncio.get_running_loop().time()
    now_at_start_ms = now_ms + int(refused.headers["retry-after-ms"]) - 300

    def running() -> int:
        return now_at_start_ms + int((asyncio.get_running_loop().time() - started_s) * 1000)

    stage.weir.engine.store._clock = running
    attempts = counted(stage)
    if sdk == "openai":
        async with openai_client(stage, key, retries=2) as client:
            await client.chat.completions.create(model="gpt-4o", messages=MESSAGES)
    else:
        async with anthropic_client(stage, key, retries=2) as other:
            await other.messages.create(model=CLAUDE, max_tokens=5, messages=MESSAGES)
    assert len(attempts) == 2
    assert 0.15 <= attempts[1] - attempts[0] < 1


STOPS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "a budget that is spent": ({"max_budget": 0}, {}),
    "a request that can never fit": ({"tpm_limit": 20}, {"max_tokens": 500}),
}


@pytest.mark.parametrize(("fields", "body"), STOPS.values(), ids=STOPS)
async def test_where_no_wait_helps_no_sdk_tries_again(
    stage: Stage, fields: dict[str, Any], body: dict[str, Any]
) -> None:
    key = await stage.user("ann", **fields)
    attempts = counted(stage)
    async with openai_client(stage, key, retries=2) as client, anthropic_client(stage, key, retries=2) as other:
        with pytest.raises(openai.RateLimitError):
            await client.chat.completions.create(model="gpt-4o", messages=MESSAGES, extra_body=body)
        assert len(attempts) == 1
        with pytest.raises(anthropic.RateLimitError):
            await other.messages.create(model=CLAUDE, max_tokens=500, messages=MESSAGES)
        assert len(attempts) == 2
    assert stage.seen == []


async def test_an_error_of_the_upstream_is_retried_and_only_what_came_through_is_paid(stage: Stage) -> None:
    key = await stage.user("ann", max_budget=1)
    failing = plain({"error": {"message": "busy"}}, status=500, headers={"retry-after-ms": "5"})

    async def second_time_lucky(seen: Any, send: Any) -> None:
        await (failing if len(stage.seen) == 1 else speak)(seen, send)

    stage.upstream.answer = second_time_lucky
    async with openai_client(stage, key, retries=2) as client:
        await client.chat.completions.create(model="gpt-4o", messages=MESSAGES)
    await stage.idle()
    assert await stage.used("ann") == (2, TOKENS, 0)
    assert await stage.spend_nanos("ann") == COST_NANOS


async def test_a_stream_that_breaks_off_is_an_error_of_the_sdk_and_not_a_quiet_end(stage: Stage) -> None:
    key = await stage.user("ann")
    stage.upstream.answer = streamed(*chat_events(usage=True)[:2], broken=True)
    async with openai_client(stage, key) as client:
        stream = await client.chat.completions.create(model="gpt-4o", messages=MESSAGES, stream=True)
        with pytest.raises(openai.APIConnectionError):
            async for _ in stream:
                pass


async def test_problem_json_keeps_the_error_that_an_sdk_reads(stage: Stage) -> None:
    key = await stage.user("ann", rpm_limit=0)
    async with openai_client(stage, key) as client:
        with pytest.raises(openai.RateLimitError) as raised:
            await client.chat.completions.create(
                model="gpt-4o", messages=MESSAGES, extra_headers={"accept": "application/problem+json"}
            )
    response = raised.value.response
    assert response.headers["content-type"] == "application/problem+json"
    problem = json.loads(response.content)
    assert problem["violated-policies"] == ["user-rpm"]
    assert problem["status"] == 429
    assert problem["error"]["code"] == raised.value.code == "rate_limit_exceeded"


def counted(stage: Stage) -> list[float]:
    """The times at which requests reach the gate from now on, in seconds."""
    attempts: list[float] = []
    gate = stage.weir._gate
    assert gate is not None

    async def counting(scope: Any, receive: Any, send: Any) -> None:
        attempts.append(asyncio.get_running_loop().time())
        await gate(scope, receive, send)

    stage.weir._gate = counting
    return attempts


def _upstream_port(stage: Stage) -> int:
    proxy: Any = stage.weir._app
    port: int = proxy._port
    return port
