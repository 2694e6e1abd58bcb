"""How a command reaches a server, and the one sentence and the exit code for each way in which it does not."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pty
import signal
import socket
import ssl
import subprocess
import threading
import time
from pathlib import Path
from typing import Any, Self

import pytest
from tests.cli.canned import KEY, ROW, USER, Call, Reply, canned, process, run

from llmweir.cli.remote import Address

PATIENCE_S = 30.0
INFO = {"user_id": "ana", "user_info": USER, "keys": [], "teams": []}


def admin_error(message: str, status: int) -> Reply:
    return Reply({"error": {"message": message, "type": "t", "param": None, "code": str(status)}}, status)


REFUSALS = [
    pytest.param(admin_error("The body is too large.", 413), 1, "The body is too large.", id="refused"),
    pytest.param(admin_error("There is no such user.", 404), 3, "There is no such user.", id="not found"),
    pytest.param(admin_error("The id is taken.", 409), 4, "The id is taken.", id="taken"),
    pytest.param(admin_error("This needs a key.", 401), 5, "This needs a key.", id="a wrong key"),
    pytest.param(admin_error("The role may not.", 403), 5, "The role may not.", id="no right"),
    pytest.param(admin_error("Too many wrong keys.", 429), 5, "Too many wrong keys.", id="too many wrong keys"),
    pytest.param(admin_error("The store is away.", 503), 6, "The store is away.", id="the store away"),
    pytest.param(
        Reply({"error": {"message": "No such path.", "code": "path_not_gated"}}, 404), 6,
        "There is no admin API at {url}: No such path.", id="the data plane's 404",
    ),
    pytest.param(
        Reply(b"<h1>Hello</h1>"), 6, "{url} does not answer as llmweir does (status 200). Is --server right?",
        id="another server",
    ),
    pytest.param(
        Reply(b"[" * 100_000), 6, "{url} does not answer as llmweir does (status 200). Is --server right?",
        id="JSON too deep",
    ),
    pytest.param(
        Reply({}, 502), 6, "{url} does not answer as llmweir does (status 502). Is --server right?",
        id="a gateway in between",
    ),
    pytest.param(
        Reply([1, 2]), 6, "The server does not answer as llmweir does. Is --server right?", id="JSON of another kind"
    ),
    pytest.param(
        admin_error("bad \x1b[2J \u202e", 400), 1, "bad \\x1b[2J \\u202e", id="what a terminal would obey"
    ),
]  # fmt: skip


@pytest.mark.parametrize(("reply", "code", "sentence"), REFUSALS)
def test_a_refusal_is_one_sentence_on_stderr_and_an_exit_code(reply: Reply, code: int, sentence: str) -> None:
    with canned(reply) as server:
        result = run(server.url, "user", "info", "ana")
    assert result.exit_code == code
    assert result.stderr == f"Error: {sentence.format(url=server.url)}\n"
    assert result.stdout == ""


def test_a_refused_body_names_each_field() -> None:
    detail = [
        {"type": "x", "loc": ["body", "rpm_limit"], "msg": "This is a whole number from 0 to 9."},
        {"type": "x", "loc": ["body", "model_rpm_limit", "o1*"], "msg": "No."},
        {"type": "x", "loc": ["body"], "msg": "Not JSON."},
    ]
    with canned(Reply({"detail": detail}, 422)) as server:
        result = run(server.url, "user", "new", "ana")
    assert result.exit_code == 1
    assert result.stderr == (
        "Error: The server does not accept this.\n"
        "  rpm_limit: This is a whole number from 0 to 9.\n  model_rpm_limit.o1*: No.\n  Not JSON.\n"
    )


def test_the_key_goes_in_a_header_and_the_path_of_the_server_in_front_of_the_route() -> None:
    with canned(INFO) as server:
        assert run(server.url + "/llmweir/", "user", "info", "a/b c&d").exit_code == 0
    call = server.calls[0]
    assert (call.method, call.path, call.query) == ("GET", "/llmweir/user/info", {"user_id": ["a/b c&d"]})
    assert call.headers["authorization"] == f"Bearer {KEY}"
    assert KEY not in call.path


def test_an_option_wins_over_the_environment() -> None:
    with canned(INFO) as server:
        result = run("http://127.0.0.1:1", "user", "info", "--server", server.url, "--key", "sk-other")
    assert result.exit_code == 0
    assert server.calls[0].headers["authorization"] == "Bearer sk-other"


def test_a_redirect_is_not_followed_with_the_key() -> None:
    with canned(INFO) as elsewhere, canned(Reply({}, 307, {"location": f"{elsewhere.url}/user/info"})) as server:
        result = run(server.url, "user", "info")
    assert (result.exit_code, elsewhere.calls) == (1, [])
    assert result.stderr == (
        f"Error: {server.url} redirects to {elsewhere.url}/user/info; the key was not sent there. Is --server right?\n"
    )


def test_no_server_is_6_and_said_in_a_sentence() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, and nobody listens
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        result = run(url, "user", "list")
    assert (result.exit_code, result.stderr) == (6, f"Error: Cannot reach {url}: Connection refused.\n")


def test_a_server_that_hangs_up_is_6() -> None:
    with canned(lambda _: None) as server:
        result = run(server.url, "user", "list")
    assert (result.exit_code, result.stderr) == (6, f"Error: {server.url} hung up without an answer.\n")


@pytest.mark.parametrize(
    ("words", "doubt"),
    [
        pytest.param(("user", "list"), "", id="a read"),
        pytest.param(("user", "block", "ana"), " Whether it did what was asked is not known.", id="a write"),
    ],
)
def test_a_silent_server_is_given_up(words: tuple[str, ...], doubt: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        result = run(url, *words, "--timeout", "0.05")
    assert (result.exit_code, result.stderr) == (6, f"Error: {url} did not answer within 0.05 s.{doubt}\n")


def raw_server(answer: bytes) -> tuple[socket.socket, threading.Thread]:
    """Sends some bytes to the first that connects, whatever it says."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65_536)
            connection.sendall(answer)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    return listener, thread


