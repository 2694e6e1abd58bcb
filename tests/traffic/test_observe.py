"""One answer on its way out: what the client gets, and what is settled, message by message."""

from __future__ import annotations

import asyncio
import json
import zlib
from typing import Any, cast

import pytest

from llmweir.engine.asks import Settlement
from llmweir.engine.store import Store
from llmweir.engine.wire import ReplyError
from llmweir.errors import StoreUnavailableError
from llmweir.metrics import Metrics
from llmweir.pricing import Rates
from llmweir.traffic.asgi import Message
from llmweir.traffic.estimate import Estimator, Hold
from llmweir.traffic.formats.base import RequestFacts
from llmweir.traffic.formats.openai import OpenAIFormat
from llmweir.traffic.observe import Observer, Reservation
from llmweir.traffic.paths import Route
from llmweir.usage import Usage

RATES = Rates(input=2_500_000, output=10_000_000)
HOLD = Hold(asked_tokens=10, hold_tokens=110, asked_nanos=0, hold_nanos=0, input_tokens=10)
ANSWER = json.dumps({"usage": {"prompt_tokens": 20, "completion_tokens": 30}}).encode()
CHAT = Route("metered", "openai", OpenAIFormat("chat"))
UNKNOWN = Route("unknown", "openai")
EVENT = b'data: {"choices":[{"delta":{"content":"12345678"}}],"usage":null}\n\n'
USAGE_EVENT = b'data: {"choices":[],"usage":{"prompt_tokens":20,"completion_tokens":30}}\n\n'
JSON_TYPE = (b"content-type", b"application/json")
SSE_TYPE = (b"content-type", b"text/event-stream")


class Ledger:
    """Stands in for the store: keeps what is settled, and answers when it is told to."""

    def __init__(self) -> None:
        self.settled: list[Settlement] = []
        self.answers: list[asyncio.Future[Any]] = []

    def settle(self, settlement: Settlement) -> asyncio.Future[Any]:
        self.settled.append(settlement)
        self.answers.append(asyncio.get_running_loop().create_future())
        return self.answers[-1]


class Watched:
    """An observer over a ledger, and what reached the client."""

    def __init__(
        self, *, stream: bool = False, route: Route = CHAT, rates: Rates | None = RATES, last_slot: bool = False,
        wants_usage: bool = False,
    ) -> None:  # fmt: skip
        self.ledger = Ledger()
        self.got: list[Message] = []
        facts = RequestFacts("gpt-4o", stream=stream, text_bytes=40, wants_usage=wants_usage)
        store = cast(Store, self.ledger)
        estimator, self.metrics = Estimator("none", 1), Metrics()
        self.reservation = Reservation(store, estimator, "r1", "ann", "gpt-4o", facts, HOLD, rates, self.metrics)
        self.observer = Observer(self._send, self.reservation, last_slot, [(b"x-ours", b"1")], route, facts)

    async def _send(self, message: Message) -> None:
        self.got.append(message)

    async def start(self, *headers: tuple[bytes, bytes], status: int = 200) -> None:
        await self.observer.send({"type": "http.response.start", "status": status, "headers": list(headers)})

    async def body(self, body: bytes, *, more: bool = False) -> None:
        await self.observer.send({"type": "http.response.body", "body": body, "more_body": more})

    @property
    def charged(self) -> tuple[int, int, int, bool]:
        [settlement] = self.ledger.settled
        assert (settlement.request_id, settlement.user_id, settlement.cancelled) == ("r1", "ann", False)
        return settlement.input_tokens, settlement.output_tokens, settlement.cost_nanos, settlement.failed

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self.got[0]["headers"])

    @property
    def bodies(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.got[1:])


USED = (20, 30, 20 * 2500 + 30 * 10_000, False)


async def test_a_plain_answer_is_held_until_its_cost_is_known() -> None:
    watched = Watched()
    await watched.start(JSON_TYPE, (b"content-length", b"%d" % len(ANSWER)))
    await watched.body(ANSWER[:10], more=True)
    assert watched.got == []
    begun = [watched.observer.has_begun]
    await watched.body(ANSWER[10:])
    assert [*begun, watched.observer.has_begun] == [False, True]
    assert [message["type"] for message in watched.got] == ["http.response.start", "http.response.body"]
    assert watched.bodies == ANSWER
    assert watched.headers == {
        b"content-type": b"application/json", b"content-length": b"%d" % len(ANSWER), b"x-ours": b"1",
        b"x-llmweir-cost-usd": b"0.00035",
    }  # fmt: skip
    assert watched.charged == USED


