"""The Lua scripts as source: headers tell the truth, includes resolve, the calendar agrees with Python's."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable, Iterator
from importlib import resources

import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.servers import valkey_server

from llmweir import durations
from llmweir.engine import scripts
from llmweir.engine.keys import SUFFIXES

FOLDER = resources.files("llmweir.engine") / "lua"
COMMANDS = sorted(path.name.removesuffix(".lua") for path in FOLDER.iterdir() if path.name.endswith(".lua"))
INCLUDES = sorted(path.name.removesuffix(".lua") for path in (FOLDER / "include").iterdir())
ARGUMENT = re.compile(r"\b(KEYS|ARGV)\[(\w+)(\.\.)?\]")
DAY_MS = 86_400_000
LAST_DAY = (dt.date(9999, 12, 31) - dt.date(1970, 1, 1)).days

Evaluate = Callable[..., object]


def header_of(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if line.startswith("-- "))


def code_of(source: str) -> str:
    return re.sub(r"--.*$", "", source, flags=re.MULTILINE)


def is_named(kind: str, index: str, header: str) -> bool:
    if (kind, index, "") in ARGUMENT.findall(header):
        return True
    rest = [int(first) for named, first, dots in ARGUMENT.findall(header) if named == kind and dots]
    return bool(rest) and (not index.isdigit() or int(index) >= min(rest))


@pytest.fixture(scope="module")
def evaluate() -> Iterator[Evaluate]:
    with valkey_server() as url, redis.Redis.from_url(url, driver_info=None) as client:

        def run(include: str, call: str, *arguments: object) -> object:
            return client.eval(f"{scripts.load_include(include)}\nreturn {call}", 0, *map(str, arguments))

        yield run


@pytest.mark.parametrize("name", COMMANDS)
def test_a_header_names_every_key_and_argument_that_the_code_uses(name: str) -> None:
    header = header_of((FOLDER / f"{name}.lua").read_text())
    used = set(ARGUMENT.findall(code_of(scripts.load(name).source)))
    assert used
    assert [f"{kind}[{index}]" for kind, index, _ in sorted(used) if not is_named(kind, index, header)] == []


@pytest.mark.parametrize("name", COMMANDS)
def test_a_header_says_what_the_command_replies(name: str) -> None:
    assert "-- Reply: " in header_of((FOLDER / f"{name}.lua").read_text())


@pytest.mark.parametrize("name", INCLUDES)
def test_an_include_is_one_local_function_of_its_own_name(name: str) -> None:
    text = (FOLDER / "include" / f"{name}.lua").read_text()
    assert re.findall(r"^local function (\w+)", text, re.MULTILINE) == [name]


def test_every_include_is_used() -> None:
    texts = [path.read_text() for path in [*FOLDER.iterdir(), *(FOLDER / "include").iterdir()] if path.is_file()]
    asked_for = {name for text in texts for name in re.findall(r"--- @include (\w+)", text)}
    assert asked_for == set(INCLUDES)


@pytest.mark.parametrize("name", COMMANDS)
def test_all_includes_and_suffixes_of_a_command_are_resolved(name: str) -> None:
    source = scripts.load(name).source
    assert "@include" not in source
    assert "SUFFIX" not in source


@pytest.mark.parametrize("name", COMMANDS)
def test_no_outermost_function_is_pulled_in_again_after_it(name: str) -> None:
    source = scripts._resolved(f"{name}.lua", set())
    own = re.findall(r"^--- @include (\w+)", (FOLDER / f"{name}.lua").read_text(), re.MULTILINE)
    for include in own:
        assert source.count(f"local function {include}(") == 1


def test_an_include_is_pulled_in_once() -> None:
    assert scripts.load("write").source.count("local function period_end(") == 1


def test_suffixes_are_spelled_as_python_spells_them() -> None:
    assert f"record .. '{SUFFIXES['day']}'" in scripts.load("settle").source


@pytest.mark.parametrize("day", [0, 58, 59, 789, 790, 11_016, 11_017, 47_540, 47_541, LAST_DAY])
def test_civil_agrees_with_datetime_at_the_edges(evaluate: Evaluate, day: int) -> None:
    date = dt.date(1970, 1, 1) + dt.timedelta(days=day)
    assert evaluate("civil", "{ civil(ARGV[1] + 0) }", day) == [date.year, date.month, date.day]


@settings(max_examples=200, deadline=None)
@given(day=st.integers(0, LAST_DAY))
def test_civil_agrees_with_datetime(evaluate: Evaluate, day: int) -> None:
    date = dt.date(1970, 1, 1) + dt.timedelta(days=day)
    assert evaluate("civil", "{ civil(ARGV[1] + 0) }", day) == [date.year, date.month, date.day]
    assert evaluate("days", "days(ARGV[1] + 0, ARGV[2] + 0, ARGV[3] + 0)", date.year, date.month, date.day) == day


@settings(max_examples=300, deadline=None)
@given(
    duration=st.one_of(
        st.builds("{}{}".format, st.integers(1, 400), st.sampled_from(["s", "m", "h", "d", "w"])),
        st.builds("{}mo".format, st.integers(1, 120)),
    ),
    anchor_ms=st.integers(0, 60_000 * DAY_MS),
    passed_ms=st.one_of(st.integers(-2 * DAY_MS, 2 * DAY_MS), st.integers(0, 20_000 * DAY_MS)),
)
def test_period_ends_agree_with_python(evaluate: Evaluate, duration: str, anchor_ms: int, passed_ms: int) -> None:
    now_ms = max(0, anchor_ms + passed_ms)
    parsed = durations.parse(duration)
    call = "string.format('%d', period_end(ARGV[1], ARGV[2] + 0, ARGV[3] + 0))"
    reply = evaluate("period_end", call, durations.encode(parsed), anchor_ms, now_ms)
    assert reply == b"%d" % durations.period_end_ms(parsed, anchor_ms, now_ms)
