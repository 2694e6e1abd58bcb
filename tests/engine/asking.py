"""What the tests of the engine say most often, in few words."""

from __future__ import annotations

import json
from typing import Any

from llmweir.decision import Admitted, Decision, LimitRefused
from llmweir.engine.api_keys import ApiKeys, MintedKey
from llmweir.engine.asks import AliasOf, Ask, Settlement
from llmweir.engine.store import Store
from llmweir.engine.users import User, Users
from llmweir.key_records import NewKey
from llmweir.money import nanos_to_usd
from llmweir.records import parse_new, parse_update

USD = 1_000_000_000


async def create(users: Users, user_id: str = "u", /, **fields: Any) -> str:
    """Make a user; `max_budget_nanos` stands for a `max_budget` in nano-dollars, and so on."""
    return await users.create(parse_new(_body(user_id, fields)))


async def update(users: Users, user_id: str = "u", /, **fields: Any) -> str:
    return await users.update(parse_update(_body(user_id, fields)))


async def user(users: Users, user_id: str = "u") -> User:
    found = await users.get(user_id)
    assert found is not None
    return found


async def mint(users: Users, user_id: str = "u", /, **fields: Any) -> MintedKey:
    """Make an API key with these fields of its body."""
    return await ApiKeys(users).mint(user_id, NewKey.model_validate_json(json.dumps(fields)))


def an_ask(  # a request names what it wants in one line
    request_id: str = "r",
    *,
    user_id: str = "u",
    key_hash: str = "",
    model: str = "gpt-4o",
    target: str | None = None,
    tokens: int | tuple[int, int] = 0,
    nanos: int | tuple[int, int] = 0,
    cache_controls: str = "",
    default_digest: str = "",
) -> Ask:
    """Make an ask; `tokens` and `nanos` are what is asked and held, or a pair of the two."""
    asked_tokens, hold_tokens = tokens if isinstance(tokens, tuple) else (tokens, tokens)
    asked_nanos, hold_nanos = nanos if isinstance(nanos, tuple) else (nanos, nanos)
    return Ask(
        request_id=request_id,
        user_id=user_id,
        key_hash=key_hash,
        model=model,
        target=model if target is None else target,
        asked_tokens=asked_tokens,
        hold_tokens=hold_tokens,
        asked_nanos=asked_nanos,
        hold_nanos=hold_nanos,
        cache_controls=cache_controls,
        default_digest=default_digest,
    )


async def passes(store: Store, ask: Ask) -> Admitted:
    decision = await store.admit(ask)
    assert isinstance(decision, Admitted), decision
    return decision


async def refused(store: Store, ask: Ask) -> LimitRefused:
    decision: Decision | AliasOf = await store.admit(ask)
    assert isinstance(decision, LimitRefused), decision
    return decision


async def settle(store: Store, request_id: str = "r", *, user_id: str = "u", tokens: int = 0, nanos: int = 0) -> bool:
    """Settle with so many tokens in all; tells whether it changed anything."""
    return await send(store, Settlement(request_id=request_id, user_id=user_id, input_tokens=tokens, cost_nanos=nanos))


async def send(store: Store, settlement: Settlement) -> bool:
    reply = await store.settle(settlement)
    assert isinstance(reply, list)
    return reply[0] == 1


def _body(user_id: str, fields: dict[str, Any]) -> bytes:
    body: dict[str, Any] = {"user_id": user_id}
    for name, value in fields.items():
        in_nanos = name.endswith("_nanos") and value is not None
        body[name.removesuffix("_nanos")] = nanos_to_usd(value) if in_nanos else value
    return json.dumps(body).encode()
