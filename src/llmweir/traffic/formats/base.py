"""What every provider format offers: the facts of a request, the usage of an answer, the text it produced."""

from __future__ import annotations

from typing import Annotated, Protocol

import msgspec

from llmweir.decision import Dialect
from llmweir.usage import Usage

TokenCount = Annotated[int, msgspec.Meta(ge=0, le=100_000_000)]
"""A count as a provider reports it; anything else (negative, a fraction, a bool, beyond 1e8) is no usage at all.

The largest context windows are of 1e7 tokens: more than ten of them in one request is a mistake, and a debt of that
size would lock its caller out for the rest of a budget's period.
"""


class RequestFacts(msgspec.Struct, frozen=True, gc=False):
    """What a request says about its own cost.

    `model` is "" where none is needed. `text_bytes` is the input's text as it lies in the JSON; `media_tokens` a flat
    allowance for inline media. `max_output_tokens` is the caller's own bound, None without one; `answers` is how many
    answers are produced at once, at least 1. `cache_controls` are the keys of the body's `cache` object.
    `wants_usage` says that the caller asked for the usage event of a stream itself.
    """

    model: str
    stream: bool = False
    text_bytes: int = 0
    media_tokens: int = 0
    max_output_tokens: int | None = None
    answers: int = 1
    cache_controls: tuple[str, ...] = ()
    wants_usage: bool = False


class StreamOutcome(msgspec.Struct, frozen=True):
    """What a stream came to.

    `complete` is False where the usage lacks the end of the answer (the client left, the upstream broke off): the
    output is then the larger of the usage's and what `produced_text_bytes` amounts to. `produced_text_bytes` is
    counted only where the usage is missing or not complete, and 0 otherwise.
    """

    usage: Usage | None
    produced_text_bytes: int = 0
    complete: bool = False


class StreamReader(Protocol):
    """Takes the chunks of one streamed answer and says at the end what they came to."""

    def feed(self, chunk: bytes) -> None:
        """Keep a chunk; nearly free, decoding waits for `finish`."""

    def finish(self) -> StreamOutcome:
        """Decode what is needed of the stream; call it once."""


class Format(Protocol):
    """One kind of endpoint in one dialect; stateless, shared by all requests."""

    @property
    def dialect(self) -> Dialect:
        """Whose error shape the caller understands."""

    @property
    def endpoint(self) -> str:
        """The endpoint's name in metrics and logs, such as `chat` or `embeddings`."""

    @property
    def output_is_free(self) -> bool:
        """Whether there are no output tokens to hold for."""

    @property
    def has_usage_event(self) -> bool:
        """Whether `stream_options.include_usage` asks for a usage event and `UsageEventFilter` removes it."""

    def facts(self, body: bytes, content_type: bytes, path_model: str | None) -> RequestFacts:
        """Read a request; raises `UnreadableRequestError` where it cannot be read for certain."""

    def rewrite(self, body: bytes, content_type: bytes, *, model: str | None, include_usage: bool) -> bytes:
        """Return the body with another model, or with the usage event asked for; all else stays as it was."""

    def usage(self, body: bytes) -> Usage | None:
        """Read the usage of a plain 2xx answer, None where it has none that makes sense."""

    def produced_text_bytes(self, body: bytes) -> int:
        """Count the text of a plain answer, in UTF-8 bytes, for one that came without usage."""

    def stream_reader(self) -> StreamReader:
        """Return a reader for one streamed answer."""
