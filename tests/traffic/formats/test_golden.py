"""Every golden answer, plain or streamed, gives the usage beside it, in the shapes of the providers' references."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmweir.traffic.formats import Format
from llmweir.traffic.formats.anthropic import AnthropicFormat
from llmweir.traffic.formats.gemini import GeminiFormat
from llmweir.traffic.formats.multipart import TranscriptionFormat
from llmweir.traffic.formats.openai import OpenAIFormat
from llmweir.usage import Usage

GOLDEN = Path(__file__).parents[2] / "golden"
EXPECTED: dict[str, dict[str, object]] = json.loads((GOLDEN / "usage.json").read_text())
FORMATS: dict[str, Format] = {
    "chat": OpenAIFormat("chat"),
    "completions": OpenAIFormat("completions"),
    "responses": OpenAIFormat("responses"),
    "embeddings": OpenAIFormat("embeddings"),
    "transcriptions": TranscriptionFormat(),
    "messages": AnthropicFormat(),
    "gemini": GeminiFormat(stream=True),
}


def golden(name: str) -> tuple[Format, bytes, Usage]:
    row = EXPECTED[name]
    usage = row["usage"]
    assert isinstance(usage, dict)
    return FORMATS[str(row["format"])], (GOLDEN / name).read_bytes(), Usage(**usage)


def test_every_golden_file_has_an_expectation() -> None:
    assert {path.name for path in GOLDEN.glob("*_*")} == set(EXPECTED)


@pytest.mark.parametrize("name", [name for name in EXPECTED if name.endswith(".json")])
def test_a_plain_answer_gives_its_usage(name: str) -> None:
    form, body, usage = golden(name)
    assert form.usage(body) == usage


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"], ids=["LF", "CR", "CRLF"])
@pytest.mark.parametrize("step", [1, 7, 1_000_000])
@pytest.mark.parametrize("name", [name for name in EXPECTED if name.endswith(".sse")])
def test_a_stream_gives_its_usage_however_it_is_cut(name: str, step: int, end: bytes) -> None:
    form, body, usage = golden(name)
    body = body.replace(b"\n", end)
    reader = form.stream_reader()
    for start in range(0, len(body), step):
        reader.feed(body[start : start + step])
    outcome = reader.finish()
    assert (outcome.usage, outcome.complete, outcome.produced_text_bytes) == (usage, True, 0)


@pytest.mark.parametrize("name", [name for name in EXPECTED if name.endswith(".sse")])
def test_a_long_stream_gives_its_usage_in_bounded_memory(name: str) -> None:
    form, body, usage = golden(name)
    first, rest = body.split(b"\n\n", 1)
    reader = form.stream_reader()
    reader.feed(first + b"\n\n")
    for _ in range(40):
        reader.feed(b": " + b"x" * 20_000 + b"\n\n")
    reader.feed(rest)
    assert reader.finish().usage == usage


@pytest.mark.parametrize("name", [name for name in EXPECTED if name.endswith(".sse")])
def test_data_spread_over_lines_is_still_read(name: str) -> None:
    form, body, usage = golden(name)
    reader = form.stream_reader()
    reader.feed(body.replace(b'"usage', b'\ndata:"usage').replace(b"data: ", b"data:"))
    assert reader.finish().usage == usage


@pytest.mark.parametrize(
    ("name", "text_bytes"),
    [
        ("openai_chat.sse", 23),
        ("openai_completions.sse", 3),
        ("openai_responses.sse", 5),
        ("anthropic_messages.sse", 2),
    ],
)
def test_a_stream_cut_off_before_its_usage_counts_the_text(name: str, text_bytes: int) -> None:
    form, body, _ = golden(name)
    events = [e for e in body.split(b"\n\n") if b'"total_tokens"' not in e and b'"message_delta"' not in e]
    reader = form.stream_reader()
    reader.feed(b"\n\n".join(events))
    outcome = reader.finish()
    assert (outcome.complete, outcome.produced_text_bytes) == (False, text_bytes)


@pytest.mark.parametrize(
    ("name", "text_bytes"),
    [
        ("openai_chat.json", 25),
        ("openai_completions.json", 6),
        ("openai_responses.json", 5),
        ("openai_embeddings.json", 0),
        ("openai_transcription.json", 0),
        ("anthropic_messages.json", 2 + 2 + len("gauge") + len('{"river":"Elbe"}')),
        ("gemini_generate.json", 5),
        ("gemini_stream_array.json", 5),
    ],
)
def test_the_text_of_a_plain_answer_can_be_counted(name: str, text_bytes: int) -> None:
    form, body, _ = golden(name)
    assert form.produced_text_bytes(body) == text_bytes


@pytest.mark.parametrize("form", [FORMATS["chat"], FORMATS["messages"], FORMATS["gemini"]])
@pytest.mark.parametrize(
    "body",
    [b"", b"null", b"[]", b"{}", b"<html>", b"\xff", b"[1]", b"[" * 100_000, b'{"a":' * 5000],
    ids=["empty", "null", "array", "object", "html", "bytes", "number", "deep", "deep objects"],
)
def test_an_answer_of_another_shape_has_no_usage_and_counts_whole(form: Format, body: bytes) -> None:
    assert form.usage(body) is None
    assert form.produced_text_bytes(body) == len(body)
    reader = form.stream_reader()
    reader.feed(b"data: " + body + b"\n\n" + body + b'"usage" "usageMetadata"')
    assert reader.finish().usage is None


@pytest.mark.parametrize("count", ["-1", "true", "1.5", '"7"', "1000000001", "1e400", "null"])
def test_absurd_counts_are_no_usage(count: str) -> None:
    chat = f'{{"usage":{{"prompt_tokens":{count}}}}}'.encode()
    messages = f'{{"type":"message","usage":{{"input_tokens":{count}}}}}'.encode()
    gemini = f'{{"usageMetadata":{{"promptTokenCount":{count}}}}}'.encode()
    for form, body in (("chat", chat), ("messages", messages), ("gemini", gemini)):
        assert FORMATS[form].usage(body) is None


def test_a_client_that_leaves_an_anthropic_stream_is_known_by_its_input_and_text() -> None:
    form, body, usage = golden("anthropic_messages.sse")
    reader = form.stream_reader()
    reader.feed(body[: body.index(b"event: content_block_stop")])
    outcome = reader.finish()
    assert outcome.usage is not None
    assert (outcome.usage.input_tokens, outcome.usage.output_tokens) == (usage.input_tokens, 1)
    assert (outcome.produced_text_bytes, outcome.complete) == (2, False)


def test_a_gemini_stream_without_an_end_is_not_complete() -> None:
    form, body, _ = golden("gemini_stream.sse")
    reader = form.stream_reader()
    reader.feed(body[: body.index(b"\n\n") + 2])
    outcome = reader.finish()
    assert (outcome.usage, outcome.produced_text_bytes) == (Usage(input_tokens=110), 3)
    assert not outcome.complete


def test_the_last_of_two_usages_wins() -> None:
    reader = FORMATS["chat"].stream_reader()
    for count in (5, 9):
        reader.feed(b'data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":%d}}\n\n' % count)
    assert reader.finish().usage == Usage(input_tokens=1, output_tokens=9)


@pytest.mark.parametrize(
    ("body", "usage"),
    [
        (b'{"usage":{"total_tokens":9}}', Usage(input_tokens=9)),
        (b'{"usage":{"total_tokens":9,"completion_tokens":4}}', Usage(input_tokens=5, output_tokens=4)),
        (b'{"x_groq":{"usage":{"prompt_tokens":3,"completion_tokens":1}}}', Usage(input_tokens=3, output_tokens=1)),
        (b'{"usage":{"prompt_tokens":3,"prompt_cache_hit_tokens":2}}', Usage(input_tokens=3, cached_input_tokens=2)),
        (b'{"usage":{"type":"duration","seconds":3}}', None),
    ],
    ids=["only a total", "total and output", "groq", "deepseek", "seconds"],
)
def test_other_spellings_of_usage_are_read(body: bytes, usage: Usage | None) -> None:
    assert FORMATS["chat"].usage(body) == usage