async def test_the_cost_of_a_model_without_a_price_is_not_claimed_to_be_nothing() -> None:
    watched = Watched(rates=None)
    await watched.start(JSON_TYPE)
    await watched.body(ANSWER)
    assert b"x-llmweir-cost-usd" not in watched.headers
    assert watched.charged == (20, 30, 0, False)


@pytest.mark.parametrize("content_type", [b"audio/mpeg", b"Application/Octet-Stream", b"application/x-ndjson"])
async def test_what_a_client_uses_as_it_comes_is_not_held(content_type: bytes) -> None:
    watched = Watched()
    await watched.start((b"content-type", content_type))
    await watched.body(b"sound", more=True)
    assert watched.bodies == b"sound"
    await watched.body(b" and more")
    assert watched.bodies == b"sound and more"
    assert b"x-llmweir-cost-usd" not in watched.headers
    assert len(watched.ledger.settled) == 1


async def test_a_large_plain_answer_is_passed_on_once_a_mebibyte_is_held() -> None:
    watched = Watched()
    padding = b" " * 700_000
    await watched.start(JSON_TYPE)
    await watched.body(padding, more=True)
    assert watched.got == []
    await watched.body(padding, more=True)
    assert [message.get("more_body") for message in watched.got] == [None, True]
    await watched.body(ANSWER)
    assert watched.bodies == padding * 2 + ANSWER
    assert b"x-llmweir-cost-usd" not in watched.headers
    assert watched.charged == USED


async def test_an_answer_too_large_to_be_read_is_charged_as_held() -> None:
    watched = Watched()
    await watched.start(JSON_TYPE)
    for _ in range(18):
        await watched.body(b" " * 1_000_000, more=True)
    await watched.body(ANSWER)
    assert watched.charged == (10, 100, 10 * 2500 + 100 * 10_000, False)
    assert len(watched.bodies) == 18_000_000 + len(ANSWER)


async def test_a_stream_passes_event_by_event_and_the_usage_asked_for_is_taken_out() -> None:
    watched = Watched(stream=True)
    await watched.start(SSE_TYPE, (b"content-length", b"999"))
    assert watched.headers == {b"content-type": b"text/event-stream", b"x-ours": b"1"}
    for event in (EVENT, EVENT):
        await watched.body(event, more=True)
        assert watched.got[-1]["body"] == event.replace(b',"usage":null', b"")
    before = len(watched.got)
    await watched.body(USAGE_EVENT, more=True)
    assert len(watched.got) == before
    assert watched.ledger.settled == []
    await watched.body(b"data: [DONE]\n\n")
    assert watched.got[-1] == {"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": False}
    assert watched.charged == USED


async def test_an_event_held_at_the_end_still_reaches_the_client() -> None:
    watched = Watched(stream=True)
    await watched.start(SSE_TYPE)
    await watched.body(b"data: half", more=True)
    await watched.body(b"")
    assert watched.bodies == b"data: half"


async def test_a_stream_whose_usage_the_caller_wants_passes_as_it_is() -> None:
    watched = Watched(stream=True, wants_usage=True)
    await watched.start(SSE_TYPE, (b"content-length", b"999"))
    await watched.body(EVENT + USAGE_EVENT)
    assert watched.bodies == EVENT + USAGE_EVENT
    assert watched.headers[b"content-length"] == b"999"
    assert watched.charged == USED


async def test_a_stream_without_usage_is_charged_for_its_text() -> None:
    watched = Watched(stream=True)
    await watched.start(SSE_TYPE)
    await watched.body(EVENT * 10)
    assert watched.charged == (10, 20, 10 * 2500 + 20 * 10_000, False)


ERRORS = {"a bad request": 400, "too many": 429, "an error": 500, "overloaded": 529}


@pytest.mark.parametrize("status", ERRORS.values(), ids=ERRORS)
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
async def test_an_error_passes_at_once_and_gives_tokens_and_money_back(status: int, stream: bool) -> None:
    watched = Watched(stream=stream)
    await watched.start(SSE_TYPE if stream else JSON_TYPE, status=status)
    assert len(watched.got) == 1
    await watched.body(ANSWER)
    assert watched.charged == (0, 0, 0, True)


