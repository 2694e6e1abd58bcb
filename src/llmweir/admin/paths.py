"""Which paths are the admin API's, for the gate that stands before both: one look-up for most requests."""

from __future__ import annotations

from collections.abc import Iterable

from llmweir.admin.routes import AdminRoute


class AdminPaths:
    """The paths of a table of routes under a prefix."""

    def __init__(self, routes: Iterable[AdminRoute], prefix: str) -> None:
        paths = {f"{prefix}{route.path}" for route in routes}
        self.exact = frozenset(path for path in paths if "{" not in path)
        self._shapes = tuple((path[: path.index("{")], path[path.index("}") + 1 :]) for path in paths - self.exact)
        self.starts = tuple(start for start, _ in self._shapes)

    def __contains__(self, path: str) -> bool:
        """Whether a path is one of the table, with something in the place of its parameter."""
        return path in self.exact or (path.startswith(self.starts) and self._has_shape(path))

    def _has_shape(self, path: str) -> bool:
        return any(
            path.startswith(start) and path.endswith(end) and len(path) > len(start) + len(end)
            for start, end in self._shapes
        )
