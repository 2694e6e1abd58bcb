"""Mails as a real server gets them; what is never sent, to whom, and what is told where it fails."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from email import message_from_string, policy
from email.headerregistry import AddressHeader, DateHeader
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.smtp import LOGIN, Inbox, smtp_server, trusted

from llmweir.errors import InvalidValueError, MailNotSentError
from llmweir.mail import Mail, Mailer, read_address, read_smtp_url

QUOTED_LOGIN = "ana%40weir:hush%3A%2F%40hush"
REMOTE = "mail.test"
MAIL = Mail(to="bob@example.com", subject="Hello", text="Hi Bob\n", html="<p>Hi Bob</p>\n")


def mailer(inbox: Inbox, *, scheme: str = "smtp", login: str = "", host: str = "127.0.0.1") -> Mailer:
    """A mailer to the server of `inbox`; `login` is `user:password`."""
    at = f"{login}@" if login else ""
    url = f"{scheme}://{at}{host}:{inbox.port}?from=Llm%20Weir%20<weir@example.com>"
    return Mailer(read_smtp_url(url), timeout_s=5)


@pytest.fixture
def remote(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the name `mail.test` lead to this machine, as if it were another one."""
    look_up = socket.getaddrinfo

    def getaddrinfo(host: Any, *rest: Any, **options: Any) -> Any:
        return look_up("127.0.0.1" if host == REMOTE else host, *rest, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


# The URL


@pytest.mark.parametrize(
    ("url", "host", "port", "login", "sender"),
    [
        pytest.param("smtp://h?from=a@b.c", "h", 587, (None, None), "a@b.c", id="least"),
        pytest.param("smtps://h?from=a@b.c", "h", 465, (None, None), "a@b.c", id="implicit TLS"),
        pytest.param("smtp://u:p@h:25/?from=a@b.c", "h", 25, ("u", "p"), "a@b.c", id="login and port"),
        pytest.param("smtp://u%40x:p%2F%3A%25@h?from=a@b", "h", 587, ("u@x", "p/:%"), "a@b", id="percent-encoded"),
        pytest.param("smtp://u:%C3%A4@h?from=a@b", "h", 587, ("u", "ä"), "a@b", id="password in UTF-8"),
        pytest.param("smtp://h?from=a%2Bx@b.c", "h", 587, (None, None), "a+x@b.c", id="encoded plus"),
        pytest.param("smtp://h?from=a+x@b.c", "h", 587, (None, None), "a+x@b.c", id="plus as it is"),
        pytest.param("smtp://[::1]:25?from=a@b.c", "::1", 25, (None, None), "a@b.c", id="IPv6"),
        pytest.param("smtp://h?from=W%20x<a@b.c>", "h", 587, (None, None), "W x <a@b.c>", id="sender with a name"),
        pytest.param("smtp://h?from=W,x<a@b.c>", "h", 587, (None, None), '"W,x" <a@b.c>', id="name to quote"),
        pytest.param("smtp://h?from=a@b%C3%BC.de", "h", 587, (None, None), "a@xn--b-eha.de", id="IDN sender"),
    ],
)
def test_the_url_names_server_login_and_sender(
    url: str, host: str, port: int, login: tuple[str | None, str | None], sender: str
) -> None:
    server = read_smtp_url(url)
    assert (server.host, server.port, (server.user, server.password)) == (host, port, login)
    assert str(server.sender) == sender
    assert server.is_implicit_tls is url.startswith("smtps:")


@pytest.mark.parametrize(
    ("url", "says"),
    [
        pytest.param("http://u:hush@h?from=a@b", "smtps://", id="another scheme"),
        pytest.param("smtp://?from=a@b", "smtp://user", id="no host"),
        pytest.param("smtp://u:hush#x@h?from=a@b", "such as smtp://", id="password with a #"),
        pytest.param("smtp://u:hu/sh@h?from=a@b", "such as smtp://", id="password with a slash"),
        pytest.param("smtp://u:%FFhush@h?from=a@b", "such as smtp://", id="password not UTF-8"),
        pytest.param("smtp://h:99999?from=a@b", "such as smtp://", id="no such port"),
        pytest.param("smtp://h/hush?from=a@b", "percent-encoded", id="a path"),
        pytest.param("smtp://u:hush@h", "?from=", id="no sender"),
        pytest.param("smtp://u:hush@h?from=", "?from=", id="empty sender"),
        pytest.param("smtp://u:hush@h?from=a@b&tls=no", "no more", id="something more"),
        pytest.param("smtp://hush@h?from=a@b", "or neither", id="no password"),
        pytest.param("smtp://:hush@h?from=a@b", "or neither", id="no user"),
        pytest.param("smtp://h?from=hush", "characters before", id="sender no address"),
        pytest.param("smtp://h?from=a@b%0D%0ABcc:x@hush", "before", id="sender with a line end"),
        pytest.param("smtp://h?from=a@b..hush", "domain", id="sender's domain none"),
    ],
)
def test_a_url_that_cannot_be_read_is_refused_without_showing_it(url: str, says: str) -> None:
    with pytest.raises(InvalidValueError) as caught:
        read_smtp_url(url)
    assert says in str(caught.value)
    assert "hush" not in str(caught.value)


def test_a_server_shows_no_login() -> None:
    assert "hush" not in f"{read_smtp_url('smtp://hush:hush@h?from=a@b')!r}"


# Addresses


@pytest.mark.parametrize(
    ("address", "spelled"),
    [
        pytest.param("a@b.c", "a@b.c", id="plain"),
        pytest.param("Ana.B+x@Example.COM", "Ana.B+x@example.com", id="case of the domain"),
        pytest.param("o'neil@b.c", "o'neil@b.c", id="apostrophe"),
        pytest.param("a@localhost", "a@localhost", id="one label"),
        pytest.param("a@bücher.example", "a@xn--bcher-kva.example", id="IDN"),
        pytest.param("a@straße.de", "a@xn--strae-oqa.de", id="sharp s is not ss"),
        pytest.param("jürgen@b.c", "jürgen@b.c", id="local part in Unicode"),
        pytest.param("二@b.c", "二@b.c", id="local part in Chinese"),
    ],
)
def test_an_address_is_spelled_as_the_wire_needs_it(address: str, spelled: str) -> None:
    assert read_address(address).addr_spec == spelled


@pytest.mark.parametrize(
    "address",
    [
        "a", "@b.c", "a@", "a@b@c.d", "a b@c.d", "a@b c", "<a@b.c>", "a>b@c.d", "a,x@c.d", "a@b.c,x@y.z", '"a"@b.c',
        "a(x)@b.c", "a@b.c(x)", "a:b@c.d", "a;b@c.d", "a\\b@c.d", "a..b@c.d", ".a@b.c", "a.@b.c", "a\r\nBcc:x@y.z",
        "a@b.c\r\nBcc: x", "a\u2028b@c.d", "a\u202eb@c.d", "a@b..c", "a@-b.c", "a@b_c.d", "a@[127.0.0.1]", "a\x00@b.c",
        "a@" + "b" * 64 + ".c", "ä" * 33 + "@b.c", "a\ud800@b.c", "a@\ud800.c",
    ],
    ids=ascii,
)  # fmt: skip
def test_an_address_that_would_need_quotes_or_is_none_is_refused(address: str) -> None:
    with pytest.raises(InvalidValueError, match=r"mail cannot go to|not one that mail can go to"):
        read_address(address)


@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=70), st.text(max_size=200))
def test_whatever_the_address_and_the_subject_there_is_one_recipient_and_no_header_more(local: str, text: str) -> None:
    to = f"{local}@example.com"
    try:
        read_address(to)
    except InvalidValueError:
        return
    server = read_smtp_url("smtp://h?from=a@b.c")
    mail = Mail(to=to, subject=text, text="x", html="x")
    sent = Mailer(server)._message(mail).as_bytes(policy=policy.SMTPUTF8)
    got = message_from_string(sent.decode(), policy=policy.default)
    header = got["To"]
    assert isinstance(header, AddressHeader)
    assert [address.addr_spec for address in header.addresses] == [to]
    assert sorted(got.keys()) == HEADERS


