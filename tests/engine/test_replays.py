"""What the outbox brings back: what holds the rest up, what is set aside, and whose it is by then."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from tests.backends import Clock, on_valkey
from tests.engine.asking import an_ask, create, mint, passes, send, settle, user

from llmweir.engine.any_link import AnyLink, says_unavailable
from llmweir.engine.api_keys import ApiKeys
from llmweir.engine.asks import KeptSettlement, Settlement
from llmweir.engine.key_hashes import hash_key
from llmweir.engine.link import Link
from llmweir.engine.replays import MemoryShelf, Replays
from llmweir.engine.store import Store
from llmweir.engine.users import Users
from llmweir.engine.wire import Receiver, ReplyError
from llmweir.errors import StoreUnavailableError


class Nodes(AnyLink):
    """A cluster of two masters, in name: it answers each settlement by its user."""

    def __init__(self, answer: Callable[[str], Exception | None], *, masters: int = 2) -> None:
        super().__init__()
        self._answer = answer
        self._masters = masters
        self.sent: list[str] = []

    @property
    def is_up(self) -> bool:
        return True

    @property
    def is_down(self) -> bool:
        return False

    @property
    def masters(self) -> tuple[AnyLink, ...]:
        return (self,) * self._masters

    def post(self, packed: bytes, receiver: Receiver) -> None:
        user_id = packed.partition(b"{u:")[2].partition(b"}")[0].decode()
        self.sent.append(user_id)
        error = self._answer(user_id)
        if error is None:
            receiver.set_result([1])
        else:
            receiver.set_exception(error)

    async def ready(self) -> None:
        """It always is."""

    async def aclose(self) -> None:
        """There is nothing."""


def kept(request_id: str, user_id: str = "u", **fields: object) -> KeptSettlement:
    return KeptSettlement(request_id=request_id, user_id=user_id, **fields)  # type: ignore[arg-type]  # as they come


async def replayed(link: Nodes, *settlements: KeptSettlement) -> MemoryShelf:
    shelf = MemoryShelf()
    shelf.keep(*settlements)
    await Replays(link, shelf, lambda: 0, 1_000).idle()
    return shelf


async def test_what_one_of_several_servers_cannot_take_does_not_hold_up_the_rest() -> None:
    away = StoreUnavailableError("its node is gone")
    link = Nodes(lambda user_id: away if user_id == "dead" else None)
    records = [kept(f"d{n}", "dead") for n in range(3)] + [kept(f"a{n}", "alive") for n in range(500)]
    shelf = await replayed(link, *records)
    assert [one.request_id for one in shelf.oldest(9)] == ["d0", "d1", "d2"]
    assert link.sent.count("alive") == 500
    assert link.sent.count("dead") == 3


async def test_one_server_that_cannot_take_the_first_is_left_in_peace() -> None:
    link = Nodes(lambda _: StoreUnavailableError("it is away"), masters=1)
    shelf = await replayed(link, *(kept(f"r{n}") for n in range(500)))
    assert shelf.records == 500
    assert len(link.sent) == 200


ERRORS: dict[str, tuple[str, bool]] = {
    "a fault of the script": ("ERR user_script:7: attempt to index a nil value script: f00, on @user_script:7.", True),
    "a key of another type": ("WRONGTYPE Operation against a key, script: f00, on @user_script:7.", True),
    "full, up to 6.2": ("ERR Error running script (call to f_00): @user_script:7: -OOM command not allowed. ", False),
    "full": ("OOM command not allowed when used memory > 'maxmemory'.", False),
    "too few replicas": ("NOREPLICAS Not enough good replicas to write.", False),
    "a limit of the host": ("ERR max daily request limit exceeded.", False),
    "killed by hand": ("ERR Error running script: user_script:1: Script killed by user with SCRIPT KILL.", False),
}


@pytest.mark.parametrize("case", ERRORS)
async def test_only_what_the_script_itself_cannot_do_is_set_aside(case: str) -> None:
    text, is_set_aside = ERRORS[case]
    shelf = await replayed(Nodes(lambda _: ReplyError(text), masters=1), kept("r"))
    assert (shelf.records == 0) is is_set_aside


@pytest.mark.parametrize("case", ["a fault of the script", "full, up to 6.2", "full", "too few replicas"])
def test_an_error_of_one_caller_lets_nobody_through(case: str) -> None:
    assert says_unavailable(ReplyError(ERRORS[case][0])) is (case != "a fault of the script")


@on_valkey
async def test_a_key_made_anew_pays_for_what_the_old_one_was_let_through_with(
    link: Link, store: Store, users: Users, clock: Clock
) -> None:
    await create(users)
    minted = await mint(users, max_budget=1)
    await ApiKeys(users).regenerate(minted.record)
    replays = Replays(link, MemoryShelf(), clock, 1_000_000)
    late = kept("o", key_hash=hash_key(minted.secret), model="gpt-4o", at_ms=clock(), cost_nanos=7)
    assert await replays.settle(late) == [1]
    assert await replays.settle(late) == [0]
    (key,) = (await user(users)).keys
    assert key.spend_nanos == 7


@on_valkey
async def test_a_settlement_whose_lease_was_lost_is_counted_all_the_same(
    link: Link, store: Store, users: Users, clock: Clock
) -> None:
    await create(users)
    await passes(store, an_ask("r", tokens=10, nanos=10))
    await link.call("DEL", "lw:{u:u}:leases")
    assert not await settle(store, nanos=4)
    async with asyncio.timeout(10):
        await store.drain()
    assert (await user(users)).record.spend_nanos == 4


@on_valkey
async def test_a_clock_set_back_under_a_long_request_never_makes_a_window_negative(
    store: Store, users: Users, clock: Clock
) -> None:
    await create(users, tpm_limit=1_000)
    await passes(store, an_ask("long", tokens=1_000))
    clock.advance(seconds=-100)
    await store.admit(an_ask("turns back", tokens=1))
    clock.advance(seconds=110)
    assert (await passes(store, an_ask("a", tokens=100))).standing.tpm_used == 100
    await send(store, Settlement(request_id="long", user_id="u", input_tokens=10))
    assert (await passes(store, an_ask("b", tokens=1))).standing.tpm_used == 101
