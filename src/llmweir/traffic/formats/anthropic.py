"""Anthropic's dialect: the Messages API."""

from __future__ import annotations

from typing import Final

import msgspec

from llmweir.decision import Dialect
from llmweir.traffic.formats.base import RequestFacts, StreamOutcome, TokenCount
from llmweir.traffic.formats.json_body import (
    check_json_content_type,
    read_count,
    read_flag,
    read_members,
    read_model,
    read_object,
    rewrite_json,
    text_length,
)
from llmweir.traffic.formats.media import ANTHROPIC_MEDIA_TOKENS, has_media, measure_media
from llmweir.traffic.formats.stream import BufferedStreamReader, decode_object, text_bytes_of
from llmweir.usage import Usage

_TEXT_KEYS: Final = frozenset(("messages", "system", "tools"))
_KNOWN: Final = frozenset(("model", "stream", "cache", "max_tokens", *_TEXT_KEYS))
_PRODUCED_KEYS: Final = frozenset(("text", "thinking", "partial_json", "name"))


class AnthropicFormat:
    """`POST /v1/messages`."""

    dialect: Dialect = "anthropic"
    endpoint = "messages"
    output_is_free = False
    has_usage_event = False

    def facts(self, body: bytes, content_type: bytes, path_model: str | None) -> RequestFacts:
        """Read a request; raises `UnreadableRequestError` where it cannot be read for certain."""
        check_json_content_type(content_type)
        members = read_members(body, _KNOWN)
        text_bytes = text_length(members, _TEXT_KEYS)
        media_tokens = 0
        raw = members.get("messages")
        if raw is not None and has_media(raw):
            payload_bytes, media_tokens = measure_media(raw, ANTHROPIC_MEDIA_TOKENS)
            text_bytes -= payload_bytes
        return RequestFacts(
            read_model(members, path_model),
            "stream" in members and read_flag(members, "stream"),
            text_bytes,
            media_tokens,
            read_count(members, "max_tokens"),
            1,
            tuple(read_object(members, "cache", frozenset())) if "cache" in members else (),
        )

    def rewrite(self, body: bytes, content_type: bytes, *, model: str | None, include_usage: bool) -> bytes:
        """Return the body with another model; a Messages stream always reports its usage."""
        return rewrite_json(body, model=model, include_usage=False)

    def usage(self, body: bytes) -> Usage | None:
        """Read the usage of a plain answer; None where it has none that makes sense."""
        members = _read_members(body)
        return None if members is None else _normalise(members)

    def produced_text_bytes(self, body: bytes) -> int:
        """Count the text, thinking and tool input of a plain answer in UTF-8 bytes."""
        content = decode_object(body).get("content")
        return len(body) if content is None else text_bytes_of(content, _PRODUCED_KEYS)

    def stream_reader(self) -> BufferedStreamReader:
        """Return a reader for one streamed answer."""
        return BufferedStreamReader(AnthropicTally)


class _CacheCreation(msgspec.Struct):
    ephemeral_1h_input_tokens: TokenCount | None = None


class _OutputDetails(msgspec.Struct):
    thinking_tokens: TokenCount | None = None


class _UsageMembers(msgspec.Struct):
    input_tokens: TokenCount | None = None
    output_tokens: TokenCount | None = None
    cache_creation_input_tokens: TokenCount | None = None
    cache_read_input_tokens: TokenCount | None = None
    cache_creation: _CacheCreation | None = None
    output_tokens_details: _OutputDetails | None = None


class _Message(msgspec.Struct):
    usage: _UsageMembers | None = None


class _Answer(msgspec.Struct):
    type: str = ""
    usage: _UsageMembers | None = None
    message: _Message | None = None


_DECODE: Final = msgspec.json.Decoder(_Answer).decode


def _decode(data: bytes) -> _Answer | None:
    try:
        return _DECODE(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _read_members(data: bytes) -> _UsageMembers | None:
    answer = _decode(data)
    if answer is None:
        return None
    return answer.usage or (answer.message.usage if answer.message is not None else None)


def _normalise(members: _UsageMembers) -> Usage | None:
    """Add the cache's tokens to the input: Anthropic reports them beside `input_tokens`, not inside it."""
    if members.input_tokens is None and members.output_tokens is None:
        return None
    read = members.cache_read_input_tokens or 0
    written = members.cache_creation_input_tokens or 0
    hour = (members.cache_creation and members.cache_creation.ephemeral_1h_input_tokens) or 0
    thinking = (members.output_tokens_details and members.output_tokens_details.thinking_tokens) or 0
    output_tokens = members.output_tokens or 0
    return Usage(
        input_tokens=(members.input_tokens or 0) + read + written,
        output_tokens=output_tokens,
        cached_input_tokens=read,
        cache_write_tokens=written,
        cache_write_1h_tokens=min(hour, written),
        reasoning_tokens=min(thinking, output_tokens),
    )


class AnthropicTally:
    """Adds up a Messages stream: the input in `message_start`, cumulative counts in each `message_delta`."""

    usage_key = b'"usage"'
    usage_is_last = False

    def __init__(self) -> None:
        self._usage: Usage | None = None
        self._started = False
        self._ended = False
        self._text_bytes = 0

    def add_usage(self, data: bytes) -> None:
        """Take the larger of each count: they only grow, and some gateways send 0 in one of the two events."""
        answer = _decode(data)
        members = _read_members(data)
        usage = None if members is None else _normalise(members)
        if answer is None or usage is None:
            return
        self._started = self._started or answer.type == "message_start"
        self._ended = self._ended or answer.type == "message_delta"
        self._usage = usage if self._usage is None else _larger(self._usage, usage)

    def add_text(self, event: dict[str, object]) -> None:
        """Count what a block's start (a tool's name) and its deltas deliver."""
        if event.get("type") in ("content_block_delta", "content_block_start"):
            self._text_bytes += text_bytes_of([event.get("delta"), event.get("content_block")], _PRODUCED_KEYS)

    def outcome(self) -> StreamOutcome:
        """Return the usage, complete once both ends of the stream were seen."""
        if self._started and self._ended:
            return StreamOutcome(self._usage, complete=True)
        return StreamOutcome(self._usage, self._text_bytes)


def _larger(one: Usage, other: Usage) -> Usage:
    return Usage(**{name: max(getattr(one, name), getattr(other, name)) for name in Usage.__struct_fields__})
