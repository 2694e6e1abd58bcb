"""Mails by SMTP: where the server is, which addresses it may be handed, what goes over the wire and how.

A login goes over TLS, or to this very machine; a certificate that is not valid ends the call.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import re
import ssl
from datetime import UTC, datetime
from email.headerregistry import Address
from email.message import EmailMessage
from email.utils import make_msgid
from urllib.parse import SplitResult, unquote, urlsplit

import aiosmtplib
import idna
import msgspec

from llmweir.errors import InvalidValueError, MailNotSentError

_log = logging.getLogger("llmweir.mail")
_TIMEOUT_S = 15.0
_GOODBYE_S = 2.0
_PORTS = {"smtp": 587, "smtps": 465}
_ATOM = r"(?:[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]|[^\x00-\x9f])+"
_LOCAL_PART = re.compile(rf"{_ATOM}(?:\.{_ATOM})*")
_DOMAIN = re.compile(r"[a-z0-9-]+(\.[a-z0-9-]+)*")
_REASONS: tuple[tuple[type[Exception], str], ...] = (
    (TimeoutError, "the mail server did not answer in time"),
    (aiosmtplib.SMTPAuthenticationError, "the mail server refused the login"),
    (aiosmtplib.SMTPSenderRefused, "the mail server refused the sender"),
    (aiosmtplib.SMTPRecipientsRefused, "the mail server refused the recipient"),
    (aiosmtplib.SMTPResponseException, "the mail server refused the mail"),
    (aiosmtplib.SMTPNotSupported, "the mail server does not take addresses beyond ASCII"),
    (OSError, "the mail server cannot be reached"),
    (aiosmtplib.SMTPException, "the mail server offers no STARTTLS, or no login, and one is needed"),
)
"""What is told of each kind of error, the first that it is an instance of."""
_SHAPE = "smtp://user:password@host:587?from=name@example.com"


class SmtpServer(msgspec.Struct, frozen=True, kw_only=True):
    """An SMTP server, how to log in to it, and whom its mails are from."""

    host: str
    port: int
    is_implicit_tls: bool
    user: str | None
    password: str | None
    sender: Address

    def __repr__(self) -> str:
        return f"SmtpServer({self.host!r}, {self.port})"

    @property
    def is_local(self) -> bool:
        """Whether it is on this very machine, so that nothing crosses a network."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


class Mail(msgspec.Struct, frozen=True, kw_only=True):
    """A mail to one address, once in plain text and once in HTML."""

    to: str
    subject: str
    text: str
    html: str


class Mailer:
    """Hands mails to an SMTP server, each over a connection of its own; `timeout_s` is for all of it."""

    def __init__(self, server: SmtpServer, *, timeout_s: float = _TIMEOUT_S) -> None:
        self._server = server
        self._timeout_s = timeout_s

    async def send(self, mail: Mail) -> None:
        """Sends a mail; raises MailNotSentError, and InvalidValueError for an address that mail cannot go to."""
        message = self._message(mail)
        client = self._client()
        try:
            async with asyncio.timeout(self._timeout_s):
                await client.connect()
                await client.send_message(message)
        except (aiosmtplib.SMTPException, OSError, TimeoutError) as error:
            reason = _reason(error)
            _log.warning("mail_not_sent reason=%r", reason)
            raise MailNotSentError(reason) from error
        else:
            with contextlib.suppress(aiosmtplib.SMTPException, OSError, TimeoutError):
                await client.quit(timeout=_GOODBYE_S)
        finally:
            client.close()

    def _client(self) -> aiosmtplib.SMTP:
        server = self._server
        is_upgrade_needed = server.user is not None and not server.is_local
        return aiosmtplib.SMTP(
            hostname=server.host,
            port=server.port,
            username=server.user,
            password=server.password,
            use_tls=server.is_implicit_tls,
            # None upgrades where the server offers it.
            start_tls=False if server.is_implicit_tls else is_upgrade_needed or None,
            # What listens on this machine seldom has a certificate in the name of "localhost".
            validate_certs=server.is_implicit_tls or not server.is_local,
            local_hostname=server.sender.domain,
            timeout=self._timeout_s,
        )

    def _message(self, mail: Mail) -> EmailMessage:
        """The mail as it goes out. No name goes into `To`, only the address: there is nothing there to quote."""
        message = EmailMessage()
        message["From"] = self._server.sender
        message["To"] = read_address(mail.to)
        message["Subject"] = one_line(mail.subject)
        message["Date"] = datetime.now(UTC)
        message["Message-ID"] = make_msgid(domain=self._server.sender.domain)
        message["Auto-Submitted"] = "auto-generated"
        message.set_content(mail.text, cte="quoted-printable")
        message.add_alternative(mail.html, subtype="html", cte="quoted-printable")
        return message


