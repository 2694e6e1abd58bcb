"""Watches one admitted request's answer on its way out: headers on, usage read, the account settled at its end."""

from __future__ import annotations

import contextlib
import zlib
from typing import Final

import msgspec

from llmweir.decision import NO_LIMIT, Standing
from llmweir.engine.asks import Settlement
from llmweir.engine.deliveries import Delivery
from llmweir.engine.link import ReplyError
from llmweir.engine.store import Store
from llmweir.errors import StoreUnavailableError
from llmweir.money import format_usd
from llmweir.pricing import Rates
from llmweir.traffic.asgi import Headers, Message, Send
from llmweir.traffic.estimate import Estimator, Hold
from llmweir.traffic.formats.base import RequestFacts, StreamReader
from llmweir.traffic.formats.usage_filter import UsageEventFilter
from llmweir.traffic.headers import without_limits
from llmweir.traffic.paths import Route
from llmweir.usage import Usage

_HELD_BYTES: Final = 1024 * 1024
_READ_BYTES: Final = 16 * 1024 * 1024
_STREAMED_TYPES: Final = (b"audio/", b"video/", b"application/octet-stream", b"application/x-ndjson")
"""What a client may use as it comes, besides event streams: speech is played before it is complete."""


_WHOLE_ANSWERS: Final = ("http.response.pathsend", "http.response.zerocopysend")
"""ASGI extensions that send the rest of an answer at once, unseen."""


class Reservation:
    """What is held for one request, and the one settlement that ends it."""

    __slots__ = (
        "_estimator",
        "_facts",
        "_hold",
        "_rates",
        "_store",
        "cost_nanos",
        "model",
        "request_id",
        "settled",
        "user_id",
    )

    def __init__(
        self,
        store: Store,
        estimator: Estimator,
        request_id: str,
        user_id: str,
        model: str,
        facts: RequestFacts,
        hold: Hold,
        rates: Rates | None,
    ) -> None:
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

    def is_tight(self, standing: Standing) -> bool:
        """Whether one more request like this one might not fit for as long as this one is not settled.

        Other requests of the caller may follow while it runs, so half of the parallel slots taken is tight already.
        """
        hold = self._hold
        return (
            standing.parallel_used * 2 >= standing.parallel_limit != NO_LIMIT
            or standing.tpm_used + hold.hold_tokens > standing.tpm_limit != NO_LIMIT
            or standing.model_tpm_used + hold.hold_tokens > standing.model_tpm_limit != NO_LIMIT
            or standing.budget_used_nanos + hold.hold_nanos > standing.budget_limit_nanos != NO_LIMIT
            or standing.model_budget_used_nanos + hold.hold_nanos > standing.model_budget_limit_nanos != NO_LIMIT
        )

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
        standing: Standing,
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
        self._is_tight = reservation.is_tight(standing)
        self._held_start: Message | None = None
        self._reader: StreamReader | None = None
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._encoding = b""
        self._encoded_stream = False
        self._ok = False
        self.status = 0

    async def send(self, message: Message) -> None:
        """Takes a message of the app and passes on what the client gets of it."""
        kind = message["type"]
        if kind == "http.response.body":
            if self._reader is not None:
                await self._stream_chunk(self._reader, message)
            else:
                await self._body_message(message)
        elif kind == "http.response.start":
            await self._start(message)
        else:
            if kind in _WHOLE_ANSWERS:
                self._settle()
                if self._is_tight:
                    await self._settled()
                if self._held_start is not None:
                    await self._send(self._held_start)
                    self._held_start = None
            await self._send(message)

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
        elif (self.status and not self._ok) or isinstance(error, Exception):
            self._reservation.failed()
        else:
            self._reservation.as_held()

    async def _start(self, message: Message) -> None:
        self.status = message["status"]
        self._ok = self.status < 400
        headers = without_limits(message.get("headers", []))
        content_type = b""
        for name, value in headers:
            if name == b"content-type":
                content_type = value.lower()
            elif name == b"content-encoding":
                self._encoding = value.strip().lower()
        streams = content_type.startswith(b"text/event-stream")
        self._encoded_stream = streams and self._encoding not in (b"", b"identity")
        if self._ok and self._format is not None and streams and not self._encoded_stream:
            self._reader = self._format.stream_reader()
        else:
            self._filter = None
        message = {**message, "headers": headers + self._headers}
        if self._filter is not None:
            message["headers"] = [header for header in message["headers"] if header[0] != b"content-length"]
        streams = streams or self._asked_stream or content_type.startswith(_STREAMED_TYPES)
        if self._ok and self._format is not None and not streams:
            self._held_start = message
        else:
            await self._send(message)

    async def _body_message(self, message: Message) -> None:
        chunk: bytes = message.get("body", b"")
        more = message.get("more_body", False)
        if self._ok and self._format is not None and self._body_bytes <= _READ_BYTES:
            self._body.append(chunk)
            self._body_bytes += len(chunk)
        if more and self._held_start is not None and self._body_bytes <= _HELD_BYTES:
            return
        if not more:
            self._settle()
            if self._is_tight:
                await self._settled()
        if self._held_start is None:
            await self._send(message)
            return
        start, self._held_start = self._held_start, None
        if not more and self._reservation.is_priced:
            cost = format_usd(self._reservation.cost_nanos).encode()
            start["headers"].append((b"x-llmweir-cost-usd", cost))
        await self._send(start)
        await self._send({"type": "http.response.body", "body": b"".join(self._body), "more_body": more})

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
        else:
            self._settle_plain()

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

    def _settle_plain(self) -> None:
        if self._format is None:
            self._reservation.nothing()
            return
        if self._body_bytes > _READ_BYTES:
            self._reservation.as_held()
            return
        body = _decoded(self._body[0] if len(self._body) == 1 else b"".join(self._body), self._encoding)
        if body is not None and self._encoded_stream:
            self._reader = self._format.stream_reader()
            self._reader.feed(body)
            self._settle_stream()
            return
        usage = self._format.usage(body) if body is not None else None
        if usage is not None:
            self._reservation.used(usage)
        elif body is not None:
            self._reservation.produced(self._format.produced_text_bytes(body))
        else:
            self._reservation.as_held()


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
