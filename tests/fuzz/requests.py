"""Targets on the request's side: what a body costs, what is rewritten of it, heads and paths."""

from __future__ import annotations

import email.parser
import email.policy
from typing import Any, Final
from urllib.parse import unquote

import msgspec
from tests.fuzz.inputs import Input, Pairs, loads, members_of

from llmweir.errors import UnreadableRequestError
from llmweir.traffic.formats.anthropic import AnthropicFormat
from llmweir.traffic.formats.base import Format, RequestFacts
from llmweir.traffic.formats.gemini import GeminiFormat
from llmweir.traffic.formats.multipart import TranscriptionFormat
from llmweir.traffic.formats.openai import OpenAIFormat
from llmweir.traffic.identify import HeadReader
from llmweir.traffic.paths import Paths, replace_model
from llmweir.traffic.rules import PathRules

JSON_FORMATS: Final[tuple[Format, ...]] = (
    OpenAIFormat("chat"),
    OpenAIFormat("completions"),
    OpenAIFormat("responses"),
    OpenAIFormat("embeddings"),
    OpenAIFormat("moderations"),
    OpenAIFormat("rerank"),
    AnthropicFormat(),
    GeminiFormat(stream=False),
    GeminiFormat(stream=True),
)
_CONTENT_TYPES: Final = (b"application/json", b"", b"application/json; charset=utf-8")
_PATH_MODELS: Final = (None, "gpt-4o", "a/b")
_RAW: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_BOUND: Final = 1_000_000_000
_HEADS: Final = HeadReader("x-team-key")
_METHODS: Final = ("POST", "GET", "DELETE", "post")
_OPEN, _FREE = ("/health*", "GET /docs"), ("GET /v1/models*",)


def json_request(data: bytes) -> None:
    """A body read as a request equals what the standard library reads; a rewrite changes nothing but what it says."""
    source = Input(data)
    format_, content_type, path_model = (
        source.choice(JSON_FORMATS),
        source.choice(_CONTENT_TYPES),
        source.choice(_PATH_MODELS),
    )
    body = source.rest()
    try:
        facts = format_.facts(body, content_type, path_model)
    except UnreadableRequestError as error:
        _check_refusal(error)
        return
    check_bounds(facts, len(body))
    members = members_of(loads(body))
    _check_model(facts, members.get("model"), path_model)
    if not isinstance(format_, GeminiFormat):
        assert facts.stream is (members.get("stream") is True)
    _check_rewrite(format_, body, facts, include_usage=format_.has_usage_event)


def check_bounds(facts: RequestFacts, body_bytes: int) -> None:
    """What is held is never negative, and never more than what the body can stand for."""
    assert 0 <= facts.text_bytes <= body_bytes, facts
    assert 0 <= facts.media_tokens <= 16_000 * body_bytes, facts
    assert facts.max_output_tokens is None or 0 <= facts.max_output_tokens <= _BOUND, facts
    assert 1 <= facts.answers <= 1_000_000, facts
    "\n".join(facts.cache_controls).encode()
    assert facts.model.isprintable(), facts
    assert len(facts.model) <= 256, facts


def _check_refusal(error: UnreadableRequestError) -> None:
    assert error.status in (400, 404, 413, 415)
    assert len(error.message) < 70_000 or error.param is not None
    msgspec.json.encode([error.code, error.message, error.param])


def _check_model(facts: RequestFacts, named: object, path_model: str | None) -> None:
    if named is None:
        assert facts.model == (path_model or "")
    elif path_model is None:
        assert facts.model == named
    else:
        assert facts.model == path_model
        assert isinstance(named, str)
        assert named.removeprefix("models/") == path_model or named == path_model


def _check_rewrite(format_: Format, body: bytes, facts: RequestFacts, *, include_usage: bool) -> None:
    before = _RAW(body)
    written = format_.rewrite(body, b"", model="another", include_usage=include_usage)
    after = _RAW(written)
    members_of(loads(written))
    is_named = "model" in before or not isinstance(format_, GeminiFormat)
    expected = {name: bytes(raw) for name, raw in before.items()} | ({"model": b'"another"'} if is_named else {})
    if include_usage:
        options = after.pop("stream_options")
        expected.pop("stream_options", None)
        _check_options(before.get("stream_options"), options)
    assert {name: bytes(raw) for name, raw in after.items()} == expected
    again = format_.facts(written, b"", None if is_named else facts.model or None)
    assert again == msgspec.structs.replace(
        facts, model="another" if is_named else facts.model, wants_usage=include_usage or facts.wants_usage
    )


def _check_options(before: msgspec.Raw | None, after: msgspec.Raw) -> None:
    had = {} if before is None or bytes(before) == b"null" else _RAW(before)
    has = {name: bytes(raw) for name, raw in _RAW(after).items()}
    assert has == {name: bytes(raw) for name, raw in had.items()} | {"include_usage": b"true"}


