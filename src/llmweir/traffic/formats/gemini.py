"""Gemini's dialect: generateContent and its stream, as server-sent events or as one JSON array."""

from __future__ import annotations

import re
from typing import Final

import msgspec

from llmweir.decision import Dialect
from llmweir.traffic.formats.base import RequestFacts, StreamOutcome, TokenCount
from llmweir.traffic.formats.json_body import (
    MAX_ANSWERS,
    Members,
    check_json_content_type,
    largest_count,
    read_members,
    read_model,
    read_object,
    rewrite_json,
    text_length,
)
from llmweir.traffic.formats.media import GEMINI_MEDIA_TOKENS, measure_media
from llmweir.traffic.formats.stream import BufferedStreamReader, decode_object, text_bytes_of
from llmweir.usage import Usage

# Google's JSON reader takes each field in camelCase and in snake_case.
_CONFIGS: Final = ("generationConfig", "generation_config")
_BOUNDS: Final = ("maxOutputTokens", "max_output_tokens")
_CANDIDATES: Final = ("candidateCount", "candidate_count")
_TEXT_KEYS: Final = frozenset(("contents", "systemInstruction", "system_instruction", "tools"))
_KNOWN: Final = frozenset(("model", "cache", *_CONFIGS, *_TEXT_KEYS))
_CONFIG_KNOWN: Final = frozenset((*_BOUNDS, *_CANDIDATES))
_PRODUCED_KEYS: Final = frozenset(("text", "name", "code", "output"))
_MEDIA_HINT: Final = re.compile(rb'line_?[dD]ata"|file_?[dD]ata"')


class GeminiFormat:
    """`:generateContent` or `:streamGenerateContent`; which of them it is, the path alone says."""

    dialect: Dialect = "gemini"
    endpoint = "generate_content"
    output_is_free = False
    has_usage_event = False

    def __init__(self, *, stream: bool) -> None:
        self._stream = stream

    def facts(self, body: bytes, content_type: bytes, path_model: str | None) -> RequestFacts:
        """Read a request; raises `UnreadableRequestError` where it cannot be read for certain."""
        check_json_content_type(content_type)
        members = read_members(body, _KNOWN)
        configs = [read_object(members, key, _CONFIG_KNOWN) for key in _CONFIGS if key in members]
        contents = members.get("contents")
        payload_bytes = media_tokens = 0
        if contents is not None and _may_have_media(bytes(contents)):
            payload_bytes, media_tokens = measure_media(contents, GEMINI_MEDIA_TOKENS)
        return RequestFacts(
            read_model(members, path_model),
            self._stream,
            text_length(members, _TEXT_KEYS) - payload_bytes,
            media_tokens,
            _largest(configs, _BOUNDS),
            min(MAX_ANSWERS, max(1, _largest(configs, _CANDIDATES) or 1)),
            tuple(read_object(members, "cache", frozenset())) if "cache" in members else (),
        )

    def rewrite(self, body: bytes, content_type: bytes, *, model: str | None, include_usage: bool) -> bytes:
        """Return the body with another model where it names one; the path has the one that counts."""
        named = model is not None and "model" in read_members(body, _KNOWN)
        return rewrite_json(body, model=model, include_usage=False) if named else body

    def usage(self, body: bytes) -> Usage | None:
        """Read the usage of a plain answer, or of the last element of a streamed array that has any."""
        if body.lstrip()[:1] != b"[":
            return _read_usage(body)[0]
        usages = [_read_usage(item)[0] for item in _items(body)]
        return next((usage for usage in reversed(usages) if usage is not None), None)

    def produced_text_bytes(self, body: bytes) -> int:
        """Count the text of a plain answer, or of a streamed array, in UTF-8 bytes."""
        answers = [decode_object(item) for item in (_items(body) if body.lstrip()[:1] == b"[" else [body])]
        produced = [answer["candidates"] for answer in answers if "candidates" in answer]
        return text_bytes_of(produced, _PRODUCED_KEYS) if produced else len(body)

    def stream_reader(self) -> BufferedStreamReader:
        """Return a reader for one answer streamed as events (`alt=sse`)."""
        return BufferedStreamReader(GeminiTally)


