"""A small client of a running server's admin API: a sentence and an exit code for every way it can fail."""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import click
import msgspec

from llmweir import __version__
from llmweir.cli.plain_text import printable

INTERRUPTED = 130
NOT_LLMWEIR = "The server does not answer as llmweir does. Is --server right?"


class RefusedError(click.ClickException):
    """The server refused a call."""

    exit_code = 1


class NotThereError(RefusedError):
    """What was named does not exist."""

    exit_code = 3


class TakenError(RefusedError):
    """A name that must be unique is taken."""

    exit_code = 4


class NotAllowedError(RefusedError):
    """The key is not known, or has no right to this."""

    exit_code = 5


class UnreachableError(RefusedError):
    """There is no server that answers, or it cannot at the moment."""

    exit_code = 6


class Answer(msgspec.Struct, frozen=True):
    """What the server answered: the text as it came, and what it says."""

    text: str
    content: Any


class Address(msgspec.Struct, frozen=True):
    """Where a server's admin API is: its path is put in front of every route."""

    url: str
    is_secure: bool
    host: str
    port: int | None
    path: str

    @classmethod
    def parse(cls, url: str) -> Address:
        """Reads the base URL of a server; raises ValueError, with a sentence that does not repeat the URL."""
        try:
            parts = urlsplit(url)
            host, port = parts.hostname or "", parts.port
            host.encode("idna")
        except ValueError as error:
            raise ValueError("This is not a URL.") from error
        if parts.scheme not in {"http", "https"} or not host:
            raise ValueError("A server's URL begins with http:// or https:// and a host.")
        if parts.username is not None or parts.query or parts.fragment:
            raise ValueError("A server's URL has no user, query or fragment; the key has an option of its own.")
        path = quote(parts.path.rstrip("/"), safe="/%")
        return cls(printable(url.rstrip("/")), parts.scheme == "https", host, port, path)


class Remote:
    """The admin API at an address, called with a key; certificates are verified, redirects are not followed.

    Each call has a connection of its own, so that none has gone stale while a person thought. `timeout_s` bounds each
    wait for the server.
    """

    def __init__(self, address: Address, key: str, timeout_s: float) -> None:
        self._address = address
        self._timeout_s = timeout_s
        self._headers = {
            "authorization": f"Bearer {key}",
            "accept": "application/json",
            "user-agent": f"llmweir/{__version__}",
        }

    def get(self, path: str, query: Mapping[str, object] | None = None) -> Answer:
        """Reads; of `query` what is None is left out, and a tuple is sent one by one. Raises RefusedError."""
        given = {name: value for name, value in (query or {}).items() if value is not None}
        return self._call("GET", f"{path}?{urlencode(given, doseq=True)}" if given else path, None)

    def post(self, path: str, body: object) -> Answer:
        """Writes; raises RefusedError."""
        return self._call("POST", path, json.dumps(body, allow_nan=False).encode())

    def _call(self, method: str, path: str, body: bytes | None) -> Answer:
        status, location, received = self._exchange(method, path, body)
        text = received.decode("utf-8", "replace")
        try:
            content = json.loads(text)
        except (ValueError, RecursionError):
            content = None
        if status == 200 and content is not None:
            return Answer(text, content)
        raise _refusal(self._address.url, status, location, content)

    def _exchange(self, method: str, path: str, body: bytes | None) -> tuple[int, str | None, bytes]:
        headers = self._headers | ({} if body is None else {"content-type": "application/json"})
        connection = self._connection()
        try:
            connection.request(method, self._address.path + path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.getheader("location"), answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise UnreachableError(self._unreachable(error, is_write=body is not None)) from error
        finally:
            connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        host, port, timeout_s = self._address.host, self._address.port, self._timeout_s
        if self._address.is_secure:
            context = ssl.create_default_context()
            return http.client.HTTPSConnection(host, port, timeout=timeout_s, context=context)
        return http.client.HTTPConnection(host, port, timeout=timeout_s)

    def _unreachable(self, error: Exception, *, is_write: bool) -> str:
        url = self._address.url
        match error:
            case TimeoutError():
                doubt = " Whether it did what was asked is not known." if is_write else ""
                return f"{url} did not answer within {self._timeout_s:g} s.{doubt}"
            case ssl.SSLCertVerificationError():
                return f"The certificate of {url} is not trusted: {printable(error.verify_message)}."
            case ssl.SSLError():
                return f"{url} does not speak TLS as this client does: {error.reason or error}."
            case ConnectionError() if not isinstance(error, ConnectionRefusedError):
                return f"{url} hung up without an answer."
            case OSError():
                return f"Cannot reach {url}: {error.strerror or error}."
            case _:
                return f"{url} does not answer in HTTP."


def _refusal(url: str, status: int, location: str | None, content: Any) -> RefusedError:
    if 300 <= status < 400 and location is not None:
        where = printable(location)
        return RefusedError(f"{url} redirects to {where}; the key was not sent there. Is --server right?")
    error = content.get("error") if isinstance(content, dict) else None
    if status == 422 and isinstance(content, dict) and isinstance(content.get("detail"), list):
        return RefusedError(_problems(content["detail"]))
    if not isinstance(error, dict) or not isinstance(error.get("message"), str):
        return UnreachableError(f"{url} does not answer as llmweir does (status {status}). Is --server right?")
    message = printable(error["message"])
    if status >= 500:
        return UnreachableError(message)
    if status == 404 and error.get("code") != "404":  # the data plane's answer to a path that it does not know
        return UnreachableError(f"There is no admin API at {url}: {message}")
    kinds = {401: NotAllowedError, 403: NotAllowedError, 404: NotThereError, 409: TakenError, 429: NotAllowedError}
    return kinds.get(status, RefusedError)(message)


def _problems(details: list[Any]) -> str:
    """One line for each field that was refused."""
    lines = ["The server does not accept this."]
    for detail in details:
        if isinstance(detail, dict):
            place = ".".join(str(part) for part in detail.get("loc") or () if part not in ("body", "query"))
            message = printable(str(detail.get("msg", "")))
            lines.append(f"  {printable(place)}: {message}" if place else f"  {message}")
    return "\n".join(lines)
