"""The one way to get a link: the URL says which kind it is."""

from __future__ import annotations

from llmweir.engine.any_link import AnyLink
from llmweir.engine.cluster import ClusterLink
from llmweir.engine.link import Link
from llmweir.engine.redis_url import RedisTarget, read_redis_url


def connect(redis: str | RedisTarget, *, timeout_ms: int = 500, max_pending: int = 20_000) -> AnyLink:
    """Makes the link that a URL asks for; it connects with the first call. Raises InvalidValueError.

    `timeout_ms` is the deadline of every call, `max_pending` the number of calls that may wait for one server.
    """
    target = read_redis_url(redis) if isinstance(redis, str) else redis
    if target.form == "cluster":
        return ClusterLink(target, timeout_ms=timeout_ms, max_pending=max_pending)
    return Link(target, timeout_ms=timeout_ms, max_pending=max_pending)
