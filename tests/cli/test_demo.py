"""The demo's tour, as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src"


def python(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(SOURCE), **environment},
        capture_output=True,
        text=True,
        timeout=45,
        check=False,
    )


def test_the_tour_plays_all_its_steps_and_exits_0(tmp_path: Path) -> None:
    tour = python("-m", "llmweir.cli", "demo", "--once", cwd=tmp_path)
    assert tour.returncode == 0, tour.stdout + tour.stderr
    assert "All 8 steps came out as told." in tour.stdout
    assert tour.stdout.count("✓") == 8
    assert "\x1b" not in tour.stdout
    assert tour.stderr == ""
    assert list(tmp_path.iterdir()) == []


def test_the_environment_changes_nothing_of_the_tour(tmp_path: Path) -> None:
    tour = python("-m", "llmweir.cli", "demo", "--once", cwd=tmp_path, LLMWEIR_BUDGET_EXCEEDED_STATUS="402")
    assert tour.returncode == 0, tour.stdout + tour.stderr


def test_a_step_that_comes_out_otherwise_exits_1_and_says_what_differed(tmp_path: Path) -> None:
    program = (
        "from llmweir.cli import main\n"
        "from llmweir.cli.demo import USERS, DemoUser\n"
        "USERS['cleo'] = DemoUser({'max_parallel_requests': 2}, 'two at a time')\n"
        "main(['demo', '--once'])\n"
    )
    tour = python("-c", program, cwd=tmp_path)
    assert tour.returncode == 1
    assert "✗ statuses: [200, 429, 200] was to come, [200, 200, 200] came" in tour.stdout
    assert "1 of 8 steps came out otherwise" in tour.stdout
