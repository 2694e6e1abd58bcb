"""The docs tell the truth: every setting, refusal code, header and Redis field stands in them, and their code runs."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args

import httpx
import pytest
import redis
import uvicorn
from tests.backends import Clock, on_valkey
from tests.engine.asking import an_ask, mint, passes, settle

from llmweir import settings
from llmweir.cli import main
from llmweir.cli.background import running
from llmweir.cli.model import app as model_app
from llmweir.cli.sockets import bind
from llmweir.decision import Caller, Dialect, LimitName, LimitRefused, LimitState, Refusal, Standing
from llmweir.engine import keys, scripts
from llmweir.engine.api_keys import ApiKeys
from llmweir.engine.invitations import Invitations
from llmweir.engine.key_hashes import hash_key
from llmweir.engine.store import Store
from llmweir.engine.users import Users
from llmweir.records import STORED_FIELDS, parse_new
from llmweir.traffic import refusals
from llmweir.traffic.formats import multipart
from llmweir.traffic.forwarding import identity_headers
from llmweir.traffic.headers import standing_headers

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
TRAFFIC = ROOT / "src/llmweir/traffic"
PATIENCE_S = 30.0


def docs(name: str) -> str:
    return (ROOT / "docs" / name).read_text()


# Settings


@pytest.mark.parametrize("setting", settings.describe_settings(), ids=lambda setting: setting.name)
def test_every_setting_stands_in_the_docs_with_its_default_and_meaning(setting: settings.SettingInfo) -> None:
    default = setting.default if isinstance(setting.default, str) else json.dumps(setting.default)
    shown = "" if setting.default is None else f"`{default}`"
    assert f"| `{setting.name}` | {shown} | {setting.description} |" in docs("settings.md")


def test_no_setting_stands_in_the_docs_that_is_none() -> None:
    named = re.findall(r"^\| `([a-z_]+)` \|", docs("settings.md"), re.MULTILINE)
    assert named == [setting.name for setting in settings.describe_settings()]


# Refusals


def raised_in(path: Path) -> Iterator[tuple[int, str]]:
    """Each status and code with which a module finds a request unreadable."""
    tree = ast.parse(path.read_text())
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        for call in ast.walk(function):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name):
                if call.func.id == "bad_request":
                    yield from ((400, code) for code in codes_of(call.args[0], function))
                elif call.func.id == "UnreadableRequestError" and function.name != "bad_request":
                    status = ast.literal_eval(call.args[0])
                    yield from ((status, code) for code in codes_of(call.args[1], function))


def codes_of(expression: ast.expr, function: ast.AST) -> list[str]:
    """What a code may be: a text, a name that is given one of several, or one for each field of a form."""
    match expression:
        case ast.Constant(value=str(code)):
            return [code]
        case ast.JoinedStr(values=[ast.Constant(value=str(prefix)), ast.FormattedValue()]):
            return [prefix + field for field in multipart._KNOWN]
        case ast.IfExp(body=body, orelse=orelse):
            return [*codes_of(body, function), *codes_of(orelse, function)]
        case ast.Name(id=name):
            given = [
                node.value
                for node in ast.walk(function)
                if isinstance(node, ast.Assign) and name in [each.id for each in node.targets if hasattr(each, "id")]
            ]
            assert given, f"{name} is given nowhere"
            return [code for value in given for code in codes_of(value, function)]
    raise AssertionError(f"a code that cannot be told from the source: {ast.unparse(expression)}")


UNREADABLE = sorted({pair for path in TRAFFIC.rglob("*.py") for pair in raised_in(path)})


def all_refusals() -> Iterator[Refusal]:
    """Every refusal that is no unreadable request."""
    for reason in [*refusals._UNAUTHENTICATED, *refusals._FORBIDDEN, "model_not_priced", "model_not_allowed"]:
        yield refusals.caller_refused(reason, "gpt-4o")
    yield refusals.STORE_UNAVAILABLE
    yield refusals.upstream_unavailable(502)
    yield refusals.upstream_unavailable(504)
    kinds: tuple[Literal["wait", "stop", "never"], ...] = ("wait", "stop", "never")
    for name in get_args(LimitName):
        if name != "soft_budget":
            for kind in kinds:
                refused = LimitRefused(Standing(*[-1] * 17), LimitState(name, None, 1, 1, 1), kind, 1000)
                yield refusals.limit_refused(refused, "ana", "gpt-4o", 429)


def rows_of(table: str) -> list[list[str]]:
    """The rows of the first table of a page: the cells of each."""
    rows = [line.strip("|").split("|") for line in table.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in row] for row in rows[1:]]


ROWS = rows_of(docs("refusals.md").partition("## Headers")[0])


def is_documented(status: int, kind: str, code: str) -> bool:
    return any(str(status) in row[1] and f"`{kind}`" in row[2] and f"`{code}`" in row[3] for row in ROWS)


@pytest.mark.parametrize(("status", "code"), UNREADABLE)
def test_every_code_of_an_unreadable_request_stands_in_the_docs_with_its_status(status: int, code: str) -> None:
    assert is_documented(status, "invalid_request_error", code)


def test_the_codes_are_found_wherever_a_request_is_read() -> None:
    found = {path.name for path in TRAFFIC.rglob("*.py") if list(raised_in(path))}
    assert found >= {"json_body.py", "multipart.py", "identify.py", "paths.py", "body.py", "middleware.py", "openai.py"}


def test_every_other_refusal_stands_in_the_docs_with_its_status_type_and_code() -> None:
    told = {(refusal.status, refusal.type, refusal.code) for refusal in all_refusals()}
    assert len(told) > 10
    assert [each for each in sorted(told) if not is_documented(*each)] == []


def test_no_code_stands_in_the_docs_that_nobody_is_refused_with() -> None:
    told = {code for _, code in UNREADABLE} | {refusal.code for refusal in all_refusals()}
    named = {code for row in ROWS for code in re.findall(r"`([a-z_]+)`", row[3])}
    assert sorted(named - told) == []


# Headers


@pytest.mark.parametrize("dialect", get_args(Dialect))
def test_every_header_of_an_answer_stands_in_the_docs(dialect: Dialect) -> None:
    everything = Standing(1, 0, 1, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 1, 0, 1)
    names = {name.decode() for name, _ in standing_headers(everything, dialect)}
    text = docs("refusals.md").lower()
    # Anthropic's are written short: the first whole, then what the others end in.
    found = re.sub(
        r"(`anthropic-ratelimit-\w+-)limit`, `-remaining`, `-reset`", r"\1limit` \1remaining` \1reset`", text
    )
    assert [name for name in sorted(names) if f"`{name}`" not in found] == []


def test_every_header_that_the_upstream_gets_stands_in_the_docs() -> None:
    caller = Caller(
        user_id="ana", user_alias="Ana", teams=("a",), metadata={"a": 1}, guardrails=("a",), permissions={"a": 1},
        key_alias="a", request_id="r",
    )  # fmt: skip
    names = {name for name, _ in identity_headers(caller)}
    assert len(names) == 8
    assert [name for name in sorted(names) if f"`{name}`" not in docs("settings.md")] == []


# The data


def documented_keys() -> dict[str, tuple[str, str]]:
    """The type of each key of the table and when it expires, by its name."""
    rows = rows_of(docs("data.md").partition("\n\nNo API key")[0])
    return {row[0].strip("`"): (row[1], row[3]) for row in rows}


def as_pattern(name: str) -> str:
    """What is written in capitals may be anything."""
    return re.sub(r"[A-Z]{2,}|\bN\b", ".+", re.escape(name))


def documented_key(key: str) -> str:
    """The row of the table that a key falls under, the narrowest."""
    rows = [name for name in documented_keys() if re.fullmatch(as_pattern(name).replace("u:.+", "u:[^{}]+"), key)]
    assert rows, f"{key} does not stand in the docs"
    return max(rows, key=len)


def section_of(name: str) -> str:
    """What the docs say of the fields of a key."""
    title = name.removeprefix("lw:{u:ID}") if "memo" in name else name
    return next(part for part in docs("data.md").split("\n## ") if f"`{title}`" in part.partition("\n")[0])


def check_text(shape: str, text: str) -> None:
    assert f"`{shape}`" in docs("data.md")
    assert len(text.split()) == len(shape.split())


def check_packed(name: str, shape: str, value: bytes) -> int:
    """Fails where a value is not packed as the docs say, word for word; gives its length up to there."""
    layout = scripts.LAYOUTS[name]
    assert re.search(rf"`{shape}`,\s`{re.escape(layout)}`", docs("data.md")), f"{name} is not packed as the docs say"
    kinds = re.findall(r"i\d|s", layout)
    assert len(kinds) == len(shape.split())
    length = 0
    for kind in kinds:
        length = value.index(b"\0", length) + 1 if kind == "s" else length + int(kind[1:])
    assert length <= len(value)
    return length


def check_packed_whole(name: str, shape: str, value: bytes) -> None:
    assert check_packed(name, shape, value) == len(value)


def check_entries(name: str, shape: str, value: bytes) -> None:
    while value:
        value = value[check_packed(name, shape, value) :]


def check_lease(value: bytes) -> None:
    length = check_packed("lease", "expires_at second tokens nanos period key model", value)
    check_entries("lease_row", "in_window period account", value[length:])


def check_string(key: str, value: bytes) -> None:
    """Fails where a key that is a string is not made as the docs say."""
    match key:
        case "lw:{u:ID}:memo:REQUEST":
            check_lease(value)
        case "lw:email:ADDRESS" | "lw:alias:ALIAS":
            check_text("since writers nonce owner", value.decode().partition("\n")[0])
        case "lw:invite:HASH":
            assert re.fullmatch(rb"[0-9a-f]+ \S+", value)
        case "lw:invite:HASH:claim":
            assert value == b"1"
        case _:
            assert key == "lw:key:HASH"


ACCOUNT = "second requests slot_requests tokens slot_tokens running held spent period ends"
MODEL = "spent day requests failed input_tokens output_tokens nanos"


def check_of_record(field: str, value: bytes) -> None:
    match field.partition(":")[0]:
        case "p":
            check_packed_whole("record", "rpm tpm parallel budget version flags widths", value)
        case "e":
            check_entries("line", "rpm tpm parallel budget account", value)
        case "k":
            identity, limits = value.decode().split()[:3], value.decode().split()[3:]
            check_text("expires_at blocked id", " ".join(identity))
            if limits:
                check_text("rpm tpm parallel budget flags", " ".join(limits))
        case "kd":
            check_text("duration set_at", value.decode())


def check_of_use(field: str, value: bytes) -> None:
    match field.partition(":")[0]:
        case "u" | "m" | "k":
            check_packed_whole("account", ACCOUNT, value)
        case "s":
            check_packed_whole("model", MODEL, value)


def check_is_named(key: str, field: str) -> None:
    names = re.findall(r"`([^`\s]+)`", section_of(key))
    assert any(re.fullmatch(as_pattern(name), field) for name in names), f"{field} of {key} does not stand in the docs"


def check_field(key: str, field: str, value: bytes) -> None:
    """Fails where the docs do not name a field of a key, or where it is not made as they say."""
    match key.removeprefix("lw:{u:ID}"):
        case ":win:ACCOUNT":
            assert 0 <= int(field) < 122
        case ":leases":
            check_lease(value)
        case ":day:N":
            check_text("requests failed input_tokens output_tokens nanos", value.decode())
        case "lw:{users}:rows" | "lw:{keys}:rows":
            check_text("writers nonce", value.decode().partition("\n")[0])
        case ":doc" if field in STORED_FIELDS:
            json.loads(value)
        case ":use":
            check_of_use(field, value)
            check_is_named(key, field)
        case "":
            check_of_record(field, value)
            check_is_named(key, field)
        case _:
            check_is_named(key, field)


async def use_everything(users: Users, store: Store, clock: Clock) -> None:
    """Makes a user with every field, who has used and is using everything."""
    limits: dict[str, object] = {"gpt-4*": 1000, "o1": 1000}
    body = {
        "user_id": "ana", "user_email": "Ana@example.com", "user_alias": "Ana", "teams": ["t"], "user_role": "team",
        "max_budget": 100, "budget_duration": "1mo", "models": ["gpt-4*", "o1"], "tpm_limit": 1000, "rpm_limit": 1000,
        "max_parallel_requests": 10, "model_rpm_limit": limits, "model_tpm_limit": limits, "soft_budget": 0.000000001,
        "model_max_budget": {**limits, "o1": {"max_budget": 1, "budget_duration": "1d"}}, "aliases": {"fast": "o1"},
        "allowed_cache_controls": ["ttl"], "blocked": False, "guardrails": ["g"], "permissions": {"p": 1},
        "metadata": {"m": 1}, "config": {"c": 1}, "team_id": "t", "spend": 1,
    }  # fmt: skip
    await users.create(parse_new(json.dumps(body).encode()), password_hash="x")
    plain = await mint(users, "ana", key_alias="laptop", duration="1d")
    key = await mint(
        users, "ana", key_alias="server", team_id="t", rpm_limit=9, tpm_limit=99, max_parallel_requests=9, max_budget=1,
        budget_duration="1mo", models=["gpt-4*", "o1"], aliases={"quick": "o1"}, metadata={"m": 1},
    )  # fmt: skip
    for number in range(3):
        await passes(store, an_ask(f"settled-{number}", user_id="ana", tokens=5, nanos=7))
        await settle(store, f"settled-{number}", user_id="ana", tokens=4, nanos=6)
        clock.advance(seconds=2)
    await passes(store, an_ask("lost", user_id="ana", model="o1", tokens=5, nanos=7))
    clock.advance(seconds=31)
    for number, minted in enumerate((plain, key)):
        key_hash = hash_key(minted.secret)
        await passes(store, an_ask(f"running-{number}", user_id="ana", key_hash=key_hash, tokens=5, nanos=7))
    await users.days("ana", 0, 0)
    await passes(store, an_ask("running", user_id="ana", tokens=5, nanos=7))
    await users.put_default(parse_new(b'{"rpm_limit": 1}'), "guest", "digest")
    await users.create(parse_new(b'{"user_id": "bob", "blocked": true, "user_role": "internal_user_viewer"}'))
    invitations = Invitations(users.data.link, users)
    await invitations.issue("bob")
    assert await invitations.accept(await invitations.issue("guest"), "a hash")
    await users.directory._catalogue.open("crashed")
    await ApiKeys(users)._directory._catalogue.open("crashed")


@on_valkey
async def test_every_key_and_field_in_redis_stands_in_the_docs(
    url: str, users: Users, store: Store, clock: Clock
) -> None:
    await use_everything(users, store, clock)
    seen = set()
    with redis.from_url(url) as client:
        for key in (each.decode() for each in client.scan_iter()):
            name = documented_key(key)
            kind, expires = documented_keys()[name]
            seen.add(name)
            assert client.type(key).decode() == {"sorted set": "zset"}.get(kind, kind), key
            assert (client.pttl(key) > 0) == (expires.split()[0] not in ("never", "never;", "with")), key
            for field, value in client.hgetall(key).items() if kind == "hash" else ():
                check_field(name, field.decode(), value)
            if kind == "string":
                check_string(name, client.get(key))
        assert client.exists(keys.window("ana", "u"), keys.day("ana", clock() // 86_400_000)) == 2
    assert seen == set(documented_keys())


def test_the_docs_name_every_suffix_of_a_users_keys() -> None:
    text = docs("data.md")
    assert [suffix for suffix in keys.SUFFIXES.values() if f"`lw:{{u:ID}}{suffix}" not in text] == []


# The README


def test_the_readme_shows_code_by_its_tenth_line() -> None:
    assert any(line.startswith("```") for line in README.splitlines()[:10])


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md")], ids=str)
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []


@on_valkey
async def test_the_app_of_the_docs_limits_its_callers(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMWEIR_REDIS_URL", url)
    [block] = re.findall(r"```python\n(.*?)```", docs("app.md"), re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(block, "app.md", "exec"), names)  # noqa: S102 - the docs' own code
    async with httpx.AsyncClient(transport=httpx.ASGITransport(names["app"]), base_url="http://app") as client:
        asked = {"model": "gpt-4o", "messages": []}
        assert (await client.post("/v1/chat/completions", json=asked)).status_code == 401
        answers = [await client.post("/v1/chat/completions", json=asked, headers={"x-user": "ana"}) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert answers[0].json()["by"] == "ana"
    await names["app"].aclose()


def test_the_readme_links_to_every_page_of_the_docs() -> None:
    assert [page.name for page in ROOT.glob("docs/*.md") if f"(docs/{page.name})" not in README] == []


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_the_python_of_the_readme_runs(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    async def app(*_: object) -> None: ...

    exec(compile(block, "README.md", "exec"), {"app": app})  # noqa: S102 - the README's own code


@pytest.mark.parametrize("block", re.findall(r"```json\n(.*?)```", README, re.DOTALL))
def test_the_json_of_the_readme_is_json(block: str) -> None:
    json.loads(block)


def commands_of(page: str) -> list[str]:
    """The commands that a page has its reader type, in order."""
    blocks = re.findall(r"```console\n(.*?)```", page, re.DOTALL)
    return [command.strip() for block in blocks for command in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]]


def ports_of(commands: list[str], free: dict[str, str]) -> list[str]:
    """The same commands on free ports."""
    for port, other in free.items():
        commands = [command.replace(f":{port}", f":{other}") for command in commands]
    return commands


@pytest.mark.skipif(shutil.which("curl") is None, reason="the README's commands need curl")
def test_the_first_steps_of_the_readme_lead_where_it_says(tmp_path: Path) -> None:
    config = uvicorn.Config(model_app(), ws="none", lifespan="off", log_config=None, log_level="critical")
    listener, gate = bind("127.0.0.1", 0), bind("127.0.0.1", 0)
    gate_port = str(gate.getsockname()[1])
    gate.close()
    with running(config, listener) as model:
        commands = commands_of(README)
        asks = [command for command in commands if "chat/completions" in command]
        commands = ports_of([*commands, *asks], {"4000": model.rpartition(":")[2], "8787": gate_port})
        said = run_all(commands, gate_port, tmp_path)
    assert (said.count("HTTP/1.1 200 OK"), said.count("HTTP/1.1 429 Too Many Requests")) == (1, 1)
    assert "x-ratelimit-remaining-requests: 59" in said
    assert "x-llmweir-cost-usd: 0.0000138" in said
    assert said.count('"rpm_limit":1,') == 2  # the update's answer, and what is read after
    assert '"spend":0.0000138' in said


def run_all(commands: list[str], gate_port: str, folder: Path) -> str:
    """What the commands for the reader's third terminal print, with the server of the first running."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("LLMWEIR_")}
    environment = {**clean, "PYTHONPATH": str(ROOT / "src")}
    said = ""
    with contextlib.ExitStack() as stack:
        for command in commands:
            if command.startswith("export "):
                name, _, value = command.removeprefix("export ").partition("=")
                environment.setdefault(name, value)  # Ana's key is the one that the answer held
            elif command.startswith(".venv/bin/llmweir serve "):
                flags = [*command.split()[1:], "--port", gate_port]
                stack.enter_context(serving(flags, environment, folder))
            elif command.startswith("curl "):
                said += shell(command, environment) + "\n"
                if key := re.search(r'"key":"(sk-[^"]+)"', said):
                    environment["ANAS_KEY"] = key[1]
            else:
                assert command in ("./scripts/demo --once", ".venv/bin/llmweir model --port 4000"), command
    return said


def shell(command: str, environment: dict[str, str]) -> str:
    return subprocess.run(
        ["bash", "-c", command], env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=True
    ).stdout


@contextlib.contextmanager
def serving(flags: list[str], environment: dict[str, str], folder: Path) -> Iterator[None]:
    command = [sys.executable, "-m", "llmweir.cli", *flags]
    with subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        try:
            assert " listening " in server.stderr.readline()
            yield
        finally:
            server.send_signal(signal.SIGINT)
            log = server.stderr.read()
        assert (server.wait(PATIENCE_S), "stopped" in log) == (0, True), log


# The command line


@pytest.mark.parametrize("command", ["demo", "model", "serve"])
def test_every_command_of_the_readme_is_one(command: str) -> None:
    assert f"llmweir {command}" in README or f"scripts/{command}" in README
    assert command in main.commands


def test_every_test_that_the_failure_modes_name_is_there() -> None:
    page = (ROOT / "docs" / "failure-modes.md").read_text()
    named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", page)
    assert len(named) > 60
    gone = [f"{path}::{name}" for path, name in named if not re.search(rf"def {name}\(", (ROOT / path).read_text())]
    assert gone == []
