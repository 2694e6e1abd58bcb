"""The docs tell the truth: every setting, refusal code and header stands in them, and their code runs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from llmweir import settings
from llmweir.decision import Standing
from llmweir.traffic.headers import standing_headers

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def docs(name: str) -> str:
    return (ROOT / "docs" / name).read_text()


@pytest.mark.parametrize("setting", settings.describe_settings(), ids=lambda setting: setting.name)
def test_every_setting_stands_in_the_docs_with_its_default_and_meaning(setting: settings.SettingInfo) -> None:
    default = setting.default if isinstance(setting.default, str) else json.dumps(setting.default)
    shown = "" if setting.default is None else f"`{default}`"
    assert f"| `{setting.name}` | {shown} | {setting.description} |" in docs("settings.md")


def test_every_refusal_code_in_the_source_stands_in_the_docs() -> None:
    sources = "\n".join(path.read_text() for path in (ROOT / "src/llmweir/traffic").rglob("*.py"))
    raised = set(re.findall(r'(?:UnreadableRequestError\(\s*\d+,\s*|bad_request\(\s*)"([a-z_]+)"', sources))
    raised |= set(re.findall(r'code="([a-z_]+)"', sources))
    assert len(raised) > 10
    assert [code for code in sorted(raised) if f"`{code}`" not in docs("refusals.md")] == []


def test_every_header_of_an_answer_stands_in_the_docs() -> None:
    everything = Standing(1, 0, 1, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 1, 0, 1)
    names = {name.decode() for name, _ in standing_headers(everything, "openai")}
    text = docs("refusals.md").lower()
    assert [name for name in sorted(names) if f"`{name}`" not in text] == []


def test_the_readme_shows_code_by_its_tenth_line() -> None:
    assert any(line.startswith("```") for line in README.splitlines()[:10])


def test_every_link_of_the_readme_leads_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_the_python_of_the_readme_runs(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    async def app(*_: object) -> None: ...

    exec(compile(block, "README.md", "exec"), {"app": app})  # noqa: S102 - the README's own code


@pytest.mark.parametrize("block", re.findall(r"```json\n(.*?)```", README, re.DOTALL))
def test_the_json_of_the_readme_is_json(block: str) -> None:
    json.loads(block)
