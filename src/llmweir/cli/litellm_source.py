"""A running LiteLLM proxy, read by its admin API: the rows of its users and of its keys."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

from llmweir.cli.remote import Remote, UnreachableError

Row: TypeAlias = dict[str, Any]
OnPage: TypeAlias = Callable[[int, int], None]
"""Is told after each page how many rows have come, and of how many."""

PAGE_SIZE = 100
DASHBOARD_TEAM = "litellm-dashboard"
"""The team of the keys that the proxy mints for the sessions of its own dashboard."""


class LiteLLM:
    """The users and keys of a proxy; every method raises RefusedError."""

    def __init__(self, remote: Remote) -> None:
        self._remote = remote

    def users(self, on_page: OnPage) -> list[Row]:
        """Every user's row, once each; a user that the proxy moves between two pages is not lost or doubled."""
        pages = self._pages("/user/list", "users", "page_size", "total", "user_id", on_page)
        return list(
            {str(row["user_id"]): row for row in pages if isinstance(row, dict) and row.get("user_id")}.values()
        )

    def keys(self, on_page: OnPage) -> list[Row]:
        """Every key's row, once each, without those of the proxy's own dashboard."""
        pages = self._pages("/key/list", "keys", "size", "total_count", "token", on_page, return_full_object="true")
        rows = [self._key(row) for row in pages]
        return list({row["token"]: row for row in rows if row.get("team_id") != DASHBOARD_TEAM}.values())

    def _key(self, listed: Any) -> Row:
        """A key's row; proxies that list hashes alone are asked for each."""
        if isinstance(listed, dict) and isinstance(listed.get("token"), str):
            return listed
        if not isinstance(listed, str):
            raise UnreachableError("/key/list has an entry that is no key.")
        found = self._remote.get("/key/info", {"key": listed}).content
        info = found.get("info") if isinstance(found, dict) else None
        if not isinstance(info, dict):
            raise UnreachableError("/key/info does not answer as LiteLLM does.")
        return {**info, "token": listed}

    def _pages(
        self, path: str, rows_name: str, size_name: str, total_name: str, order: str, on_page: OnPage, **query: str
    ) -> Iterator[Any]:
        page, come = 1, 0
        while True:
            asked = {**query, "page": page, size_name: PAGE_SIZE, "sort_by": order, "sort_order": "asc"}
            content = self._remote.get(path, asked).content
            rows = content.get(rows_name) if isinstance(content, dict) else None
            if not isinstance(rows, list):
                raise UnreachableError(f"{path} does not answer as LiteLLM does.")
            yield from rows
            come += len(rows)
            on_page(come, int(content.get(total_name) or come))
            if not rows or page >= int(content.get("total_pages") or 0):
                return
            page += 1