# Mails

HEADERS = sorted(
    ["From", "To", "Subject", "Date", "Message-ID", "Auto-Submitted", "MIME-Version", "Content-Type"]
)  # fmt: skip


async def test_a_mail_arrives_in_plain_text_and_html_with_its_headers() -> None:
    long = "https://weir.example.com/" + "x=" * 60
    mail = Mail(
        to="bob@example.com",
        subject="Grüße",
        text=f"Hallo Jürgen\n.\n..\n{long}\n",
        html=f"<p>Jürgen</p>\n.\n{long}\n",
    )
    async with smtp_server(Inbox()) as inbox:
        await mailer(inbox).send(mail)
    (got,) = inbox.mails
    assert sorted(set(got.keys()) - {"X-Peer", "X-MailFrom", "X-RcptTo"}) == HEADERS
    assert (got["From"], got["To"], got["Subject"]) == ("Llm Weir <weir@example.com>", "bob@example.com", "Grüße")
    assert (inbox.senders, inbox.recipients) == (["weir@example.com"], [["bob@example.com"]])
    assert got["Message-ID"].startswith("<")
    assert got["Message-ID"].endswith("@example.com>")
    date = got["Date"]
    assert isinstance(date, DateHeader)
    assert date.datetime is not None
    assert abs((datetime.now(UTC) - date.datetime).total_seconds()) < 60
    plain, html = got.get_body(("plain",)), got.get_body(("html",))
    assert plain is not None
    assert html is not None
    assert (plain.get_content(), html.get_content()) == (mail.text, mail.html)


