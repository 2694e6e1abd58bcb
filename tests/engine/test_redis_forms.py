from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from tests.backends import load_all_scripts
from tests.engine.asking import an_ask, create, mint, passes, send, update
from tests.engine.asking import user as read_user
from tests.engine.test_cluster import Load
from tests.engine.test_link import until
from tests.redis_forms import (
    Authority,
    Server,
    TlsServer,
    cluster,
    folder,
    replicated,
    running,
    server,
    tls_server,
    wait_for,
)

from llmweir.engine import keys, scripts
from llmweir.engine.any_link import AnyLink
from llmweir.engine.api_keys import ApiKeys
from llmweir.engine.asks import Settlement
from llmweir.engine.connect import connect
from llmweir.engine.directory import UserQuery
from llmweir.engine.invitations import Invitations
from llmweir.engine.key_directory import KeyQuery
from llmweir.engine.key_hashes import hash_key
from llmweir.engine.redis_url import RedisTarget, read_redis_url
from llmweir.engine.store import Store
from llmweir.engine.users import Users
from llmweir.engine.wire import ReplyError
from llmweir.errors import InvalidValueError, StoreUnavailableError

pytestmark = [pytest.mark.timeout(180), pytest.mark.faults]

PASSWORD = "s3cret/?#@:%"
QUOTED = "s3cret%2F%3F%23%40%3A%25"

# URLs.


@pytest.mark.parametrize(
    ("url", "where", "addresses"),
    [
        ("redis://h", "redis://h:6379", (("h", 6379),)),
        (f"redis://u:{QUOTED}@h:1/2", "redis://h:1/2", (("h", 1),)),
        ("rediss://h/0?ssl_cert_reqs=none", "rediss://h:6379", (("h", 6379),)),
        ("redis://[::1]:7/0", "redis://[::1]:7", (("::1", 7),)),
        ("unix:///run/r.sock?db=1", "unix:///run/r.sock", ()),
        (
            "redis+sentinel://u:p@a:1,b,[::1]/main/3?sentinel_password=q",
            "redis+sentinel://a:1,b:26379,[::1]:26379/main/3",
            (("a", 1), ("b", 26379), ("::1", 26379)),
        ),
        ("rediss+sentinel://a/main", "rediss+sentinel://a:26379/main", (("a", 26379),)),
        ("redis+cluster://u:p@a,b:2", "redis+cluster://a:6379,b:2", (("a", 6379), ("b", 2))),
        ("rediss+cluster://a/0", "rediss+cluster://a:6379", (("a", 6379),)),
    ],
    ids=[
        "host", "login", "tls", "ipv6", "socket", "sentinel", "tls sentinel", "cluster", "tls cluster",
    ],
)  # fmt: skip
def test_a_url_of_any_form_is_read(url: str, where: str, addresses: tuple[tuple[str, int], ...]) -> None:
    target = read_redis_url(url)
    assert (target.where, target.addresses) == (where, addresses)
    assert repr(target) == f"RedisTarget({where})"


@pytest.mark.parametrize("scheme", ["redis", "redis+sentinel", "redis+cluster"])
def test_user_and_password_are_unquoted(scheme: str) -> None:
    target = read_redis_url(f"{scheme}://us%40er:{QUOTED}@h/{'main' if scheme == 'redis+sentinel' else ''}")
    assert (target.options["username"], target.options["password"]) == ("us@er", PASSWORD)


def test_the_sentinels_have_a_login_of_their_own() -> None:
    target = read_redis_url("redis+sentinel://:p@h/main?sentinel_username=su&sentinel_password=s%2Bp&socket_timeout=2")
    assert target.sentinel_options == {"username": "su", "password": "s+p"}
    assert (target.options["password"], target.options["socket_timeout"]) == ("p", 2.0)


