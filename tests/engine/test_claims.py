from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from itertools import combinations

import pytest
from tests.backends import Clock, on_real_servers, on_valkey

from llmweir.engine import keys
from llmweir.engine.claims import WRITING_MS, Claims
from llmweir.engine.link import Link

NAME = keys.email("al@example.com")
DECADE_S = 10 * 365 * 86_400


class Records:
    """The truth: which name each owner's record has, changed as a user's record is."""

    def __init__(self, claims: Claims) -> None:
        self.names: dict[str, bytes] = {}
        self.claims = claims

    def confirms(self, name: bytes) -> Callable[[str], Awaitable[bool]]:
        async def has_it(owner: str) -> bool:
            return self.names.get(owner) == name

        return has_it

    async def claim(self, name: bytes, owner: str) -> bool:
        return await self.claims.claim(name, owner, self.confirms(name))

    async def release(self, name: bytes, owner: str) -> None:
        await self.claims.release(name, owner, self.confirms(name))

    def rename(self, owner: str, name: bytes) -> list[Callable[[], Awaitable[object]]]:
        """The steps of a change of name, each of which a crash may be the end of."""
        before: list[bytes] = []

        async def read() -> None:
            before.extend([self.names[owner]] if owner in self.names else [])

        async def write() -> None:
            self.names[owner] = name

        async def release() -> None:
            if before and before[0] != name:
                await self.release(before[0], owner)

        return [read, lambda: self.claim(name, owner), write, lambda: self.claims.keep(name, owner), release]

    async def renamed(self, owner: str, name: bytes) -> None:
        for step in self.rename(owner, name):
            await step()


@pytest.fixture
def claims(link: Link, clock: Clock) -> Claims:
    return Claims(link, clock=clock)


@pytest.fixture
def records(claims: Claims) -> Records:
    return Records(claims)


async def test_a_name_has_one_owner(records: Records, claims: Claims) -> None:
    assert await claims.owner(NAME) is None
    await records.renamed("al", NAME)
    assert not await records.claim(NAME, "bo")
    assert await claims.owner(NAME) == "al"


async def test_an_owner_may_claim_its_name_again(records: Records) -> None:
    await records.renamed("al", NAME)
    assert await records.claim(NAME, "al")


@pytest.mark.parametrize("owner", ["1 2 3 4", "ä\n{u}", " ", "al al"])
async def test_an_owner_may_have_any_name_itself(records: Records, claims: Claims, owner: str) -> None:
    await records.renamed(owner, NAME)
    assert await claims.owner(NAME) == owner
    assert not await records.claim(NAME, "bo")
    del records.names[owner]
    await records.release(NAME, owner)
    assert await claims.owner(NAME) is None


@pytest.mark.parametrize(
    ("address", "other"), [("Al@Example.com", "al@example.COM"), ("ärger@example.com", "ÄRGER@example.com")]
)
def test_the_case_of_an_email_address_does_not_matter(address: str, other: str) -> None:
    assert keys.email(address) == keys.email(other)


def test_other_letters_are_another_email_address() -> None:
    assert keys.email("straße@example.com") != keys.email("strasse@example.com")


def test_the_case_of_a_key_alias_matters() -> None:
    assert keys.alias("Laptop") != keys.alias("laptop")


# Crashes.


@pytest.mark.parametrize("steps", range(6))
async def test_wherever_a_rename_crashes_the_name_of_the_record_is_safe_and_the_other_is_free(
    records: Records, clock: Clock, steps: int
) -> None:
    old, new = keys.email("old@example.com"), keys.email("new@example.com")
    await records.renamed("al", old)
    for step in records.rename("al", new)[:steps]:
        await step()
    has = records.names["al"]
    assert has == (old if steps < 3 else new)
    assert not await records.claim(has, "bo")
    clock.advance(seconds=DECADE_S)
    assert not await records.claim(has, "bo")
    assert await records.claim(new if has == old else old, "bo")


async def test_a_claim_stays_while_its_writer_may_be_at_work_and_no_longer(records: Records, clock: Clock) -> None:
    assert await records.claim(NAME, "al")
    clock.advance(ms=WRITING_MS - 1)
    assert not await records.claim(NAME, "bo")
    clock.advance(ms=1)
    assert await records.claim(NAME, "bo")


async def test_a_claim_is_not_lost_for_ever_when_the_clock_was_wrong(records: Records, clock: Clock) -> None:
    assert await records.claim(NAME, "al")
    clock.advance(seconds=-DECADE_S)
    assert await records.claim(NAME, "bo")


async def test_a_claim_never_expires_by_itself(records: Records, link: Link) -> None:
    for steps in range(2, 6):
        for step in records.rename("al", NAME)[:steps]:
            await step()
        assert await link.call("PTTL", NAME) == -1


async def test_what_is_no_claim_is_in_nobodys_way(records: Records, claims: Claims, link: Link) -> None:
    await link.call("SET", NAME, "al")
    assert await claims.owner(NAME) is None
    await records.release(NAME, "al")
    assert await records.claim(NAME, "bo")


