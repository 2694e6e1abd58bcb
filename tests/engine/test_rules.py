"""The engine against the model: random lives of one user and two API keys, every decision and number compared."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from msgspec import structs
from tests.backends import Clock, load_all_scripts
from tests.engine.model import Refusal, Rules
from tests.engine.model_parts import Key, OwnLimits, Scope, Want
from tests.engine.model_replay import LetThrough, count_anew, replay

from llmweir.decision import Admitted, CallerRefused, Decision, LimitRefused, Standing
from llmweir.engine.api_keys import ApiKeys
from llmweir.engine.asks import AliasOf, Ask, KeptSettlement, Settlement
from llmweir.engine.key_hashes import hash_key
from llmweir.engine.link import Link
from llmweir.engine.replays import MemoryShelf, Replays
from llmweir.engine.store import Store
from llmweir.engine.users import Users
from llmweir.key_records import KeyFields, NewKey
from llmweir.money import nanos_to_usd
from llmweir.records import parse_new, parse_update

LEASE_TTL_MS = 30_000
DAY_MS = 86_400_000
EXAMPLES = {"fakeredis": 8, "valkey": 80, "redis": 40}
KEY_ATTRIBUTES = {
    "rpm_limit": "rpm",
    "tpm_limit": "tpm",
    "max_parallel_requests": "parallel",
    "max_budget": "budget",
    "budget_duration": "duration",
}
DUMP = """
local function pairs_in_order(flat)
  local found = {}
  for index = 1, #flat, 2 do found[#found + 1] = flat[index] .. ' = ' .. flat[index + 1] end
  table.sort(found)
  return found