@pytest.mark.parametrize(
    "url",
    [
        "http://u:hunter2@h",
        "hunter2",
        "redis://u:hunter2@",
        "redis://:hun#ter2@h",
        "redis://:hunter2/x@h/0",
        "redis://:hunter2?x@h/0",
        "redis://u:hunter2@h:port",
        "redis://u:hunter2@h:99999",
        "redis://u:hunter2@h/db",
        "redis://u:hunter2@h/0/1",
        "redis://u:hunter2@a,b",
        "redis://u:hunter2@h?no_such_option=1",
        "redis://u:hunter2@h?socket_timeout=hunter2",
        "redis://u:hunter2@h?sentinel_password=hunter2",
        "rediss://u:hunter2@h?ssl_cert_reqs=hunter2",
        "redis+sentinel://u:hunter2@h",
        "redis+sentinel://u:hunter2@h/main/db",
        "redis+cluster://u:hunter2@h/1",
        "redis+cluster://u:hunter2@a,,b",
        "unix://?password=hunter2",
    ],
)
def test_a_wrong_url_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(InvalidValueError) as refused:
        read_redis_url(url)
    assert "hunter2" not in f"{refused.value} {refused.value.__cause__}"
    assert "ter2" not in str(refused.value)


def test_a_link_is_made_of_a_target_that_was_read_before() -> None:
    assert isinstance(read_redis_url("redis+cluster://h").node(("n", 1)), RedisTarget)
    assert not connect(read_redis_url("redis://h")).is_up


# TLS.


@contextlib.asynccontextmanager
async def linked(url: str) -> AsyncIterator[AnyLink]:
    link = connect(url, timeout_ms=3_000)
    try:
        yield link
    finally:
        await link.aclose()


def tls_url(one: TlsServer, authority: Authority, **options: Path) -> str:
    given = {"ssl_ca_certs": authority.ca, **options}
    return f"rediss://127.0.0.1:{one.listens_at}?{'&'.join(f'{name}={value}' for name, value in given.items())}"


@pytest.mark.parametrize("asks_clients", [False, True], ids=["server alone", "client too"])
async def test_the_whole_way_goes_over_tls(asks_clients: bool) -> None:
    with tls_server("redis", asks_clients=asks_clients) as (one, authority):
        certificate, key = authority.client
        own = {"ssl_certfile": certificate, "ssl_keyfile": key} if asks_clients else {}
        async with linked(tls_url(one, authority, **own)) as link:
            await link.ready()
            await load_all_scripts(link)
            await create(Users(link))
            store = Store(link)
            await asyncio.gather(*(passes(store, an_ask(f"r{number}", nanos=5)) for number in range(50)))
            assert await link.call("ECHO", b"x" * 1_000_000) == b"x" * 1_000_000
            await link.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "no")
            await until(lambda: link.is_up)


async def test_a_server_that_asks_for_a_certificate_refuses_a_client_without_one() -> None:
    with tls_server("redis", asks_clients=True) as (one, authority):
        async with linked(tls_url(one, authority)) as link:
            with pytest.raises(StoreUnavailableError):
                await link.ready()


async def test_a_server_whose_certificate_nobody_vouches_for_is_refused() -> None:
    with tls_server("redis", asks_clients=False) as (one, _):
        async with linked(f"rediss://127.0.0.1:{one.listens_at}") as link:
            with pytest.raises(StoreUnavailableError, match="cannot be reached"):
                await link.ready()


# ACL.

EVERYWHERE = (
    "~lw:*", "+ping", "+role", "+evalsha", "+script|load", "+time",
    "+get", "+set", "+del", "+exists", "+pexpire",
    "+hget", "+hset", "+hdel", "+hexists", "+hgetall", "+hincrby", "+hkeys", "+hlen", "+hmget", "+hsetnx",
    "+zadd", "+zrem", "+zscore", "+zrange", "+zrevrange", "+zcard",
)  # fmt: skip
ON_A_CLUSTER = ("+cluster|slots", "+asking")


def allow(one: Server, rules: tuple[str, ...]) -> None:
    one.ask("ACL", "SETUSER", "weir", "reset", "on", f">{PASSWORD}", *rules)


@pytest.fixture(scope="module")
def guarded() -> Iterator[Server]:
    with server("valkey") as one:
        yield one