def json_value(data: bytes) -> None:
    """A body that is plainly fine is taken: one model, in UTF-8, nothing twice, nothing in another letter case."""
    try:
        members = members_of(loads(data))
        msgspec.json.decode(data)
    except (AssertionError, ValueError, RecursionError):
        return
    model = members.get("model")
    is_plain = all(name in ("model", "messages", "user") for name in members)
    if not is_plain or not isinstance(model, str) or not model.isascii() or not model.isalnum() or len(model) > 256:
        return
    messages = members.get("messages")
    if isinstance(messages, Pairs | list) and '"type"' in data.decode():
        return  # media is walked into, and may be nested too deep
    assert OpenAIFormat("chat").facts(data, b"application/json", None).model == model


def form_request(data: bytes) -> None:
    """A form read as a request equals what the standard library's reader of mails makes of it."""
    source = Input(data)
    path_model, content_type, body = source.choice(_PATH_MODELS), source.line(), source.rest()
    format_ = TranscriptionFormat()
    try:
        facts = format_.facts(body, content_type, path_model)
    except UnreadableRequestError as error:
        _check_refusal(error)
        return
    check_bounds(facts, len(body))
    models = _form_values(body, content_type, b"model")
    assert len(models) <= 1, models
    if models:
        assert models[0] == facts.model.encode(), (models, facts)
    else:
        assert facts.model == path_model
    assert format_.rewrite(body, content_type, model=None, include_usage=False) == body
    written = format_.rewrite(body, content_type, model="another", include_usage=False)
    assert len(written) == len(body) + (len(b"another") - len(models[0]) if models else 0)
    again = format_.facts(written, content_type, None if models else path_model)
    assert again == (msgspec.structs.replace(facts, model="another") if models else facts)


def _form_values(body: bytes, content_type: bytes, wanted: bytes) -> list[bytes]:
    """Return every value under a name, by splitting wherever the delimiter stands, as no reader would miss it."""
    parameter = content_type.lower().find(b"boundary=") + len(b"boundary=")
    boundary = content_type[parameter:].partition(b";")[0].strip()
    boundary = boundary[1 : boundary.find(b'"', 1)] if boundary.startswith(b'"') else boundary
    values = []
    for part in body.split(b"--" + boundary)[1:]:
        ends = [end for end in (b"\r\n\r\n", b"\n\n", b"\r\r") if end in part]
        head, _, value = part.partition(min(ends, key=part.index, default=b"\r\n\r\n"))
        value = value.removesuffix(b"\r\n")
        headers = email.parser.BytesHeaderParser(policy=email.policy.compat32).parsebytes(head.lstrip(b" \t\r\n"))
        name: Any = headers.get_param("name", header="content-disposition")
        if isinstance(name, str) and name.encode("utf-8", "surrogateescape") == wanted:
            values.append(value)
    return values


def head(data: bytes) -> None:
    """Any header block is read, or refused; what decides something is there once."""
    source, pairs = Input(data), []
    for line in source.rest().split(b"\n"):
        name, _, value = line.partition(b":")
        pairs.append((name.lower(), value.strip(b" \t\r")))
    try:
        read = _HEADS.read(pairs)
    except UnreadableRequestError as error:
        _check_refusal(error)
        return
    assert read.declared_bytes >= -1
    once = [name for name, _ in pairs if name in (b"authorization", b"x-api-key", b"x-team-key", b"content-type")]
    assert len(once) == len(set(once))
    if read.api_key is not None:
        assert read.api_key
        assert any(read.api_key.encode("latin-1") in value for _, value in pairs)


def path(data: bytes) -> None:
    """A path is judged alike in any run, and another model in it makes no other path of it."""
    source = Input(data)
    method, model, raw = source.choice(_METHODS), source.line().decode("utf-8", "replace"), source.rest()
    decoded = unquote(raw.partition(b"?")[0].decode("latin-1"))
    rules = PathRules(_OPEN, _FREE)
    try:
        verdict = rules.judge(method, decoded, raw)
        assert verdict == rules.judge(method, decoded, raw)
        if verdict.route.kind != "metered":
            return
        new_path, new_raw = replace_model(decoded, model)
        again = Paths().route(method, new_path, new_raw)
    except UnreadableRequestError as error:
        _check_refusal(error)
        return
    assert unquote(new_raw.decode()) == new_path
    is_same_place = (again.kind, again.dialect) == ("metered", verdict.route.dialect)
    assert is_same_place
    named, before = again.format, verdict.route.format
    assert named is not None
    assert before is not None
    assert named.endpoint == before.endpoint
    assert again.path_model == (None if verdict.route.path_model is None else model)
