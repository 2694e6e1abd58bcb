"""The make-believe model, as the providers' own SDKs read it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anthropic
import httpx
import openai
import pytest
import uvicorn
from anthropic.types import Message, RawMessageStreamEvent
from google.genai.types import GenerateContentResponse
from pydantic import TypeAdapter

from llmweir.cli.background import running
from llmweir.cli.model import BrokenOffError, app
from llmweir.cli.model_answers import pieces_of, tokens_of
from llmweir.cli.sockets import bind
from llmweir.traffic.sse import SseDecoder

pytestmark = pytest.mark.asyncio

HELLO: Any = [{"role": "user", "content": "Hello you"}]  # 9 bytes: 3 tokens


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app()), base_url="http://model") as client:
        yield client


@pytest.fixture
def gpt(http: httpx.AsyncClient) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url="http://model/v1", api_key="any", http_client=http, max_retries=0)  # type: ignore[arg-type]


@pytest.fixture
async def claude() -> AsyncIterator[anthropic.AsyncAnthropic]:
    config = uvicorn.Config(app(), ws="none", lifespan="off", log_config=None)
    with running(config, bind("127.0.0.1", 0)) as url:
        async with anthropic.AsyncAnthropic(base_url=url, api_key="any", max_retries=0) as client:
            yield client


async def test_a_chat_answer_has_usage_that_follows_from_the_text(gpt: openai.AsyncOpenAI) -> None:
    answer = await gpt.chat.completions.create(model="m", messages=HELLO, n=2)
    assert [choice.message.content for choice in answer.choices] == ["".join(pieces_of(22))] * 2
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (3, 44, 47)
    assert tokens_of(answer.choices[0].message.content or "") == 22


@pytest.mark.parametrize("wants_usage", [False, True], ids=["not asked for", "asked for"])
async def test_a_chat_stream_has_a_usage_event_only_where_it_is_asked_for(
    gpt: openai.AsyncOpenAI, wants_usage: bool
) -> None:
    options: Any = {"stream_options": {"include_usage": True}} if wants_usage else {}
    stream: Any = await gpt.chat.completions.create(model="m", messages=HELLO, stream=True, max_tokens=5, **options)
    chunks = [chunk async for chunk in stream]
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == "".join(pieces_of(5))
    reported = [chunk.usage.completion_tokens for chunk in chunks if chunk.usage]
    assert reported == ([5] if wants_usage else [])
    assert next(c.finish_reason for chunk in chunks for c in chunk.choices if c.finish_reason) == "length"


async def test_completions_answer_each_prompt(gpt: openai.AsyncOpenAI) -> None:
    answer = await gpt.completions.create(model="m", prompt=["four", "four"])
    assert answer.usage is not None
    assert (len(answer.choices), answer.usage.prompt_tokens, answer.usage.completion_tokens) == (2, 2, 44)


async def test_completions_stream(gpt: openai.AsyncOpenAI) -> None:
    stream = await gpt.completions.create(model="m", prompt="four", stream=True, stream_options={"include_usage": True})
    chunks = [chunk async for chunk in stream]
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == "".join(pieces_of(22))
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 23


async def test_responses_answer_and_stream_the_same(gpt: openai.AsyncOpenAI) -> None:
    answer = await gpt.responses.create(model="m", input="Hello you", max_output_tokens=7)
    assert answer.usage is not None
    assert (answer.output_text, answer.usage.output_tokens) == ("".join(pieces_of(7)), 7)
    events = [event async for event in await gpt.responses.create(model="m", input="Hello you", stream=True)]
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == "".join(
        pieces_of(22)
    )
    assert events[-1].type == "response.completed"
    assert events[-1].response.usage is not None
    assert events[-1].response.usage.total_tokens == 25


async def test_embeddings_come_in_the_encoding_asked_for(gpt: openai.AsyncOpenAI) -> None:
    packed = await gpt.embeddings.create(model="m", input=["four", "four"])
    listed = await gpt.embeddings.create(model="m", input="four", encoding_format="float")
    assert len(packed.data) == 2
    assert packed.data[0].embedding == pytest.approx(listed.data[0].embedding)
    assert packed.usage.total_tokens == 2


async def test_models_are_listed(gpt: openai.AsyncOpenAI) -> None:
    assert "gpt-4o" in [row.id async for row in gpt.models.list()]


async def test_an_anthropic_message_and_its_stream_agree(
    http: httpx.AsyncClient, claude: anthropic.AsyncAnthropic
) -> None:
    message: Message = await claude.messages.create(model="m", max_tokens=9, messages=HELLO)
    assert (message.usage.input_tokens, message.usage.output_tokens, message.stop_reason) == (3, 9, "max_tokens")
    async with claude.messages.stream(model="m", max_tokens=9, messages=HELLO) as stream:
        final = await stream.get_final_message()
    assert [block.type == "text" and block.text for block in final.content] == ["".join(pieces_of(9))]
    assert final.usage.output_tokens == 9
    raw = await http.post("/v1/messages", json={"model": "m", "max_tokens": 2, "messages": HELLO, "stream": True})
    events = [event.data for event in SseDecoder().decode(raw.content)]
    kinds = [TypeAdapter(RawMessageStreamEvent).validate_json(e).type for e in events if e != '{"type":"ping"}']
    assert kinds[0] == "message_start"
    assert kinds[-2:] == ["message_delta", "message_stop"]


async def test_gemini_answers_plainly_as_events_and_as_an_array(http: httpx.AsyncClient) -> None:
    body = {"contents": [{"parts": [{"text": "Hello you"}]}], "generationConfig": {"maxOutputTokens": 4}}
    where = "/v1beta/models/gemini-2.5-flash"
    plain = GenerateContentResponse.model_validate((await http.post(f"{where}:generateContent", json=body)).json())
    assert plain.text == "".join(pieces_of(4))
    assert plain.usage_metadata is not None
    assert plain.usage_metadata.total_token_count == 7
    events = await http.post(f"{where}:streamGenerateContent?alt=sse", json=body)
    assert events.headers["content-type"].startswith("text/event-stream")
    chunks = [GenerateContentResponse.model_validate_json(line[6:]) for line in events.text.splitlines() if line]
    assert "".join(chunk.text or "" for chunk in chunks) == plain.text
    array = await http.post(f"{where}:streamGenerateContent", json=body)
    assert len(array.json()) == len(chunks) == 4
    assert (await http.post(f"{where}:countTokens", json=body)).json() == {"totalTokens": 3}
    assert (await http.post(f"{where}:nothing", json=body)).status_code == 404


async def test_an_answer_is_steered_by_headers(http: httpx.AsyncClient) -> None:
    body = {"model": "m", "messages": HELLO}
    long = await http.post("/v1/chat/completions", json=body, headers={"x-model-tokens": "800"})
    assert long.json()["usage"]["completion_tokens"] == 800
    silent = await http.post("/v1/chat/completions", json=body, headers={"x-model-no-usage": "1"})
    assert "usage" not in silent.json()
    broken = {"x-model-break-after": "2", "x-model-gap-ms": "1", "x-model-delay-ms": "1"}
    with pytest.raises(BrokenOffError):
        await http.post("/v1/chat/completions", json={**body, "stream": True}, headers=broken)


@pytest.mark.parametrize(
    ("path", "member"),
    [
        pytest.param("/v1/chat/completions", "code", id="OpenAI"),
        pytest.param("/v1/messages", "type", id="Anthropic"),
        pytest.param("/v1beta/models/g:generateContent", "status", id="Gemini"),
    ],
)
async def test_an_error_comes_in_the_dialects_own_shape(http: httpx.AsyncClient, path: str, member: str) -> None:
    failed = await http.post(path, json={"model": "m"}, headers={"x-model-status": "503"})
    assert failed.status_code == 503
    assert member in failed.json()["error"]
    assert (await http.post(path, content=b"no json")).status_code == 400
    assert (await http.post(path, json={"model": "m"}, headers={"x-model-tokens": "x"})).status_code == 400


async def test_anthropic_tokens_are_counted(http: httpx.AsyncClient) -> None:
    body = {"model": "m", "messages": HELLO}
    assert (await http.post("/v1/messages/count_tokens", json=body)).json() == {"input_tokens": 3}
    assert (await http.post("/v1/messages/count_tokens", content=b"[]")).status_code == 400
