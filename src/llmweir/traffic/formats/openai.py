"""OpenAI's dialect: chat, completions, responses, embeddings and the small endpoints, and all that speak alike."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from llmweir.decision import Dialect
from llmweir.traffic.formats.base import RequestFacts, StreamOutcome, TokenCount
from llmweir.traffic.formats.json_body import (
    MAX_ANSWERS,
    Members,
    bad_request,
    check_json_content_type,
    largest_count,
    prompt_count,
    read_count,
    read_flag,
    read_members,
    read_model,
    read_object,
    rewrite_json,
    text_length,
)
from llmweir.traffic.formats.media import OPENAI_MEDIA_TOKENS, has_media, measure_media
from llmweir.traffic.formats.stream import BufferedStreamReader, decode_object, text_bytes_of
from llmweir.usage import Usage

Endpoint = Literal["chat", "completions", "responses", "embeddings", "moderations", "images", "speech", "rerank"]

# Only what an endpoint reads bounds its answer: a gateway may drop the rest as unknown.
_BOUNDS: Final[dict[Endpoint, tuple[str, ...]]] = {
    "chat": ("max_tokens", "max_completion_tokens"),
    "completions": ("max_tokens",),
    "responses": ("max_output_tokens",),
}
_RARE: Final = frozenset(("n", "best_of", "background", "cache", "stream_options"))
_COMMON: Final = frozenset(("model", "stream", "temperature", "top_p", *_RARE, *sum(_BOUNDS.values(), ())))
_OPTIONS: Final = frozenset(("include_usage",))
_TEXT_KEYS: Final[dict[Endpoint, tuple[str, ...]]] = {
    "chat": ("messages", "tools", "functions", "response_format", "prediction"),
    "completions": ("prompt", "suffix"),
    "responses": ("input", "instructions", "tools", "text", "prompt"),
    "embeddings": ("input",),
    "moderations": ("input",),
    "images": ("prompt",),
    "speech": ("input", "instructions"),
    "rerank": ("query", "documents"),
}
_MEDIA_KEYS: Final = ("messages", "input")
_PRODUCED_KEYS: Final = frozenset(
    ("content", "text", "reasoning_content", "reasoning", "refusal", "arguments", "transcript", "delta", "name")
)


class OpenAIFormat:
    """One of OpenAI's JSON endpoints."""

    dialect: Dialect = "openai"

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.output_is_free = endpoint not in ("chat", "completions", "responses")
        self.has_usage_event = endpoint in ("chat", "completions")
        self._text_keys = frozenset(_TEXT_KEYS[endpoint])
        self._media_keys = tuple(key for key in _MEDIA_KEYS if key in self._text_keys)
        self._bounds = _BOUNDS.get(endpoint, ())
        self._known = _COMMON.union(self._text_keys)

    def facts(self, body: bytes, content_type: bytes, path_model: str | None) -> RequestFacts:
        """Read a request; raises `UnreadableRequestError` where it cannot be read for certain."""
        check_json_content_type(content_type)
        members = read_members(body, self._known)
        text_bytes = text_length(members, self._text_keys)
        media_tokens = 0
        for key in self._media_keys:
            raw = members.get(key)
            if raw is not None and has_media(raw):
                payload_bytes, media_tokens = measure_media(raw, OPENAI_MEDIA_TOKENS)
                text_bytes -= payload_bytes
        answers = prompt_count(members.get("prompt")) if self.endpoint == "completions" else 1
        facts = RequestFacts(
            read_model(members, path_model, required=self.endpoint != "moderations"),
            "stream" in members and read_flag(members, "stream"),
            text_bytes,
            media_tokens,
            largest_count(members, self._bounds),
            min(answers, MAX_ANSWERS),
        )
        return facts if _RARE.isdisjoint(members) else _with_rare_members(facts, members)

    def rewrite(self, body: bytes, content_type: bytes, *, model: str | None, include_usage: bool) -> bytes:
        """Return the body with another model, or with the usage event asked for; all else stays as it was."""
        return rewrite_json(body, model=model, include_usage=include_usage)

    def usage(self, body: bytes) -> Usage | None:
        """Read the usage of a plain answer; None where it has none that makes sense."""
        return read_usage(body)

    def produced_text_bytes(self, body: bytes) -> int:
        """Count the text of a plain answer in UTF-8 bytes; the whole body where it is not one known."""
        if self.output_is_free:
            return 0
        answer = decode_object(body)
        produced = answer.get("choices", answer.get("output"))
        return len(body) if produced is None else text_bytes_of(produced, _PRODUCED_KEYS)

    def stream_reader(self) -> BufferedStreamReader:
        """Return a reader for one streamed answer."""
        return BufferedStreamReader(OpenAITally)