async def test_each_mail_has_an_id_of_its_own() -> None:
    async with smtp_server(Inbox()) as inbox:
        await asyncio.gather(mailer(inbox).send(MAIL), mailer(inbox).send(MAIL))
    assert len({mail["Message-ID"] for mail in inbox.mails}) == 2


async def test_a_subject_cannot_begin_another_header() -> None:
    async with smtp_server(Inbox()) as inbox:
        await mailer(inbox).send(
            Mail(to="bob@example.com", subject="Hi\r\nBcc: eve@example.com\u2028x", text="", html="")
        )
    assert inbox.recipients == [["bob@example.com"]]
    assert inbox.mails[0]["Subject"] == "Hi  Bcc: eve@example.com x"
    assert inbox.mails[0]["Bcc"] is None


async def test_an_address_that_mail_cannot_go_to_reaches_no_server() -> None:
    async with smtp_server(Inbox()) as inbox:
        with pytest.raises(InvalidValueError):
            await mailer(inbox).send(Mail(to="a@b.c>\r\nRCPT TO:<eve@example.com", subject="", text="", html=""))
    assert inbox.recipients == []


async def test_an_address_beyond_ascii_goes_to_a_server_that_takes_it() -> None:
    async with smtp_server(Inbox()) as inbox:
        await mailer(inbox).send(Mail(to="jürgen@bücher.example", subject="", text="", html=""))
    assert inbox.recipients == [["jürgen@xn--bcher-kva.example"]]


# Secrecy


async def test_a_login_goes_over_starttls_to_a_server_with_a_valid_certificate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, remote: None
) -> None:
    with trusted(tmp_path, monkeypatch, REMOTE) as tls:
        async with smtp_server(Inbox(), tls=tls, needs_login=True) as inbox:
            await mailer(inbox, login=QUOTED_LOGIN, host=REMOTE).send(MAIL)
    assert (len(inbox.mails), set(inbox.logins)) == (1, {True})


async def test_a_login_goes_over_implicit_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, remote: None) -> None:
    with trusted(tmp_path, monkeypatch, REMOTE) as tls:
        async with smtp_server(Inbox(), tls=tls, is_implicit_tls=True, needs_login=True) as inbox:
            await mailer(inbox, scheme="smtps", login=QUOTED_LOGIN, host=REMOTE).send(MAIL)
    assert len(inbox.mails) == 1


async def test_starttls_is_used_without_a_login_where_it_is_offered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, remote: None
) -> None:
    with trusted(tmp_path, monkeypatch, "another.test") as tls:
        async with smtp_server(Inbox(), tls=tls) as inbox:
            with pytest.raises(MailNotSentError, match="certificate"):
                await mailer(inbox, host=REMOTE).send(MAIL)
    assert inbox.mails == []


async def test_a_login_never_goes_in_clear_over_a_network(remote: None) -> None:
    async with smtp_server(Inbox(), needs_login=True) as inbox:
        with pytest.raises(MailNotSentError, match="no STARTTLS"):
            await mailer(inbox, login=QUOTED_LOGIN, host=REMOTE).send(MAIL)
    assert (inbox.logins, inbox.mails) == ([], [])


@pytest.mark.parametrize("scheme", ["smtp", "smtps"])
@pytest.mark.parametrize("name", ["another.test", None], ids=["of another name", "of an authority not trusted"])
async def test_a_certificate_that_is_not_valid_ends_it(
    scheme: str, name: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, remote: None
) -> None:
    with trusted(tmp_path, monkeypatch, name or REMOTE) as tls:
        if name is None:
            monkeypatch.delenv("SSL_CERT_FILE")
        async with smtp_server(Inbox(), tls=tls, is_implicit_tls=scheme == "smtps", needs_login=True) as inbox:
            with pytest.raises(MailNotSentError, match="look at its certificate"):
                await mailer(inbox, scheme=scheme, login=QUOTED_LOGIN, host=REMOTE).send(MAIL)
    assert (inbox.logins, inbox.mails) == ([], [])


