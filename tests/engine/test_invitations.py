"""Invitations in the store: what is kept of them, when they end, who wins."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import time
from typing import Any

import pytest
import redis
from tests.backends import Clock

from llmweir.engine import keys
from llmweir.engine.invitations import Invitations
from llmweir.engine.link import Link
from llmweir.engine.users import Users
from llmweir.engine.wire import ReplyError
from llmweir.errors import NotFoundError, StoreUnavailableError
from llmweir.records import parse_new, parse_update

HOURS_48_MS = 48 * 3_600_000


@pytest.fixture
def invitations(link: Link, users: Users) -> Invitations:
    return Invitations(link, users)


@pytest.fixture
async def ana(users: Users) -> str:
    return await new(users, user_id="ana", user_email="ana@example.com")


async def new(users: Users, **fields: Any) -> str:
    return await users.create(parse_new(json.dumps(fields).encode()))


async def update(users: Users, **fields: Any) -> None:
    await users.update(parse_update(json.dumps(fields).encode()))


async def guest_of(invitations: Invitations, token: str) -> str | None:
    guest = await invitations.guest(token)
    return None if guest is None else guest.record.user_id


async def test_a_token_is_random_fits_a_url_and_is_kept_only_as_its_hash(
    invitations: Invitations, ana: str, url: str
) -> None:
    tokens = {await invitations.issue(ana) for _ in range(10)}
    assert len(tokens) == 10
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{43}", token) for token in tokens)
    with redis.from_url(url) as client:
        kept = [key + client.dump(key) for key in client.scan_iter()]
        for token in tokens:
            key = keys.invitation(hashlib.sha256(token.encode()).hexdigest())
            assert HOURS_48_MS - 60_000 < client.pttl(key) <= HOURS_48_MS
            assert not any(token.encode() in each for each in kept)


async def test_a_token_names_its_user_and_looking_changes_nothing(invitations: Invitations, ana: str, url: str) -> None:
    token = await invitations.issue(ana)
    with redis.from_url(url) as client:
        before = {key: client.dump(key) for key in client.scan_iter()}
        assert [await guest_of(invitations, token) for _ in range(3)] == [ana] * 3
        assert {key: client.dump(key) for key in client.scan_iter()} == before


async def test_a_user_id_may_hold_blanks_and_any_letter(invitations: Invitations, users: Users) -> None:
    odd = await new(users, user_id="ä b} {u:x 二")
    assert await guest_of(invitations, await invitations.issue(odd)) == odd


@pytest.mark.parametrize(
    "token", ["", "x", "x" * 43, "x" * 44, "ü" * 43, "\ud800" * 43, "a/b" + "x" * 40, "x" * 42 + "\n"], ids=ascii
)
async def test_a_token_that_nobody_issued_names_nobody(invitations: Invitations, ana: str, token: str) -> None:
    await invitations.issue(ana)
    assert await invitations.guest(token) is None
    assert await invitations.accept(token, "hash") is False


async def test_accepting_sets_the_password_once(invitations: Invitations, users: Users, ana: str) -> None:
    token = await invitations.issue(ana)
    assert await invitations.accept(token, "first") is True
    assert await users.password_hash(ana) == "first"
    assert await invitations.guest(token) is None
    assert await invitations.accept(token, "second") is False
    assert await users.password_hash(ana) == "first"


async def test_of_twenty_who_accept_at_once_one_does(invitations: Invitations, users: Users, ana: str) -> None:
    token = await invitations.issue(ana)
    accepted = await asyncio.gather(*(invitations.accept(token, f"hash-{number}") for number in range(20)))
    assert sum(accepted) == 1
    assert await users.password_hash(ana) == f"hash-{accepted.index(True)}"


async def test_an_invitation_leaves_nothing_that_lasts(invitations: Invitations, ana: str, url: str) -> None:
    token = await invitations.issue(ana)
    await invitations.accept(token, "hash")
    with redis.from_url(url) as client:
        left = {key: client.pttl(key) for key in client.scan_iter("lw:invite:*")}
    token_hash = hashlib.sha256(token.encode()).hexdigest()
    assert list(left) == [keys.invitation_claim(token_hash)]
    assert 0 < left[keys.invitation_claim(token_hash)] <= 30_000


async def test_a_later_invitation_does_not_end_the_earlier(invitations: Invitations, ana: str) -> None:
    first, second = await invitations.issue(ana), await invitations.issue(ana)
    assert (await guest_of(invitations, first), await guest_of(invitations, second)) == (ana, ana)


@pytest.mark.parametrize(
    ("fields", "ends"),
    [
        pytest.param({"user_email": "other@example.com"}, True, id="another address"),
        pytest.param({"user_email": None}, True, id="no address"),
        pytest.param({"user_email": "ANA@example.com"}, False, id="the address in another case"),
        pytest.param({"rpm_limit": 5, "user_alias": "Ana"}, False, id="something else"),
    ],
)
async def test_an_invitation_ends_when_what_it_was_made_for_changes(
    invitations: Invitations, users: Users, ana: str, fields: dict[str, object], ends: bool
) -> None:
    token = await invitations.issue(ana)
    await update(users, user_id=ana, **fields)
    assert await guest_of(invitations, token) == (None if ends else ana)


async def test_a_password_set_by_any_way_ends_all_invitations_of_the_user_and_no_other(
    invitations: Invitations, users: Users, ana: str
) -> None:
    bob = await new(users, user_id="bob")
    tokens, others = [await invitations.issue(ana) for _ in range(2)], await invitations.issue(bob)
    await users.set_password_hash(ana, "hash")
    assert [await guest_of(invitations, token) for token in tokens] == [None, None]
    assert await guest_of(invitations, others) == bob
    again = await invitations.issue(ana)
    await invitations.accept(await invitations.issue(ana), "other hash")
    assert await guest_of(invitations, again) is None


async def test_an_invitation_ends_with_its_user_and_another_of_the_same_id_does_not_get_it(
    invitations: Invitations, users: Users, ana: str, clock: Clock
) -> None:
    token = await invitations.issue(ana)
    await users.delete([ana])
    assert await invitations.guest(token) is None
    clock.advance(ms=1)
    await new(users, user_id=ana, user_email="ana@example.com")
    assert await invitations.guest(token) is None
    assert await invitations.accept(token, "hash") is False


async def test_an_invitation_ends_by_its_time(link: Link, users: Users, ana: str) -> None:
    invitations = Invitations(link, users, life_ms=1)
    token = await invitations.issue(ana)
    until = time.monotonic() + 5
    while await invitations.guest(token) is not None:
        assert time.monotonic() < until
    assert await invitations.accept(token, "hash") is False
    assert await users.password_hash(ana) is None


async def test_nobody_who_is_not_there_is_invited(invitations: Invitations) -> None:
    with pytest.raises(NotFoundError):
        await invitations.issue("nobody")


class Failing(Users):
    """Users of a store that fails while a password is set."""

    error: Exception | None = None

    async def set_password_hash(self, user_id: str, password_hash: str) -> bool:
        if self.error is not None:
            raise self.error
        return await super().set_password_hash(user_id, password_hash)


@pytest.mark.parametrize("error", [StoreUnavailableError("away"), ReplyError("OOM")], ids=["away", "full"])
async def test_a_failure_of_the_store_does_not_use_up_an_invitation(
    link: Link, clock: Clock, ana: str, error: Exception
) -> None:
    users = Failing(link, clock=clock)
    invitations = Invitations(link, users)
    token = await invitations.issue(ana)
    users.error = error
    with pytest.raises(type(error)):
        await invitations.accept(token, "first")
    users.error = None
    assert await invitations.accept(token, "second") is True
    assert await users.password_hash(ana) == "second"


async def test_a_password_that_was_set_before_the_answer_was_lost_ends_the_invitation(
    link: Link, clock: Clock, ana: str
) -> None:
    class LosesTheAnswer(Users):
        async def set_password_hash(self, user_id: str, password_hash: str) -> bool:
            await super().set_password_hash(user_id, password_hash)
            raise StoreUnavailableError("it does not answer in time")

    users = LosesTheAnswer(link, clock=clock)
    invitations = Invitations(link, users)
    token = await invitations.issue(ana)
    with pytest.raises(StoreUnavailableError):
        await invitations.accept(token, "first")
    assert await invitations.accept(token, "second") is False
    assert await users.password_hash(ana) == "first"
