"""The tour of `llmweir demo --once`: each step sends real requests, shows what came back and checks what it says."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from decimal import Decimal
from http import HTTPStatus
from typing import Any

import aiohttp
import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

CHAT = "/v1/chat/completions"
MINI, BIG = "gpt-4o-mini", "gpt-4o"
_GAP_MS = 40
_TIMEOUT_S = 10


class Place(msgspec.Struct, frozen=True):
    """Where the demo runs: the gate's and the model's base URLs, the keys, and each user's limits in words."""

    url: str
    upstream: str
    master_key: str
    keys: dict[str, str]
    words: dict[str, str]


class DiffersError(Exception):
    """Something came back that is not what the tour says."""


class Reply(msgspec.Struct, frozen=True):
    """What came back: the events of a stream with the seconds at which they came, else the body alone."""

    status: int
    headers: dict[str, str]
    text: str
    events: tuple[tuple[float, str], ...] = ()

    @property
    def body(self) -> Any:
        """The body as JSON, amounts exact."""
        return json.loads(self.text, parse_float=Decimal)

    @property
    def error(self) -> dict[str, Any]:
        """The error in the body."""
        error: dict[str, Any] = self.body["error"]
        return error

    @property
    def cost_usd(self) -> Decimal:
        """What the answer cost, as its header says."""
        return Decimal(self.headers.get("x-llmweir-cost-usd", "0"))


class Tour:
    """Sends the requests of the steps, shows them, and keeps what each user has been told that it cost."""

    def __init__(self, place: Place, session: aiohttp.ClientSession, console: Console) -> None:
        self.place = place
        self.costs_usd = dict.fromkeys(place.keys, Decimal(0))
        self.session = session
        self._console = console

    async def ask(self, user: str, model: str, *, stream: bool = False, **steering: int) -> Reply:
        """A chat request; `steering` are the make-believe model's headers."""
        body: dict[str, object] = {"model": model, "messages": [{"role": "user", "content": "What is a weir?"}]}
        if stream:
            body["stream"] = True
        headers = {"authorization": f"Bearer {self.place.keys[user]}", "content-type": "application/json"}
        headers |= {f"x-model-{name.replace('_', '-')}": str(value) for name, value in steering.items()}
        async with self.session.post(self.place.url + CHAT, data=json.dumps(body), headers=headers) as answer:
            reply = await _read(answer)
        self.costs_usd[user] += reply.cost_usd
        return reply

    async def admin(self, method: str, path: str, body: dict[str, object] | None = None) -> Reply:
        """An admin request."""
        headers = {"authorization": f"Bearer {self.place.master_key}"}
        async with self.session.request(method, self.place.url + path, json=body, headers=headers) as answer:
            return await _read(answer)

    def sent(self, text: str) -> None:
        """Shows what is sent."""
        self._line("→", "cyan", text)

    def came(self, reply: Reply, *shown: str) -> None:
        """Shows what came back: the status and these headers, and the message of an error."""
        told = ", ".join(f"{name}: {reply.headers[name]}" for name in shown if name in reply.headers)
        colour = "green" if reply.status < 400 else "yellow"
        self._line("←", colour, f"{reply.status} {HTTPStatus(reply.status).phrase}   {told}".rstrip())
        if reply.status >= 400:
            self._line(" ", colour, reply.error["message"])

    def why(self, text: str) -> None:
        """Shows what it means; said once the step's checks have passed."""
        self._line("✓", "bold green", text)

    def differs(self, text: str) -> None:
        """Shows what came out otherwise."""
        self._line("✗", "bold red", text)

    def _line(self, mark: str, style: str, text: str) -> None:
        self._console.print(Text.assemble("   ", (mark, style), " ", text))


async def play(place: Place, console: Console) -> int:
    """Plays the tour and returns how many of its steps came out otherwise than it says."""
    began_s = time.monotonic()
    console.print("[bold]llmweir, a tour[/]: real requests to a gate in front of a make-believe model.")
    for user, words in place.words.items():
        console.print(f"   {user:5} {words}")
    differing = 0
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_TIMEOUT_S)) as session:
        tour = Tour(place, session, console)
        for number, (title, step) in enumerate(STEPS.items(), 1):
            console.print(f"\n[bold]{number}. {title}[/]")
            try:
                await step(tour)
            except DiffersError as error:
                differing += 1
                tour.differs(str(error))
            except (aiohttp.ClientError, TimeoutError, LookupError, ValueError, TypeError) as error:
                differing += 1
                tour.differs(f"an answer that cannot be read: {error!r}")
        await _show_books(tour, console)
    seconds = time.monotonic() - began_s
    if differing:
        console.print(f"\n[bold red]{differing} of {len(STEPS)} steps came out otherwise.[/] {seconds:.1f} s")
    else:
        console.print(f"\n[bold green]All {len(STEPS)} steps came out as told.[/] {seconds:.1f} s")
        console.print("Try it yourself: llmweir demo")
    return differing


