"""Audits the books for `llmweir check`, with a progress bar where somebody watches, and files what is in no list."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from llmweir.engine.any_link import AnyLink
from llmweir.engine.api_keys import ApiKeys
from llmweir.engine.books import Audit, audit
from llmweir.engine.users import Users


async def audit_books(link: AnyLink, user_ids: tuple[str, ...], lease_ttl_ms: int, *, is_quiet: bool) -> Audit:
    """Audits some users, or all where none is named. Raises StoreUnavailableError and ReplyError."""
    with _bar(is_quiet=is_quiet) as progressed:
        return await audit(link, user_ids=user_ids or None, lease_ttl_ms=lease_ttl_ms, progressed=progressed)


async def file_unlisted(link: AnyLink, found: Audit) -> None:
    """Files the users and API keys again that no list shows; nothing else is ever mended."""
    users = Users(link)
    await users.directory.file_again(found.unlisted_users)
    await ApiKeys(users).file_again(found.unlisted_keys)


@contextlib.contextmanager
def _bar(*, is_quiet: bool) -> Iterator[Callable[[int, int], None] | None]:
    console = Console(stderr=True)
    if is_quiet or not console.is_terminal:
        yield None
        return
    columns = (TextColumn("books"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("books", total=None)

        def progressed(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        yield progressed
