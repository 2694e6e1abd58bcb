"""What the make-believe model answers in each provider's dialect: the plain body and the events of a stream."""

# ruff: noqa: ARG001 - all endpoints are called alike, and not each needs all it is given

from __future__ import annotations

import json
import struct
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import msgspec

Body = dict[str, Any]

_SENTENCE = "A weir both measures a river and limits it. "
_TOKEN_BYTES = 4
_DIMENSIONS = 8


class Answer(msgspec.Struct, frozen=True):
    """One answer: `pieces` are its tokens; `is_cut` where the caller's own maximum ended it."""

    id: str
    model: str
    input_tokens: int
    pieces: tuple[str, ...]
    is_cut: bool
    shows_usage: bool = True

    @property
    def text(self) -> str:
        """The whole answer."""
        return "".join(self.pieces)


def tokens_of(text: str) -> int:
    """The tokens of a text: one for each 4 bytes of UTF-8, the last one begun."""
    return -(-len(text.encode()) // _TOKEN_BYTES)


def pieces_of(tokens: int) -> tuple[str, ...]:
    """An answer of exactly this many tokens, piece by piece."""
    pieces = [_SENTENCE[start : start + _TOKEN_BYTES] for start in range(0, len(_SENTENCE), _TOKEN_BYTES)]
    return tuple(pieces[number % len(pieces)] for number in range(tokens))


def text_of(value: object) -> str:
    """All text in a prompt, whatever its shape; the names of members and the roles do not count."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "".join(map(text_of, value))
    if isinstance(value, dict):
        return "".join(text_of(member) for name, member in value.items() if name not in ("role", "type"))
    return ""


def sse(data: Body, event: str | None = None) -> bytes:
    """One event of a stream."""
    head = f"event: {event}\n" if event else ""
    return f"{head}data: {json.dumps(data, separators=(',', ':'))}\n\n".encode()


def _dropped(body: Body, answer: Answer, name: str = "usage") -> Body:
    return body if answer.shows_usage else {key: value for key, value in body.items() if key != name}


def _openai_usage(answer: Answer, answers: int = 1) -> Body:
    output = len(answer.pieces) * answers
    return {
        "prompt_tokens": answer.input_tokens,
        "completion_tokens": output,
        "total_tokens": answer.input_tokens + output,
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }


def _openai_head(answer: Answer, kind: str) -> Body:
    return {"id": f"chatcmpl-{answer.id}", "object": kind, "created": int(time.time()), "model": answer.model}


def _finish(answer: Answer) -> str:
    return "length" if answer.is_cut else "stop"


def chat(body: Body, answer: Answer) -> Body:
    """A chat completion, `n` choices."""
    answers = body.get("n") or 1
    message = {"role": "assistant", "content": answer.text, "refusal": None}
    choices = [
        {"index": index, "message": message, "logprobs": None, "finish_reason": _finish(answer)}
        for index in range(answers)
    ]
    usage = {"usage": _openai_usage(answer, answers)}
    return _dropped({**_openai_head(answer, "chat.completion"), "choices": choices, **usage}, answer)


def chat_events(body: Body, answer: Answer) -> Iterator[bytes]:
    """A chat stream; its usage event comes only where `stream_options.include_usage` asks for it."""
    answers = body.get("n") or 1
    with_usage = answer.shows_usage and bool((body.get("stream_options") or {}).get("include_usage"))
    head = _openai_head(answer, "chat.completion.chunk")

    def chunk(index: int, delta: Body, finish: str | None = None) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
        return sse({**head, "choices": [choice], **({"usage": None} if with_usage else {})})

    for index in range(answers):
        yield chunk(index, {"role": "assistant", "content": ""})
        for piece in answer.pieces:
            yield chunk(index, {"content": piece})
        yield chunk(index, {}, _finish(answer))
    if with_usage:
        yield sse({**head, "choices": [], "usage": _openai_usage(answer, answers)})
    yield b"data: [DONE]\n\n"


def _prompts(body: Body) -> int:
    prompt = body.get("prompt")
    return (len(prompt) if isinstance(prompt, list) and prompt else 1) * (body.get("n") or 1)


def completion(body: Body, answer: Answer) -> Body:
    """A completion, a choice for each prompt and each of `n`."""
    answers = _prompts(body)
    choices = [
        {"index": index, "text": answer.text, "logprobs": None, "finish_reason": _finish(answer)}
        for index in range(answers)
    ]
    usage = {"usage": _openai_usage(answer, answers)}
    return _dropped({**_openai_head(answer, "text_completion"), "choices": choices, **usage}, answer)


def completion_events(body: Body, answer: Answer) -> Iterator[bytes]:
    """A stream of completions."""
    answers = _prompts(body)
    head = _openai_head(answer, "text_completion")
    for index in range(answers):
        for number, piece in enumerate(answer.pieces, 1):
            finish = _finish(answer) if number == len(answer.pieces) else None
            yield sse({**head, "choices": [{"index": index, "text": piece, "logprobs": None, "finish_reason": finish}]})
    if answer.shows_usage and (body.get("stream_options") or {}).get("include_usage"):
        yield sse({**head, "choices": [], "usage": _openai_usage(answer, answers)})
    yield b"data: [DONE]\n\n"


def response(body: Body, answer: Answer) -> Body:
    """A response of the Responses API."""
    usage = {
        "input_tokens": answer.input_tokens,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": len(answer.pieces),
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": answer.input_tokens + len(answer.pieces),
    }
    cut = {"reason": "max_output_tokens"} if answer.is_cut else None
    shown = {
        **_response_head(answer, "incomplete" if answer.is_cut else "completed"),
        "incomplete_details": cut,
        "output": [_output_item(answer, answer.text)],
        "usage": usage,
    }
    return _dropped(shown, answer)


def _response_head(answer: Answer, status: str) -> Body:
    return {
        "id": f"resp_{answer.id}",
        "object": "response",
        "created_at": int(time.time()),
        "status": status,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "metadata": {},
        "model": answer.model,
        "output": [],
        "parallel_tool_calls": True,
        "temperature": 1.0,
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
    }


def _output_item(answer: Answer, text: str | None) -> Body:
    content = [] if text is None else [{"type": "output_text", "text": text, "annotations": []}]
    status = "in_progress" if text is None else "completed"
    return {"id": f"msg_{answer.id}", "type": "message", "role": "assistant", "status": status, "content": content}


def response_events(body: Body, answer: Answer) -> Iterator[bytes]:
    """A stream of the Responses API; its usage is in the last event."""
    where = {"item_id": f"msg_{answer.id}", "output_index": 0, "content_index": 0}
    item = {"output_index": 0}
    begun = {"response": _response_head(answer, "in_progress")}
    part = {"type": "output_text", "text": "", "annotations": []}
    events: list[tuple[str, Body]] = [
        ("response.created", begun),
        ("response.in_progress", begun),
        ("response.output_item.added", {**item, "item": _output_item(answer, None)}),
        ("response.content_part.added", {**where, "part": part}),
        *(("response.output_text.delta", {**where, "delta": piece, "logprobs": []}) for piece in answer.pieces),
        ("response.output_text.done", {**where, "text": answer.text, "logprobs": []}),
        ("response.content_part.done", {**where, "part": {**part, "text": answer.text}}),
        ("response.output_item.done", {**item, "item": _output_item(answer, answer.text)}),
        (f"response.{'incomplete' if answer.is_cut else 'completed'}", {"response": response(body, answer)}),
    ]
    for number, (name, data) in enumerate(events):
        yield sse({"type": name, "sequence_number": number, **data}, name)


def embeddings(body: Body, answer: Answer) -> Body:
    """A vector for each input, in the encoding asked for."""
    inputs = body.get("input")
    count = len(inputs) if isinstance(inputs, list) else 1
    vector = [round(1 / (number + 1), 4) for number in range(_DIMENSIONS)]
    encoded: object = vector
    if body.get("encoding_format") == "base64":
        encoded = b64encode(struct.pack(f"<{_DIMENSIONS}f", *vector)).decode()
    shown = {
        "object": "list",
        "data": [{"object": "embedding", "index": index, "embedding": encoded} for index in range(count)],
        "model": answer.model,
        "usage": {"prompt_tokens": answer.input_tokens, "total_tokens": answer.input_tokens},
    }
    return _dropped(shown, answer)


def _anthropic_usage(answer: Answer, output_tokens: int) -> Body:
    return {
        "input_tokens": answer.input_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "output_tokens": output_tokens,
    }


def _anthropic_message(answer: Answer, content: list[Body], stop: str | None, output_tokens: int) -> Body:
    shown = {
        "id": f"msg_{answer.id}",
        "type": "message",
        "role": "assistant",
        "model": answer.model,
        "content": content,
        "stop_reason": stop,
        "stop_sequence": None,
        "usage": _anthropic_usage(answer, output_tokens),
    }
    return _dropped(shown, answer)


def _stop(answer: Answer) -> str:
    return "max_tokens" if answer.is_cut else "end_turn"


def message(body: Body, answer: Answer) -> Body:
    """A message of Anthropic's."""
    return _anthropic_message(answer, [{"type": "text", "text": answer.text}], _stop(answer), len(answer.pieces))


def message_events(body: Body, answer: Answer) -> Iterator[bytes]:
    """A stream of Anthropic's: input tokens in `message_start`, output tokens in `message_delta`."""
    yield sse({"type": "message_start", "message": _anthropic_message(answer, [], None, 1)}, "message_start")
    block = {"type": "text", "text": ""}
    yield sse({"type": "content_block_start", "index": 0, "content_block": block}, "content_block_start")
    yield sse({"type": "ping"}, "ping")
    for piece in answer.pieces:
        delta = {"type": "text_delta", "text": piece}
        yield sse({"type": "content_block_delta", "index": 0, "delta": delta}, "content_block_delta")
    yield sse({"type": "content_block_stop", "index": 0}, "content_block_stop")
    end = {"type": "message_delta", "delta": {"stop_reason": _stop(answer), "stop_sequence": None}}
    yield sse(_dropped({**end, "usage": {"output_tokens": len(answer.pieces)}}, answer), "message_delta")
    yield sse({"type": "message_stop"}, "message_stop")


def _gemini(answer: Answer, text: str, done_tokens: int, finish: str | None) -> Body:
    candidate: Body = {"content": {"parts": [{"text": text}], "role": "model"}, "index": 0}
    shown = {
        "candidates": [candidate | ({"finishReason": finish} if finish else {})],
        "usageMetadata": {
            "promptTokenCount": answer.input_tokens,
            "candidatesTokenCount": done_tokens,
            "totalTokenCount": answer.input_tokens + done_tokens,
        },
        "modelVersion": answer.model,
        "responseId": answer.id,
    }
    return _dropped(shown, answer, "usageMetadata")


def _gemini_finish(answer: Answer) -> str:
    return "MAX_TOKENS" if answer.is_cut else "STOP"


def gemini(body: Body, answer: Answer) -> Body:
    """A content of Gemini's."""
    return _gemini(answer, answer.text, len(answer.pieces), _gemini_finish(answer))


def gemini_chunks(answer: Answer) -> Iterator[Body]:
    """The chunks of a stream of Gemini's, each with the usage so far."""
    for number, piece in enumerate(answer.pieces, 1):
        yield _gemini(answer, piece, number, _gemini_finish(answer) if number == len(answer.pieces) else None)


def gemini_events(body: Body, answer: Answer) -> Iterator[bytes]:
    """A stream of Gemini's as events (`alt=sse`)."""
    return map(sse, gemini_chunks(answer))


def gemini_array(body: Body, answer: Answer) -> Iterator[bytes]:
    """A stream of Gemini's as a JSON array, which is what it is without `alt=sse`."""
    for number, chunk in enumerate(gemini_chunks(answer)):
        yield (b",\r\n" if number else b"[") + json.dumps(chunk).encode()
    yield b"]"


def openai_error(status: int, text: str) -> Body:
    """An error as OpenAI words it."""
    return {"error": {"message": text, "type": "server_error", "param": None, "code": "make_believe"}}


def anthropic_error(status: int, text: str) -> Body:
    """An error as Anthropic words it."""
    return {"type": "error", "error": {"type": "api_error", "message": text}}


def gemini_error(status: int, text: str) -> Body:
    """An error as Gemini words it."""
    return {"error": {"code": status, "message": text, "status": "INTERNAL"}}


class Endpoint(NamedTuple):
    """How one endpoint answers: `prompt`: members whose text is counted; `most`: those that bound the answer."""

    prompt: tuple[str, ...]
    most: tuple[str, ...]
    plain: Callable[[Body, Answer], Body]
    events: Callable[[Body, Answer], Iterator[bytes]] | None
    error: Callable[[int, str], Body]
