"""The admin API: a small Starlette app over the users of the store, behind the master key."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from hmac import compare_digest

import msgspec
from argon2 import PasswordHasher
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from llmweir.admin.shapes import minted_key_json, user_info_json, user_json
from llmweir.engine.link import ReplyError
from llmweir.engine.users import MintedKey, User, Users
from llmweir.errors import ConflictError, NotFoundError, StoreUnavailableError, UnreadableRequestError
from llmweir.records import UserFields, UserUpdate, parse_new, parse_update, problems

_log = logging.getLogger("llmweir.admin")
_DEPRECATED_SINCE_S = 1767225600  # 2026-01-01
MAX_BODY_BYTES = 2 * 1024 * 1024
ReadKey = Callable[[list[tuple[bytes, bytes]]], str | None]
Ping = Callable[[], Awaitable[None]]


class AdminError(Exception):
    """An admin call is refused with `status`, in the shape of OpenAI's and LiteLLM's errors."""

    def __init__(self, status: int, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.param = param


class AdminApi:
    """The handlers of the admin routes.

    `read_key` finds the key among a request's headers; without a `master_key` every route but the health ones answers
    503. `ping` raises StoreUnavailableError when the store is away.
    """

    def __init__(self, users: Users, *, read_key: ReadKey, master_key: str | None, ping: Ping, version: str) -> None:
        self._users = users
        self._read_key = read_key
        self._master_key = master_key
        self._ping = ping
        self._version = version
        self._passwords = PasswordHasher()

    def app(self, prefix: str) -> Starlette:
        """The ASGI app with all routes under `prefix`."""
        routes = [
            Route(f"{prefix}/user/new", self._guarded(self.new_user), methods=["POST"]),
            Route(f"{prefix}/user/update", self._guarded(self.update_user), methods=["POST"]),
            Route(f"{prefix}/user/info", self._guarded(self.user_info), methods=["GET"]),
            Route(f"{prefix}/health/liveliness", self.liveliness, methods=["GET"]),
            Route(f"{prefix}/health/readiness", self.readiness, methods=["GET"]),
        ]
        return Starlette(routes=routes)

    async def new_user(self, request: Request) -> Response:
        """`POST /user/new`: makes a user, and a key unless told not to."""
        body = parse_new(await _body_of(request))
        self._refuse_mail(body)
        user_id = await self._users.create(body, password_hash=await self._hashed(body))
        minted = None
        if body.mints_key:
            minted = await self._users.mint_key(user_id, alias=body.key_alias, life=body.key_life)
        answer = {**user_json(await self._known(user_id)), **minted_key_json(minted)}
        return _json(200, answer, _deprecation(body))

    async def update_user(self, request: Request) -> Response:
        """`POST /user/update`: changes the fields that were sent, all or none."""
        body = parse_update(await _body_of(request))
        self._refuse_mail(body)
        before = await self._users.find(body)
        self._refuse_unclear_key(body, before)
        user_id = await self._users.update(body, password_hash=await self._hashed(body))
        minted = await self._keys_on_update(body, before)
        answer: dict[str, object] = {"user_id": user_id, "data": user_json(await self._known(user_id))}
        return _json(200, answer | (minted_key_json(minted) if minted is not None else {}), _deprecation(body))

    async def user_info(self, request: Request) -> Response:
        """`GET /user/info?user_id=`: a record, its live usage and its keys."""
        user_id = request.query_params.get("user_id")
        if not user_id:
            raise AdminError(400, "The master key has no record of its own; name a user_id.", param="user_id")
        return _json(200, user_info_json(await self._known(user_id)))

    async def liveliness(self, _: Request) -> Response:
        """`GET /health/liveliness`: the process answers."""
        return _json(200, {"status": "alive", "version": self._version, "litellm_version": self._version})

    async def readiness(self, _: Request) -> Response:
        """`GET /health/readiness`: 200 while the store answers, 503 otherwise."""
        state: dict[str, object] = {"version": self._version, "litellm_version": self._version}
        try:
            await self._ping()
        except StoreUnavailableError as error:
            return _json(503, {"status": "unavailable", "reason": error.reason, **state})
        except ReplyError as error:  # it is loading its data, or is full
            return _json(503, {"status": "unavailable", "reason": str(error), **state})
        return _json(200, {"status": "healthy", **state})

    def _guarded(self, handler: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        async def guarded(request: Request) -> Response:
            try:
                self._check_key(request)
                return await handler(request)
            except (AdminError, UnreadableRequestError) as error:
                return _error(error.status, str(error), error.param)
            except ValidationError as error:
                return _json(422, {"detail": problems(error)})
            except ConflictError as error:
                return _error(409, str(error), error.param)
            except NotFoundError as error:
                return _error(404, str(error), error.param)
            except StoreUnavailableError as error:
                return _error(503, str(error), None)
            except ReplyError as error:
                _log.error("store_refused error=%r", str(error))
                return _error(503, "The store is unavailable: it refused a command.", None)

        return guarded

    def _check_key(self, request: Request) -> None:
        if self._master_key is None:
            raise AdminError(503, "There is no master key; set LLMWEIR_MASTER_KEY to use the admin API.")
        key = self._read_key(request.headers.raw)
        if key is None or not compare_digest(key.encode("utf-8", "replace"), self._master_key.encode()):
            raise AdminError(401, "This needs the master key, as 'Authorization: Bearer ...' or in x-api-key.")

    def _refuse_mail(self, body: UserFields) -> None:
        if body.send_invite_email:
            raise AdminError(400, "No SMTP server is configured to send an invitation.", param="send_invite_email")

    async def _hashed(self, body: UserFields) -> str | None:
        if body.password is None:
            return None
        return await asyncio.to_thread(self._passwords.hash, body.password.get_secret_value())

    def _refuse_unclear_key(self, body: UserUpdate, user: User) -> None:
        means_a_key = body.key_alias is not None or body.duration is not None
        if means_a_key and not body.auto_create_key and len(user.keys) != 1:
            param = "key_alias" if body.key_alias is not None else "duration"
            message = "The user has not exactly one key that this could change; see /key/update, or auto_create_key."
            raise AdminError(422, message, param=param)

    async def _keys_on_update(self, body: UserUpdate, user: User) -> MintedKey | None:
        means_a_key = body.key_alias is not None or body.duration is not None
        if body.auto_create_key and (means_a_key or not user.keys):
            return await self._users.mint_key(user.record.user_id, alias=body.key_alias, life=body.key_life)
        if means_a_key:
            await self._users.change_key(user.record.user_id, user.keys[0], alias=body.key_alias, life=body.key_life)
        return None

    async def _known(self, user_id: str) -> User:
        user = await self._users.get(user_id)
        if user is None:
            raise NotFoundError("There is no such user.", param="user_id")
        return user


async def _body_of(request: Request) -> bytes:
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > MAX_BODY_BYTES:
            raise AdminError(413, f"The body is larger than {MAX_BODY_BYTES} bytes.")
        parts.append(part)
    return b"".join(parts)


def _deprecation(body: UserFields) -> dict[str, str]:
    """The header that says that a deprecated field was sent (RFC 9745)."""
    deprecated = body.model_fields_set & {"config", "team_id"}
    return {"deprecation": f"@{_DEPRECATED_SINCE_S}"} if deprecated else {}


def _json(status: int, content: dict[str, object], more_headers: dict[str, str] | None = None) -> Response:
    headers = {"cache-control": "no-store", **(more_headers or {})}
    return Response(msgspec.json.encode(content), status, headers, media_type="application/json")


def _error(status: int, message: str, param: str | None) -> Response:
    kind = "auth_error" if status in (401, 403) else "server_error" if status >= 500 else "invalid_request_error"
    return _json(status, {"error": {"message": message, "type": kind, "param": param, "code": str(status)}})