async def test_an_answer_on_a_path_of_no_format_counts_as_a_request_and_is_not_held() -> None:
    watched = Watched(route=UNKNOWN)
    await watched.start(JSON_TYPE)
    assert watched.headers[b"x-ours"] == b"1"
    await watched.body(ANSWER)
    assert watched.charged == (0, 0, 0, False)


async def test_the_limits_of_the_upstream_are_replaced_not_doubled() -> None:
    watched = Watched(route=UNKNOWN)
    await watched.start(JSON_TYPE, (b"x-ratelimit-limit-requests", b"9"), (b"x-llmweir-cost-usd", b"9"))
    assert watched.headers == {b"content-type": b"application/json", b"x-ours": b"1"}


ENCODED: dict[str, tuple[bytes, bytes, tuple[int, int, int, bool]]] = {
    "gzip": (b"gzip", zlib.compress(ANSWER, wbits=31), USED),
    "gzip in capitals": (b" GZIP", zlib.compress(ANSWER, wbits=31), USED),
    "deflate": (b"deflate", zlib.compress(ANSWER), USED),
    "nothing": (b"identity", ANSWER, USED),
    "not what it says": (b"gzip", ANSWER, (10, 100, 1_025_000, False)),
    "unknown": (b"br", ANSWER, (10, 100, 1_025_000, False)),
}


@pytest.mark.parametrize(("encoding", "body", "charged"), ENCODED.values(), ids=ENCODED)
async def test_an_answer_in_a_content_coding_is_read_where_it_can_be_and_passes_as_it_is(
    encoding: bytes, body: bytes, charged: tuple[int, int, int, bool]
) -> None:
    watched = Watched()
    await watched.start(JSON_TYPE, (b"content-encoding", encoding))
    await watched.body(body)
    assert watched.bodies == body
    assert watched.charged == charged


async def test_a_stream_in_a_content_coding_passes_as_it_comes_and_is_read_at_its_end() -> None:
    watched = Watched(stream=True)
    body = zlib.compress(EVENT * 3 + USAGE_EVENT, wbits=31)
    await watched.start(SSE_TYPE, (b"content-encoding", b"gzip"), (b"content-length", b"%d" % len(body)))
    await watched.body(body[:20], more=True)
    assert watched.bodies == body[:20]
    await watched.body(body[20:])
    assert watched.bodies == body
    assert watched.headers[b"content-length"] == b"%d" % len(body)
    assert watched.charged == USED


async def test_the_settlement_leaves_before_the_last_message_does() -> None:
    for stream in (False, True):
        watched = Watched(stream=stream)
        order: list[str] = []
        settle, send = watched.ledger.settle, watched._send

        def noting_settle(settlement: Settlement, settle: Any = settle, order: list[str] = order) -> Any:
            order.append("settled")
            return settle(settlement)

        async def noting_send(message: Message, send: Any = send, order: list[str] = order) -> None:
            order.append("last" if message.get("more_body") is False else "sent")
            await send(message)

        watched.ledger.settle = noting_settle  # type: ignore[method-assign]
        watched.observer._send = noting_send
        await watched.start(SSE_TYPE if stream else JSON_TYPE)
        await watched.body(EVENT, more=True)
        await watched.body(b"data: [DONE]\n\n")
        assert order.index("settled") < order.index("last")
        assert order.count("settled") == 1


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
@pytest.mark.parametrize("answers", [True, False], ids=["the store answers", "the store is away"])
async def test_who_took_the_last_slot_is_answered_once_it_is_free(stream: bool, answers: bool) -> None:
    watched = Watched(stream=stream, last_slot=True)
    await watched.start(SSE_TYPE if stream else JSON_TYPE)
    last = asyncio.create_task(watched.body(ANSWER))
    for _ in range(5):
        await asyncio.sleep(0)
    assert not last.done()
    assert not any(message.get("more_body") is False for message in watched.got)
    [future] = watched.ledger.answers
    if answers:
        future.set_result([1])
    else:
        future.set_exception(StoreUnavailableError("gone"))
    await last
    assert watched.got[-1]["more_body"] is False


