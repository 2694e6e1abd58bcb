"""The soak of `benchmarks/soak.py`, for some seconds: so that it keeps running, and keeps finding nothing."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest
from tests.faults.waiting import until
from tests.faults.workers import SOURCE

pytestmark = pytest.mark.faults

ROOT = Path(__file__).parents[2]


async def test_some_seconds_of_all_faults_lose_nothing_and_let_nobody_past_a_limit(tmp_path: Path) -> None:
    command = ["-m", "benchmarks.soak", "--seconds", "8", "--seed", "11", "--workers", "2", "--json", "report.json"]
    environment = {**os.environ, "PYTHONPATH": f"{SOURCE}{os.pathsep}{ROOT}"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, *command, cwd=tmp_path, env=environment, stdout=asyncio.subprocess.PIPE
    )
    try:
        printed, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await until(lambda: process.returncode is not None, "the soak is gone")
    assert process.returncode == 0, printed.decode()
    report = json.loads((tmp_path / "report.json").read_bytes())
    assert (report["is_good"], report["lost_nanos"], report["limits_passed"]) == (True, 0, {})
    assert report["served"] > 50