@pytest.mark.parametrize(
    ("scheme", "answer", "sentence"),
    [
        pytest.param("http", b"220 mail ready\r\n", "does not answer in HTTP.", id="no HTTP"),
        pytest.param(
            "http", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{", "does not answer in HTTP.", id="cut off"
        ),
        pytest.param("https", b"HTTP/1.1 400 no\r\n\r\n", "does not speak TLS as this client does", id="no TLS"),
    ],
)
def test_what_speaks_otherwise_is_6(scheme: str, answer: bytes, sentence: str) -> None:
    listener, thread = raw_server(answer)
    with listener:
        url = f"{scheme}://127.0.0.1:{listener.getsockname()[1]}"
        result = run(url, "user", "list")
        thread.join(PATIENCE_S)
    assert result.exit_code == 6
    assert f"{url} {sentence}" in result.stderr


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1 that nobody has signed but itself, and its key."""
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    command = [
        "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
        "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2",
        "-keyout", str(path), "-out", str(path.with_suffix(".crt")),
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE_S)
    path.write_text(path.read_text() + path.with_suffix(".crt").read_text())
    return path


def test_certificates_are_verified(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    with canned(INFO, tls=tls) as server:
        refused = run(server.url, "user", "info")
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate.with_suffix(".crt")))
        trusted = run(server.url, "user", "info")
    assert (refused.exit_code, trusted.exit_code, len(server.calls)) == (6, 0, 1)
    assert refused.stderr == f"Error: The certificate of {server.url} is not trusted: self-signed certificate.\n"


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        pytest.param("localhost:8787", "begins with http:// or https:// and a host", id="no scheme"),
        pytest.param("ftp://localhost", "begins with http:// or https:// and a host", id="another scheme"),
        pytest.param("http://", "begins with http:// or https:// and a host", id="no host"),
        pytest.param("http://h:99999", "not a URL", id="no port"),
        pytest.param("http://[::1", "not a URL", id="no address"),
        pytest.param(f"http://{'a' * 70}.org", "not a URL", id="no host name"),
        pytest.param("http://u:hunter2@h", "no user, query or fragment", id="a password in it"),
        pytest.param("http://h/?key=hunter2", "no user, query or fragment", id="a query in it"),
    ],
)
def test_a_servers_url_that_is_none_is_a_usage_error_that_does_not_repeat_it(url: str, sentence: str) -> None:
    result = run(url, "user", "list")
    assert result.exit_code == 2
    assert sentence in result.stderr
    assert "hunter2" not in result.stderr


def test_an_address_takes_ipv6_and_a_path() -> None:
    assert Address.parse("https://[::1]:8443/a b/") == Address("https://[::1]:8443/a b", True, "::1", 8443, "/a%20b")


@pytest.mark.parametrize(
    ("key", "sentence"),
    [
        pytest.param(None, "There is no key: set LLMWEIR_MASTER_KEY, or give --key.", id="none"),
        pytest.param("", "There is no key: set LLMWEIR_MASTER_KEY, or give --key.", id="empty"),
        pytest.param("sk-hünter2", "The key has characters that no key has.", id="no ASCII"),
        pytest.param("sk-hunter2\nx: y", "The key has characters that no key has.", id="a line break"),
    ],
)
def test_without_a_key_that_fits_a_header_nothing_is_sent(key: str | None, sentence: str) -> None:
    with canned(INFO) as server:
        result = run(server.url, "user", "info", key=key)
    assert (result.exit_code, server.calls) == (2, [])
    assert result.stderr.endswith(f"Error: {sentence}\n")


# As a process of its own


def test_a_process_prints_no_escape_codes_into_a_pipe() -> None:
    with canned(INFO) as server, process(server.url, "user", "info", "ana") as command:
        said, complaints = command.communicate(timeout=PATIENCE_S)
    assert (command.returncode, complaints) == (0, "")
    assert "ana@example.org" in said
    assert "\x1b" not in said


def test_an_output_that_cannot_show_a_letter_shows_its_code() -> None:
    answer = {"user_info": {**USER, "user_alias": "Ünal"}}
    ascii_only = {"PYTHONIOENCODING": "ascii"}
    with canned(answer) as server, process(server.url, "user", "info", environment=ascii_only) as command:
        said, complaints = command.communicate(timeout=PATIENCE_S)
    assert (command.returncode, complaints) == (0, "")
    assert "\\xdcnal" in said


def test_ctrl_c_ends_with_130_and_no_traceback() -> None:
    def wait(_: Call) -> Reply:
        server.released.wait(PATIENCE_S)
        return Reply(INFO)

    with canned(wait) as server, process(server.url, "user", "info", "ana") as command:
        assert server.arrived.wait(PATIENCE_S)
        command.send_signal(signal.SIGINT)
        said, complaints = command.communicate(timeout=PATIENCE_S)
    assert (command.returncode, said, complaints.strip()) == (130, "", "")


class Terminal:
    """A command at a terminal: what it says comes back, what is typed goes in."""

    def __init__(self, url: str, *words: str, **environment: str) -> None:
        self._end, inner = pty.openpty()
        streams: dict[str, Any] = {"stdin": inner, "stdout": inner, "stderr": inner, "start_new_session": True}
        self.process = process(url, *words, environment={"TERM": "xterm", **environment}, **streams)
        os.close(inner)
        self.said = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._end)
        self.process.kill()
        self.process.wait(PATIENCE_S)

    def read_until(self, text: str) -> None:
        while text not in self.said:
            part = os.read(self._end, 4096)
            assert part, self.said
            self.said += part.decode()

    def type(self, text: str) -> None:
        os.write(self._end, text.encode())

    def press_ctrl_c(self) -> None:
        """Interrupts until it is heard: Python overlooks one that comes just before it waits for a line."""
        deadline = time.monotonic() + PATIENCE_S
        while self.process.poll() is None and time.monotonic() < deadline:
            self.process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(2.0)

    def end(self) -> int:
        """Reads all that is left; returns the exit code."""
        with contextlib.suppress(OSError):  # the other end is closed
            while part := os.read(self._end, 4096):
                self.said += part.decode()
        return self.process.wait(PATIENCE_S)


def test_at_a_terminal_the_key_is_asked_for_and_not_shown() -> None:
    with canned(INFO) as server, Terminal(server.url, "user", "info", "ana", LLMWEIR_MASTER_KEY="") as terminal:
        terminal.read_until("Key: ")
        terminal.type("sk-typed-in\n")
        assert terminal.end() == 0
    assert server.calls[0].headers["authorization"] == "Bearer sk-typed-in"
    assert "sk-typed-in" not in terminal.said
    assert "\x1b[1m" in terminal.said  # and there is colour


@pytest.mark.parametrize(
    ("typed", "code", "calls"),
    [
        pytest.param("y\n", 0, 1, id="yes"),
        pytest.param("n\n", 130, 0, id="no"),
        pytest.param("\n", 130, 0, id="nothing"),
        pytest.param("\x04", 130, 0, id="the end of input"),
    ],
)
def test_at_a_terminal_deleting_is_confirmed_first(typed: str, code: int, calls: int) -> None:
    with canned(Reply(1)) as server, Terminal(server.url, "user", "delete", "ana") as terminal:
        terminal.read_until("Delete ana and all their keys? [y/N]: ")
        terminal.type(typed)
        assert (terminal.end(), len(server.calls)) == (code, calls)
    assert "Traceback" not in terminal.said


def test_ctrl_c_at_a_prompt_ends_with_130_and_nothing_done() -> None:
    with canned(Reply(1)) as server, Terminal(server.url, "key", "delete", "ci") as terminal:
        terminal.read_until("Delete ci? [y/N]: ")
        terminal.press_ctrl_c()
        assert (terminal.end(), server.calls) == (130, [])
    assert "Traceback" not in terminal.said


def test_at_a_terminal_a_password_is_asked_for_twice_and_not_shown() -> None:
    with canned(USER | {"key": ""}) as server:
        with Terminal(server.url, "user", "new", "ana", "--ask-password") as terminal:
            terminal.read_until("Password: ")
            terminal.type("correct horse\n")
            terminal.read_until("Repeat for confirmation: ")
            terminal.type("correct horse\n")
            assert terminal.end() == 0
        assert server.body == {"user_id": "ana", "password": "correct horse"}
    assert "correct horse" not in terminal.said


def test_at_a_terminal_a_key_is_asked_for_and_not_shown() -> None:
    with canned({"key": "x", "info": ROW}) as server, Terminal(server.url, "key", "info", "-") as terminal:
        terminal.read_until("The key: ")
        terminal.type("sk-lost-and-found\n")
        assert terminal.end() == 0
    assert server.calls[0].query["key"] == [hashlib.sha256(b"sk-lost-and-found").hexdigest()]
    assert "sk-lost-and-found" not in terminal.said
