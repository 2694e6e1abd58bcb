"""Puts the admin API together: its table of routes over the engine of one worker."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import msgspec

from llmweir.admin.access import Access, ReadKey
from llmweir.admin.app import AdminApi
from llmweir.admin.attempts import FailedAttempts
from llmweir.admin.health import HealthRoutes
from llmweir.admin.invites import InviteRoutes, Invites
from llmweir.admin.keys import KeyRoutes
from llmweir.admin.metrics import MetricsRoutes
from llmweir.admin.openapi import OpenApiRoutes
from llmweir.admin.passwords import Passwords
from llmweir.admin.reports import ReportRoutes
from llmweir.admin.routes import Routes
from llmweir.admin.teams import TeamRoutes
from llmweir.admin.user_bulk import BulkRoutes
from llmweir.admin.user_changes import UserChanges
from llmweir.admin.user_lists import UserListRoutes
from llmweir.admin.users import UserRoutes
from llmweir.engine.any_link import AnyLink
from llmweir.engine.api_keys import ApiKeys
from llmweir.engine.invitations import Invitations
from llmweir.engine.users import Users
from llmweir.mail import Mailer, read_smtp_url


class AdminOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What the settings say of the admin API.

    `read_key` finds the key among a request's headers, and `key_headers` names those beside Authorization.
    """

    read_key: ReadKey
    key_headers: tuple[str, ...]
    master_key: str | None
    version: str
    prefix: str = ""
    body_timeout_s: float = 30.0
    smtp_url: str | None = None
    public_url: str | None = None
    metrics_public: bool = False
    is_open_without_store: bool = False


def admin_api(
    link: AnyLink, users: Users, keys: ApiKeys, scrape: Callable[[], bytes], options: AdminOptions
) -> AdminApi:
    """The admin API of one worker; `scrape` gives its metrics as Prometheus reads them."""
    attempts = FailedAttempts()
    access = Access(
        keys,
        read_key=options.read_key,
        master_key=options.master_key,
        attempts=attempts,
        clock_ms=users.data.now_ms,
    )
    parts: list[Routes] = [*_parts(link, users, keys, attempts, options)]
    parts.append(MetricsRoutes(scrape, is_public=options.metrics_public))
    routes = [row for part in parts for row in part.routes]
    routes += OpenApiRoutes(routes, options.version, options.key_headers).routes
    return AdminApi(routes, access, prefix=options.prefix, body_timeout_s=options.body_timeout_s)


def _parts(
    link: AnyLink, users: Users, keys: ApiKeys, attempts: FailedAttempts, options: AdminOptions
) -> Iterator[Routes]:
    passwords = Passwords()
    invitations = Invitations(link, users)
    mailer = Mailer(read_smtp_url(options.smtp_url)) if options.smtp_url is not None else None
    changes = UserChanges(users, keys, Invites(mailer, invitations, options.public_url, options.prefix), passwords)
    yield UserRoutes(users, keys, changes)
    yield UserListRoutes(users)
    yield BulkRoutes(users, changes)
    yield TeamRoutes(users)
    yield KeyRoutes(users, keys)
    yield ReportRoutes(users)
    yield InviteRoutes(invitations, passwords, attempts)
    yield HealthRoutes(link.ready, options.version, is_open=options.is_open_without_store)