def _may_have_media(contents: bytes) -> bool:
    return contents.find(b'ata"') >= 0 and _MEDIA_HINT.search(contents) is not None


def _largest(configs: list[Members], keys: tuple[str, ...]) -> int | None:
    counts = [largest_count(config, keys) for config in configs]
    return max([count for count in counts if count is not None], default=None)


def _items(body: bytes) -> list[bytes]:
    try:
        return [bytes(item) for item in _DECODE_ITEMS(body)]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return []


class _Modality(msgspec.Struct, rename="camel"):
    modality: str = ""
    token_count: TokenCount | None = None


class _UsageMembers(msgspec.Struct, rename="camel"):
    prompt_token_count: TokenCount | None = None
    candidates_token_count: TokenCount | None = None
    total_token_count: TokenCount | None = None
    cached_content_token_count: TokenCount | None = None
    thoughts_token_count: TokenCount | None = None
    tool_use_prompt_token_count: TokenCount | None = None
    prompt_tokens_details: list[_Modality] | None = None
    candidates_tokens_details: list[_Modality] | None = None


class _Candidate(msgspec.Struct, rename="camel"):
    finish_reason: str | None = None


class _Answer(msgspec.Struct, rename="camel"):
    usage_metadata: _UsageMembers | None = None
    candidates: list[_Candidate] | None = None


_DECODE: Final = msgspec.json.Decoder(_Answer).decode
_DECODE_ITEMS: Final = msgspec.json.Decoder(list[msgspec.Raw]).decode


def _read_usage(data: bytes) -> tuple[Usage | None, bool]:
    """Return an answer's usage, and whether a candidate says that it is finished."""
    try:
        answer = _DECODE(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None, False
    finished = any(candidate.finish_reason for candidate in answer.candidates or ())
    members = answer.usage_metadata
    if members is None or (members.prompt_token_count is None and members.total_token_count is None):
        return None, finished
    return _normalise(members), finished


def _normalise(members: _UsageMembers) -> Usage:
    """Add the thoughts to the output and the tools' prompt to the input: Gemini reports both beside the totals."""
    input_tokens = (members.prompt_token_count or 0) + (members.tool_use_prompt_token_count or 0)
    thoughts = members.thoughts_token_count or 0
    said = (members.candidates_token_count or 0) + thoughts
    output_tokens = max(said, (members.total_token_count or 0) - input_tokens)
    return Usage(
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        cached_input_tokens=min(members.cached_content_token_count or 0, input_tokens),
        input_audio_tokens=min(_audio(members.prompt_tokens_details), input_tokens),
        reasoning_tokens=thoughts,
        output_audio_tokens=min(_audio(members.candidates_tokens_details), output_tokens),
    )


def _audio(details: list[_Modality] | None) -> int:
    return sum(part.token_count or 0 for part in details or () if part.modality == "AUDIO")


class GeminiTally:
    """Adds up a stream whose every event may carry the usage so far."""

    usage_key = b'"usageMetadata"'
    usage_is_last = False

    def __init__(self) -> None:
        self._usage: Usage | None = None
        self._finished = False
        self._text_bytes = 0

    def add_usage(self, data: bytes) -> None:
        """Keep the usage that counts most: it only grows, and arrives here in any order."""
        usage, finished = _read_usage(data)
        if usage is not None and (self._usage is None or usage.total_tokens >= self._usage.total_tokens):
            self._usage = usage
            self._finished = self._finished or finished

    def add_text(self, event: dict[str, object]) -> None:
        """Count the text of an event's candidates."""
        self._text_bytes += text_bytes_of(event.get("candidates"), _PRODUCED_KEYS)

    def outcome(self) -> StreamOutcome:
        """Return the usage, complete once it came with a finished candidate."""
        if self._usage is not None and self._finished:
            return StreamOutcome(self._usage, complete=True)
        return StreamOutcome(self._usage, self._text_bytes)
