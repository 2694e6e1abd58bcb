"""What the tests of faults have in common: they start many processes, and may take long on a busy machine."""

from __future__ import annotations

import pytest

_TIMEOUT_S = 180


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("faults") is not None:
            item.add_marker(pytest.mark.timeout(_TIMEOUT_S))
