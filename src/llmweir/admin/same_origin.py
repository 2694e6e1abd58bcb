"""Refuses forms that another site sends in the name of its visitor."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit

from llmweir.admin.errors import AdminError


def check_same_origin(headers: Mapping[str, str]) -> None:
    """Raises AdminError (403) where a browser says that a form comes from a page of another site.

    - `sec-fetch-site` is there: `same-origin` passes, and `none`, which no page sends; everything else is refused.
    - only `origin` is there (an older browser): its host must be the one that the form is sent to; `null` passes, for
      it is what browsers say of a page whose referrer policy is `no-referrer`, as ours have it.
    - neither is there: no browser, and so nobody's visitor.
    """
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site is not None:
        is_own = site in ("same-origin", "none")
    else:
        is_own = origin in (None, "null") or urlsplit(origin).netloc == headers.get("host")
    if not is_own:
        raise AdminError(403, "This form was sent from a page of another site.")