async def rate_limit_headers(tour: Tour) -> None:
    """An answer carries its rate-limit headers."""
    tour.sent(f"POST {CHAT} as ana, model {MINI}")
    reply = await tour.ask("ana", MINI)
    tour.came(reply, "x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-llmweir-cost-usd")
    expect("status", reply.status, 200)
    expect("limit of requests", reply.headers.get("x-ratelimit-limit-requests"), "3")
    expect("remaining requests", reply.headers.get("x-ratelimit-remaining-requests"), "2")
    expect("cost is told", reply.cost_usd > 0, True)
    tour.why("Let through. Every answer says what is left, in OpenAI's headers and the IETF's.")


async def too_many_requests(tour: Tour) -> None:
    """The fourth request within a minute is refused."""
    tour.sent("the same three more times")
    replies = [await tour.ask("ana", MINI) for _ in range(3)]
    for reply in replies:
        tour.came(reply, "x-ratelimit-remaining-requests", "retry-after", "retry-after-ms")
    expect("statuses", [reply.status for reply in replies], [200, 200, 429])
    refused = replies[-1]
    expect("code", refused.error["code"], "rate_limit_exceeded")
    expect("numbers in the message", "limit 3, used 3, requested 1" in refused.error["message"], True)
    expect("retry-after within a minute", 1 <= int(refused.headers["retry-after"]) <= 60, True)
    tour.why("The message says whose limit, which, how far, and when there is room; a refusal itself counts nothing.")


async def raised_limit(tour: Tour) -> None:
    """An admin change binds the very next request."""
    change: dict[str, object] = {"user_id": "ana", "rpm_limit": 10}
    tour.sent(f"POST /user/update {json.dumps(change)} with the master key, then ana's request again")
    updated = await tour.admin("POST", "/user/update", change)
    reply = await tour.ask("ana", MINI)
    tour.came(updated)
    tour.came(reply, "x-ratelimit-limit-requests", "x-ratelimit-remaining-requests")
    expect("status of the update", updated.status, 200)
    expect("status", reply.status, 200)
    expect("limit of requests", reply.headers.get("x-ratelimit-limit-requests"), "10")
    expect("remaining requests", reply.headers.get("x-ratelimit-remaining-requests"), "6")
    tour.why("No cached limit to go stale: it binds at once, on every worker, and what was counted stays counted.")


async def model_budget(tour: Tour) -> None:
    """A model's budget is spent while other models still work."""
    tour.sent(f"POST {CHAT} as ben, model {BIG}, a long answer; the same again; then model {MINI}")
    first = await tour.ask("ben", BIG, tokens=500)
    second = await tour.ask("ben", BIG)
    other = await tour.ask("ben", MINI)
    tour.came(first, "x-llmweir-cost-usd", "x-llmweir-budget-limit-usd")
    tour.came(second, "x-should-retry", "x-llmweir-budget-remaining-usd")
    tour.came(other, "x-llmweir-cost-usd")
    expect("statuses", [reply.status for reply in (first, second, other)], [200, 429, 200])
    expect("type", second.error["type"], "insufficient_quota")
    expect("code", second.error["code"], "insufficient_quota")
    expect("x-should-retry", second.headers.get("x-should-retry"), "false")
    expect("retry-after", second.headers.get("retry-after"), None)
    tour.why("Waiting would not help, and SDKs are told so. The budget is the model's alone, so another model works.")


async def too_many_tokens(tour: Tour) -> None:
    """A request whose tokens do not fit is refused before it costs anything."""
    tour.sent(f"POST {CHAT} as ben, model {MINI}, a very long answer; the same again")
    first = await tour.ask("ben", MINI, tokens=2000)
    second = await tour.ask("ben", MINI, tokens=2000)
    tour.came(first, "x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens")
    tour.came(second, "x-ratelimit-remaining-tokens", "retry-after")
    expect("statuses", [first.status, second.status], [200, 429])
    expect("type", second.error["type"], "tokens")
    expect("retry-after within a minute", 1 <= int(second.headers["retry-after"]) <= 60, True)
    tour.why("Tokens are held before the model answers (as many as its answers usually take) and settled after.")


