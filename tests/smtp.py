"""A real SMTP server for the tests, on a free port of the loopback and in the event loop of the test."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path

import pytest
import trustme
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

LOGIN = ("ana@weir", "hush:/@hush")


@dataclass
class Inbox:
    """What a server got, and how it answers: `replies` has the answer to a command that is not to be 250."""

    replies: dict[str, str] = field(default_factory=dict)
    mails: list[EmailMessage] = field(default_factory=list)
    senders: list[str] = field(default_factory=list)
    recipients: list[list[str]] = field(default_factory=list)
    logins: list[bool] = field(default_factory=list)
    """Of each try to log in, whether the connection was encrypted."""
    needs_login: bool = False
    port: int = 0

    async def handle_MAIL(  # noqa: N802 - aiosmtpd finds the hooks by these names
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if self.needs_login and not session.authenticated:
            return "530 Authentication required"
        envelope.mail_from = address
        envelope.mail_options.extend(options)
        return self.replies.get("MAIL", "250 OK")

    async def handle_RCPT(  # noqa: N802 - as above
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        envelope.rcpt_tos.append(address)
        return self.replies.get("RCPT", "250 OK")

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802 - as above
        reply = self.replies.get("DATA", "250 OK")
        if reply.startswith("250"):
            assert isinstance(envelope.content, bytes)
            mail = message_from_bytes(envelope.content.replace(b"\r\n", b"\n"), policy=policy.default)
            assert isinstance(mail, EmailMessage)
            self.mails.append(mail)
            self.senders.append(str(envelope.mail_from))
            self.recipients.append(list(envelope.rcpt_tos))
        return reply

    def authenticate(self, server: SMTP, session: Session, envelope: Envelope, kind: str, data: object) -> AuthResult:
        self.logins.append(session.ssl is not None)
        assert isinstance(data, LoginPassword)
        return AuthResult(success=(data.login.decode(), data.password.decode()) == LOGIN, handled=False)


@contextlib.asynccontextmanager
async def smtp_server(
    inbox: Inbox,
    *,
    tls: ssl.SSLContext | None = None,
    is_implicit_tls: bool = False,
    needs_login: bool = False,
    takes_utf8: bool = True,
) -> AsyncIterator[Inbox]:
    """Serves `inbox`: with `tls` it offers STARTTLS, unless that is implicit."""
    inbox.needs_login = needs_login
    offered = None if is_implicit_tls else tls

    def protocol() -> SMTP:
        return SMTP(
            inbox,
            hostname="mail.test",
            enable_SMTPUTF8=takes_utf8,
            tls_context=offered,
            auth_require_tls=False,
            authenticator=inbox.authenticate,
            auth_exclude_mechanism=() if needs_login else ("LOGIN", "PLAIN"),
        )

    loop = asyncio.get_running_loop()
    server = await loop.create_server(protocol, "127.0.0.1", 0, ssl=tls if is_implicit_tls else None)
    inbox.port = server.sockets[0].getsockname()[1]
    try:
        yield inbox
    finally:
        server.close()
        await server.wait_closed()


@contextlib.contextmanager
def trusted(folder: Path, monkeypatch: pytest.MonkeyPatch, *names: str) -> Iterator[ssl.SSLContext]:
    """A server's TLS context with a certificate in these names, whose authority this process trusts meanwhile."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(context)
    authority.cert_pem.write_to_path(str(folder / "authority.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(folder / "authority.pem"))
    yield context
