"""Tells from method and path what a request is: which format it has, and whether it is metered."""

from __future__ import annotations

import re
from typing import Final, Literal
from urllib.parse import quote, unquote

import msgspec

from llmweir.decision import Dialect
from llmweir.errors import UnreadableRequestError
from llmweir.traffic.formats.anthropic import AnthropicFormat
from llmweir.traffic.formats.base import Format, RequestFacts
from llmweir.traffic.formats.gemini import GeminiFormat
from llmweir.traffic.formats.multipart import TranscriptionFormat
from llmweir.traffic.formats.openai import OpenAIFormat

_DEPLOYMENT: Final = re.compile(
    r"/openai/deployments/(?P<model>.+?)(?:/extensions)?(?P<rest>(?:/[a-z]+){1,2})", re.IGNORECASE
)
_GEMINI: Final = re.compile(
    r"/v1(?:beta|alpha)?/(?:models|tunedmodels)/(?P<model>[^:]+):(?P<action>[a-z]+)", re.IGNORECASE
)
_DECODINGS: Final = 4
_MAX_REMEMBERED: Final = 1024
_MAX_REMEMBERED_LENGTH: Final = 256


class Route(msgspec.Struct, frozen=True):
    """What a path is: `metered` has a format, `free` is a known call that costs nothing, the rest is `unknown`.

    `path_model` is the model that the path names, None where it names none.
    """

    kind: Literal["metered", "free", "unknown"]
    dialect: Dialect
    format: Format | None = None
    path_model: str | None = None

    def hides_usage_event(self, facts: RequestFacts) -> bool:
        """Whether a stream's usage event is asked for on the way in and taken out on the way back."""
        return facts.stream and not facts.wants_usage and self.format is not None and self.format.has_usage_event


class Paths:
    """The known paths; remembers its latest verdicts, so that a known path costs one look-up."""

    def __init__(self) -> None:
        self._openai: dict[str, Format] = {
            "/chat/completions": OpenAIFormat("chat"),
            "/completions": OpenAIFormat("completions"),
            "/responses": OpenAIFormat("responses"),
            "/embeddings": OpenAIFormat("embeddings"),
            "/moderations": OpenAIFormat("moderations"),
            "/images/generations": OpenAIFormat("images"),
            "/audio/speech": OpenAIFormat("speech"),
            "/rerank": OpenAIFormat("rerank"),
            "/audio/transcriptions": TranscriptionFormat(),
        }
        self._known = {prefix + path: f for path, f in self._openai.items() for prefix in ("", "/v1", "/openai/v1")}
        self._known["/v1/messages"] = self._known["/messages"] = AnthropicFormat()
        self._gemini: dict[str, Format] = {
            "generatecontent": GeminiFormat(stream=False),
            "streamgeneratecontent": GeminiFormat(stream=True),
        }
        self._remembered: dict[tuple[str, str, bytes], Route] = {}

    def route(self, method: str, path: str, raw_path: bytes = b"") -> Route:
        """Return what a request is.

        `path` is decoded and `raw_path` as it was sent, as ASGI has them. A trailing slash and another letter case
        are the same route, since an upstream may take them for it. Raises `UnreadableRequestError` for a path that
        two servers could read as two.
        """
        key = (method, path, raw_path)
        route = self._remembered.get(key)
        if route is None:
            route = self._decide(method, path, raw_path)
            if len(path) + len(raw_path) <= _MAX_REMEMBERED_LENGTH:
                if len(self._remembered) >= _MAX_REMEMBERED:
                    self._remembered.clear()
                self._remembered[key] = route
        return route

    def _decide(self, method: str, path: str, raw_path: bytes) -> Route:
        check_path(path)
        check_path(raw_path.partition(b"?")[0].decode("latin-1"))
        route = self._match(method, path.rstrip("/"))
        decoded = unquote(path)
        if decoded != path and route.kind != "metered" and self._match(method, decoded.rstrip("/")).kind == "metered":
            raise _invalid_path()
        return route

    def _match(self, method: str, path: str) -> Route:
        folded = path.lower()
        dialect = dialect_of(path)
        if method != "POST":
            return Route("unknown", dialect)
        if (known := self._known.get(folded)) is not None:
            return Route("metered", dialect, known)
        if folded in ("/v1/messages/count_tokens", "/messages/count_tokens"):
            return Route("free", dialect)
        if (match := _GEMINI.fullmatch(path)) is not None:
            return self._match_gemini(match["model"], match["action"].lower())
        match = _DEPLOYMENT.fullmatch(path)
        if match is not None and (known := self._openai.get(match["rest"].lower())) is not None:
            return Route("metered", dialect, known, match["model"])
        return Route("unknown", dialect)

    def _match_gemini(self, model: str, action: str) -> Route:
        known = self._gemini.get(action)
        if known is not None:
            return Route("metered", "gemini", known, model)
        return Route("free" if action == "counttokens" else "unknown", "gemini", None, model)


def dialect_of(path: str) -> Dialect:
    """Return whose error shape the caller of a path understands."""
    folded = path.lower()
    if folded.startswith(("/v1/messages", "/messages")):
        return "anthropic"
    if folded.startswith(("/v1beta/", "/v1alpha/")) or _GEMINI.fullmatch(path) is not None:
        return "gemini"
    return "openai"


def check_path(path: str) -> None:
    """Refuse a path that could name one thing to the rules and another to the server behind.

    - dot segments (also with a `;parameter`), empty segments, backslashes;
    - `%2f` and `%5c` in any letter case;
    - each of them encoded more than once; more than four rounds of encoding at all;
    - control characters.
    """
    for _ in range(_DECODINGS):
        folded = path.lower()
        if "//" in path or "\\" in path or "%2f" in folded or "%5c" in folded or not path.isprintable():
            raise _invalid_path()
        if any(segment.partition(";")[0] in (".", "..") for segment in path.split("/")):
            raise _invalid_path()
        decoded = unquote(path)
        if decoded == path:
            return
        path = decoded
    raise _invalid_path()


def replace_model(path: str, model: str) -> tuple[str, bytes]:
    """Return `path` and `raw_path` with another model in a path that names one; others unchanged.

    Raises `UnreadableRequestError` where the model would make another path of it: what an alias stands for may be the
    caller's own choice.
    """
    match = _GEMINI.fullmatch(path.rstrip("/")) or _DEPLOYMENT.fullmatch(path.rstrip("/"))
    if match is not None:
        path = path[: match.start("model")] + model + path[match.end("model") :]
        check_path(path)
        again = match.re.fullmatch(path.rstrip("/"))
        if again is None or again["model"] != model:  # "x/chat" for the model of ".../x/completions"
            raise _invalid_path()
    return path, quote(path, safe="/:@!$&'()*+,;=~").encode()


def matches(pattern: str, method: str, path: str) -> bool:
    """Tell whether a rule such as `/health*` or `GET /v1/models*` covers a request; a trailing `*` is a prefix."""
    wanted_method, space, wanted_path = pattern.partition(" ")
    if not space:
        wanted_method, wanted_path = "", pattern
    if wanted_method and wanted_method.upper() != method:
        return False
    return path.startswith(wanted_path[:-1]) if wanted_path.endswith("*") else path == wanted_path


def _invalid_path() -> UnreadableRequestError:
    return UnreadableRequestError(400, "invalid_path", "The path has segments that cannot be read for certain.")
