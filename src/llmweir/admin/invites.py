"""Invitations by mail, and the page behind their link, where a user sets a password."""

from __future__ import annotations

import logging

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

from llmweir.admin.access import Right
from llmweir.admin.attempts import FailedAttempts
from llmweir.admin.errors import AdminError
from llmweir.admin.invite_mail import invite_mail
from llmweir.admin.invite_pages import done_page, form_page, refusal_page
from llmweir.admin.passwords import Passwords
from llmweir.admin.routes import FORM, HTML, AdminRoute, Answer, Call, sent
from llmweir.admin.same_origin import check_same_origin
from llmweir.engine.invitations import Invitations
from llmweir.engine.users import User
from llmweir.errors import InvalidValueError, MailNotSentError
from llmweir.mail import Mailer, read_address
from llmweir.record_fields import Password, RequestBody, problems

_log = logging.getLogger("llmweir.admin")
_PARAM = "send_invite_email"
_GONE = "It has been used, or has ended. If you still need a password, ask for another invitation."


class Invites:
    """Mails invitations, where there is a `mailer`; links go to `public_url`, which may be None without one."""

    def __init__(self, mailer: Mailer | None, invitations: Invitations, public_url: str | None, prefix: str) -> None:
        self._mailer = mailer
        self._invitations = invitations
        self._base = f"{public_url or ''}{prefix}/invite/"

    def check(self, address: str | None) -> None:
        """Looks before anything is written whether a mail can be sent to `address`; raises AdminError 400."""
        if self._mailer is None:
            raise AdminError(400, "No SMTP server is configured to send an invitation; set LLMWEIR_SMTP_URL.", _PARAM)
        if address is None:
            raise AdminError(400, "There is no email address on the record to send an invitation to.", _PARAM)
        try:
            read_address(address)
        except InvalidValueError as error:
            raise AdminError(400, str(error), "user_email") from error

    async def send(self, user_id: str, address: str, name: str | None) -> None:
        """Mails an invitation to a user whose record is written; raises AdminError 502 where it does not go out."""
        self.check(address)
        assert self._mailer is not None  # noqa: S101 (it has just been looked at)
        link = self._base + await self._invitations.issue(user_id)
        try:
            await self._mailer.send(invite_mail(address, name or address, link))
        except MailNotSentError as error:
            stands = "The record is written; the invitation was not sent, and no key was made or changed"
            again = "Send it again by /user/update with send_invite_email"
            raise AdminError(502, f"{stands}: {error.reason}. {again}.", _PARAM) from error
        _log.info("invitation_sent user_id=%r", user_id)


class PasswordForm(BaseModel):
    """The form of the page: a password, twice."""

    model_config = ConfigDict(extra="ignore", frozen=True, hide_input_in_errors=True)

    password: SecretStr = Field(SecretStr(""), description="The new password: 8 to 1024 characters.")
    repeated: SecretStr = Field(SecretStr(""), description="The same once more.")


class _Chosen(RequestBody):
    """A password by the rule of the record."""

    password: Password


class InviteRoutes:
    """The page of an invitation. Reading it changes nothing, since programs that scan mails open every link."""

    def __init__(self, invitations: Invitations, passwords: Passwords, attempts: FailedAttempts) -> None:
        self._invitations = invitations
        self._passwords = passwords
        self._attempts = attempts

    @property
    def routes(self) -> tuple[AdminRoute, ...]:
        """`GET` and `POST /invite/{token}`."""
        show = AdminRoute(
            method="GET",
            path="/invite/{token}",
            right=Right.OPEN,
            handle=self.show,
            summary="The page of an invitation, with a form to set a password.",
            answer=str,
            answers_in=HTML,
            refuses=(410, 429),
            error_page=error_page,
        )
        accept = AdminRoute(
            method="POST",
            path="/invite/{token}",
            right=Right.OPEN,
            handle=self.accept,
            summary="Sets the password of the invited user; this ends the user's invitations.",
            body=PasswordForm,
            takes=FORM,
            answer=str,
            answers_in=HTML,
            refuses=(403, 410, 422, 429),
            error_page=error_page,
        )
        return show, accept

    async def show(self, call: Call) -> Answer:
        """Shows the form to the user whom the token invites."""
        guest = await self._guest(call)
        return form_page(*_names(guest))

    async def accept(self, call: Call) -> Answer:
        """Sets the password that was sent, once; shows the form again where it is not one."""
        check_same_origin(call.headers)
        guest = await self._guest(call)
        form = sent(PasswordForm, call.body)
        problem = _problem(form)
        if problem is not None:
            return form_page(*_names(guest), problem)
        password_hash = await self._passwords.hash(form.password)
        if not await self._invitations.accept(call.path["token"], password_hash):
            raise AdminError(410, _GONE)
        _log.info("password_set_by_invitation user_id=%r", guest.record.user_id)
        return done_page()

    async def _guest(self, call: Call) -> User:
        guest = await self._invitations.guest(call.path["token"])
        if guest is not None:
            return guest
        wait_s = self._attempts.count(call.client)
        if wait_s:
            message = f"There were too many wrong links from your address. Try again in {wait_s} s."
            raise AdminError(429, message, headers={"retry-after": str(wait_s)})
        raise AdminError(410, _GONE)


def error_page(error: AdminError) -> Answer:
    """A refusal as people read it."""
    return refusal_page(error.status, error.message, error.headers)


def _names(user: User) -> tuple[str, str]:
    """How to greet a user, and what the account is called at sign-in."""
    account = user.record.user_email or user.record.user_id
    return user.record.user_alias or account, account


def _problem(form: PasswordForm) -> str | None:
    """What is wrong with a form, in a sentence; None where nothing is."""
    try:
        chosen = _Chosen.model_validate({"password": form.password})
    except ValidationError as error:
        return str(problems(error)[0]["msg"])
    return None if chosen.password == form.repeated else "The two passwords are not the same."
