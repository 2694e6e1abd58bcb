"""The make-believe model: a small server that speaks the providers' dialects, for the demo, tests and benchmarks.

`python -m llmweir.cli.model --port 4000` or `llmweir model --port 4000` runs it alone. It knows

    POST /v1/chat/completions, /v1/completions, /v1/responses    plain and streamed
    POST /v1/embeddings
    POST /v1/messages                                            plain and streamed; and /v1/messages/count_tokens
    POST /v1beta/models/MODEL:generateContent, :streamGenerateContent (alt=sse or a JSON array), :countTokens
    GET  /v1/models

The same request always gets the same answer and the same usage: a token is 4 bytes of text, begun ones included. All
text of the prompt counts as input. The answer has 22 tokens, or fewer where the request's own maximum is lower.
Any key, and none, will do. Headers of a request steer its answer:

    x-model-tokens: 800        an answer of 800 tokens (still under the request's own maximum)
    x-model-delay-ms: 500      the time until the answer begins
    x-model-gap-ms: 50         the time between two events of a stream
    x-model-status: 503        an error in the dialect's own shape
    x-model-no-usage: 1        an answer that says nothing of its usage
    x-model-break-after: 5     a stream that breaks off after 5 events
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping

import click
import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from llmweir.cli import model_answers as answers
from llmweir.cli.model_answers import Answer, Body, Endpoint
from llmweir.cli.sockets import bind

DEFAULT_TOKENS = 22
MODELS = ("gpt-4o", "gpt-4o-mini", "claude-sonnet-4-5", "gemini-2.5-flash", "text-embedding-3-small")

_CHAT = Endpoint(
    ("messages",), ("max_completion_tokens", "max_tokens"), answers.chat, answers.chat_events, answers.openai_error
)
_COMPLETION = Endpoint(
    ("prompt",), ("max_tokens",), answers.completion, answers.completion_events, answers.openai_error
)
_RESPONSE = Endpoint(
    ("instructions", "input"),
    ("max_output_tokens",),
    answers.response,
    answers.response_events,
    answers.openai_error,
)
_EMBEDDINGS = Endpoint(("input",), (), answers.embeddings, None, answers.openai_error)
_MESSAGE = Endpoint(
    ("system", "messages"), ("max_tokens",), answers.message, answers.message_events, answers.anthropic_error
)
_GEMINI = Endpoint(
    ("systemInstruction", "contents"),
    ("maxOutputTokens",),
    answers.gemini,
    answers.gemini_events,
    answers.gemini_error,
)


class Wish(msgspec.Struct, frozen=True):
    """How a request wants its answer to be, see the headers above."""

    tokens: int = DEFAULT_TOKENS
    delay_s: float = 0.0
    gap_s: float = 0.0
    status: int = 0
    shows_usage: bool = True
    break_after: int = -1


class BrokenOffError(Exception):
    """A stream ends here, as was asked for."""


def app() -> Starlette:
    """The ASGI app of the make-believe model."""
    posts = {
        "/v1/chat/completions": _answering(_CHAT),
        "/v1/completions": _answering(_COMPLETION),
        "/v1/responses": _answering(_RESPONSE),
        "/v1/embeddings": _answering(_EMBEDDINGS),
        "/v1/messages": _answering(_MESSAGE),
        "/v1/messages/count_tokens": _count_tokens,
        "/v1beta/models/{call:path}": _gemini,
    }
    routes = [Route(path, handler, methods=["POST"]) for path, handler in posts.items()]
    return Starlette(routes=[*routes, Route("/v1/models", _models, methods=["GET"])])


def _answering(endpoint: Endpoint) -> Callable[[Request], Awaitable[Response]]:
    async def handle(request: Request) -> Response:
        body = await _json_of(request)
        if body is None or not isinstance(body.get("model"), str):
            return JSONResponse(endpoint.error(400, "A JSON object with a model is needed."), 400)
        return await _answer(request, endpoint, body, body["model"], body, streams=body.get("stream") is True)

    return handle


async def _gemini(request: Request) -> Response:
    model, _, action = request.path_params["call"].rpartition(":")
    body = await _json_of(request)
    if body is None:
        return JSONResponse(_GEMINI.error(400, "A JSON object is needed."), 400)
    if action == "countTokens":
        return JSONResponse({"totalTokens": _input_tokens(_GEMINI, body)})
    if action not in ("generateContent", "streamGenerateContent"):
        return JSONResponse(_GEMINI.error(404, "There is no such method."), 404)
    streams = action == "streamGenerateContent"
    endpoint = _GEMINI
    if streams and request.query_params.get("alt") != "sse":
        endpoint = _GEMINI._replace(events=answers.gemini_array)
    return await _answer(request, endpoint, body, model, body.get("generationConfig") or {}, streams=streams)


async def _answer(
    request: Request, endpoint: Endpoint, body: Body, model: str, bounds: Body, *, streams: bool
) -> Response:
    try:
        wish = _wish_of(request.headers)
    except ValueError:
        return JSONResponse(endpoint.error(400, "An x-model-* header is not a number."), 400)
    if wish.delay_s:
        await asyncio.sleep(wish.delay_s)
    if wish.status:
        return JSONResponse(endpoint.error(wish.status, "The model was asked to fail."), wish.status)
    most = next((bounds[name] for name in endpoint.most if bounds.get(name) is not None), wish.tokens)
    answer = Answer(
        hashlib.sha256(await request.body()).hexdigest()[:24],
        model,
        _input_tokens(endpoint, body),
        answers.pieces_of(min(wish.tokens, most)),
        is_cut=most < wish.tokens,
        shows_usage=wish.shows_usage,
    )
    if not streams or endpoint.events is None:
        return JSONResponse(endpoint.plain(body, answer))
    is_array = endpoint.events is answers.gemini_array
    media_type = "application/json" if is_array else "text/event-stream"
    return StreamingResponse(_paced(endpoint.events(body, answer), wish), media_type=media_type)


async def _paced(events: Iterator[bytes], wish: Wish) -> AsyncIterator[bytes]:
    for number, event in enumerate(events):
        if number == wish.break_after:
            raise BrokenOffError
        if number and wish.gap_s:
            await asyncio.sleep(wish.gap_s)
        yield event


async def _count_tokens(request: Request) -> Response:
    body = await _json_of(request)
    if body is None:
        return JSONResponse(_MESSAGE.error(400, "A JSON object is needed."), 400)
    return JSONResponse({"input_tokens": _input_tokens(_MESSAGE, body)})


async def _models(_: Request) -> Response:
    rows = [{"id": model, "object": "model", "created": 1_700_000_000, "owned_by": "make-believe"} for model in MODELS]
    return JSONResponse({"object": "list", "data": rows})


async def _json_of(request: Request) -> Body | None:
    try:
        body = json.loads(await request.body())
    except ValueError:
        return None
    return body if isinstance(body, dict) else None


def _input_tokens(endpoint: Endpoint, body: Body) -> int:
    return answers.tokens_of("".join(answers.text_of(body.get(name)) for name in endpoint.prompt))


def _wish_of(headers: Mapping[str, str]) -> Wish:
    def number(name: str, default: int) -> int:
        return int(headers.get(f"x-model-{name}", default))

    return Wish(
        tokens=number("tokens", DEFAULT_TOKENS),
        delay_s=number("delay-ms", 0) / 1000,
        gap_s=number("gap-ms", 0) / 1000,
        status=number("status", 0),
        shows_usage=not number("no-usage", 0),
        break_after=number("break-after", -1),
    )


@click.command(short_help="Run the make-believe model alone, to stand behind `serve`.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=4000, show_default=True, help="Port to listen on; 0 takes a free one.")
def model(host: str, port: int) -> None:
    """Run the make-believe model alone, to stand behind `serve` where there is no real one.

    It answers in the dialects of OpenAI, Anthropic and Gemini, and a request's headers steer it: x-model-tokens,
    x-model-delay-ms, x-model-status and others.
    """
    listener = bind(host, port)
    click.echo(f"The make-believe model listens on http://{host}:{listener.getsockname()[1]}")
    config = uvicorn.Config(app(), http="httptools", ws="none", lifespan="off", log_level="critical", access_log=False)
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    model()
