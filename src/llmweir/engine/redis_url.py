"""Reads a `redis_url` in all its forms: one server, the master that sentinels name, or a cluster."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, Literal, TypeAlias
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

import msgspec
from redis.asyncio.connection import Connection, ConnectionPool, SSLConnection, parse_url
from redis.exceptions import RedisError

from llmweir.errors import InvalidValueError

Address: TypeAlias = tuple[str, int]
Form: TypeAlias = Literal["server", "sentinel", "cluster", "node"]

SCHEMES: Final = (
    "redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster",
)  # fmt: skip

_URL = re.compile(r"(?P<scheme>[a-z+]+)://(?P<authority>[^/?#]*)(?P<path>[^?#]*)(?:\?(?P<query>[^#]*))?", re.DOTALL)
_PORTS: Mapping[str, int] = {"sentinel": 26379}
_OF_SENTINEL = {"sentinel_username": "username", "sentinel_password": "password"}


class RedisTarget(msgspec.Struct, frozen=True, kw_only=True):
    """Where Redis is and how to log in. Its `repr` and `where` show neither user nor password.

    `addresses` are those of the server, the sentinels or the cluster's nodes; none for a unix socket at `path`.
    `name` is what the sentinels call the master. `options` and `sentinel_options` are redis-py's own.
    """

    form: Form
    is_tls: bool = False
    addresses: tuple[Address, ...] = ()
    path: str = ""
    name: str = ""
    options: Mapping[str, Any]
    sentinel_options: Mapping[str, Any] = {}

    @property
    def where(self) -> str:
        """The address as a URL, fit for a log."""
        if self.path:
            return f"unix://{self.path}"
        scheme = "rediss" if self.is_tls else "redis"
        kind = f"+{self.form}" if self.form in {"sentinel", "cluster"} else ""
        hosts = ",".join(spell(address) for address in self.addresses)
        database = f"/{self.options['db']}" if self.options.get("db") else ""
        return f"{scheme}{kind}://{hosts}{f'/{self.name}' if self.name else ''}{database}"

    def node(self, address: Address) -> RedisTarget:
        """One node of the cluster, with the same login."""
        return msgspec.structs.replace(self, form="node", addresses=(address,))

    def __repr__(self) -> str:
        return f"RedisTarget({self.where})"


def spell(address: Address) -> str:
    """Spells host and port, an IPv6 host in brackets."""
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def read_redis_url(text: str) -> RedisTarget:
    """Reads a URL; raises InvalidValueError, whose message never repeats what was given."""
    parts = _URL.fullmatch(text)
    if parts is None or parts["scheme"] not in SCHEMES:
        raise InvalidValueError(
            f"redis_url should be a URL with one of the schemes {', '.join(SCHEMES)}; "
            "a # in a password is spelled %23, a / %2F, a ? %3F, a @ %40."
        )
    try:
        target = _unix(text) if parts["scheme"] == "unix" else _network(parts)
        _try(target)
    except InvalidValueError:
        raise
    except (TypeError, ValueError, RedisError):
        raise InvalidValueError("redis_url is not one that redis-py can read; look at its options.") from None
    return target


def _unix(text: str) -> RedisTarget:
    options = dict(parse_url(text))
    path = str(options.pop("path", ""))
    if not path:
        raise InvalidValueError("redis_url should name the path of a socket after unix://.")
    return RedisTarget(form="server", path=path, options=_plain(options))


def _network(parts: re.Match[str]) -> RedisTarget:
    scheme, _, kind = parts["scheme"].partition("+")
    user, _, hosts = parts["authority"].rpartition("@")
    if "@" in parts["path"] + (parts["query"] or "").partition("=")[0]:
        raise InvalidValueError("redis_url: a / in a password is spelled %2F, a ? %3F, a @ %40.")
    addresses = tuple(_address(host, _PORTS.get(kind, 6379)) for host in hosts.split(","))
    if len(addresses) > 1 and not kind:
        raise InvalidValueError("redis_url: several hosts are for redis+sentinel:// and redis+cluster:// only.")
    name, database = _path(kind, parts["path"])
    query = dict(parse_qsl(parts["query"] or "", keep_blank_values=True))
    sentinel_options = {_OF_SENTINEL[key]: query.pop(key) for key in _OF_SENTINEL if key in query}
    if sentinel_options and kind != "sentinel":
        raise InvalidValueError("redis_url: sentinel_username and sentinel_password are for redis+sentinel:// only.")
    # redis-py reads login and options, by its own rules
    options = dict(parse_url(f"{scheme}://{user}{'@' if user else ''}host/{database}?{urlencode(query)}"))
    if kind == "cluster" and options.get("db"):
        raise InvalidValueError("redis_url: a cluster is used with database 0.")
    return RedisTarget(
        form={"": "server", "sentinel": "sentinel", "cluster": "cluster"}[kind],  # type: ignore[arg-type]  # of Form
        is_tls=scheme == "rediss",
        addresses=addresses,
        name=name,
        options=_plain(options),
        sentinel_options=sentinel_options,
    )


def _address(text: str, default_port: int) -> Address:
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host:
        raise InvalidValueError("redis_url should name a host, or host:port, with an IPv6 host in brackets.")
    return unquote(host), port or default_port


def _path(kind: str, path: str) -> tuple[str, str]:
    """The name of the master and the number of the database."""
    steps = unquote(path.strip("/")).split("/")
    name = steps.pop(0) if kind == "sentinel" else ""
    if kind == "sentinel" and not name:
        raise InvalidValueError("redis_url should name the master after the sentinels: redis+sentinel://host/name.")
    database = steps.pop(0) if steps else ""
    if steps or not (database.isdecimal() or not database):
        raise InvalidValueError("redis_url: the database should be a number.")
    return name, database


def _plain(options: dict[str, Any]) -> dict[str, Any]:
    """The options without what says where to connect; the link speaks the protocol's version 2."""
    where = ("connection_class", "host", "port", "path")
    return {**{name: value for name, value in options.items() if name not in where}, "protocol": 2, "driver_info": None}


def _try(target: RedisTarget) -> None:
    """Has redis-py read the options; nothing connects yet."""
    kind = SSLConnection if target.is_tls else Connection
    ConnectionPool(kind, **target.options).make_connection()  # type: ignore[no-untyped-call]  # untyped there
