"""`llmweir check`: looks whether all is well before the start, or while it runs, and proves the books."""

from __future__ import annotations

import asyncio
import logging
import os

import click
from rich.console import Console

from llmweir.cli.check_books import audit_books, file_unlisted
from llmweir.cli.check_place import data_dir_remark, outbox_remark, upstream_remark
from llmweir.cli.check_redis import LinkLog, connected, redis_remarks, where
from llmweir.cli.check_report import Report
from llmweir.cli.plain_text import counted
from llmweir.cli.serve import SettingsError, with_setting_flags
from llmweir.engine.inspection_rules import Remark
from llmweir.engine.redis_url import read_redis_url
from llmweir.engine.wire import ReplyError
from llmweir.errors import InvalidValueError, StoreUnavailableError
from llmweir.pricing import read_price_file
from llmweir.settings import ENV_PREFIX, Settings
from llmweir.traffic.asgi import Receive, Scope, Send
from llmweir.wiring import Weir, front

_WRONG = 1


@click.command(
    context_settings={"max_content_width": 110}, short_help="Look whether all is well: settings, Redis, the books."
)
@click.option("--books", "wants_books", is_flag=True, help="Prove the books of all users too; nothing is written.")
@click.option("--user", "user_ids", multiple=True, metavar="ID", help="Prove the books of this user. Repeatable.")
@click.option("--strict", "is_strict", is_flag=True, help="Notes on the books count as wrong too.")
@click.option("--repair", "wants_repair", is_flag=True, help="File users and keys again that no list shows.")
@click.option("--json", "wants_json", is_flag=True, help="Print one JSON document.")
@with_setting_flags
def check(
    wants_books: bool,
    user_ids: tuple[str, ...],
    is_strict: bool,
    wants_repair: bool,
    wants_json: bool,
    **flags: str | None,
) -> None:
    """Look whether all is well: the settings, Redis, the data folder, the upstream, and with --books the books.

    The settings are those of serve: its flags, the environment, llmweir.toml. It may run beside a server at work. Exit
    codes: 0 all well (there may be warnings), 1 something is wrong, 2 the settings are not valid.
    """
    wants_books = wants_books or bool(user_ids)
    if (wants_repair or is_strict) and not wants_books:
        raise click.UsageError("--repair and --strict go with --books.")
    settings, price_remark = _settings_of(flags)
    place = [data_dir_remark(settings.data_dir), outbox_remark(settings.data_dir), upstream_remark(settings.upstream)]
    remarks = [Remark("settings", "ok", "They are valid."), price_remark, *place]
    report = asyncio.run(_look(settings, remarks, user_ids if wants_books else None, wants_repair=wants_repair,
        is_strict=is_strict, is_quiet=wants_json))  # fmt: skip
    if wants_json:
        click.echo(report.as_json())
    else:
        report.show(Console(highlight=False))
    if not report.ok:
        raise click.exceptions.Exit(_WRONG)


def _settings_of(flags: dict[str, str | None]) -> tuple[Settings, Remark]:
    """The settings, and a remark on the prices; raises SettingsError where they are not valid."""
    given = {name: value for name, value in flags.items() if value is not None}
    for name in given:
        os.environ.pop(ENV_PREFIX + name.upper(), None)
    try:
        settings = Settings(**{name: value for name, value in given.items() if value})
        _build(settings)
        own = len(read_price_file(settings.price_file)) if settings.price_file is not None else 0
    except InvalidValueError as error:
        raise SettingsError(str(error)) from error
    text = f"{counted(own, 'price')} of your own, and the catalogue." if own else "Those of the catalogue."
    return settings, Remark("prices", "ok", text)


def _build(settings: Settings) -> None:
    """Builds all there is without starting it, as `serve` does, or an app; raises InvalidValueError."""
    if settings.redis_url is not None:
        read_redis_url(settings.redis_url.get_secret_value())
    if settings.upstream is not None:
        front(settings)
    else:
        Weir(_no_app, settings, settings.for_around(), accept_websockets=True)


async def _no_app(scope: Scope, receive: Receive, send: Send) -> None:
    """Stands where the app of somebody else would."""


async def _look(
    settings: Settings,
    remarks: list[Remark],
    user_ids: tuple[str, ...] | None,
    *,
    wants_repair: bool,
    is_strict: bool,
    is_quiet: bool,
) -> Report:
    audit, repaired, log = None, False, LinkLog()
    logging.getLogger("llmweir").addHandler(log)
    try:
        async with connected(settings) as link:
            remarks += await redis_remarks(link, settings, log)
            if user_ids is not None and not any(
                remark.name == "redis" and remark.verdict == "error" for remark in remarks
            ):
                lease_ttl_ms = settings.lease_ttl_s * 1000
                audit = await audit_books(link, user_ids, lease_ttl_ms, is_quiet=is_quiet)
                repaired = wants_repair and bool(audit.unlisted_users or audit.unlisted_keys)
                if repaired:
                    await file_unlisted(link, audit)
                    audit = await audit_books(link, user_ids, lease_ttl_ms, is_quiet=is_quiet)
    except StoreUnavailableError as error:
        remarks.append(Remark("redis", "error", f"{where(settings)}: {log.explained(error.reason)}."))
    except ReplyError as error:
        remarks.append(Remark("books", "error", f"They cannot be read: {error}"))
    return Report(remarks=tuple(remarks), audit=audit, is_strict=is_strict, repaired=repaired)
