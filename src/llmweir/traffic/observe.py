"""Watches one admitted request's answer on its way out: headers on, usage read, the account settled at its end."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Awaitable
from typing import Final

import msgspec

from llmweir.engine.asks import Settlement
from llmweir.engine.deliveries import Delivery
from llmweir.engine.store import Store
from llmweir.engine.wire import ReplyError
from llmweir.errors import StoreUnavailableError
from llmweir.metrics import Metrics
from llmweir.money import format_usd
from llmweir.pricing import Rates
from llmweir.traffic.asgi import Headers, Message, Send
from llmweir.traffic.estimate import Estimator, Hold
from llmweir.traffic.formats.base import RequestFacts, StreamReader
from llmweir.traffic.formats.usage_filter import UsageEventFilter
from llmweir.traffic.headers import passed_on
from llmweir.traffic.paths import Route
from llmweir.usage import Usage

_HELD_BYTES: Final = 1024 * 1024
_READ_BYTES: Final = 16 * 1024 * 1024
_STREAMED_TYPES: Final = (b"audio/", b"video/", b"application/octet-stream", b"application/x-ndjson")
"""What a client may use as it comes, besides event streams: speech is played before it is complete."""


async def _nothing() -> None:
    """Stands for a message that is held back; a coroutine, for some servers make a task of what `send` returns."""


class Reservation:
    """What is held for one request, and the one settlement that ends it."""

    __slots__ = (
        "_estimator",
        "_facts",
        "_hold",
        "_metrics",
        "_rates",
        "_store",
        "cost_nanos",
        "model",
        "request_id",
        "settled",
        "user_id",
    )

    def __init__(  # noqa: PLR0913, PLR0917 - its parts; made for every request, so by position
        self,
        store: Store,
        estimator: Estimator,
        request_id: str,
        user_id: str,
        model: str,
        facts: RequestFacts,
        hold: Hold,
        rates: Rates | None,
        metrics: Metrics,
    ) -> None:
        self._metrics = metrics
        self._store = store
        self._estimator = estimator
        self._facts = facts
        self._hold = hold
        self._rates = rates
        self.request_id = request_id
        self.user_id = user_id
        self.model = model
        self.cost_nanos = 0
        self.settled: Delivery | None = None

    @property
    def is_priced(self) -> bool:
        """Whether the model has a price: without one the cost is not known."""
        return self._rates is not None

    def used(self, usage: Usage) -> None:
        """Settles with the usage the upstream reported, and learns from it."""
        self._estimator.learn(self._facts, self.user_id, self.model, usage)
        self._settle(usage)

    def produced(self, text_bytes: int, partly: Usage | None = None) -> None:
        """Settles with an estimate: the upstream reported no usage, or only `partly`, but this much text came."""
        partly = partly or Usage(input_tokens=self._hold.input_tokens)
        output_tokens = max(partly.output_tokens, self._estimator.tokens_of(text_bytes, self.model))
        self._settle(msgspec.structs.replace(partly, output_tokens=output_tokens))

    def as_held(self) -> None:
        """Settles as reserved: the upstream has probably done the work, and nobody saw how much."""
        hold = self._hold
        output_tokens = max(0, hold.hold_tokens - hold.input_tokens)
        self._settle(Usage(input_tokens=hold.input_tokens, output_tokens=output_tokens))

    def nothing(self) -> None:
        """Settles a request that is counted as one and no more."""
        self._settle(Usage())

    def failed(self) -> None:
        """Gives back tokens and money: the upstream answered with an error, or not at all."""
        self._settle(Usage(), failed=True)

    def _settle(self, usage: Usage, *, failed: bool = False) -> None:
        if self.settled is not None:
            return
        if self._rates is not None and not failed:
            self.cost_nanos = self._rates.cost_nanos(usage)
        self._metrics.count_admitted(usage, self.cost_nanos)
        if failed:
            self._metrics.failed += 1
        settlement = Settlement(
            request_id=self.request_id,
            user_id=self.user_id,
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
            cost_nanos=self.cost_nanos,
            failed=failed,
        )
        self.settled = self._store.settle(settlement)


class Observer:
    """Stands in for `send`: one answer of one admitted request.

    A stream's chunks pass through as they come. A plain answer is held until it is complete (up to 1 MiB), since its
    headers say what it cost. Where what this request holds could keep its caller's next one out, the last body message
    leaves once Redis has settled: who asks one after the other is never refused because of a request that is over, on
    any worker. Otherwise the settlement and the answer leave in the same turn of the event loop.
    """

    __slots__ = (
        "_asked_stream",
        "_body",
        "_body_bytes",
        "_encoded_stream",
        "_encoding",
        "_filter",
        "_format",
        "_headers",
        "_held_start",
        "_is_tight",
        "_ok",
        "_reader",
        "_reservation",
        "_send",
        "status",
    )  # fmt: skip

    def __init__(
        self,
        send: Send,
        reservation: Reservation,
        is_tight: bool,
        headers: Headers,
        route: Route,
        facts: RequestFacts,
    ) -> None:
        self._send = send
        self._reservation = reservation
        self._headers = headers
        self._format = route.format
        self._asked_stream = facts.stream
        self._filter = UsageEventFilter() if route.hides_usage_event(facts) else None
        self._is_tight = is_tight
        self._held_start: Message | None = None
        self._reader: StreamReader | None = None
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._encoding = b""
        self._encoded_stream = False
        self._ok = False
        self.status = 0

    def send(self, message: Message) -> Awaitable[None]:
        """Takes a message of the app and passes on what the client gets of it."""
        kind = message["type"]
        if kind == "http.response.body":
            return self._body_message(message) if self._reader is None else self._stream_chunk(self._reader, message)
        if kind == "http.response.start":
            return self._start(message)
        return self._other(message)

    @property
    def has_begun(self) -> bool:
        """Whether the client has got anything of the answer yet."""
        return self.status != 0 and self._held_start is None

    def left(self, error: BaseException | None) -> None:
        """Settles what no last message ended: the client left, the upstream broke off, or the app raised `error`."""
        if self._reservation.settled is not None:
            return
        if self._reader is not None:
            self._settle_stream()
        elif self._ok and self.has_begun and isinstance(error, Exception):
            self._settle()
        elif (self.status and not self._ok) or isinstance(error, Exception):
            self._reservation.failed()
        else:
            self._reservation.as_held()

    def _start(self, message: Message) -> Awaitable[None]:
        self.status = message["status"]
        self._ok = self.status < 300
        headers, content_type, self._encoding = passed_on(message.get("headers", ()))
        is_event_stream = content_type.startswith(b"text/event-stream")
        self._encoded_stream = is_event_stream and self._encoding not in (b"", b"identity")
        if self._ok and self._format is not None and is_event_stream and not self._encoded_stream:
            self._reader = self._format.stream_reader()
        elif self._filter is not None:
            self._filter = None
        if self._filter is not None:
            headers = [header for header in headers if header[0] != b"content-length"]
        headers += self._headers
        message = {**message, "headers": headers}
        streams = is_event_stream or self._asked_stream or content_type.startswith(_STREAMED_TYPES)
        if self._ok and self._format is not None and not streams:
            self._held_start = message
            return _nothing()
        return self._send(message)

    async def _body_message(self, message: Message) -> None:
        start = self._held_start
        if start is None or self._body or message.get("more_body", False):
            await self._body_part(message)
            return
        # A plain answer in one message, as most are.
        self._settle_plain(message.get("body", b""))
        if self._is_tight:
            await self._settled()
        await self._send_start(start)
        await self._send(message)

    async def _body_part(self, message: Message) -> None:
        more = message.get("more_body", False)
        if self._ok and self._format is not None and self._body_bytes <= _READ_BYTES:
            chunk = message.get("body", b"")
            self._body.append(chunk)
            self._body_bytes += len(chunk)
        start = self._held_start
        if more and start is not None and self._body_bytes <= _HELD_BYTES:
            return
        if not more:
            self._settle()
            if self._is_tight:
                await self._settled()
        if start is None:
            await self._send(message)
            return
        await self._send_start(start)
        await self._send({"type": "http.response.body", "body": b"".join(self._body), "more_body": more})

    def _send_start(self, start: Message) -> Awaitable[None]:
        self._held_start = None
        reservation = self._reservation
        if reservation.settled is not None and reservation.is_priced:
            start["headers"].append((b"x-llmweir-cost-usd", format_usd(reservation.cost_nanos).encode()))
        return self._send(start)

    async def _other(self, message: Message) -> None:
        if self._held_start is not None:  # what comes after the start must not come before it
            await self._send_start(self._held_start)
            if self._body:
                await self._send({"type": "http.response.body", "body": b"".join(self._body), "more_body": True})
        await self._send(message)

    async def _stream_chunk(self, reader: StreamReader, message: Message) -> None:
        chunk: bytes = message.get("body", b"")
        more = message.get("more_body", False)
        if chunk:
            reader.feed(chunk)
        if self._filter is not None:
            chunk = self._filter.filter(chunk)
            if not more:
                chunk += self._filter.flush()
        if not more:
            self._settle()
            if self._is_tight:
                await self._settled()
        if chunk or not more:
            await self._send({"type": "http.response.body", "body": chunk, "more_body": more})

    def _settle(self) -> None:
        if self._reservation.settled is not None:
            return
        if self._reader is not None:
            self._settle_stream()
        elif not self._ok:
            self._reservation.failed()
        elif self._format is None:
            self._reservation.nothing()
        elif self._body_bytes > _READ_BYTES:
            self._reservation.as_held()
        else:
            self._settle_plain(b"".join(self._body))

    async def _settled(self) -> None:
        """Waits until Redis has settled, or cannot."""
        if self._reservation.settled is not None:
            with contextlib.suppress(StoreUnavailableError, ReplyError):
                await self._reservation.settled

    def _settle_stream(self) -> None:
        assert self._reader is not None  # noqa: S101 (only streams get here)
        outcome = self._reader.finish()
        if outcome.usage is not None and outcome.complete:
            self._reservation.used(outcome.usage)
        else:
            self._reservation.produced(outcome.produced_text_bytes, outcome.usage)

    def _settle_plain(self, body: bytes) -> None:
        assert self._format is not None  # noqa: S101 (only what has a format is read)
        if self._encoding:
            decoded = _decoded(body, self._encoding)
            if decoded is None:
                self._reservation.as_held()
                return
            body = decoded
        if self._encoded_stream:
            self._reader = self._format.stream_reader()
            self._reader.feed(body)
            self._settle_stream()
            return
        usage = self._format.usage(body)
        if usage is not None:
            self._reservation.used(usage)
        else:
            self._reservation.produced(self._format.produced_text_bytes(body))


def _decoded(body: bytes, encoding: bytes) -> bytes | None:
    """The body as its usage can be read; None where its content coding is not one we know."""
    if encoding in (b"", b"identity"):
        return body
    if encoding not in (b"gzip", b"deflate"):
        return None
    try:
        decoder = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)
        return decoder.decompress(body, _READ_BYTES)
    except zlib.error:
        return None