end
local dump, keys = {}, redis.call('KEYS', '*')
table.sort(keys)
for _, key in ipairs(keys) do
  local kind = redis.call('TYPE', key).ok
  local value = kind == 'hash' and pairs_in_order(redis.call('HGETALL', key))
    or kind == 'zset' and redis.call('ZRANGE', key, 0, -1, 'WITHSCORES') or redis.call('GET', key)
  dump[#dump + 1] = { key, value }
end
return dump
"""

maybe = partial(st.one_of, st.none())
which = st.integers(0, 6)
counts = st.sampled_from([1, 2, 3, 4, 6, 0])
token_limits = st.sampled_from([60, 100, 150, 300, 0])
nano_limits = st.sampled_from([60, 120, 500, 0])
tokens = st.sampled_from([1, 10, 40, 0, 70])
nanos = st.sampled_from([1, 5, 20, 0, 70])
extra = st.sampled_from([0, 1, 20, 100])
models = st.sampled_from(["m1", "m2", "n"])
entries = st.sampled_from(["m1", "m2", "m*", "*"])
lengths = st.sampled_from([None, "20s", "90s", "1h", "1mo"])
LIMITS: dict[str, st.SearchStrategy[Any]] = {
    "rpm_limit": maybe(counts),
    "tpm_limit": maybe(token_limits),
    "max_parallel_requests": maybe(counts),
    "max_budget": maybe(nano_limits),
    "budget_duration": lengths,
    "model_rpm_limit": st.dictionaries(entries, counts, max_size=2),
    "model_tpm_limit": st.dictionaries(entries, token_limits, max_size=2),
    "model_max_budget": st.dictionaries(entries, st.tuples(nano_limits, lengths), max_size=2),
    "spend": nano_limits,
}
KEY_LIMITS: dict[str, st.SearchStrategy[Any]] = {
    "rpm_limit": maybe(counts),
    "tpm_limit": maybe(token_limits),
    "max_parallel_requests": maybe(counts),
    "max_budget": maybe(nano_limits),
    "budget_duration": lengths,
    "spend": nano_limits,
}
changes = st.fixed_dictionaries({}, optional=LIMITS)
key_changes = st.fixed_dictionaries({}, optional=KEY_LIMITS)
names_of_keys = st.sampled_from(["a", "b"])
wants = st.builds(
    lambda model, asked, more, cost, more_cost, key: Want(model, asked, asked + more, cost, cost + more_cost, key=key),
    models, tokens, extra, nanos, extra, st.sampled_from(["", "a", "b"]),
)  # fmt: skip


class Life(RuleBasedStateMachine):
    """One user's life: whatever comes, the engine answers as the model does."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.clock = Clock()
        self.model = Rules(lease_ttl_ms=LEASE_TTL_MS)
        self.wants: dict[str, Want] = {}
        self.closed: list[str] = []
        self.refused: tuple[Want, int] | None = None
        self.let_through_: list[LetThrough] = []
        self.passed: dict[str, tuple[int, int, list[Scope]]] = {}
        self.secrets: dict[str, str] = {}
        self.old_secrets: list[str] = []
        self.first_day = self.clock() // DAY_MS
        self.run(self._open(url))

    def run(self, coroutine: Any) -> Any:
        return self.runner.run(coroutine)

    async def _open(self, url: str) -> None:
        self.link = Link(url, timeout_ms=10_000)
        self.store = Store(self.link, clock=self.clock, lease_ttl_ms=LEASE_TTL_MS)
        self.replays = Replays(self.link, MemoryShelf(), self.clock, 86_400_000)
        self.users = Users(self.link, clock=self.clock)
        await self.link.call("FLUSHALL")
        await load_all_scripts(self.link)
        self.keys = ApiKeys(self.users)
        await self.users.create(parse_new(b'{"user_id": "u"}'))

    def teardown(self) -> None:
        self.read_the_books()
        self.run(self.link.aclose())
        self.runner.close()

    # What an admin does.

    @initialize(changed=changes, a=key_changes, b=st.none() | key_changes)
    def begin(self, changed: dict[str, Any], a: dict[str, Any], b: dict[str, Any] | None) -> None:
        self.change(changed)
        self.mint("a", a)
        if b is not None:
            self.mint("b", b)

    @precondition(lambda self: self.model.exists)
    @rule(changed=changes)
    def change(self, changed: dict[str, Any]) -> None:
        budgets: dict[str, tuple[int, str | None]] = changed.get("model_max_budget", {})
        body = {"user_id": "u"} | changed
        for name in {"max_budget", "spend"} & body.keys():
            body[name] = None if body[name] is None else nanos_to_usd(body[name])
        if "model_max_budget" in body:
            body["model_max_budget"] = {entry: _budget_body(*budget) for entry, budget in budgets.items()}
        self.run(self.users.update(parse_update(json.dumps(body).encode())))
        rules, limits = self.model, self.model.limits
        rules.catch_up(self.clock())
        limits.rpm = changed.get("rpm_limit", limits.rpm)
        limits.tpm = changed.get("tpm_limit", limits.tpm)
        limits.parallel = changed.get("max_parallel_requests", limits.parallel)
        limits.budget = changed.get("max_budget", limits.budget)
        limits.model_rpm = changed.get("model_rpm_limit", limits.model_rpm)
        limits.model_tpm = changed.get("model_tpm_limit", limits.model_tpm)
        if "model_max_budget" in changed:
            rules.set_model_budgets(budgets, self.clock())
        if "budget_duration" in changed:
            rules.set_period(changed["budget_duration"], self.clock())
        if "spend" in changed:
            rules.set_spend(changed["spend"])

    @precondition(lambda self: self.model.exists and len(self.model.keys) < 2)
    @rule(changed=key_changes)
    def mint_what_is_missing(self, changed: dict[str, Any]) -> None:
        self.mint("a" if "a" not in self.model.keys else "b", changed)

    def mint(self, name: str, changed: dict[str, Any]) -> None:
        minted = self.run(self.keys.mint("u", NewKey.model_validate_json(key_body(changed))))
        self.secrets[name] = minted.secret
        self.model.catch_up(self.clock())
        self.model.keys[name] = Key()
        self._model_key(name, changed)

    @precondition(lambda self: self.model.keys)
    @rule(name=names_of_keys, changed=key_changes)
    def change_a_key(self, name: str, changed: dict[str, Any]) -> None:
        record = self.run(self.keys.find(self.secrets[self._key(name)]))
        self.run(self.keys.update(record, KeyFields.model_validate_json(key_body(changed))))
        self.model.catch_up(self.clock())
        self._model_key(self._key(name), changed)

    @precondition(lambda self: self.model.keys)
    @rule(name=names_of_keys, what=st.sampled_from(["delete", "regenerate", "block", "unblock", "block"]))
    def treat_a_key(self, name: str, what: str) -> None:
        name = self._key(name)
        record = self.run(self.keys.find(self.secrets[name]))
        if what == "delete":
            self.run(self.keys.delete([record]))
            self.model.catch_up(self.clock())
            del self.model.keys[name]
        elif what == "regenerate":
            self.old_secrets.append(self.secrets[name])
            self.secrets[name] = self.run(self.keys.regenerate(record)).secret
        else:
            self.run(self.keys.set_blocked(record, what == "block"))
            self.model.keys[name].blocked = what == "block"

    @precondition(lambda self: self.model.exists)
    @rule(at_once=st.booleans(), changed=changes, key=key_changes)
    def delete_the_user(self, at_once: bool, changed: dict[str, Any], key: dict[str, Any]) -> None:
        user = self.run(self.users.get("u"))
        self.run(self.users.delete(["u"]))
        self.run(self.keys.forget(user.keys))
        self.model.delete(self.clock())
        if at_once:
            self.make_the_user_anew(changed, key)

    @precondition(lambda self: not self.model.exists)
    @rule(changed=changes, key=key_changes)
    def make_the_user_anew(self, changed: dict[str, Any], key: dict[str, Any]) -> None:
        self.run(self.users.create(parse_new(b'{"user_id": "u"}')))
        self.model.make_anew(self.clock())
        self.begin(changed, key, None)

    def _key(self, name: str) -> str:
        return name if name in self.model.keys else next(iter(self.model.keys))

    def _model_key(self, name: str, changed: dict[str, Any]) -> None:
        key = self.model.keys[name]
        limits = replace(key.limits)
        for field, attribute in KEY_ATTRIBUTES.items():
            if field in changed:
                setattr(limits, attribute, changed[field])
        key.set_limits(limits, self.clock())
        if "spend" in changed:
            key.set_spend(changed["spend"])

    # What time does.

    @rule(ms=st.sampled_from([1, 400, 999, 1_000, 5_000, 20_000, 29_999, 60_000, 61_000, 600_000, 40 * 86_400_000]))
    def pass_time(self, ms: int) -> None:
        self.clock.advance(ms=ms)

    @precondition(lambda self: self.refused is not None)
    @rule(early=st.booleans())
    def come_back_when_told(self, early: bool) -> None:
        """P3: at exactly the moment a refusal named there is room, one second-slot earlier there is not."""
        assert self.refused is not None
        want, at_ms = self.refused
        self.clock.now_ms = max(self.clock.now_ms, at_ms - 1_000 * early)
        self.ask(want)

    # What callers do.

    @rule(want=wants)
    def ask(self, want: Want) -> None:
        request_id = f"r{len(self.wants)}"
        self.wants[request_id] = want
        self._admit(request_id, want)

    @precondition(lambda self: self.old_secrets)
    @rule(want=wants)
    def ask_with_a_key_that_was_made_anew(self, want: Want) -> None:
        ask = ask_of("none", want, hash_key(self.old_secrets[-1]))
        decision = self.run(self.store.admit(ask))
        assert decision == CallerRefused("unknown_key" if self.model.exists else "unknown_user")

    @precondition(lambda self: self.model.leases)
    @rule(which=which)
    def ask_again_with_the_same_id(self, which: int) -> None:
        request_id = self._in_flight(which)
        self._admit(request_id, self.wants[request_id])

    @rule(model=models)
    def ask_without_a_price(self, model: str) -> None:
        self.ask(Want(model, 1, 1, 0, -1))

    @rule(want=wants, times=st.integers(2, 5), ms=st.sampled_from([0, 300, 5_000]))
    def ask_several_times(self, want: Want, times: int, ms: int) -> None:
        for _ in range(times):
            self.clock.advance(ms=ms)
            self.ask(want)

    @precondition(lambda self: self.model.leases or self.model.expired)
    @rule(which=which, late=st.booleans(), used=st.tuples(tokens, tokens, nanos), as_held=st.booleans())
    def settle(self, which: int, late: bool, used: tuple[int, int, int], as_held: bool) -> None:
        request_id = self._in_flight(which, late=late)
        held = (self.model.leases | self.model.expired)[request_id]
        self._settle(request_id, *((held.tokens, 0, held.nanos) if as_held else used))

    @precondition(lambda self: self.model.leases or self.model.expired)
    @rule(which=which, late=st.booleans(), cancelled=st.booleans())
    def give_back(self, which: int, late: bool, cancelled: bool) -> None:
        self._settle(self._in_flight(which, late=late), 0, 0, 0, failed=not cancelled, cancelled=cancelled)

    @precondition(lambda self: self.closed)
    @rule(which=which, used=st.tuples(tokens, tokens, nanos))
    def settle_twice(self, which: int, used: tuple[int, int, int]) -> None:
        self._settle(self.closed[which % len(self.closed)], *used)

    @rule(ask_after=st.booleans(), want=wants)
    def cancel_what_has_not_come_yet(self, ask_after: bool, want: Want) -> None:
        """P6: who was told that the store is away is not counted, not even by an admission that comes after all."""
        request_id = f"r{len(self.wants)}"
        self.wants[request_id] = want
        self._settle(request_id, 0, 0, 0, cancelled=True)
        if ask_after:
            self._admit(request_id, want)

    @precondition(lambda self: self.model.leases or self.model.expired or self.closed)
    @rule(
        which=which,
        late=st.booleans(),
        used=st.tuples(tokens, tokens, nanos),
        how=st.sampled_from(["", "failed", "cancelled"]),
    )
    def replay_what_was_admitted(self, which: int, late: bool, used: tuple[int, int, int], how: str) -> None:
        ids = [*self.model.expired] if late else [*self.model.leases]
        ids = ids or [*self.model.leases] or [*self.model.expired] or self.closed
        request_id = ids[which % len(ids)]
        used = used if how == "" else (0, 0, 0)
        self.model.catch_up(self.clock())
        known = replay(self.model, request_id, used, **({how: True} if how else {}))
        self._replay(
            KeptSettlement(
                request_id=request_id,
                user_id="u",
                may_be_done=True,
                failed=how == "failed",
                cancelled=how == "cancelled",
                **_used(used),
            ),
            known,
        )
        self.closed.append(request_id)
        if how == "cancelled":
            self.passed.pop(request_id, None)
        elif known:
            at_ms, _, counted_in = self.passed[request_id]
            self.passed[request_id] = at_ms, used[0] + used[1], counted_in

    @rule(want=wants)
    def let_through(self, want: Want) -> None:
        key_hash = hash_key(self.secrets[want.key]) if want.key in self.model.keys else ""
        want = want._replace(key=want.key if key_hash else "")
        key = self.model.keys.get(want.key)
        self.let_through_.append(LetThrough(f"o{len(self.let_through_)}", want, self.clock(), key_hash, key))

    @precondition(lambda self: self.let_through_)
    @rule(which=which, used=st.tuples(tokens, tokens, nanos), failed=st.booleans(), ask_after=st.booleans())
    def replay_what_was_let_through(
        self, which: int, used: tuple[int, int, int], failed: bool, ask_after: bool
    ) -> None:
        asked = self.let_through_[-1 - which % len(self.let_through_)]
        used = (0, 0, 0) if failed else used
        asked.settle_as(self.model)
        self.model.catch_up(self.clock())
        known = count_anew(self.model, asked, used, failed, self.clock())
        kept = KeptSettlement(
            request_id=asked.request_id, user_id="u", key_hash=asked.key_hash, model=asked.want.model,
            at_ms=asked.at_ms, failed=failed, **_used(used),
        )  # fmt: skip
        self._replay(kept, known)
        if ask_after and asked.request_id in self.model.buried:
            self.wants[asked.request_id] = asked.want
            self._admit(asked.request_id, asked.want)

    @precondition(lambda self: self.model.leases)
    @rule()
    def renew(self) -> None:
        self.model.catch_up(self.clock())
        self.run(self.users.get("u"))
        self.run(self.store.renew(older_than_s=-1))
        for request_id in self.model.leases:
            self.model.renew(request_id, self.clock())

    @invariant()
    def the_account_reads_as_the_model_says(self) -> None:
        if not hasattr(self, "users"):
            return
        user, rules = self.run(self.users.get("u")), self.model
        rules.catch_up(self.clock())
        if not rules.exists:
            assert user is None
            return
        assert user.record.spend_nanos == rules.user.account.spent
        assert user.record.reserved_nanos == rules.user.account.held
        assert user.record.model_spend_nanos == {model: spent for model, spent in rules.model_spend.items() if spent}
        assert user.record.budget_reset_at_ms == rules.user.account.ends_ms
        # P5
        assert user.record.spend_nanos == sum(user.record.model_spend_nanos.values()) + rules.adjustment
        kept = {record.token: (record.spend_nanos, record.budget_reset_at_ms, record.blocked) for record in user.keys}
        assert kept == {
            hashlib.sha256(self.secrets[name].encode()).hexdigest(): (key.spent, key.ends_ms, key.blocked)
            for name, key in rules.keys.items()
        }

    @rule()
    def read_the_books(self) -> None:
        """P5: whatever was charged stands in the row of its day, also of users who are deleted."""
        rules, last_day = self.model, self.clock() // DAY_MS
        self.run(self.users.get("u"))
        rules.catch_up(self.clock())
        rows = self.run(self.users.days("u", self.first_day, last_day))
        assert {(row.day, row.model): structs.astuple(row)[2:] for row in rows if any(structs.astuple(row)[2:])} == {
            place: tuple(row) for place, row in rules.books.items() if any(row)
        }

    def _in_flight(self, which: int, *, late: bool = False) -> str:
        requests: list[str] = [*self.model.expired] if late or not self.model.leases else [*self.model.leases]
        requests = requests or [*self.model.leases]
        return requests[which % len(requests)]

    def _admit(self, request_id: str, want: Want) -> None:
        self.run(self.users.get("u"))
        before = self.run(self._dump())
        again = request_id in self.model.leases or request_id in self.model.buried
        standing, refusals = self.model.admit(request_id, want, self.clock())
        key_hash = hash_key(self.secrets.get(want.key, "sk-never-made")) if want.key else ""
        decision = self.run(self.store.admit(ask_of(request_id, want, key_hash)))
        if request_id in self.model.buried:  # no worker waits for this answer
            self.store._in_flight.pop(request_id, None)
        self.refused = None
        if not refusals:
            assert isinstance(decision, Admitted), (decision, standing)
            assert comparable(decision.standing) == comparable(standing)
            if not again:
                self._check_spans(request_id, want, standing)
        else:
            self._check_refusal(want, decision, refusals)
        if refusals or again:
            # P2, P6
            assert self.run(self._dump()) == before

    def _check_refusal(self, want: Want, decision: Decision | AliasOf, refusals: list[Refusal]) -> None:
        if isinstance(decision, LimitRefused):
            assert isinstance(refusals[0], LimitRefused), refusals
            assert comparable(decision.standing) == comparable(refusals[0].standing)
            decision = structs.replace(decision, standing=refusals[0].standing)
            if decision.kind == "wait" and decision.limit.name.endswith("pm"):
                self.refused = want, self.clock() + decision.wait_ms
        assert decision in refusals

    def _check_spans(self, request_id: str, want: Want, standing: Standing) -> None:
        """P3: no span of 60 seconds that ends now holds more than the limit, counted from the true times."""
        now_ms, held, key = self.clock(), self.model.leases[request_id], self.model.keys.get(want.key)
        self.passed[request_id] = now_ms, held.tokens, [part.scope for part in held.parts]
        scopes: list[tuple[Scope, OwnLimits]] = [(self.model.user, self.model.limits)]
        if key is not None and key.scope is not None:
            scopes.append((key.scope, key.limits))
        for scope, limits in scopes:
            passed = [(tokens, at_ms) for at_ms, tokens, counted_in in self.passed.values() if scope in counted_in]
            inside = [tokens for tokens, at_ms in passed if at_ms > now_ms - 60_000]
            assert limits.rpm is None or len(inside) <= limits.rpm
            if limits.tpm is not None and held.tokens > 0:
                assert sum(inside) <= limits.tpm

    def _settle(self, request_id: str, input_tokens: int, output_tokens: int, cost_nanos: int, **how: bool) -> None:
        self.model.catch_up(self.clock())
        self.run(self.users.get("u"))
        failed, cancelled = how.get("failed", False), how.get("cancelled", False)
        known = self.model.settle(
            request_id, input_tokens, output_tokens, cost_nanos, failed=failed, cancelled=cancelled
        )
        reply = self.run(self._send(request_id, input_tokens, output_tokens, cost_nanos, how))
        assert reply[0] == known
        self.closed.append(request_id)
        if cancelled:
            self.passed.pop(request_id, None)
        elif known:
            at_ms, _, counted_in = self.passed[request_id]
            self.passed[request_id] = at_ms, input_tokens + output_tokens, counted_in

    def _replay(self, kept: KeptSettlement, known: bool) -> None:
        self.run(self.users.get("u"))
        self.store._in_flight.pop(kept.request_id, None)
        reply = self.run(self.replays.settle(kept))
        assert reply[0] == known

    async def _dump(self) -> Any:
        return await self.link.call("EVAL", DUMP, 0)

    async def _send(
        self, request_id: str, input_tokens: int, output_tokens: int, cost: int, how: dict[str, bool]
    ) -> Any:
        return await self.store.settle(
            Settlement(
                request_id=request_id,
                user_id="u",
                input_tokens=input_tokens,
                output_tokens=output_tokens,
                cost_nanos=cost,
                **how,
            )
        )


def key_body(changed: dict[str, Any]) -> str:
    """The body that says of a key what the model is told, money in USD."""
    in_usd = {name: nanos_to_usd(changed[name]) for name in ("max_budget", "spend") if changed.get(name) is not None}
    return json.dumps(changed | in_usd)


def _used(used: tuple[int, int, int]) -> dict[str, Any]:
    return dict(zip(("input_tokens", "output_tokens", "cost_nanos"), used, strict=True))


def ask_of(request_id: str, want: Want, key_hash: str) -> Ask:
    return Ask(
        request_id=request_id,
        user_id="u",
        key_hash=key_hash,
        model=want.model,
        target=want.model,
        asked_tokens=want.asked_tokens,
        hold_tokens=want.hold_tokens,
        asked_nanos=want.asked_nanos,
        hold_nanos=want.hold_nanos,
    )


def comparable(standing: Standing) -> dict[str, int]:
    """Give the numbers that mean something: how many run where that is limited, the end of a window that counts."""
    numbers: dict[str, int] = {name: getattr(standing, name) for name in Standing.__struct_fields__}
    if standing.parallel_limit < 0:
        numbers["parallel_used"] = 0
    if standing.rpm_used == 0:
        numbers["window_reset_ms"] = 0
    return numbers


def _budget_body(limit: int, duration: str | None) -> Any:
    return nanos_to_usd(limit) if duration is None else {"max_budget": nanos_to_usd(limit), "budget_duration": duration}


@pytest.mark.timeout(170)
def test_p2_p3_p5_p6_every_decision_and_every_number_is_what_the_rules_say(
    backend: str, url_of: Callable[[str], str]
) -> None:
    url = url_of(backend)
    steps = settings(max_examples=EXAMPLES[backend], stateful_step_count=40)
    run_state_machine_as_test(lambda: Life(url), settings=steps)  # type: ignore[arg-type]  # any factory will do