LEFT: dict[str, tuple[bool, int, BaseException | None, tuple[int, int, int, bool]]] = {
    "before the answer": (False, 0, None, (10, 100, 1_025_000, False)),
    "before the answer, cancelled": (False, 0, asyncio.CancelledError(), (10, 100, 1_025_000, False)),
    "the app fails before it answers": (False, 0, ValueError(), (0, 0, 0, True)),
    "in a plain answer": (False, 200, None, (10, 100, 1_025_000, False)),
    "the app fails in a plain answer": (False, 200, ValueError(), (0, 0, 0, True)),
    "in an error": (False, 500, None, (0, 0, 0, True)),
    "in a stream": (True, 200, None, (10, 2, 10 * 2500 + 2 * 10_000, False)),
    "the app fails in a stream": (True, 200, ValueError(), (10, 2, 10 * 2500 + 2 * 10_000, False)),
}


@pytest.mark.parametrize(("stream", "status", "error", "charged"), LEFT.values(), ids=LEFT)
async def test_what_no_last_message_ended_is_settled_for_what_it_was(
    stream: bool, status: int, error: BaseException | None, charged: tuple[int, int, int, bool]
) -> None:
    watched = Watched(stream=stream)
    if status:
        await watched.start(SSE_TYPE if stream else JSON_TYPE, status=status)
        await watched.body(EVENT, more=True)
    watched.observer.left(error)
    watched.observer.left(error)
    assert watched.charged == charged


async def test_what_is_settled_stays_settled_once() -> None:
    watched = Watched()
    await watched.start(JSON_TYPE)
    await watched.body(ANSWER)
    watched.observer.left(None)
    watched.reservation.failed()
    watched.reservation.nothing()
    watched.reservation.as_held()
    assert watched.charged == USED


async def test_the_parts_of_a_usage_that_is_not_complete_keep_their_price() -> None:
    rates = Rates(input=3_000_000, cached_input=300_000, output=15_000_000)
    watched = Watched(rates=rates)
    watched.reservation.produced(8, Usage(input_tokens=1010, cached_input_tokens=1000, output_tokens=1))
    assert watched.charged == (1010, 2, 10 * 3000 + 1000 * 300 + 2 * 15_000, False)


async def test_a_message_of_another_kind_does_not_overtake_what_is_held() -> None:
    watched = Watched()
    await watched.start(JSON_TYPE)
    await watched.body(b"{", more=True)
    await watched.observer.send({"type": "http.response.debug", "info": {}})
    await watched.body(b"}")
    kinds = [message["type"].removeprefix("http.response.") for message in watched.got]
    assert kinds == ["start", "body", "debug", "body"]
    assert [message["body"] for message in watched.got if "body" in message] == [b"{", b"}"]


async def test_messages_of_other_kinds_pass() -> None:
    watched = Watched()
    hints = {"type": "http.response.early_hint", "links": []}
    await watched.observer.send(hints)
    await watched.start(JSON_TYPE)
    await watched.body(ANSWER)
    await watched.observer.send({"type": "http.response.trailers", "headers": []})
    assert watched.got[0] == hints
    assert watched.got[-1]["type"] == "http.response.trailers"


async def test_what_is_reported_teaches_what_to_expect() -> None:
    watched = Watched()
    estimator = watched.reservation._estimator
    before = estimator.tokens_of(1000, "gpt-4o")
    watched.reservation.used(Usage(input_tokens=40, output_tokens=5))
    assert estimator.tokens_of(1000, "gpt-4o") > before


async def test_an_answer_that_redis_refuses_to_settle_reaches_the_client_all_the_same() -> None:
    watched = Watched(last_slot=True)
    await watched.start(JSON_TYPE)
    ending = asyncio.create_task(watched.body(b"{}"))
    await asyncio.sleep(0)
    [future] = watched.ledger.answers
    future.set_exception(ReplyError("READONLY You can't write against a read only replica."))
    await ending
    assert [message["type"] for message in watched.got] == ["http.response.start", "http.response.body"]


async def test_header_names_in_capitals_are_understood() -> None:
    watched = Watched(stream=True)
    await watched.start((b"Content-Type", b"text/event-stream"), (b"X-RateLimit-Limit-Requests", b"7"))
    await watched.body(EVENT + USAGE_EVENT)
    names = [name for name, _ in watched.got[0]["headers"]]
    assert b"content-type" in names
    assert b"x-ratelimit-limit-requests" not in names
    assert USAGE_EVENT not in watched.got[-1]["body"]
    assert watched.ledger.settled[0].input_tokens == 20
