"""The mail that invites a user to set a password."""

from __future__ import annotations

from html import escape
from string import Template
from urllib.parse import urlsplit

from llmweir.mail import Mail, one_line

_TEXT = Template("""\
Hello $name,

there is an account for you at $host. Set its password here:

$link

The link works once, and for 48 hours. Whoever has it can set the password, so do not pass this mail on.
If you did not expect it, there is nothing that you need to do.
""")

_HTML = Template("""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="color-scheme" content="light dark">
<title>$subject</title>
</head>
<body style="font: 16px/1.5 system-ui, sans-serif; max-width: 34em; margin: 0 auto; padding: 1.5em">
<p>Hello <bdi>$name</bdi>,</p>
<p>there is an account for you at $host.</p>
<p><a href="$link" style="display: inline-block; padding: .6em 1.2em; border-radius: .4em;
background: #14588c; color: #ffffff; text-decoration: none">Set your password</a></p>
<p>If the button does not work, open this address:<br><a href="$link">$link</a></p>
<p>The link works once, and for 48 hours. Whoever has it can set the password, so do not pass this mail on.
If you did not expect it, there is nothing that you need to do.</p>
</body>
</html>
""")


def invite_mail(address: str, name: str, link: str) -> Mail:
    """The invitation of `name` at `address`, in plain text and in HTML."""
    host = urlsplit(link).netloc
    values = {"name": one_line(name), "host": host, "link": link, "subject": f"Set your password for {host}"}
    return Mail(
        to=address,
        subject=values["subject"],
        text=_TEXT.substitute(values),
        html=_HTML.substitute({key: escape(value) for key, value in values.items()}),
    )