def _with_rare_members(facts: RequestFacts, members: Members) -> RequestFacts:
    """Add what few requests send; `best_of` answers are produced, and paid, where it is above `n`."""
    if read_flag(members, "background"):
        raise bad_request("background_not_metered", "Answers made in the background cannot be metered.", "background")
    answers = facts.answers * max(1, read_count(members, "n") or 1, read_count(members, "best_of") or 1)
    options = read_object(members, "stream_options", _OPTIONS)
    return msgspec.structs.replace(
        facts,
        answers=min(answers, MAX_ANSWERS),
        cache_controls=tuple(read_object(members, "cache", frozenset())),
        wants_usage=read_flag(options, "include_usage"),
    )


class _Details(msgspec.Struct):
    cached_tokens: TokenCount | None = None
    cache_write_tokens: TokenCount | None = None
    cache_creation_tokens: TokenCount | None = None
    audio_tokens: TokenCount | None = None
    reasoning_tokens: TokenCount | None = None


class _UsageMembers(msgspec.Struct):
    prompt_tokens: TokenCount | None = None
    completion_tokens: TokenCount | None = None
    input_tokens: TokenCount | None = None
    output_tokens: TokenCount | None = None
    total_tokens: TokenCount | None = None
    prompt_tokens_details: _Details | None = None
    completion_tokens_details: _Details | None = None
    input_tokens_details: _Details | None = None
    input_token_details: _Details | None = None
    output_tokens_details: _Details | None = None
    prompt_cache_hit_tokens: TokenCount | None = None


class _Inner(msgspec.Struct):
    usage: _UsageMembers | None = None


class _Answer(msgspec.Struct):
    usage: _UsageMembers | None = None
    response: _Inner | None = None
    x_groq: _Inner | None = None


_NO_DETAILS: Final = _Details()
_DECODE_ANSWER: Final = msgspec.json.Decoder(_Answer).decode


def read_usage(data: bytes) -> Usage | None:
    """Read the usage of an answer or of a stream's event, of chat (`prompt_tokens`) or responses (`input_tokens`)."""
    try:
        answer = _DECODE_ANSWER(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    members = answer.usage
    if members is None:
        inner = answer.response or answer.x_groq
        members = None if inner is None else inner.usage
    return None if members is None else _normalise(members)


def _normalise(members: _UsageMembers) -> Usage | None:
    """Bring the spellings together; a total above the sum is what is billed (reasoning beside the completion)."""
    input_tokens = members.prompt_tokens if members.prompt_tokens is not None else members.input_tokens
    output_tokens = members.completion_tokens if members.completion_tokens is not None else members.output_tokens
    total_tokens = members.total_tokens
    if input_tokens is None:
        if total_tokens is None:
            return None
        input_tokens = max(0, total_tokens - (output_tokens or 0))
    output_tokens = max(output_tokens or 0, (total_tokens or 0) - input_tokens)
    before = members.prompt_tokens_details or members.input_tokens_details or members.input_token_details or _NO_DETAILS
    after = members.completion_tokens_details or members.output_tokens_details or _NO_DETAILS
    cached = before.cached_tokens or members.prompt_cache_hit_tokens or 0
    if before is _NO_DETAILS and after is _NO_DETAILS and not cached:
        return Usage(input_tokens=input_tokens, output_tokens=output_tokens)
    written = before.cache_write_tokens or before.cache_creation_tokens or 0
    return Usage(
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        cached_input_tokens=min(cached, input_tokens),
        cache_write_tokens=min(written, input_tokens),
        input_audio_tokens=min(before.audio_tokens or 0, input_tokens),
        reasoning_tokens=min(after.reasoning_tokens or 0, output_tokens),
        output_audio_tokens=min(after.audio_tokens or 0, output_tokens),
    )


class OpenAITally:
    """Adds up a stream of chat chunks, or of the typed events of responses, speech and images."""

    usage_key = b'"usage"'
    usage_is_last = True

    def __init__(self) -> None:
        self._usage: Usage | None = None
        self._text_bytes = 0
        self._text_bytes_before_usage = 0

    def add_usage(self, data: bytes) -> None:
        """Take the usage of an event, if it has one: it stands for all text so far."""
        usage = read_usage(data)
        if usage is not None:
            self._usage = usage
            self._text_bytes_before_usage = self._text_bytes

    def add_text(self, event: dict[str, object]) -> None:
        """Count a chunk's choices, or a typed event if it is a delta: the others repeat what the deltas said."""
        if "choices" in event:
            self._text_bytes += text_bytes_of(event["choices"], _PRODUCED_KEYS)
        elif str(event.get("type")).endswith(".delta"):
            self._text_bytes += text_bytes_of({"delta": event.get("delta")}, _PRODUCED_KEYS)

    def outcome(self) -> StreamOutcome:
        """Return the last usage seen, complete unless there is text after it."""
        if self._usage is not None and self._text_bytes == self._text_bytes_before_usage:
            return StreamOutcome(self._usage, complete=True)
        return StreamOutcome(self._usage, self._text_bytes)
