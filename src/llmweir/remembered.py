"""A dictionary that forgets its oldest entries, for what a worker remembers of callers it cannot count."""

from __future__ import annotations

from collections import OrderedDict
from typing import TypeVar

_K = TypeVar("_K")
_V = TypeVar("_V")


class Remembered(OrderedDict[_K, _V]):
    """Holds at most `at_most` entries; one more pushes out the entry that was put in first."""

    def __init__(self, at_most: int) -> None:
        super().__init__()
        self._at_most = at_most

    def __setitem__(self, key: _K, value: _V) -> None:
        super().__setitem__(key, value)
        if len(self) > self._at_most:
            self.popitem(last=False)
