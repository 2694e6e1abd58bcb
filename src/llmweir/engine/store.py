"""The store: every question the gate has for Redis, each one script call."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import cast

import msgspec

from llmweir.decision import (
    Admitted,
    Caller,
    CallerRefused,
    Decision,
    Standing,
)
from llmweir.engine import keys, scripts
from llmweir.engine.any_link import AnyLink, Argument
from llmweir.engine.asks import AliasOf, Ask, Settlement, SoftBudgetCrossed
from llmweir.engine.deliveries import Admission, Deliveries, Delivery
from llmweir.engine.known_callers import KnownCallers
from llmweir.engine.packing import Blank, template
from llmweir.engine.replays import MemoryShelf, Replays, Shelf
from llmweir.engine.replies import refused_of
from llmweir.engine.wire import Reply, ReplyError
from llmweir.errors import StoreUnavailableError
from llmweir.remembered import Remembered

_log = logging.getLogger("llmweir.store")
_MOST_KNOWN_KEYS = 100_000
_MOST_PROFILES = 20_000
_MOST_ALIASES = 20_000
_MOST_TEMPLATES = 20_000
_LONGEST_REMEMBERED = 256
_UNKNOWN_KEY_TTL_S = 1.0
_SHUT_OUT = frozenset(("unknown_user", "unknown_key", "key_expired", "key_blocked", "user_blocked", "role_not_allowed"))
_ADMITTED_AND_EXPIRED = 6
_LIMIT_AND_EXPIRED = 10
"""How long the replies of `admit` are where their last word is how many leases had ended."""


class Store:
    """Admission, settlement, renewal and identity over one link.

    `shelf` keeps what Redis has not answered for: without one, memory does. `known_callers` are those that may come in
    while Redis is away: without it, nobody. `clock` gives the time in ms instead of the
    server's own clock (for tests).
    """

    def __init__(
        self,
        link: AnyLink,
        *,
        lease_ttl_ms: int = 30_000,
        memo_ttl_ms: int = 86_400_000,
        shelf: Shelf | None = None,
        known_callers: KnownCallers | None = None,
        clock: Callable[[], int] | None = None,
    ) -> None:
        self.link = link
        self._lease_ttl_ms = lease_ttl_ms
        self._memo_ttl_ms = memo_ttl_ms
        self._clock = clock
        self._known_callers = known_callers
        self._key_owners: Remembered[str, str] = Remembered(_MOST_KNOWN_KEYS)
        self._unknown_keys: Remembered[str, float] = Remembered(_MOST_KNOWN_KEYS)
        self._profiles: Remembered[str, tuple[bytes, Caller]] = Remembered(_MOST_PROFILES)  # by key hash, else user id
        self._aliases: Remembered[tuple[str, str, str], str] = Remembered(_MOST_ALIASES)
        self._admissions: Remembered[tuple[str, str, str, str, str, str, bytes], bytes] = Remembered(_MOST_TEMPLATES)
        self._in_flight: dict[str, Admission] = {}
        self._admit = scripts.load("admit")
        self._authorise = scripts.load("authorise")
        self._renew = scripts.load("renew")
        self._replays = Replays(link, shelf or MemoryShelf(), self._now, memo_ttl_ms)
        self._deliveries = Deliveries(link, self._replays, self._now)
        self.on_leases_expired: Callable[[int], None] | None = None
        link.on_up = self._replays.wake

    def tell_soft_budgets(self, crossed: Callable[[SoftBudgetCrossed], None]) -> None:
        """Has `crossed` called when a settlement takes a user over the soft budget."""
        self._deliveries.on_soft_budget = self._replays.on_soft_budget = crossed

    def _now(self) -> Argument:
        """The time as the scripts take it: empty for the server's own clock."""
        return self._clock() if self._clock is not None else b""

    def known_owner(self, key_hash: str) -> str | None:
        """The id of the user an API key belongs to, where this worker has seen the key before."""
        return self._key_owners.get(key_hash)

    async def owner_of(self, key_hash: str, *, afresh: bool = False) -> str | None:
        """The id of the user an API key belongs to, or None; whether the key is valid is for the scripts to say.

        A worker asks for a known key once, or `afresh` where the record does not confirm what it remembers; that a key
        is unknown is remembered for a second.
        """
        known = self._key_owners.get(key_hash)
        if known is not None and not afresh:
            return known
        now = time.monotonic()
        if self._unknown_keys.get(key_hash, 0.0) > now:
            return None
        owner = await self.link.call(b"GET", keys.api_key(key_hash))
        if isinstance(owner, bytes):
            self._key_owners[key_hash] = owner.decode()
            return owner.decode()
        self._key_owners.pop(key_hash, None)
        if self._known_callers is not None:
            self._known_callers.lost(key_hash, "")
        self._unknown_keys[key_hash] = now + _UNKNOWN_KEY_TTL_S
        return None

    def alias_target(self, user_id: str, key_hash: str, model: str) -> str:
        """What a model name of this caller was last seen to mean; the script says when it means something else now."""
        return self._aliases.get((user_id, key_hash, model), model)

    def name_of(self, user_id: str, key_hash: str) -> str:
        """The user's name for people, as last seen: the alias, else the id."""
        profile = self._profiles.get(key_hash or user_id)
        if profile is None or profile[1].user_id != user_id:  # a key may have changed hands
            return user_id
        return profile[1].user_alias or user_id

    async def admit(self, ask: Ask) -> Decision | AliasOf:
        """Admits a request against all limits of its caller, holding what it asks for, or says what is in the way.

        Asked twice with one request id it counts once. Raises StoreUnavailableError.
        """
        profile = self._profiles.get(ask.key_hash or ask.user_id)
        packed = self._pack_admission(ask, profile[0] if profile is not None else b"")
        try:
            try:
                reply = await self.link.send(packed)
            except ReplyError as error:
                if not str(error).startswith("NOSCRIPT"):
                    raise
                reply = await self.link.load_and_send(self._admit, packed)
        except (StoreUnavailableError, asyncio.CancelledError) as error:
            # The call may have been carried out without its reply reaching us; nobody is let in, so undo it.
            if not isinstance(error, StoreUnavailableError) or error.may_be_done:
                self.settle(Settlement(request_id=ask.request_id, user_id=ask.user_id, cancelled=True))
            raise
        assert isinstance(reply, list)  # noqa: S101 (the script's header says so)
        if reply[0] == b"admitted":
            self._in_flight[ask.request_id] = Admission(ask, time.monotonic())
            known = profile[1] if profile is not None and reply[3] is None else None
            standing = Standing(*cast("list[int]", reply[1]))
            caller = known or self._profile(ask.user_id, ask.key_hash, reply, profile)
            if len(reply) == _ADMITTED_AND_EXPIRED:
                self._tell_expired(reply[-1])
            return Admitted(standing, caller, reply[4] == 1)
        if len(reply) == _LIMIT_AND_EXPIRED:
            self._tell_expired(reply.pop())
        decision = refused_of(reply)
        if isinstance(decision, CallerRefused):
            self._note_refused(decision, ask.user_id, ask.key_hash)
        elif isinstance(decision, AliasOf):
            self._aliases[(ask.user_id, ask.key_hash, ask.model)] = decision.model
        return decision

    def _pack_admission(self, ask: Ask, version: bytes) -> bytes:
        constant = (
            ask.user_id, ask.key_hash, ask.model, ask.target, ask.cache_controls, ask.default_digest, version
        )  # fmt: skip
        packed = self._admissions.get(constant)
        if packed is None:
            user = keys.user_keys(ask.user_id)
            packed = template(
                *(b"EVALSHA", self._admit.sha, 5, user.record, user.use, user.window, user.leases, user.doc),
                *(Blank.TEXT, b"" if self._clock is None else Blank.TEXT),
                *(ask.key_hash, ask.default_digest, ask.model, ask.target),
                *(Blank.NUMBER, Blank.NUMBER, Blank.NUMBER, Blank.NUMBER),
                *(self._lease_ttl_ms, self._memo_ttl_ms, version, ask.cache_controls),
            )
            if len(ask.cache_controls) <= _LONGEST_REMEMBERED:  # they are as long as the caller makes them
                self._admissions[constant] = packed
        request_id = ask.request_id.encode()
        if self._clock is None:
            return packed % (
                len(request_id), request_id, ask.asked_tokens, ask.hold_tokens, ask.asked_nanos, ask.hold_nanos
            )  # fmt: skip
        now, holds = b"%d" % self._clock(), (ask.asked_tokens, ask.hold_tokens, ask.asked_nanos, ask.hold_nanos)
        return packed % (len(request_id), request_id, len(now), now, *holds)

    async def authorise(
        self, user_id: str, key_hash: str, *, data_plane: bool, default_digest: str = ""
    ) -> Caller | CallerRefused:
        """Says whether a caller may come in at all, and who it is, counting nothing. Raises StoreUnavailableError."""
        user = keys.user_keys(user_id)
        profile = self._profiles.get(key_hash or user_id)
        version = profile[0] if profile is not None else b""
        reply = await self.link.run(
            self._authorise,
            user.record,
            user.doc,
            self._now(),
            key_hash,
            int(data_plane),
            version,
            default_digest,
            keys=2,
        )
        assert isinstance(reply, list)  # noqa: S101
        if reply[0] == b"admitted":
            return self._profile(user_id, key_hash, reply, profile)
        refused = refused_of(reply)
        assert isinstance(refused, CallerRefused)  # noqa: S101
        self._note_refused(refused, user_id, key_hash)
        return refused

    def known_caller(self, key_hash: str, user_id: str) -> Caller | None:
        """Who was let in before by this API key, or, where that is "", by this user id; for when Redis is away."""
        return self._known_callers.find(key_hash, user_id) if self._known_callers is not None else None

    def _note_refused(self, refused: CallerRefused, user_id: str, key_hash: str) -> None:
        if self._known_callers is not None and refused.reason in _SHUT_OUT:
            self._known_callers.lost(key_hash, user_id)

    def settle(self, settlement: Settlement) -> Delivery:
        """Sends what a request really used; a second settlement of the same request changes nothing.

        It leaves at the end of this event-loop turn: a task that yields once goes on after it has left. Nobody has to
        await what it returns: a settlement that cannot be delivered is kept, and sent again when Redis answers.
        """
        return self._deliveries.send(settlement, self._in_flight.pop(settlement.request_id, None))

    def let_through(self, ask: Ask) -> bool:
        """Takes note of a request that is let through while Redis is away; False where its settlement has no room."""
        if not self._replays.has_room:
            return False
        self._in_flight[ask.request_id] = Admission(ask, time.monotonic(), is_let_through=True)
        return True

    def send_kept(self) -> None:
        """Sends the settlements that Redis has not answered for, if it answers now."""
        self._replays.wake()

    async def renew(self, *, older_than_s: float) -> None:
        """Renews the leases of all requests in flight that were admitted longer ago than `older_than_s`."""
        due = time.monotonic() - older_than_s
        by_user: dict[str, list[str]] = {}
        for request_id, admission in self._in_flight.items():
            if admission.admitted_s > due:
                break
            by_user.setdefault(admission.ask.user_id, []).append(request_id)
        calls = [
            self.link.run(
                self._renew, keys.user_keys(user_id).leases, self._now(), self._lease_ttl_ms, *request_ids, keys=1
            )
            for user_id, request_ids in by_user.items()
        ]
        await asyncio.gather(*calls)

    @property
    def in_flight(self) -> int:
        """The number of requests that were admitted and are not settled yet."""
        return len(self._in_flight)

    @property
    def is_busy(self) -> bool:
        """Whether requests that were admitted are not settled yet."""
        return bool(self._in_flight)

    async def drain(self) -> None:
        """Waits until every settlement that was sent or kept is answered, as far as the store answers at all."""
        await self._deliveries.idle()
        await self._replays.idle()

    async def aclose(self) -> None:
        """Stops sending what is kept."""
        await self._replays.aclose()

    async def load_scripts(self) -> None:
        """Puts the scripts of the hot path into the server's cache, so that the first request finds them there."""
        hot = (self._admit, scripts.load("settle"), scripts.load("cancel"), self._renew, self._authorise)
        await asyncio.gather(*(self.link.call(b"SCRIPT", b"LOAD", script.source) for script in hot))

    def _tell_expired(self, expired: Reply) -> None:
        if self.on_leases_expired is not None and isinstance(expired, int) and expired:
            self.on_leases_expired(expired)

    def _profile(self, user_id: str, key_hash: str, reply: list[Reply], known: tuple[bytes, Caller] | None) -> Caller:
        version, texts = reply[2], reply[3]
        if not isinstance(texts, list):
            assert known is not None  # noqa: S101 (only a worker that has the version gets none)
            return known[1]
        fields = [msgspec.json.decode(text) if isinstance(text, bytes) else None for text in texts]
        alias, role, teams, metadata, guardrails, permissions, key = fields
        profile = Caller(
            user_id=user_id,
            user_alias=alias,
            user_role=role or "internal_user",
            teams=tuple(teams or ()),
            metadata=metadata or {},
            guardrails=tuple(guardrails or ()),
            permissions=permissions or {},
            key_alias=(key or {}).get("key_alias"),
        )
        assert isinstance(version, bytes)  # noqa: S101
        self._profiles[key_hash or user_id] = (version, profile)
        if self._known_callers is not None:
            self._known_callers.saw(key_hash, profile)
        return profile
