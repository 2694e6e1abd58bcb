"""Every error that llmweir raises: a leaf module, one sentence each, the data as attributes."""

from __future__ import annotations


class LlmweirError(Exception):
    """The base of every error raised on purpose by llmweir."""


class InvalidValueError(LlmweirError, ValueError):
    """A value given by a person is not what it should be; the message says what it should be."""


class UnreadableRequestError(LlmweirError):
    """A request on the data plane cannot be read for certain, so it is refused before any limit is looked at.

    `status` is the HTTP status (400, 404, 413 or 415), `code` the snake_case name shown to the caller,
    `param` the field of the body at fault, where one is known.
    """

    def __init__(self, status: int, code: str, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param


class StoreUnavailableError(LlmweirError):
    """Redis did not answer in time, or the connection to it is down.

    `may_be_done`: the call had left, so Redis may have carried it out.
    """

    def __init__(self, reason: str, *, may_be_done: bool = False) -> None:
        super().__init__(f"The store is unavailable: {reason}.")
        self.reason = reason
        self.may_be_done = may_be_done


class ConflictError(LlmweirError):
    """Something that must be unique exists already; `param` is the field."""

    def __init__(self, message: str, *, param: str) -> None:
        super().__init__(message)
        self.param = param


class NotFoundError(LlmweirError):
    """What was named does not exist; `param` is the field it was named by."""

    def __init__(self, message: str, *, param: str) -> None:
        super().__init__(message)
        self.param = param


class MailNotSentError(LlmweirError):
    """The mail server did not take a mail; `reason` says why, without an address, a login or what the server said."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"The mail was not sent: {reason}.")
        self.reason = reason