async def test_a_writer_that_took_too_long_learns_that_the_name_is_lost(
    records: Records, claims: Claims, clock: Clock
) -> None:
    assert await records.claim(NAME, "al")
    clock.advance(ms=WRITING_MS)
    await records.renamed("bo", NAME)
    assert not await claims.keep(NAME, "al")
    assert await claims.owner(NAME) == "bo"


# Releases.


async def test_a_name_given_up_is_free_at_once(records: Records) -> None:
    await records.renamed("al", NAME)
    await records.renamed("al", keys.email("new@example.com"))
    assert await records.claim(NAME, "bo")


async def test_a_claim_taken_back_is_free_at_once(records: Records, claims: Claims) -> None:
    assert await records.claim(NAME, "al")
    await claims.give_up(NAME, "al", records.confirms(NAME))
    assert await records.claim(NAME, "bo")


async def test_a_claim_taken_back_stays_where_the_record_had_the_name_before(records: Records, claims: Claims) -> None:
    await records.renamed("al", NAME)
    assert await records.claim(NAME, "al")
    await claims.give_up(NAME, "al", records.confirms(NAME))
    assert not await records.claim(NAME, "bo")


async def test_nobody_releases_what_another_owns(records: Records, claims: Claims) -> None:
    await records.renamed("al", NAME)
    await records.release(NAME, "bo")
    await claims.give_up(NAME, "bo", records.confirms(NAME))
    assert await claims.owner(NAME) == "al"


async def test_a_name_is_not_released_while_another_writer_may_be_giving_it_back(
    records: Records, claims: Claims, clock: Clock
) -> None:
    await records.claim(NAME, "al")
    await records.claim(NAME, "al")
    await claims.keep(NAME, "al")
    await records.release(NAME, "al")
    assert await claims.owner(NAME) == "al"
    clock.advance(ms=WRITING_MS)
    await records.release(NAME, "al")
    assert await claims.owner(NAME) is None


async def test_a_name_given_back_while_its_release_looks_at_the_record_stays(records: Records, claims: Claims) -> None:
    await records.renamed("al", NAME)

    async def given_back_after_the_look(owner: str) -> bool:
        await records.renamed("al", NAME)
        return False

    await claims.release(NAME, "al", given_back_after_the_look)
    assert not await records.claim(NAME, "bo")


@on_valkey
async def test_two_renames_of_one_user_never_leave_its_name_to_others(
    link: Link, clock: Clock, records: Records
) -> None:
    old, new = keys.email("old@example.com"), keys.email("new@example.com")
    for order in interleavings(5, 5):
        await link.call("FLUSHALL")
        records.names.clear()
        await records.renamed("al", old)
        renames = (iter(records.rename("al", new)), iter(records.rename("al", old)))
        for which in order:
            await next(renames[which])()
        has = records.names["al"]
        assert not await records.claim(has, "bo"), order
        clock.advance(ms=WRITING_MS)
        assert not await records.claim(has, "bo"), order
        assert await records.claim(new if has == old else old, "bo"), order


def interleavings(first: int, second: int) -> Iterator[list[int]]:
    for places in combinations(range(first + second), first):
        yield [0 if place in places else 1 for place in range(first + second)]


# Races.


@pytest.mark.parametrize("left_behind", [False, True], ids=["free", "left by a crash"])
@on_real_servers
async def test_of_fifty_that_claim_a_name_at_once_one_gets_it(url: str, clock: Clock, left_behind: bool) -> None:
    links = [Link(url, timeout_ms=10_000) for _ in range(2)]
    everybody = [Records(Claims(link, clock=clock)) for link in links]
    if left_behind:
        assert await everybody[0].claim(NAME, "crashed")
        clock.advance(ms=WRITING_MS)
    won = await asyncio.gather(*(everybody[number % 2].claim(NAME, f"u{number}") for number in range(50)))
    assert sum(won) == 1
    assert await everybody[0].claims.owner(NAME) == f"u{won.index(True)}"
    await asyncio.gather(*(link.aclose() for link in links))


async def test_a_claim_renewed_while_another_asks_its_record_is_not_taken_over(
    records: Records, claims: Claims, clock: Clock
) -> None:
    assert await records.claim(NAME, "al")
    clock.advance(ms=WRITING_MS)

    async def renewed_after_the_look(owner: str) -> bool:
        await records.claim(NAME, "al")
        return False

    assert not await claims.claim(NAME, "bo", renewed_after_the_look)
    assert await claims.owner(NAME) == "al"


@on_real_servers
async def test_the_server_tells_the_time_where_nobody_brings_one(link: Link) -> None:
    records = Records(Claims(link))
    assert await records.claim(NAME, "al")
    assert not await records.claim(NAME, "bo")
    await records.claims.give_up(NAME, "al", records.confirms(NAME))
    assert await records.claim(NAME, "bo")
