"""The scripts, fed with what no worker sends: whatever they answer, the books of the user read whole."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.backends import Clock, on_valkey
from tests.engine.asking import an_ask, create, mint, update, user

from llmweir import records
from llmweir.decision import Admitted, CallerRefused, LimitRefused
from llmweir.engine import keys, scripts
from llmweir.engine.asks import Settlement
from llmweir.engine.key_hashes import hash_key
from llmweir.engine.store import Store
from llmweir.engine.user_data import Stored
from llmweir.engine.users import Users
from llmweir.engine.wire import Reply, ReplyError

_FOLDER: Final = Path(scripts.__file__).parent / "lua"
_OF_THE_ACCOUNT: Final = ("admit", "authorise", "cancel", "read", "renew", "replay", "settle")
"""Those that take what a request says; what changes a record is spelled by `changes_of` alone."""
_MOST: Final = 2**53 - 1
_names = itertools.count()
some = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])

garbage = st.one_of(
    st.sampled_from(
        ("", "0", "-1", "1", str(_MOST), "1" + "0" * 18, "1" + "0" * 400, "-" + "9" * 30, "1e308", "0x10", " 1 ", "1\0")
    ),
    st.sampled_from(("u", "gpt-4o", "{}", "}", "%d", "\r\n", "ü", "\0", "new", "old", "default", "k:1", "m:*")),
    st.binary(max_size=70),
    st.text(max_size=20),
)
Twists = list[tuple[int, bytes | str]]
twists = st.lists(st.tuples(st.integers(0, 13), garbage), max_size=4)
amounts = st.sampled_from((0, 1, 1_000, 2**31, 2**32 + 1, 10**9, 9 * 10**15, _MOST))
texts = st.sampled_from(("", "ü", "%d%%", "}{u:", "a b\tc", "\r\n$5\r\n", "x" * 300, "-", "0", "\U0001f30a"))


def a_new_user() -> str:
    return f"fuzzed {next(_names)}"


def keys_of(name: str, user_id: str) -> Iterator[bytes]:
    """Give the keys that the header of a script asks for, in order."""
    header = (_FOLDER / f"{name}.lua").read_text().split("\n\n")[0]
    of_user = keys.user_keys(user_id)
    known = {"record": of_user.record, "use": of_user.use, "windows": of_user.window}
    known |= {"leases": of_user.leases, "doc": of_user.doc}
    for _, what in sorted(re.findall(r"KEYS\[(\d)\] (?:the user's|its) (\w+)", header)):
        yield known[what]


def arguments_of(name: str, user_id: str, now_ms: int) -> list[tuple[str, bool]]:
    """Make plausible arguments from what the header says of each, and tell which of them may be twisted.

    The time and the lives in ms come from no request, and settings bound the latter.
    """
    header = (_FOLDER / f"{name}.lua").read_text().split("\nlocal ")[0]
    said = dict(re.findall(r"ARGV\[(\d+)\] (.*?)(?=ARGV\[|\n)", header))
    plain = [("request id", f"{user_id} 0"), ("time in ms", str(now_ms)), ("when it was admitted", str(now_ms))]
    plain += [("hash", ""), ("model", "gpt-4o"), ("version", ""), ("digest", ""), ("cache", "")]
    arguments = []
    for number in range(1, 1 + max(map(int, said))):
        what = said[str(number)]
        value = next((value for word, value in plain if word in what), "5")
        arguments.append((value, value != str(now_ms) and "life" not in what))
    return arguments


async def run(users: Users, name: str, user_id: str, twisted: Twists) -> Reply | ReplyError:
    """Run a script with some of its arguments twisted."""
    script_keys, plausible = list(keys_of(name, user_id)), arguments_of(name, user_id, users.data.now_ms())
    arguments: list[bytes | str] = [value for value, _ in plausible]
    for at, value in twisted:
        if plausible[at % len(plausible)][1]:
            arguments[at % len(plausible)] = value
    try:
        return await users.data.link.run(scripts.load(name), *script_keys, *arguments, keys=len(script_keys))
    except ReplyError as error:
        return error


async def books(users: Users, user_id: str) -> Stored:
    """Read all of a user, which must be there and read back as a record."""
    stored = await users.data.read(user_id)
    assert stored is not None
    await user(users, user_id)
    await users.usage(user_id)
    return stored


async def a_busy_user(store: Store, users: Users) -> str:
    """Make a user with every kind of limit and a request in flight."""
    name = a_new_user()
    await create(
        users,
        name,
        rpm_limit=100,
        tpm_limit=1_000_000,
        max_parallel_requests=9,
        max_budget=1_000,
        budget_duration="30d",
        model_rpm_limit={"gpt-*": 50},
        model_max_budget={"gpt-4o": 100},
    )
    key = hash_key((await mint(users, name, rpm_limit=7, max_budget=5)).secret)
    for number, key_hash in enumerate(("", key)):
        ask = an_ask(f"{name} {number}", user_id=name, key_hash=key_hash, tokens=10, nanos=10)
        assert isinstance(await store.admit(ask), Admitted)
    return name


@some
@given(name=st.sampled_from(_OF_THE_ACCOUNT), twisted=twists)
@on_valkey
async def test_an_error_of_a_script_changes_nothing_of_the_books(
    store: Store, users: Users, name: str, twisted: Twists
) -> None:
    busy = await a_busy_user(store, users)
    before = await books(users, busy)
    reply = await run(users, name, busy, twisted)
    after = await books(users, busy)
    if isinstance(reply, ReplyError):
        assert after == before


@some
@given(name=st.sampled_from(("admit", "read")), twisted=twists)
@on_valkey
async def test_leases_that_ended_are_charged_once_whatever_the_call_says(
    store: Store, users: Users, clock: Clock, name: str, twisted: Twists
) -> None:
    busy = await a_busy_user(store, users)
    clock.advance(seconds=100)
    for _ in range(2):
        await run(users, name, busy, twisted)
    assert (await books(users, busy)).accounts["u"].spent_nanos == 20


@some
@given(
    asks=st.lists(st.tuples(amounts, amounts, amounts, texts, st.booleans()), min_size=1, max_size=6),
    used=st.lists(st.tuples(amounts, amounts), min_size=6, max_size=6),
)
@on_valkey
async def test_after_extreme_amounts_nothing_stays_held_and_all_that_was_used_is_spent(
    store: Store,
    users: Users,
    clock: Clock,
    asks: list[tuple[int, int, int, str, bool]],
    used: list[tuple[int, int]],
) -> None:
    name, spent = a_new_user(), 0
    await create(users, name, rpm_limit=_MOST, tpm_limit=_MOST, max_budget=9_000_000, model_rpm_limit={"x*": 5})
    for number, (tokens, least, nanos, model, waits) in enumerate(asks):
        request_id = f"{name} {number} {model}"
        ask = an_ask(request_id, user_id=name, model=model, tokens=(min(least, tokens), tokens), nanos=(0, nanos))
        decision = await store.admit(ask)
        clock.advance(seconds=40 if waits else 0)
        before = await books(users, name)
        assert 0 <= before.accounts["u"].held_nanos <= _MOST
        if isinstance(decision, Admitted):
            tokens_used, cost_nanos = used[number]
            cost_nanos = min(cost_nanos, _MOST - spent)
            spent += cost_nanos
            settlement = Settlement(
                request_id=request_id, user_id=name, input_tokens=tokens_used, cost_nanos=cost_nanos
            )
            assert (await store.settle(settlement)) is not None
    own = (await books(users, name)).accounts.get("u")
    assert own is None or (own.running, own.held_nanos, own.spent_nanos) == (0, 0, spent)


@some
@given(
    where=st.sampled_from(("record", "use", "leases", "doc")),
    field=st.one_of(st.sampled_from(("p", "u", "x", "v", "e:gpt-4o", "bd", "ba", "sb", "j", "s:gpt-4o", "k:1")), texts),
    value=garbage,
    name=st.sampled_from(_OF_THE_ACCOUNT),
    twisted=twists,
)
@on_valkey
async def test_garbage_in_one_users_books_is_an_answer_or_an_error_and_never_another_users(
    store: Store, users: Users, where: str, field: str, value: bytes | str, name: str, twisted: Twists
) -> None:
    busy, other = await a_busy_user(store, users), await a_busy_user(store, users)
    before = await books(users, other)
    key = msgspec.structs.asdict(keys.user_keys(busy))[where]
    await users.data.link.call(b"HSET", key, field, value)
    await run(users, name, busy, twisted)
    await run(users, "admit", busy, [])
    assert await books(users, other) == before
    assert await users.data.link.call(b"PING") == b"PONG"


names = st.sampled_from(("m", "m*", "ü" * 200, "}{u:", "%d", "e:m", "\U0001f30a", "x" * 256, "-", "0"))
wholes = st.sampled_from((0, 1, 2**31, _MOST))
dollars = st.sampled_from((0, 1e-9, 0.1, 8_388_608.000000001, 9_000_000))
fields = st.fixed_dictionaries(
    {},
    optional={
        "rpm_limit": wholes,
        "tpm_limit": wholes,
        "max_parallel_requests": wholes,
        "max_budget": dollars,
        "soft_budget": dollars,
        "spend": dollars,
        "budget_duration": st.sampled_from(("1s", "36525d", "1mo", "1200mo")),
        "models": st.lists(names, max_size=4),
        "teams": st.lists(names, max_size=4),
        "model_rpm_limit": st.dictionaries(names, wholes, max_size=4),
        "model_tpm_limit": st.dictionaries(names, wholes, max_size=4),
        "model_max_budget": st.dictionaries(names, dollars, max_size=4),
        "metadata": st.dictionaries(names, st.sampled_from((10**4299, -0.0, 1e308, "\0", [[]])), max_size=3),
    },
)


@some
@given(first=fields, then=st.lists(fields, max_size=3), model=names)
@on_valkey
async def test_records_with_extreme_fields_read_back_and_admit_or_refuse(
    store: Store, users: Users, first: dict[str, Any], then: list[dict[str, Any]], model: str
) -> None:
    name = a_new_user()
    await create(users, name, **first)
    for number, change in enumerate([first, *then]):
        await update(users, name, **change)
        decision = await store.admit(an_ask(f"{name} {number}", user_id=name, model=model, tokens=1, nanos=1))
        assert isinstance(decision, Admitted | CallerRefused | LimitRefused)
        record = records.as_json((await user(users, name)).record)
        assert {field: record[field] for field in change} == change | (
            {"spend": record["spend"]} if "spend" in change else {}
        )
        await books(users, name)


@on_valkey
@pytest.mark.parametrize("size", [1_000_000])
async def test_ids_of_a_megabyte_are_counted_like_others(store: Store, users: Users, size: int) -> None:
    name = "ü" * (size // 2)
    await create(users, "u", max_budget=1)
    for user_id, request_id, model in (("u", name, "gpt-4o"), ("u", "r", "m" * size)):
        ask = an_ask(request_id, user_id=user_id, model=model, tokens=5, nanos=5)
        assert isinstance(await store.admit(ask), Admitted)
        assert await store.settle(Settlement(request_id=request_id, user_id=user_id, cost_nanos=3)) == [1]
    assert await store.admit(an_ask("r", user_id=name)) is not None
    assert (await user(users)).record.spend_nanos == 6
