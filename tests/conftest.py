"""The matrix of backends, and what the tests of the store share: a settable clock, a link, the store, its users."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack

import pytest
import redis
from hypothesis import Phase, settings
from tests.backends import BACKENDS, Clock, load_all_scripts, serve

from llmweir.engine.link import Link
from llmweir.engine.store import Store
from llmweir.engine.users import Users

# The same examples each time, and a failure as it came: with EXPLORE set, others are looked for, and made small.
_explores = "EXPLORE" in os.environ
settings.register_profile(
    "llmweir",
    deadline=None,
    print_blob=True,
    derandomize=not _explores,
    phases=list(Phase) if _explores else [Phase.explicit, Phase.generate],
)
settings.load_profile("llmweir")


@pytest.fixture(scope="session")
def url_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], str]]:
    """Start each backend when a test first asks for it, once a session."""
    urls: dict[str, str] = {}
    with ExitStack() as servers:

        def url_of(backend: str) -> str:
            if backend not in urls:
                urls[backend] = servers.enter_context(serve(backend, tmp_path_factory.mktemp(backend)))
            return urls[backend]

        yield url_of


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """Name each backend of the matrix in turn; `tests.backends.on_real_servers` leaves out fakeredis."""
    return str(request.param)


@pytest.fixture
def url(backend: str, url_of: Callable[[str], str]) -> str:
    """Give the URL of an empty store."""
    url = url_of(backend)
    with redis.from_url(url) as client:
        client.flushall()
    return url


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def link(url: str) -> AsyncIterator[Link]:
    """Give a link to a server that has all scripts: fakeredis hangs up after each error, NOSCRIPT among them."""
    link = Link(url, timeout_ms=10_000)
    await load_all_scripts(link)
    yield link
    await link.aclose()


@pytest.fixture
def store(link: Link, clock: Clock) -> Store:
    return Store(link, clock=clock)


@pytest.fixture
def users(link: Link, clock: Clock) -> Users:
    return Users(link, clock=clock)
