"""What the settings and the known paths say of a request together, remembered per path."""

from __future__ import annotations

from typing import Literal

import msgspec

from llmweir.traffic.paths import Paths, Route, matches

_MOST_REMEMBERED = 1024
_LONGEST_REMEMBERED = 256


class Verdict(msgspec.Struct, frozen=True):
    """How a request is treated: `open` needs no key, `free` needs one and counts nothing, else `route` is gated."""

    access: Literal["open", "free", "gated"]
    route: Route


class PathRules:
    """Judges method and path by the lists `open_paths` and `free_paths`, then by the known paths."""

    def __init__(self, open_paths: tuple[str, ...], free_paths: tuple[str, ...]) -> None:
        self._open_paths = open_paths
        self._free_paths = free_paths
        self._paths = Paths()
        self._remembered: dict[tuple[str, str, bytes], Verdict] = {}

    def judge(self, method: str, path: str, raw_path: bytes) -> Verdict:
        """Says how a request is treated; raises UnreadableRequestError for a path that could be read as two."""
        key = (method, path, raw_path)
        verdict = self._remembered.get(key)
        if verdict is None:
            verdict = self._decide(method, path, raw_path)
            if len(path) + len(raw_path) <= _LONGEST_REMEMBERED:
                if len(self._remembered) >= _MOST_REMEMBERED:
                    self._remembered.clear()
                self._remembered[key] = verdict
        return verdict

    def _decide(self, method: str, path: str, raw_path: bytes) -> Verdict:
        route = self._paths.route(method, path, raw_path)
        if any(matches(pattern, method, path) for pattern in self._open_paths):
            return Verdict("open", route)
        if route.kind == "free" or any(matches(pattern, method, path) for pattern in self._free_paths):
            return Verdict("free", route)
        return Verdict("gated", route)