async def everything(url: str, number: int = 0) -> None:
    """Do all that llmweir does with Redis."""
    async with linked(url) as link:
        await link.ready()
        await load_all_scripts(link)
        store, users, user_id = Store(link), Users(link), f"all-{number}"
        api_keys, name = ApiKeys(users), f"n{number}"
        email = f"{name}@x.test"
        model_limits = {"model_rpm_limit": {"gpt-4o": 9}, "model_max_budget": {"gpt-4o": 1}}
        await create(
            users, user_id, user_email=email, teams=["t"], rpm_limit=2, soft_budget=1, max_budget=9, **model_limits
        )
        minted = await mint(users, user_id, key_alias=name, max_budget=1, rpm_limit=9, duration="30d")
        key_hash = hash_key(minted.secret)
        assert await store.owner_of(key_hash) == user_id
        for request_id in ("a", "b"):
            await passes(store, an_ask(request_id, user_id=user_id, key_hash=key_hash, tokens=5, nanos=5))
        assert not hasattr(await store.admit(an_ask("c", user_id=user_id)), "caller")
        await store.renew(older_than_s=0)
        assert await send(store, Settlement(request_id="a", user_id=user_id, cost_nanos=3))
        assert await send(store, Settlement(request_id="b", user_id=user_id, cancelled=True))
        await store.authorise(user_id, key_hash, data_plane=True)
        await update(users, user_id, user_email=f"new-{email}", model_rpm_limit={"x": 1}, max_budget=8)
        await users.page(UserQuery(sort_by="user_email", role="internal_user"))
        await users.page(UserQuery(sort_by="spend", sort_order="asc"))
        await api_keys.page(KeyQuery())
        await users.usage(user_id)
        await users.days(user_id, 20_000, 20_001)
        renewed = await api_keys.regenerate(minted.record)
        invitations = Invitations(link, users)
        token = await invitations.issue(user_id)
        assert token
        await users.set_password_hash(user_id, "hash")
        for catalogue in ("users", "keys"):  # what could not be filed stays open, and fails nobody
            assert await link.call("ZCARD", keys.catalogue(catalogue).writing) == 0
        await api_keys.delete([renewed.record])
        await users.delete([user_id])
        assert (await read_user_or_none(users, user_id)) is None


async def read_user_or_none(users: Users, user_id: str) -> object:
    return await users.get(user_id)


def url_of(one: Server) -> str:
    return f"redis://weir:{QUOTED}@127.0.0.1:{one.port}"


async def test_everything_works_with_the_documented_rights(guarded: Server) -> None:
    allow(guarded, EVERYWHERE)
    guarded.ask("FLUSHALL")
    await everything(url_of(guarded), 1)


@pytest.mark.parametrize("right", [right for right in EVERYWHERE if right != "+role"])
async def test_each_documented_right_is_needed(guarded: Server, right: str) -> None:
    allow(guarded, tuple(each for each in EVERYWHERE if each != right))
    guarded.ask("FLUSHALL")
    guarded.ask("SCRIPT", "FLUSH")
    with pytest.raises((ReplyError, StoreUnavailableError, AssertionError)):
        await everything(url_of(guarded), 2)


def test_the_documented_rights_are_those_that_are_tested() -> None:
    page = (Path(__file__).parents[2] / "docs" / "redis.md").read_text().replace("\n", " ")
    assert f"``` {' '.join(EVERYWHERE)} ```" in page
    assert f"`{' '.join(ON_A_CLUSTER)}`" in page


def test_the_documented_rights_have_every_command_of_the_scripts() -> None:
    sources = (path.read_text() for path in (Path(scripts.__file__).parent / "lua").rglob("*.lua"))
    called = {name.lower() for source in sources for name in re.findall(r"call\('([A-Z]+)'", source)}
    assert called <= {right.removeprefix("+") for right in EVERYWHERE}


async def test_a_cluster_needs_two_rights_more() -> None:
    with cluster("valkey") as whole:
        for node in whole.nodes:
            allow(node, (*EVERYWHERE, *ON_A_CLUSTER))
        url = whole.url.replace("://", f"://weir:{QUOTED}@")
        await everything(url)
        for node in whole.nodes:
            allow(node, EVERYWHERE)
        async with linked(url) as link:
            with pytest.raises(StoreUnavailableError):
                await link.ready()


@pytest.mark.parametrize("login", ["weir:wrong", "nobody:x"], ids=["password", "user"])
async def test_a_wrong_login_says_so_and_shows_nothing(
    guarded: Server, login: str, caplog: pytest.LogCaptureFixture
) -> None:
    allow(guarded, EVERYWHERE)
    async with linked(f"redis://{login}@127.0.0.1:{guarded.port}") as link:
        with pytest.raises(StoreUnavailableError, match="it refuses the user or the password"):
            await link.ready()
    assert login not in caplog.text


