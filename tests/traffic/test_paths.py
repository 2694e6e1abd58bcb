from __future__ import annotations

import pytest

from llmweir.errors import UnreadableRequestError
from llmweir.traffic.paths import Paths, dialect_of, matches, replace_model


@pytest.mark.parametrize(
    ("path", "endpoint", "model"),
    [
        ("/v1/chat/completions", "chat", None),
        ("/chat/completions", "chat", None),
        ("/v1/chat/completions/", "chat", None),
        ("/V1/Chat/Completions", "chat", None),
        ("/v1/completions", "completions", None),
        ("/v1/responses", "responses", None),
        ("/openai/v1/responses", "responses", None),
        ("/v1/embeddings", "embeddings", None),
        ("/v1/moderations", "moderations", None),
        ("/v1/images/generations", "images", None),
        ("/v1/audio/speech", "speech", None),
        ("/v1/audio/transcriptions", "transcriptions", None),
        ("/v1/rerank", "rerank", None),
        ("/v1/messages", "messages", None),
        ("/openai/deployments/gpt-4o/chat/completions", "chat", "gpt-4o"),
        ("/openai/deployments/Gpt-4o/embeddings", "embeddings", "Gpt-4o"),
        ("/openai/deployments/w/audio/transcriptions", "transcriptions", "w"),
        ("/openai/deployments/a/b/chat/completions", "chat", "a/b"),
        ("/v1beta/models/gemini-2.5-pro:generateContent", "generate_content", "gemini-2.5-pro"),
        ("/v1/models/gemini-2.5-pro:streamGenerateContent", "generate_content", "gemini-2.5-pro"),
    ],
)
def test_a_post_to_a_known_path_is_metered(path: str, endpoint: str, model: str | None) -> None:
    route = Paths().route("POST", path, path.encode())
    assert route.kind == "metered"
    assert route.format is not None
    assert (route.format.endpoint, route.path_model) == (endpoint, model)


@pytest.mark.parametrize("path", ["/v1/messages/count_tokens", "/v1beta/models/g:countTokens"])
def test_counting_tokens_is_free(path: str) -> None:
    assert Paths().route("POST", path).kind == "free"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/chat/completions"),
        ("POST", "/v1/files"),
        ("POST", "/openai/deployments/x/files"),
        ("POST", "/v1beta/models/g:embedContent"),
        ("POST", "/"),
    ],
)
def test_all_else_is_unknown(method: str, path: str) -> None:
    route = Paths().route(method, path)
    assert (route.kind, route.format) == ("unknown", None)


@pytest.mark.parametrize(
    ("path", "raw_path"),
    [
        pytest.param("/v1/../admin", b"", id="dots"),
        pytest.param("/v1/./models", b"", id="one dot"),
        pytest.param("/v1/..;x/models", b"", id="dots with a parameter"),
        pytest.param("/v1//models", b"", id="empty segment"),
        pytest.param("/v1\\models", b"", id="backslash"),
        pytest.param("/v1/models/x", b"/v1/models%2fx", id="encoded slash"),
        pytest.param("/v1/models/x", b"/v1/models%2Fx", id="encoded slash in capitals"),
        pytest.param("/v1/models", b"/v1%5Cmodels", id="encoded backslash"),
        pytest.param("/v1/models", b"/v1/%2e%2E/models", id="encoded dots"),
        pytest.param("/v1/models", b"/v1/models%252fx", id="encoded twice"),
        pytest.param("/v1/models%2fx", b"", id="encoded twice, in the path"),
        pytest.param("/v1/models\n", b"", id="control character"),
        pytest.param("/v1/models%25252525252541", b"", id="encoded without end"),
        pytest.param("/v1/%63hat/completions", b"/v1/%2563hat/completions", id="a metered path encoded twice"),
    ],
)
def test_a_path_that_could_be_read_as_two_is_refused(path: str, raw_path: bytes) -> None:
    with pytest.raises(UnreadableRequestError) as caught:
        Paths().route("POST", path, raw_path)
    assert (caught.value.status, caught.value.code) == (400, "invalid_path")


def test_an_encoded_path_is_judged_by_what_it_says() -> None:
    assert Paths().route("POST", "/v1/chat/completions", b"/v1/%63hat/completions?x=//").kind == "metered"
    assert Paths().route("GET", "/v1/files/a%41b", b"").kind == "unknown"


def test_verdicts_are_remembered_and_forgotten() -> None:
    paths = Paths()
    assert paths.route("POST", "/v1/responses") is paths.route("POST", "/v1/responses")
    for number in range(3000):
        paths.route("GET", f"/files/{number}")
    paths.route("GET", "/" + "x" * 5000)
    assert len(paths._remembered) <= 1024


@pytest.mark.parametrize(
    ("path", "dialect"),
    [
        ("/v1/messages", "anthropic"),
        ("/V1/messages/count_tokens", "anthropic"),
        ("/v1/models/g:generateContent", "gemini"),
        ("/v1beta/models", "gemini"),
        ("/v1/chat/completions", "openai"),
        ("/", "openai"),
    ],
)
def test_the_dialect_follows_the_path(path: str, dialect: str) -> None:
    assert dialect_of(path) == dialect


@pytest.mark.parametrize(
    ("path", "new_path", "new_raw_path"),
    [
        (
            "/openai/deployments/a/embeddings",
            "/openai/deployments/b é/embeddings",
            b"/openai/deployments/b%20%C3%A9/embeddings",
        ),
        (
            "/v1beta/models/a:generateContent",
            "/v1beta/models/b é:generateContent",
            b"/v1beta/models/b%20%C3%A9:generateContent",
        ),
        ("/v1/responses", "/v1/responses", b"/v1/responses"),
    ],
    ids=["azure", "gemini", "none"],
)
def test_the_model_of_a_path_can_be_replaced(path: str, new_path: str, new_raw_path: bytes) -> None:
    assert replace_model(path, "b é") == (new_path, new_raw_path)


@pytest.mark.parametrize(
    ("pattern", "method", "path", "covered"),
    [
        ("/health*", "GET", "/healthz", True),
        ("/health", "GET", "/healthz", False),
        ("/health", "POST", "/health", True),
        ("GET /v1/models*", "GET", "/v1/models/x", True),
        ("GET /v1/models*", "POST", "/v1/models/x", False),
        ("get /v1/models", "GET", "/v1/models", True),
    ],
)
def test_a_rule_covers_a_path_or_a_prefix(pattern: str, method: str, path: str, covered: bool) -> None:
    assert matches(pattern, method, path) is covered