async def one_at_a_time(tour: Tour) -> None:
    """Of two requests at once, one is let through."""
    tour.sent(f"POST {CHAT} as cleo, twice at once; then once more")
    pair = await asyncio.gather(*(tour.ask("cleo", MINI, delay_ms=400) for _ in range(2)))
    passed, refused = sorted(pair, key=lambda reply: reply.status)
    after = await tour.ask("cleo", MINI)
    tour.came(passed)
    tour.came(refused, "retry-after")
    tour.came(after)
    expect("statuses", [passed.status, refused.status, after.status], [200, 429, 200])
    expect("code", refused.error["code"], "parallel_limit_exceeded")
    tour.why("One slot: taken while a request runs, free the moment it ends (or, if a worker dies, seconds later).")


async def stream(tour: Tour) -> None:
    """A stream passes event by event, and is counted."""
    tour.sent(f'POST {CHAT} as cleo, model {MINI}, "stream": true; usage not asked for')
    plain = await tour.ask("cleo", MINI)
    before_usd = await _spend_usd(tour, "cleo")
    streamed = await tour.ask("cleo", MINI, stream=True, gap_ms=_GAP_MS)
    cost_usd = await _spend_usd(tour, "cleo") - before_usd
    tour.costs_usd["cleo"] += cost_usd
    seconds = streamed.events[-1][0] - streamed.events[0][0] if streamed.events else 0.0
    tour.came(streamed, "content-type")
    expect("status", streamed.status, 200)
    expect("end of the stream", streamed.events[-1][1], "[DONE]")
    least_s = (len(streamed.events) - 1) * _GAP_MS / 2000
    expect(f"events spread over {least_s:.1f} s at least", seconds >= least_s, True)
    expect("a usage event that was not asked for", '"usage"' in streamed.text, False)
    expect("cost in USD", cost_usd, plain.cost_usd)
    tour.why(
        f"{len(streamed.events)} events over {seconds:.1f} s, as they came. It cost {cost_usd} USD: its usage was "
        "asked for on the way in and taken out on the way back."
    )


async def books(tour: Tour) -> None:
    """The books agree with what each answer said it cost."""
    tour.sent("GET /user/info?user_id=... with the master key, for each user")
    for user, told_usd in tour.costs_usd.items():
        reply = await tour.admin("GET", f"/user/info?user_id={user}")
        expect("status", reply.status, 200)
        info = reply.body["user_info"]
        expect(f"spend of {user} in USD", Decimal(info["spend"]), told_usd)
        expect(f"reserved for {user} in USD", Decimal(info["reserved"]), Decimal(0))
    tour.why("Spend is what the answers said, to the last nano-dollar; refused requests cost nothing; nothing is held.")


STEPS: dict[str, Callable[[Tour], Awaitable[None]]] = {
    "An answer, and what is left": rate_limit_headers,
    "Too many requests": too_many_requests,
    "A limit is raised": raised_limit,
    "A model's budget is spent": model_budget,
    "Too many tokens": too_many_tokens,
    "One at a time": one_at_a_time,
    "A stream": stream,
    "The books": books,
}


def expect(what: str, came: object, wanted: object) -> None:
    """Raises DiffersError where something is not as the tour says."""
    if came != wanted:
        raise DiffersError(f"{what}: {wanted!r} was to come, {came!r} came")


async def _spend_usd(tour: Tour, user: str) -> Decimal:
    info = (await tour.admin("GET", f"/user/info?user_id={user}")).body
    return Decimal(info["user_info"]["spend"])


async def _show_books(tour: Tour, console: Console) -> None:
    table = Table("user", "spend (USD)", "by model")
    for user in tour.place.keys:
        info = (await tour.admin("GET", f"/user/info?user_id={user}")).body.get("user_info", {})
        by_model = ", ".join(f"{model} {spend}" for model, spend in info.get("model_spend", {}).items())
        table.add_row(user, str(info.get("spend")), by_model)
    console.print(table)


async def _read(answer: aiohttp.ClientResponse) -> Reply:
    events, lines = [], []
    async for line in answer.content:
        lines.append(line)
        if line.startswith(b"data: "):
            events.append((time.monotonic(), line[6:].decode().strip()))
    headers = {name.lower(): value for name, value in answer.headers.items()}
    return Reply(answer.status, headers, b"".join(lines).decode(), tuple(events))
