"""Fuzzes the targets by coverage: `python -m tests.fuzz TARGET [options of libFuzzer] [FOLDER]`; needs `atheris`."""

from __future__ import annotations

import importlib
import sys
from typing import Any

atheris: Any = importlib.import_module("atheris")  # no dependency of the tests: scripts/fuzz installs it

if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("Name a target.")
    name = sys.argv.pop(1)
    with atheris.instrument_imports(include=["llmweir", "python_multipart", "idna", "email"]):
        targets = importlib.import_module("tests.fuzz.targets")
    if name not in targets.TARGETS:
        sys.exit(f"There is no target {name}; there are: {', '.join(targets.TARGETS)}.")
    atheris.Setup(sys.argv, targets.TARGETS[name])
    atheris.Fuzz()
