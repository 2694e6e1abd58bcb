"""Lists that come in pages: one of them, or all, each shown as it arrives."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import click
import msgspec
from rich.console import RenderableType

from llmweir.cli.field_options import Command, with_options
from llmweir.cli.plain_text import counted
from llmweir.cli.remote import NOT_LLMWEIR, Answer, UnreachableError
from llmweir.cli.session import Session, content_of

MAX_PAGE_SIZE = 100


class Paging(msgspec.Struct, frozen=True):
    """Which pages are asked for: `page`, or every one; `size` None is the server's own."""

    page: int
    size: int | None
    wants_all: bool


class Listing(msgspec.Struct, frozen=True):
    """A route that answers in pages, and how the rows of a page look: `render(rows, is_first)`."""

    path: str
    noun: str
    size_name: str
    rows_name: str
    total_name: str
    render: Callable[[list[Any], bool], list[RenderableType]]


def paged(command: Command) -> Command:
    """Gives a command the options of a list; it is called with `paging`."""

    @functools.wraps(command)
    def with_paging(page: int | None, page_size: int | None, wants_all: bool, **given: Any) -> None:
        if wants_all and page is not None:
            raise click.UsageError("--all shows every page; leave out --page.")
        size = MAX_PAGE_SIZE if wants_all and page_size is None else page_size
        command(paging=Paging(page or 1, size, wants_all), **given)

    options = [
        click.option("--page", type=click.IntRange(1), metavar="N", help="Which page to show. Default: the first."),
        click.option("--page-size", type=click.IntRange(1, MAX_PAGE_SIZE), metavar="N", help="Rows of a page."),
        click.option("--all", "wants_all", is_flag=True, help="Show every page, each as it arrives."),
    ]
    return with_options(with_paging, options)


def show_pages(session: Session, listing: Listing, paging: Paging, query: Mapping[str, object]) -> None:
    """Prints the pages asked for; with JSON, each page as the server wrote it on a line of its own."""
    for number, answer in _pages(session, listing, paging, query):
        if session.wants_json:
            click.echo(answer.text)
            continue
        content = content_of(answer)
        rows = rows_of(content, listing.rows_name)
        session.print(*listing.render(rows, number == paging.page))
        if not paging.wants_all or _is_last(content, rows, number):
            session.print(_foot(content, listing, paging))


def _pages(
    session: Session, listing: Listing, paging: Paging, query: Mapping[str, object]
) -> Iterator[tuple[int, Answer]]:
    number = paging.page
    while True:
        answer = session.remote.get(listing.path, {**query, "page": number, listing.size_name: paging.size})
        yield number, answer
        content = content_of(answer)
        if not paging.wants_all or _is_last(content, rows_of(content, listing.rows_name), number):
            return
        number += 1


def rows_of(content: Mapping[str, Any], name: str) -> list[Any]:
    """The rows of a page; raises UnreachableError where there are none to be found."""
    rows = content.get(name)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UnreachableError(NOT_LLMWEIR)
    return rows


def _is_last(content: Mapping[str, Any], rows: list[Any], number: int) -> bool:
    return not rows or number >= _count(content, "total_pages")


def _foot(content: Mapping[str, Any], listing: Listing, paging: Paging) -> str:
    total = counted(_count(content, listing.total_name), listing.noun)
    if paging.wants_all:
        return f"{total}."
    return f"Page {paging.page} of {max(1, _count(content, 'total_pages'))}, {total}."


def _count(content: Mapping[str, Any], name: str) -> int:
    value = content.get(name)
    return value if isinstance(value, int) else 0