def read_smtp_url(url: str) -> SmtpServer:
    """Reads `smtp://user:password@host:587?from=name@example.com`, or `smtps://` for TLS from the first byte.

    User, password and sender are percent-encoded where they need to be; the sender may have a name:
    `from=Weir%20<weir@example.com>`. Raises InvalidValueError, which shows no part of the URL.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
        sender, user, password = (_decoded(text) for text in (_sender(parts), parts.username, parts.password))
    except ValueError:  # its message may hold a piece of the password
        raise InvalidValueError(f"should be a URL such as {_SHAPE}") from None
    if parts.scheme not in _PORTS or not parts.hostname or parts.path not in ("", "/") or parts.fragment:
        raise InvalidValueError(f"should be a URL such as {_SHAPE} (or smtps://), what is special percent-encoded")
    if sender is None:
        raise InvalidValueError(f"should end in ?from= and the address that mails are from, and no more: {_SHAPE}")
    if bool(user) != bool(password):
        raise InvalidValueError("should have a user and a password, or neither")
    return SmtpServer(
        host=parts.hostname,
        port=port or _PORTS[parts.scheme],
        is_implicit_tls=parts.scheme == "smtps",
        user=user or None,
        password=password or None,
        sender=_named_address(sender),
    )


def read_address(address: str) -> Address:
    """Reads an address that mail can go to, its domain as DNS spells it; raises InvalidValueError.

    The local part is a dot-atom (RFC 5322), in Unicode where need be (RFC 6531): nothing that would have to be quoted,
    in a header or on the wire. The domain is encoded by IDNA 2008 with the mapping of UTS 46.
    """
    local_part, _, domain = address.rpartition("@")
    try:
        ascii_domain = idna.encode(domain, uts46=True).decode()
    except UnicodeError as error:
        raise InvalidValueError("The domain of the email address is not one that mail can go to.") from error
    if not _DOMAIN.fullmatch(ascii_domain):
        raise InvalidValueError("The domain of the email address is not one that mail can go to.")
    is_local_part = _LOCAL_PART.fullmatch(local_part) and local_part.isprintable()
    if not is_local_part or len(local_part.encode()) > 64:
        raise InvalidValueError("The email address has characters before the '@' that mail cannot go to.")
    return Address(username=local_part, domain=ascii_domain)


def one_line(text: str) -> str:
    """The text with a blank for each character that is not printable, line ends and the like among them."""
    return "".join(character if character.isprintable() else " " for character in text)


def _sender(parts: SplitResult) -> str | None:
    name, _, value = parts.query.partition("=")
    return value if name == "from" and value and "&" not in value else None


def _decoded(text: str | None) -> str | None:
    return None if text is None else unquote(text, errors="strict")


def _named_address(text: str) -> Address:
    name, bracket, rest = text.rpartition("<")
    if not bracket:
        return read_address(text)
    address = read_address(rest.removesuffix(">"))
    return Address(one_line(name).strip(), address.username, address.domain)


def _reason(error: Exception) -> str:
    """What went wrong, in words of our own: what a server says may repeat addresses or logins."""
    if isinstance(error, ssl.SSLError) or isinstance(error.__cause__, ssl.SSLError):
        return "there is no secure connection to the mail server, look at its certificate"
    reason = next(text for kind, text in _REASONS if isinstance(error, kind))
    told = error.recipients[0] if isinstance(error, aiosmtplib.SMTPRecipientsRefused) else error
    return f"{reason} ({told.code})" if isinstance(told, aiosmtplib.SMTPResponseException) else reason
