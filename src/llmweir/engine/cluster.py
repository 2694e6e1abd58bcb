"""A Redis Cluster: one link for each master, each command sent to the one that has its key's slot.

A node that has handed a slot on says where it went (MOVED, ASK), one that cannot answer yet says so (TRYAGAIN,
CLUSTERDOWN); such a command was not carried out, and is sent again until its deadline. A lost node fails its own calls
alone; the map is read anew until every slot has a master that answers.
"""

from __future__ import annotations

import asyncio
import logging
import random
from typing import Final

import hiredis

from llmweir.engine.any_link import AnyLink
from llmweir.engine.cluster_calls import RoutedCall, tell_for_all
from llmweir.engine.cluster_map import (
    EVERY_MASTER,
    SLOTS,
    ClusterMap,
    probe_keys,
    read_redirection,
    read_slots,
    slot_of,
)
from llmweir.engine.link import Link
from llmweir.engine.redis_url import Address, RedisTarget, spell
from llmweir.engine.wire import Receiver, ReplyError, ignore
from llmweir.errors import StoreUnavailableError

_log = logging.getLogger("llmweir.link")
_AGAIN_S: Final = 0.02
_FREE_REDIRECTIONS = 4
_SHORTEST_MAP_WAIT_S = 0.1
_LONGEST_MAP_WAIT_S = 0.5
_ASKING: Final = hiredis.pack_command((b"ASKING",))
_PING: Final = hiredis.pack_command((b"PING",))
_NO_MAP = "no node of the cluster can be reached"
_LATER = frozenset({"TRYAGAIN", "CLUSTERDOWN"})


