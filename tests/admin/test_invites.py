"""Invitations from the admin call to the password: the mail that arrives, its link, the page, and who is refused."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import logging
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from html.parser import HTMLParser
from typing import Any

import httpx
import pytest
import redis
from argon2 import PasswordHasher
from tests.backends import on_valkey
from tests.harness import Served
from tests.smtp import Inbox, smtp_server

from llmweir.admin.access import Access
from llmweir.admin.app import AdminApi
from llmweir.admin.attempts import FailedAttempts
from llmweir.admin.build import AdminOptions, admin_api
from llmweir.admin.errors import AdminError
from llmweir.admin.invite_mail import invite_mail
from llmweir.admin.invites import InviteRoutes, Invites
from llmweir.admin.passwords import Passwords
from llmweir.admin.same_origin import check_same_origin
from llmweir.engine.api_keys import ApiKeys
from llmweir.engine.invitations import Invitations
from llmweir.engine.link import Link
from llmweir.engine.users import Users
from llmweir.errors import NotFoundError
from llmweir.mail import Mailer, read_smtp_url
from llmweir.records import parse_new
from llmweir.traffic.identify import HeadReader

PREFIX = "/gate"
PASSWORD = "correct horse ä"
NOBODYS = "x" * 43


@dataclass
class Stage:
    """The pages as they are served, the mail server, and what the admin API sends mails with."""

    http: httpx.AsyncClient
    inbox: Inbox
    invites: Invites
    invitations: Invitations
    users: Users

    async def user(self, **fields: Any) -> str:
        body = {"user_id": "ana", "user_email": "ana@example.com", "user_alias": "Ana", **fields}
        return await self.users.create(parse_new(json.dumps(body).encode()))

    async def invited(self, name: str | None = "Ana") -> str:
        """Mails an invitation to ana, and returns the path of the link in the mail that arrived."""
        await self.invites.send("ana", "ana@example.com", name)
        return self.link().removeprefix("https://weir.example.com:8443/base")

    def link(self) -> str:
        """The link in the newest mail: the same in plain text and in HTML."""
        plain = self.inbox.mails[-1].get_body(("plain",))
        html = self.inbox.mails[-1].get_body(("html",))
        assert plain is not None
        assert html is not None
        links = set(re.findall(r"https?://[^\s\"<]+", plain.get_content() + html.get_content()))
        assert len(links) == 1
        return str(links.pop())

    async def set_password(self, path: str, password: str = PASSWORD, **headers: str) -> httpx.Response:
        return await self.http.post(path, data={"password": password, "repeated": password}, headers=headers)

    async def has_password(self, password: str, user_id: str = "ana") -> bool:
        kept = await self.users.password_hash(user_id)
        return kept is not None and PasswordHasher().verify(kept, password)


@pytest.fixture
async def stage(link: Link, users: Users) -> AsyncIterator[Stage]:
    async with staged(link, users) as stage:
        yield stage


@contextlib.asynccontextmanager
async def staged(link: Link, users: Users, attempts: int = 20) -> AsyncIterator[Stage]:
    invitations = Invitations(link, users)
    allowance = FailedAttempts(attempts)
    pages = InviteRoutes(invitations, Passwords(), allowance)
    access = Access(ApiKeys(users), read_key=lambda _: None, master_key=None, attempts=allowance)
    async with smtp_server(Inbox()) as inbox:
        mailer = Mailer(read_smtp_url(f"smtp://127.0.0.1:{inbox.port}?from=weir@example.com"), timeout_s=5)
        invites = Invites(mailer, invitations, "https://weir.example.com:8443/base", PREFIX)
        async with (
            Served(AdminApi(pages.routes, access, prefix=PREFIX).app()) as server,
            httpx.AsyncClient(base_url=server.url) as http,
        ):
            yield Stage(http, inbox, invites, invitations, users)


class Page(HTMLParser):
    """What a page has in it: its elements with their attributes, and its words."""

    def __init__(self, answer: httpx.Response) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self._in_style = False
        self.style = ""
        self.feed(answer.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._in_style = tag == "style"

    def handle_endtag(self, tag: str) -> None:
        self._in_style = False

    def handle_data(self, data: str) -> None:
        if self._in_style:
            self.style += data
        else:
            self.words += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


# The mail


@on_valkey
async def test_an_invitation_leads_from_the_mail_to_the_password(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "llmweir")
    await stage.user()
    path = await stage.invited()
    assert path.startswith("/gate/invite/")
    mail = stage.inbox.mails[0]
    assert (mail["To"], mail["From"]) == ("ana@example.com", "weir@example.com")
    assert mail["Subject"] == "Set your password for weir.example.com:8443"
    shown = await stage.http.get(path)
    assert (shown.status_code, shown.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "Welcome, Ana." in Page(shown).words
    done = await stage.set_password(path)
    assert (done.status_code, "Your password is set" in Page(done).words) == (200, True)
    assert await stage.has_password(PASSWORD)
    again = await stage.set_password(path, "another one")
    assert (again.status_code, (await stage.http.get(path)).status_code) == (410, 410)
    assert await stage.has_password(PASSWORD)
    told = [record.getMessage() for record in caplog.records if record.name.startswith("llmweir")]
    assert told == ["invitation_sent user_id='ana'", "password_set_by_invitation user_id='ana'"]


@on_valkey
@pytest.mark.parametrize(
    ("name", "greeted", "escaped"),
    [
        pytest.param("Ana", "Hello Ana,", "<bdi>Ana</bdi>", id="plain"),
        pytest.param("<b>&\"'", "Hello <b>&\"',", "<bdi>&lt;b&gt;&amp;&quot;&#x27;</bdi>", id="HTML"),
        pytest.param("Jürgen 二", "Hello Jürgen 二,", "<bdi>Jürgen 二</bdi>", id="beyond ASCII"),
        pytest.param("$link $$", "Hello $link $$,", "<bdi>$link $$</bdi>", id="a template"),
        pytest.param("A\u2028.\r\nBcc: x", "Hello A .  Bcc: x,", "<bdi>A .  Bcc: x</bdi>", id="line ends"),
        pytest.param(None, "Hello ana@example.com,", "<bdi>ana@example.com</bdi>", id="none"),
    ],
)
async def test_a_mail_greets_by_name_whatever_is_in_it(
    stage: Stage, name: str | None, greeted: str, escaped: str
) -> None:
    await stage.user()
    await stage.invited(name)
    plain, html = stage.inbox.mails[0].get_body(("plain",)), stage.inbox.mails[0].get_body(("html",))
    assert plain is not None
    assert html is not None
    assert plain.get_content().splitlines()[0] == greeted
    assert escaped in html.get_content()
    assert stage.inbox.recipients == [["ana@example.com"]]


def test_a_link_is_quoted_in_html() -> None:
    mail = invite_mail("a@b.c", "A", "https://h/'\"&<x")
    assert "https://h/&#x27;&quot;&amp;&lt;x" in mail.html
    assert "https://h/'" not in mail.html


@on_valkey
async def test_a_second_invitation_leaves_the_first_and_the_password_ends_both(stage: Stage) -> None:
    await stage.user()
    first, second = await stage.invited(), await stage.invited()
    assert first != second
    assert (await stage.set_password(first)).status_code == 200
    assert (await stage.set_password(second)).status_code == 410


@on_valkey
async def test_without_a_mail_server_it_says_how_to_set_one(stage: Stage) -> None:
    await stage.user()
    invites = Invites(None, stage.invitations, None, "")
    with pytest.raises(AdminError, match="set LLMWEIR_SMTP_URL") as caught:
        await invites.send("ana", "ana@example.com", None)
    assert (caught.value.status, caught.value.param) == (400, "send_invite_email")


@on_valkey
@pytest.mark.parametrize(
    ("address", "param"),
    [
        pytest.param(None, "send_invite_email", id="none"),
        pytest.param('"x"@b.c', "user_email", id="needs quotes"),
        pytest.param("a@b..c", "user_email", id="no domain"),
    ],
)
async def test_an_address_that_mail_cannot_go_to_is_refused_before_anything_is_done(
    stage: Stage, address: str | None, param: str
) -> None:
    with pytest.raises(AdminError) as caught:
        stage.invites.check(address)
    assert (caught.value.status, caught.value.param) == (400, param)
    stage.invites.check("ana@example.com")


@on_valkey
async def test_a_mail_that_does_not_go_out_is_told_with_what_stands(stage: Stage) -> None:
    await stage.user()
    stage.inbox.replies["RCPT"] = "550 hush ana@example.com"
    with pytest.raises(AdminError) as caught:
        await stage.invites.send("ana", "ana@example.com", "Ana")
    error = caught.value
    assert (error.status, error.type, error.param) == (502, "server_error", "send_invite_email")
    assert "The record is written; the invitation was not sent, and no key was made" in error.message
    assert "refused the recipient (550). Send it again by /user/update" in error.message
    assert "hush" not in error.message


@on_valkey
async def test_nobody_who_is_not_there_is_mailed(stage: Stage) -> None:
    with pytest.raises(NotFoundError):
        await stage.invites.send("nobody", "ana@example.com", None)
    assert stage.inbox.mails == []


# The calls

MASTER = "sk-master"


@contextlib.asynccontextmanager
async def admin(link: Link, users: Users, smtp_url: str | None) -> AsyncIterator[httpx.AsyncClient]:
    """The whole admin API, as the master key calls it."""
    heads = HeadReader()
    options = AdminOptions(
        read_key=lambda headers: heads.read(headers).api_key,
        key_headers=(),
        master_key=MASTER,
        version="1",
        smtp_url=smtp_url,
        public_url="https://weir.example.com",
    )
    transport = httpx.ASGITransport(admin_api(link, users, ApiKeys(users), bytes, options).app())
    headers = {"authorization": f"Bearer {MASTER}"}
    async with httpx.AsyncClient(transport=transport, base_url="https://weir.example.com", headers=headers) as api:
        yield api


@on_valkey
async def test_a_new_user_is_invited_and_another_mail_goes_to_the_address_they_have_then(
    link: Link, users: Users
) -> None:
    async with (
        smtp_server(Inbox()) as inbox,
        admin(link, users, f"smtp://127.0.0.1:{inbox.port}?from=weir@example.com") as api,
    ):
        fields = {"user_id": "ana", "user_email": "ana@example.com", "send_invite_email": True}
        made = await api.post("/user/new", json=fields)
        moved = await api.post("/user/update", json={**fields, "user_email": "anna@example.com"})
    assert (made.status_code, made.json()["key"][:3], moved.status_code) == (200, "sk-", 200)
    assert inbox.recipients == [["ana@example.com"], ["anna@example.com"]]
    assert "https://weir.example.com/invite/" in inbox.mails[0].as_string()


@on_valkey
@pytest.mark.parametrize(
    ("has_server", "body", "says"),
    [
        pytest.param(False, {"user_email": "ana@example.com"}, "No SMTP server", id="no server"),
        pytest.param(True, {}, "no email address", id="no address"),
        pytest.param(True, {"user_email": "a,b@example.com"}, "cannot go to", id="no address for mails"),
    ],
)
async def test_an_invitation_that_cannot_be_sent_is_400_and_nothing_is_done(
    link: Link, users: Users, url: str, has_server: bool, body: dict[str, object], says: str
) -> None:
    smtp_url = "smtp://127.0.0.1:1?from=weir@example.com" if has_server else None
    async with admin(link, users, smtp_url) as api:
        answer = await api.post("/user/new", json={"user_id": "ana", "send_invite_email": True, **body})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "400")
    assert says in answer.json()["error"]["message"]
    with redis.from_url(url) as client:
        assert list(client.scan_iter()) == []


@on_valkey
async def test_a_mail_that_fails_is_502_and_the_record_stands_without_a_key(link: Link, users: Users) -> None:
    async with admin(link, users, "smtp://127.0.0.1:1?from=weir@example.com") as api:
        fields = {"user_id": "ana", "user_email": "ana@example.com", "send_invite_email": True}
        answer = await api.post("/user/new", json=fields)
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["code"]) == (502, "server_error", "502")
    assert "cannot be reached" in error["message"]
    user = await users.get("ana")
    assert user is not None
    assert user.keys == ()


# The page


@on_valkey
async def test_looking_at_the_page_changes_nothing_however_often(stage: Stage, url: str) -> None:
    await stage.user()
    path = await stage.invited()
    with redis.from_url(url) as client:
        before = {key: client.dump(key) for key in client.scan_iter()}
        for _ in range(3):
            assert (await stage.http.get(path)).status_code == 200
            assert (await stage.http.head(path)).status_code == 200
        assert {key: client.dump(key) for key in client.scan_iter()} == before
    assert (await stage.set_password(path)).status_code == 200


@on_valkey
async def test_every_page_loads_nothing_tells_nobody_and_stays_nowhere(stage: Stage) -> None:
    await stage.user()
    path = await stage.invited()
    answers = [
        await stage.http.get(path),
        await stage.set_password(path, "short"),
        await stage.set_password(path),
        await stage.http.get(path),
    ]
    assert [answer.status_code for answer in answers] == [200, 422, 200, 410]
    for answer in answers:
        page = Page(answer)
        policy = dict(part.strip().partition(" ")[::2] for part in answer.headers["content-security-policy"].split(";"))
        digest = base64.b64encode(hashlib.sha256(page.style.encode()).digest()).decode()
        assert policy == {
            "default-src": "'none'",
            "style-src": f"'sha256-{digest}'",
            "form-action": "'self'",
            "frame-ancestors": "'none'",
            "base-uri": "'none'",
        }
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in page.elements}
        assert not any("style" in attributes or "src" in attributes for _, attributes in page.elements)
        assert "url(" not in page.style
        assert "//" not in answer.text


@on_valkey
async def test_the_page_can_be_used_by_everybody(stage: Stage) -> None:
    await stage.user()
    path = await stage.invited()
    pages = [Page(await stage.http.get(path)), Page(await stage.set_password(path, "short"))]
    for page in pages:
        assert page.all("html") == [{"lang": "en"}]
        assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.all("meta")
        assert len(page.all("title")) == len(page.all("h1")) == len(page.all("main")) == 1
        labelled = {label["for"] for label in page.all("label")}
        assert labelled == {each["id"] for each in page.all("input")} == {"username", "password", "repeated"}
        ids = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
        for field in page.all("input"):
            assert set((field.get("aria-describedby") or "").split()) <= ids
        assert [each["autocomplete"] for each in page.all("input")] == ["username", "new-password", "new-password"]
        assert [each.get("value") for each in page.all("input")] == ["ana@example.com", None, None]
    assert [["role" in each for each in page.all("p")] for page in pages] == [[False], [False, True]]
    assert pages[1].all("p")[1] == {"class": "problem", "id": "problem", "role": "alert"}


@on_valkey
@pytest.mark.parametrize(
    ("fields", "shown", "account"),
    [
        pytest.param({"user_alias": "<script>x"}, "&lt;script&gt;x", 'value="ana@example.com"', id="HTML in the name"),
        pytest.param({"user_alias": None}, "<bdi>ana@example.com</bdi>", 'value="ana@example.com"', id="no name"),
        pytest.param({"user_email": "a\"'<@b.c"}, "Ana", 'value="a&quot;&#x27;&lt;@b.c"', id="HTML in the address"),
        pytest.param({"user_email": None}, "Ana", 'value="ana"', id="no address"),
    ],
)
async def test_the_page_shows_whose_account_it_is(
    stage: Stage, fields: dict[str, Any], shown: str, account: str
) -> None:
    await stage.user(**fields)
    answer = await stage.http.get(f"{PREFIX}/invite/{await stage.invitations.issue('ana')}")
    assert shown in answer.text
    assert account in answer.text
    assert "<script>" not in answer.text


@on_valkey
@pytest.mark.parametrize(
    ("password", "repeated", "says"),
    [
        pytest.param("", "", "8 to 1024 characters", id="empty"),
        pytest.param("seven 7", "seven 7", "8 to 1024 characters", id="short"),
        pytest.param("x" * 1025, "x" * 1025, "8 to 1024 characters", id="long"),
        pytest.param("a\x00bcdefgh", "a\x00bcdefgh", "Control characters", id="control character"),
        pytest.param("correct horse", "correct house", "not the same", id="not the same"),
        pytest.param("correct horse", "", "not the same", id="only once"),
    ],
)
async def test_a_password_that_is_none_shows_the_form_again_and_ends_nothing(
    stage: Stage, password: str, repeated: str, says: str
) -> None:
    await stage.user()
    path = await stage.invited()
    answer = await stage.http.post(path, data={"password": password, "repeated": repeated})
    page = Page(answer)
    assert answer.status_code == 422
    assert says in page.words
    assert len(page.all("form")) == 1
    assert not password or password not in answer.text
    assert await stage.users.password_hash("ana") is None
    assert (await stage.set_password(path)).status_code == 200


@on_valkey
@pytest.mark.parametrize("password", ["x" * 8, "ä" * 1024, "a b+c%20&=;#", "密码密码密码密码", "  blanks  "], ids=ascii)
async def test_a_password_is_kept_as_it_was_typed(stage: Stage, password: str) -> None:
    await stage.user()
    assert (await stage.set_password(await stage.invited(), password)).status_code == 200
    assert await stage.has_password(password)


@on_valkey
async def test_of_two_forms_at_once_one_wins(stage: Stage) -> None:
    await stage.user()
    path = await stage.invited()
    passwords = ["the first one", "the second one"]
    answers = await asyncio.gather(*(stage.set_password(path, password) for password in passwords))
    assert sorted(answer.status_code for answer in answers) == [200, 410]
    winner = passwords[[answer.status_code for answer in answers].index(200)]
    assert await stage.has_password(winner)


@on_valkey
@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("token", [NOBODYS, "x", "a/b", "%00", "%ff", "<script>", "..%2f"], ids=ascii)
async def test_a_link_that_is_not_valid_says_no_more_than_that(stage: Stage, method: str, token: str) -> None:
    await stage.user()
    used = await stage.invited()
    await stage.set_password(used)
    form = {"password": PASSWORD, "repeated": PASSWORD} if method == "POST" else None
    of_used = await stage.http.request(method, used, data=form)
    answer = await stage.http.request(method, f"{PREFIX}/invite/{token}", data=form)
    assert (answer.status_code, answer.text) == (of_used.status_code, of_used.text)
    assert answer.status_code == 410
    assert "not valid any more" in Page(answer).words
    assert "ana" not in answer.text.lower()


@pytest.mark.parametrize(
    ("headers", "passes"),
    [
        pytest.param({}, True, id="no browser"),
        pytest.param({"sec-fetch-site": "same-origin", "origin": "null"}, True, id="our own page"),
        pytest.param({"sec-fetch-site": "none"}, True, id="nobody's page"),
        pytest.param({"sec-fetch-site": "cross-site", "origin": "https://h"}, False, id="another site"),
        pytest.param({"sec-fetch-site": "same-site"}, False, id="another host of the site"),
        pytest.param({"origin": "null"}, True, id="older browser, our own page"),
        pytest.param({"origin": "https://h"}, True, id="older browser, same host"),
        pytest.param({"origin": "https://evil.example"}, False, id="older browser, another host"),
        pytest.param({"origin": "https://h:8443"}, False, id="older browser, another port"),
        pytest.param({"origin": "x"}, False, id="no origin at all"),
    ],
)
def test_a_form_of_another_site_is_refused(headers: dict[str, str], passes: bool) -> None:
    sent = {"host": "h", **headers}
    if passes:
        check_same_origin(sent)
        return
    with pytest.raises(AdminError) as caught:
        check_same_origin(sent)
    assert caught.value.status == 403


@on_valkey
async def test_a_form_that_another_site_sends_sets_nothing(stage: Stage) -> None:
    await stage.user()
    path = await stage.invited()
    refused = await stage.http.post(
        path, data={"password": PASSWORD, "repeated": PASSWORD}, headers={"sec-fetch-site": "cross-site"}
    )
    assert (refused.status_code, refused.headers["content-type"]) == (403, "text/html; charset=utf-8")
    assert await stage.users.password_hash("ana") is None
    own = await stage.http.post(
        path, data={"password": PASSWORD, "repeated": PASSWORD}, headers={"sec-fetch-site": "same-origin"}
    )
    assert own.status_code == 200


@on_valkey
@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        pytest.param(b'{"password": "hush-hush"}', "application/json", 415, id="JSON"),
        pytest.param(b"password=hush-hush&password=x", "application/x-www-form-urlencoded", 422, id="twice"),
        pytest.param(b"password=%ff%fe", "application/x-www-form-urlencoded", 422, id="not UTF-8"),
        pytest.param(b"x" * 3_000_000, "application/x-www-form-urlencoded", 413, id="too large"),
    ],
)
async def test_what_is_no_form_is_refused_with_a_page(stage: Stage, content: bytes, kind: str, status: int) -> None:
    await stage.user()
    path = await stage.invited()
    answer = await stage.http.post(path, content=content, headers={"content-type": kind})
    assert (answer.status_code, answer.headers["content-type"]) == (status, "text/html; charset=utf-8")
    assert "hush" not in answer.text
    assert (await stage.set_password(path)).status_code == 200


@on_valkey
async def test_too_many_wrong_links_are_to_wait_and_a_right_one_is_not(link: Link, users: Users) -> None:
    async with staged(link, users, attempts=3) as stage:
        await stage.user()
        path = await stage.invited()
        wrong = [await stage.http.get(f"{PREFIX}/invite/{NOBODYS}") for _ in range(5)]
        assert [answer.status_code for answer in wrong] == [410, 410, 410, 429, 429]
        assert 0 < int(wrong[-1].headers["retry-after"]) <= 20
        assert (await stage.set_password(path)).status_code == 200


async def test_while_the_store_is_away_a_page_says_so() -> None:
    link = Link("redis://127.0.0.1:1", timeout_ms=200)
    async with staged(link, Users(link)) as stage:
        path = f"{PREFIX}/invite/{NOBODYS}"
        for answer in (await stage.http.get(path), await stage.set_password(path)):
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
            assert "try again later" in Page(answer).words
    await link.aclose()
