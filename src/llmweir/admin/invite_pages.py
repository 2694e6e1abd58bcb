"""The pages of an invitation: self-contained HTML without scripts, light or dark as the reader's machine is."""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Mapping
from html import escape
from string import Template

from llmweir.admin.routes import Answer

_STYLE = """
:root { color-scheme: light dark; --ink: #1b2733; --paper: #f4f6f8; --card: #ffffff; --edge: #c3ccd5; --line: #6b7885;
  --accent: #14588c; --on-accent: #ffffff; --alarm: #a3211b; --alarm-paper: #fdeceb }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6ebf0; --paper: #12181e; --card: #1b232b; --edge: #36424e; --line: #8996a3; --accent: #7fbdf0;
    --on-accent: #0c1620; --alarm: #ffb1aa; --alarm-paper: #3a1b1b }
}
* { box-sizing: border-box }
body { margin: 0; padding: 1rem; color: var(--ink); background: var(--paper); font: 1rem/1.5 system-ui, sans-serif }
main { max-width: 26rem; margin: 8vh auto 0; padding: 1.75rem; background: var(--card);
  border: 1px solid var(--edge); border-radius: .75rem; overflow-wrap: anywhere }
h1 { margin: 0 0 .75rem; font-size: 1.375rem; line-height: 1.25 }
p { margin: 0 0 1rem }
p:last-child { margin-bottom: 0 }
label { display: block; margin-bottom: .25rem; font-weight: 600 }
.hint { display: block; font-weight: 400; font-size: .875rem }
input { width: 100%; margin-bottom: 1rem; padding: .625rem .75rem; font: inherit; color: inherit;
  background: transparent; border: 1px solid var(--line); border-radius: .375rem }
input[readonly] { border-style: dashed }
button { width: 100%; padding: .75rem; font: inherit; font-weight: 600; cursor: pointer; color: var(--on-accent);
  background: var(--accent); border: 1px solid transparent; border-radius: .375rem }
:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px }
.problem { padding: .625rem .75rem; color: var(--alarm); background: var(--alarm-paper);
  border-left: 4px solid var(--alarm) }
"""

_PAGE = Template("""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="robots" content="noindex">
<title>$title</title>
<style>$style</style>
</head>
<body>
<main>
<h1>$title</h1>
$content
</main>
</body>
</html>
""")

_FORM = Template("""\
<p>Welcome, <bdi>$name</bdi>. Choose the password of your account.</p>
$problem
<form method="post" accept-charset="utf-8">
<label for="username">Account</label>
<input id="username" name="username" type="text" value="$account" autocomplete="username" readonly>
<label for="password">New password <span class="hint" id="hint">8 characters or more</span></label>
<input id="password" name="password" type="password" autocomplete="new-password" required minlength="8"
 maxlength="1024" aria-describedby="$described"$invalid autofocus>
<label for="repeated">The same once more</label>
<input id="repeated" name="repeated" type="password" autocomplete="new-password" required minlength="8"
 maxlength="1024"$invalid>
<button type="submit">Set password</button>
</form>""")


def form_page(name: str, account: str, problem: str | None = None) -> Answer:
    """The form for a password; with a `problem` it is shown again, as a 422."""
    content = _FORM.substitute(
        name=escape(name),
        account=escape(account),
        problem=_problem(problem) if problem is not None else "",
        described="hint" if problem is None else "problem hint",
        invalid="" if problem is None else ' aria-invalid="true"',
    )
    return _answer(200 if problem is None else 422, "Set your password", content)


def done_page() -> Answer:
    """What is shown once the password is set."""
    return _answer(200, "Your password is set", "<p>You can close this page.</p>")


def refusal_page(status: int, message: str, headers: Mapping[str, str]) -> Answer:
    """What is shown where there is no form to show."""
    titles = {410: "This invitation is not valid any more", 429: "Please wait a little", 503: "Please try again later"}
    return _answer(status, titles.get(status, "This did not work"), f"<p>{escape(message)}</p>", headers)


def _problem(problem: str) -> str:
    return f'<p class="problem" id="problem" role="alert">{escape(problem)}</p>'


def _answer(status: int, title: str, content: str, headers: Mapping[str, str] | None = None) -> Answer:
    page = _PAGE.substitute(title=escape(title), style=_STYLE, content=content)
    return Answer(page.encode(), status, {**_page_headers(), **(headers or {})})


def _page_headers() -> dict[str, str]:
    """What a page may load (its own style, nothing else), where its form may go, and that its address stays with it."""
    style = b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{style}'; form-action 'self'; frame-ancestors 'none'"
    return {
        "content-security-policy": f"{policy}; base-uri 'none'",
        "referrer-policy": "no-referrer",
        "cache-control": "no-store",
        "x-content-type-options": "nosniff",
        "x-frame-options": "DENY",
        "x-robots-tag": "noindex",
    }
