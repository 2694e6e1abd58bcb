"""Two worker processes, 32 tasks each, race for the last places of a user or a key: exactly that many pass."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
from tests.backends import on_real_servers
from tests.engine.asking import create, mint, user

from llmweir.engine.key_hashes import hash_key
from llmweir.engine.link import Link
from llmweir.engine.users import Users

TASKS = 32
PLACES = 41
RACER = """
import asyncio, sys
from llmweir.decision import Admitted
from llmweir.engine.asks import Ask
from llmweir.engine.key_hashes import hash_key
from llmweir.engine.link import Link
from llmweir.engine.store import Store

async def race(url, name, tasks, key_hash):
    link = Link(url, timeout_ms=20_000)
    store = Store(link)
    await store.load_scripts()
    print("ready", flush=True)
    sys.stdin.readline()
    decisions = await asyncio.gather(*(one(store, f"{name}{number}", key_hash) for number in range(tasks)))
    print(sum(isinstance(decision, Admitted) for decision in decisions), flush=True)
    await link.aclose()

async def one(store, request_id, key_hash):
    await asyncio.sleep(0)
    return await store.admit(Ask(
        request_id=request_id, user_id="u", key_hash=key_hash, model="gpt-4o", target="gpt-4o",
        asked_tokens=10, hold_tokens=10, asked_nanos=10, hold_nanos=10,
    ))

asyncio.run(race(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]))
"""


@contextmanager
def racer(url: str, name: str, key_hash: str) -> Iterator[subprocess.Popen[str]]:
    """Run a worker that is ready to start, and starts on a line."""
    command = [sys.executable, "-c", RACER, url, name, str(TASKS), key_hash]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def start(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


def admitted(process: subprocess.Popen[str]) -> int:
    assert process.stdout is not None
    return int(process.stdout.readline())


@pytest.mark.parametrize(
    "limit",
    [
        {"rpm_limit": PLACES},
        {"tpm_limit": PLACES * 10},
        {"max_parallel_requests": PLACES},
        {"max_budget_nanos": PLACES * 10},
        {"model_rpm_limit": {"gpt-*": PLACES}},
        {"model_tpm_limit": {"gpt-4o": PLACES * 10}},
        {"model_max_budget": {"gpt-4o": PLACES * 1e-8}},
    ],
    ids=lambda limit: next(iter(limit)),
)
@on_real_servers
async def test_of_64_tasks_on_two_workers_exactly_as_many_pass_as_there_are_places(
    url: str, link: Link, limit: dict[str, object]
) -> None:
    users = Users(link)  # by the server's clock, as the workers
    await create(users, **limit)
    assert race(url) == PLACES
    assert (await user(users)).record.reserved_nanos == PLACES * 10


@pytest.mark.parametrize(
    "limit",
    [
        {"rpm_limit": PLACES},
        {"tpm_limit": PLACES * 10},
        {"max_parallel_requests": PLACES},
        {"max_budget": PLACES * 1e-8},
    ],
    ids=lambda limit: next(iter(limit)),
)
@on_real_servers
async def test_of_64_tasks_with_one_key_exactly_as_many_pass_as_the_key_has_places(
    url: str, link: Link, limit: dict[str, object]
) -> None:
    users = Users(link)
    await create(users, rpm_limit=1_000, tpm_limit=10_000, max_parallel_requests=1_000, max_budget=1)
    key_hash = hash_key((await mint(users, **limit)).secret)
    assert race(url, key_hash) == PLACES
    assert (await user(users)).record.reserved_nanos == PLACES * 10


def race(url: str, key_hash: str = "") -> int:
    """Have two workers race; says how many of their requests were admitted."""
    with ExitStack() as stack:
        racers = [stack.enter_context(racer(url, name, key_hash)) for name in "ab"]
        for each in racers:
            start(each)
        return sum(admitted(each) for each in racers)