async def test_on_this_machine_a_login_may_go_in_clear() -> None:
    async with smtp_server(Inbox(), needs_login=True) as inbox:
        await mailer(inbox, login=QUOTED_LOGIN).send(MAIL)
    assert (len(inbox.mails), inbox.logins) == (1, [False])


async def test_on_this_machine_starttls_needs_no_valid_certificate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with trusted(tmp_path, monkeypatch, "another.test") as tls:
        async with smtp_server(Inbox(), tls=tls, needs_login=True) as inbox:
            await mailer(inbox, login=QUOTED_LOGIN).send(MAIL)
    assert (len(inbox.mails), inbox.logins) == (1, [True])


# Failures


@pytest.mark.parametrize(
    ("replies", "says"),
    [
        pytest.param({"MAIL": "550 hush"}, "refused the sender (550)", id="sender"),
        pytest.param({"RCPT": "550 no such user bob hush"}, "refused the recipient (550)", id="recipient"),
        pytest.param({"DATA": "554 hush"}, "refused the mail (554)", id="mail"),
        pytest.param({"DATA": "451 hush"}, "refused the mail (451)", id="mail for now"),
    ],
)
async def test_a_refusal_is_told_by_its_code_and_no_word_of_the_server(
    replies: dict[str, str], says: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "llmweir")
    async with smtp_server(Inbox(replies)) as inbox:
        with pytest.raises(MailNotSentError) as caught:
            await mailer(inbox).send(MAIL)
    assert caught.value.reason == f"the mail server {says}"
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("llmweir")]
    assert ours == [f"mail_not_sent reason='the mail server {says}'"]
    assert inbox.mails == []


@pytest.mark.parametrize("login", ["ana%40weir:wrong", f"bob:{LOGIN[1].replace('/', '%2F').replace('@', '%40')}"])
async def test_a_login_that_is_refused_is_told_without_it(login: str) -> None:
    async with smtp_server(Inbox(), needs_login=True) as inbox:
        with pytest.raises(MailNotSentError) as caught:
            await mailer(inbox, login=login).send(MAIL)
    assert caught.value.reason == "the mail server refused the login (535)"


async def test_a_login_that_the_server_does_not_offer_is_told() -> None:
    async with smtp_server(Inbox()) as inbox:
        with pytest.raises(MailNotSentError, match="or no login"):
            await mailer(inbox, login=QUOTED_LOGIN).send(MAIL)


async def test_a_server_that_takes_no_address_beyond_ascii_is_told() -> None:
    async with smtp_server(Inbox(), takes_utf8=False) as inbox:
        with pytest.raises(MailNotSentError, match="beyond ASCII"):
            await mailer(inbox).send(Mail(to="jürgen@example.com", subject="", text="", html=""))


async def test_a_server_that_is_not_there_is_told() -> None:
    with pytest.raises(MailNotSentError, match="cannot be reached"):
        await Mailer(read_smtp_url("smtp://127.0.0.1:1?from=a@b.c")).send(MAIL)


@contextlib.asynccontextmanager
async def speaking(
    speak: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any],
) -> AsyncIterator[Inbox]:
    """A server that says what it likes."""
    tasks: list[asyncio.Task[None]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.append(task)
        try:
            with contextlib.suppress(ConnectionError):
                await speak(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield Inbox(port=server.sockets[0].getsockname()[1])
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)


async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"220 mail.test\r\n")
    await reader.readline()


async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    await reader.read()


async def turn_away(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"554 no\r\n")
    await reader.read()


async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(b"220-wait\r\n")
        await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("speak", "says"),
    [
        pytest.param(hang, "did not answer in time", id="silence"),
        pytest.param(drip, "did not answer in time", id="without end"),
        pytest.param(hang_up, "cannot be reached", id="gone"),
        pytest.param(turn_away, "refused the mail (554)", id="turned away"),
        pytest.param(babble, "refused the mail (-1)", id="no mail server"),
    ],
)
async def test_a_server_that_behaves_oddly_is_left_in_time(
    speak: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any], says: str
) -> None:
    async with speaking(speak) as inbox:
        server = read_smtp_url(f"smtp://127.0.0.1:{inbox.port}?from=a@b.c")
        with pytest.raises(MailNotSentError) as caught:
            await Mailer(server, timeout_s=0.3).send(MAIL)
    assert caught.value.reason == f"the mail server {says}"


async def test_a_server_without_tls_behind_smtps_is_told() -> None:
    async with smtp_server(Inbox()) as inbox:
        with pytest.raises(MailNotSentError, match="no secure connection"):
            await mailer(inbox, scheme="smtps").send(MAIL)