class ClusterLink(AnyLink):
    """All masters of a cluster; the interface and the deadlines are those of `Link`.

    `max_pending` holds for each master. PING and SCRIPT go to all masters.
    """

    def __init__(self, target: RedisTarget, *, timeout_ms: int = 500, max_pending: int = 20_000) -> None:
        super().__init__()
        self._target = target
        self._timeout_ms = timeout_ms
        self._timeout_s = timeout_ms / 1000
        self._max_pending = max_pending
        self._links: dict[Address, Link] = {}
        self._owners: list[Link | None] = [None] * SLOTS
        self._map: ClusterMap | None = None
        self._mapping: asyncio.Task[None] | None = None
        self._map_is_old = False
        self._hint: Address | None = None
        self._early: list[RoutedCall] = []
        self._down: StoreUnavailableError | None = None
        self._scripts: dict[bytes, None] = {}
        self._leaving: dict[Link, asyncio.Task[None]] = {}
        self._closed = False

    @property
    def is_up(self) -> bool:
        """Whether every slot has a master, and all of them stand and answer in time."""
        return self._map is not None and self._map.is_whole and all(link.is_up for link in self._links.values())

    @property
    def is_down(self) -> bool:
        """Whether no master can be reached: every call fails at once and never leaves."""
        if self._map is None:
            return self._down is not None
        return all(link.is_down for link in self._links.values())

    @property
    def masters(self) -> tuple[AnyLink, ...]:
        """The links to each master that has slots."""
        return tuple(dict.fromkeys(link for link in self._owners if link is not None))

    def post(self, packed: bytes, receiver: Receiver) -> None:
        """Sends a packed command to the master of its first key's slot."""
        slot = slot_of(packed)
        deadline_s = asyncio.get_running_loop().time() + self._timeout_s
        call = RoutedCall(self, packed, receiver, slot, deadline_s)
        if self._map is None:
            self._hold(call)
        else:
            self.route(call)

    def route(self, call: RoutedCall) -> None:
        """Sends a call by the map as it is now."""
        if call.slot == EVERY_MASTER:
            self._send_to_all(call)
            return
        link = self._owners[call.slot]
        if link is None:
            self._want_map()
            call.set_exception(StoreUnavailableError("no node of the cluster has its slot"))
            return
        call.send(link)

    def redirected(self, call: RoutedCall, error: ReplyError) -> bool:
        """Sends a call on to where its slot has gone, or again a little later; False: the error is its answer."""
        code = str(error).partition(" ")[0]
        if code in {"MOVED", "ASK"}:
            slot, place = read_redirection(str(error), call.node)
            link = self._link(place)
            if code == "MOVED":
                self._owners[slot] = link
                self._want_map(place)
            self._follow(call, link, is_asking=code == "ASK")
            return True
        if code in _LATER:
            if code == "CLUSTERDOWN":
                self._want_map()
            call.send_later(_AGAIN_S)
            return True
        return False

    def _follow(self, call: RoutedCall, link: Link, *, is_asking: bool) -> None:
        call.redirections += 1
        if call.redirections > _FREE_REDIRECTIONS:  # two nodes that send it to each other
            call.send_later(_AGAIN_S)
            return
        if is_asking:
            link.send(_ASKING).add_done_callback(ignore)
        call.expire_in_time()
        call.send(link)

    async def ready(self) -> None:
        """Waits until all slots are served; raises StoreUnavailableError when they are not in time."""
        await self.call(b"PING")
        cluster = self._map
        if cluster is None or not cluster.is_whole:
            raise StoreUnavailableError("some slots of the cluster have no node")
        await asyncio.gather(*(self.call(b"GET", key) for key in probe_keys(cluster.ranges).values()))

    async def aclose(self) -> None:
        """Closes all connections; whatever waits fails."""
        self._closed = True
        if self._mapping is not None:
            self._mapping.cancel()
            await asyncio.gather(self._mapping, return_exceptions=True)
        for closing in self._leaving.values():
            closing.cancel()
        await asyncio.gather(*(link.aclose() for link in (*self._links.values(), *self._leaving)))
        self._fail_early("the link was closed")

    # The map.

    def _hold(self, call: RoutedCall) -> None:
        """Keeps a call until there is a map, bounded in number and in time as any other."""
        if self._down is not None:
            call.set_exception(self._down)
        elif len(self._early) >= self._max_pending:
            call.set_exception(StoreUnavailableError("too many calls are waiting for it"))
        else:
            call.expire_in_time()
            self._early.append(call)
        self._want_map()

    def _want_map(self, hint: Address | None = None) -> None:
        """Has the map read anew soon; `hint` is a node that knows more than others."""
        self._map_is_old, self._hint = True, hint or self._hint
        if self._mapping is None and not self._closed:
            self._mapping = asyncio.get_running_loop().create_task(self._keep_mapping())

    async def _keep_mapping(self) -> None:
        """Reads the map until every slot has a master that answers; a burst of redirections reads it once."""
        wait_s = _SHORTEST_MAP_WAIT_S
        try:
            while self._map_is_old and not self._closed:
                self._map_is_old = False
                found = await self._read_map()
                if found is not None:
                    self._use(found)
                elif self._map is None:
                    self._fail_early(_NO_MAP)
                await asyncio.sleep(wait_s)
                wait_s = min(_LONGEST_MAP_WAIT_S, wait_s * 2)
                self._map_is_old |= found is None or not self._is_served
        finally:
            self._mapping = None

    @property
    def _is_served(self) -> bool:
        is_whole = self._map is not None and self._map.is_whole
        return is_whole and not any(link.is_down for link in self._links.values())

    async def _read_map(self) -> ClusterMap | None:
        """Asks the nodes one after the other, those that answer first; before there is a map, all at once."""
        nodes = self._nodes_to_ask()
        if self._map is not None:
            for node in nodes:
                found = await self._map_of(node)
                if found is not None:
                    return found
            return None
        asking = [asyncio.ensure_future(self._map_of(node)) for node in nodes]
        try:
            for first in asyncio.as_completed(asking):
                found = await first
                if found is not None:
                    return found
            return None
        finally:
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)

    def _nodes_to_ask(self) -> list[Address]:
        hint, self._hint = self._hint, None
        up = [address for address, link in self._links.items() if link.is_up]
        random.shuffle(up)
        known = self._map.nodes if self._map is not None else frozenset()
        down = {address for address, link in self._links.items() if not link.is_up}
        others = [address for address in (*known, *self._target.addresses) if address not in down]
        return list(dict.fromkeys([*([hint] if hint is not None else []), *up, *others, *down]))

    async def _map_of(self, node: Address) -> ClusterMap | None:
        link = self._links.get(node)
        asked = link or Link(self._target.node(node), timeout_ms=self._timeout_ms)
        try:
            found = read_slots(await asked.call(b"CLUSTER", b"SLOTS"), node)
        except (StoreUnavailableError, ReplyError) as error:
            if isinstance(error, ReplyError):
                _log.warning("cluster_map_refused node=%s error=%r", spell(node), str(error))
            return None
        finally:
            if link is None:
                await asked.aclose()
        return found if found.ranges else None

    def _use(self, found: ClusterMap) -> None:
        """Routes by a new map, and lets the links go that no slot needs any more."""
        before = self._map
        if before is None or found.masters != before.masters:
            _log.info("cluster_map masters=%s", ",".join(sorted(map(spell, found.masters))))
        owners: list[Link | None] = [None] * SLOTS
        for each in found.ranges:
            owners[each.first : each.last + 1] = [self._link(each.master)] * (each.last - each.first + 1)
        self._owners, self._map, self._down = owners, found, None
        for address in self._links.keys() - found.masters:
            self._let_go(self._links.pop(address))
        early, self._early = self._early, []
        for call in early:
            self.route(call)
        if before is not None and found.ranges != before.ranges and self.on_up is not None:
            self.on_up()  # slots may have come from a lost node to one that stood already

    def _fail_early(self, reason: str) -> None:
        if self._down is None and not self._closed:
            _log.warning("store_unavailable reason=%r", reason)
        self._down = StoreUnavailableError(reason)
        early, self._early = self._early, []
        for call in early:
            call.set_exception(self._down)

    # The links.

    def _link(self, address: Address) -> Link:
        """The link to a master, made when it is first needed; it takes the scripts along that others had to be told."""
        link = self._links.get(address)
        if link is None:
            target = self._target.node(address)
            link = Link(target, timeout_ms=self._timeout_ms, max_pending=self._max_pending)
            link.on_up, link.on_down = self._node_is_up, self._want_map
            self._links[address] = link
            for packed in (*self._scripts, _PING):  # nobody may ever ask it, and yet it should stand
                link.send(packed).add_done_callback(ignore)
        return link

    def _node_is_up(self) -> None:
        if self.on_up is not None:
            self.on_up()

    def _let_go(self, link: Link) -> None:
        """Closes a link once all that was sent there has had the time to be answered."""
        link.on_up = link.on_down = None
        self._leaving[link] = asyncio.get_running_loop().create_task(self._close_later(link))

    async def _close_later(self, link: Link) -> None:
        await asyncio.sleep(self._timeout_s)
        await link.aclose()
        del self._leaving[link]

    def _send_to_all(self, call: RoutedCall) -> None:
        is_script = b"SCRIPT" in call.packed[:24]
        if is_script:
            self._scripts[call.packed] = None
        futures = [link.send(call.packed) for link in self._links.values()]
        tell_for_all(futures, call.receiver, needs_all=not is_script)
