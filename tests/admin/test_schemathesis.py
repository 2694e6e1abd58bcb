"""Schemathesis over `/openapi.json` of a live server: every operation, by its document and against it."""

from __future__ import annotations

import asyncio
import sysconfig
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
from tests.backends import on_valkey
from tests.harness import MASTER_KEY, Stage, staged

from llmweir.admin.attempts import FailedAttempts

pytestmark = pytest.mark.asyncio

PROGRAM = Path(sysconfig.get_path("scripts")) / "schemathesis"
CONFIG = """
warnings = false

[[operations]]  # the master key, which it comes with, has no record and no row of its own
include-path = ["/key/info", "/user/info", "/v2/user/info", "/user/usage"]
checks.positive_data_acceptance.expected-statuses = ["2xx", "400", "404"]

[[operations]]  # a token that it makes up is nobody's invitation
include-path = "/invite/{token}"
checks.positive_data_acceptance.expected-statuses = ["410"]

[[operations]]  # the dates must be in order, which a schema cannot say
include-path = "/user/daily/activity"
checks.positive_data_acceptance.expected-statuses = ["2xx", "422"]

[[operations]]  # one of two fields names the key or the user, and a key stays with its user
include-path = [
    "/key/block", "/key/unblock", "/key/delete", "/key/update", "/key/{key}/regenerate",
    "/team/member_add", "/team/member_delete",
]
checks.positive_data_acceptance.expected-statuses = ["2xx", "404", "409", "422"]

[[operations]]  # money has at most 9 decimals, which floats cannot be held to; and here is no mail server
include-path = ["/user/new", "/user/update", "/user/bulk_update", "/key/generate"]
checks.positive_data_acceptance.expected-statuses = ["2xx", "400", "404", "409", "422"]
"""


@pytest.fixture
async def stage(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stage]:
    # It tries more wrong keys than an address may, and would then be told 429 where it asks for 401.
    monkeypatch.setattr("llmweir.admin.build.FailedAttempts", partial(FailedAttempts, 1_000_000))
    async with staged(url, tmp_path) as stage:
        yield stage


@on_valkey
@pytest.mark.timeout(240)
async def test_schemathesis_finds_nothing(stage: Stage, tmp_path: Path) -> None:
    status, output = await run(stage, tmp_path)
    assert status == 0, output


async def run(stage: Stage, folder: Path) -> tuple[int | None, str]:
    config = folder / "schemathesis.toml"
    config.write_text(CONFIG)
    process = await asyncio.create_subprocess_exec(
        PROGRAM, f"--config-file={config}", "run", f"{stage.url}/openapi.json",
        f"--header=Authorization: Bearer {MASTER_KEY}", "--checks=all", "--max-examples=10", "--continue-on-failure",
        "--generation-deterministic", "--output-truncate=false", "--no-color",
        cwd=folder,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    try:
        output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode, output.decode()