# What an operator may do to a server.


async def test_a_flushed_script_cache_and_killed_clients_under_load_lose_nothing(guarded: Server) -> None:
    guarded.ask("FLUSHALL")
    async with linked(f"redis://127.0.0.1:{guarded.port}") as link:
        load = Load(link, ["u1", "u2"])
        async with load.running():
            for _ in range(5):
                guarded.ask("SCRIPT", "FLUSH")
                await load.has_gone_on(["u1", "u2"], 10)
                guarded.ask("CLIENT", "KILL", "TYPE", "normal")
                await load.has_gone_on(["u1", "u2"], 10)
            with guarded.paused():
                await asyncio.sleep(0.05)
            await load.has_gone_on(["u1", "u2"], 10)
        await load.books_are_whole(["u1", "u2"])


async def test_a_write_that_too_few_replicas_would_have_is_refused_and_nothing_counts() -> None:
    with replicated("redis") as pair:
        async with linked(f"redis://127.0.0.1:{pair.master.port}") as link:
            await load_all_scripts(link)
            await create(Users(link), rpm_limit=5)
            store = Store(link)
            pair.replicas[0].kill()
            wait_for(lambda: not pair.master.ask("ROLE")[2], "a replica that is gone")
            pair.master.ask("CONFIG", "SET", "min-replicas-to-write", 1)
            with pytest.raises((ReplyError, StoreUnavailableError), match="NOREPLICAS"):
                await store.admit(an_ask("r"))
            await link.ready()
            pair.master.ask("CONFIG", "SET", "min-replicas-to-write", 0)
            assert (await passes(store, an_ask("next"))).standing.rpm_used == 1


async def test_a_full_server_refuses_and_forgets_nothing() -> None:
    with server("redis", "--maxmemory-policy", "noeviction") as one:
        async with linked(f"redis://127.0.0.1:{one.port}") as link:
            await load_all_scripts(link)
            await create(Users(link), max_budget=1)
            store = Store(link)
            await passes(store, an_ask("held", nanos=50))
            one.ask("CONFIG", "SET", "maxmemory", 1)
            with pytest.raises((ReplyError, StoreUnavailableError), match="OOM"):
                await store.admit(an_ask("refused"))
            one.ask("CONFIG", "SET", "maxmemory", 0)
            assert await send(store, Settlement(request_id="held", user_id="u", cost_nanos=7))
            record = (await read_user(Users(link))).record
            assert (record.spend_nanos, record.reserved_nanos) == (7, 0)


async def test_a_server_that_loads_its_data_is_waited_for() -> None:
    with folder() as path:
        first = Server("redis", path)
        with running(first):
            first.client().mset({f"key-{number}": "x" * 2_000 for number in range(150)})
            first.ask("SAVE")
        slow = ("--key-load-delay", "50000", "--loading-process-events-interval-bytes", "2048")
        again = Server("redis", path, *slow, port=first.port)
        with running(again):
            async with linked(f"redis://127.0.0.1:{again.port}") as link:
                with pytest.raises(StoreUnavailableError, match="it is loading its data"):
                    await link.ready()
                again.ask("CONFIG", "SET", "key-load-delay", 0)
                await until(lambda: link.is_up, wait_s=60)
                assert await link.call("GET", "key-1") == b"x" * 2_000


async def test_a_plain_url_to_a_node_of_a_cluster_says_what_it_should_be() -> None:
    with cluster("valkey") as whole:
        async with linked(f"redis://127.0.0.1:{whole.masters[0].port}") as link:
            with pytest.raises(StoreUnavailableError, match=r"redis\+cluster://"):
                await asyncio.gather(*(link.call("GET", f"x{number}") for number in range(50)))


async def test_a_cluster_url_to_a_server_that_is_no_cluster_is_refused(
    guarded: Server, caplog: pytest.LogCaptureFixture
) -> None:
    async with linked(f"redis+cluster://127.0.0.1:{guarded.port}") as link:
        with pytest.raises(StoreUnavailableError, match="no node of the cluster"):
            await link.ready()
    assert "cluster support disabled" in caplog.text
