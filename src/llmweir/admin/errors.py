"""What the admin API answers instead of what was asked for."""

from __future__ import annotations

import logging

from pydantic import ValidationError

from llmweir.engine.wire import ReplyError
from llmweir.errors import ConflictError, NotFoundError, StoreUnavailableError, UnreadableRequestError
from llmweir.record_fields import problems

_log = logging.getLogger("llmweir.admin")
_TYPES = {401: "auth_error", 403: "auth_error", 429: "rate_limit_error"}


class AdminError(Exception):
    """An admin call is refused with `status`, in the shape of OpenAI's and LiteLLM's errors.

    `param` is the field or parameter at fault and `type` the kind, where the status alone does not say it. With
    `details` (a list of `{"type", "loc", "msg"}`) the answer has the shape of a validation error instead.
    `headers` go out with the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        type: str | None = None,  # noqa: A002 - the name that it has in the answer
        *,
        details: list[dict[str, object]] | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.type = type or _type_of(status)
        self.details = details
        self.headers = headers or {}

    @property
    def content(self) -> dict[str, object]:
        """The body of the answer."""
        if self.details is not None:
            return {"detail": self.details}
        about = {"message": self.message, "type": self.type, "param": self.param, "code": str(self.status)}
        return {"error": about}


def invalid(error: ValidationError, where: str = "body") -> AdminError:
    """What is wrong with a body, or with a query where `where` is "query", as a 422 without the values sent."""
    found = problems(error)
    details = [{**line, "loc": [where, *_rest_of(line["loc"])]} for line in found]
    return AdminError(422, "; ".join(str(line["msg"]) for line in found), details=details)


def as_admin_error(error: Exception) -> AdminError | None:
    """What the API answers to an error that a handler raises; None for one that is a fault of the program."""
    match error:
        case AdminError():
            return error
        case ValidationError():
            return invalid(error)
        case UnreadableRequestError():
            return AdminError(error.status, str(error), error.param)
        case ConflictError():
            return AdminError(409, str(error), error.param)
        case NotFoundError():
            return AdminError(404, str(error), error.param)
        case StoreUnavailableError():
            return AdminError(503, str(error), headers={"retry-after": "1"})
        case ReplyError():
            _log.error("store_refused error=%r", str(error))
            return AdminError(503, "The store is unavailable: it refused a command.", headers={"retry-after": "1"})
    return None


def _type_of(status: int) -> str:
    return "server_error" if status >= 500 else _TYPES.get(status, "invalid_request_error")


def _rest_of(loc: object) -> list[object]:
    return list(loc[1:]) if isinstance(loc, list) else []
