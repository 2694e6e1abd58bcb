"""What `--help` says."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from llmweir.cli import main
from llmweir.settings import SettingInfo, describe_settings


def help_of(*command: str) -> str:
    result = CliRunner().invoke(main, [*command, "--help"], terminal_width=80)
    assert result.exit_code == 0
    return result.output


def test_every_command_is_listed_with_a_whole_sentence() -> None:
    listed = help_of().partition("Commands:\n")[2].splitlines()
    assert [line.split()[0] for line in listed] == ["check", "demo", "import", "key", "model", "serve", "user"]
    assert [line for line in listed if not line.endswith(".") or line.endswith("...")] == []


@pytest.mark.parametrize("setting", describe_settings(), ids=lambda setting: setting.name)
@pytest.mark.parametrize("command", ["serve", "check"])
def test_every_setting_is_a_flag_of_serve_and_of_check(command: str, setting: SettingInfo) -> None:
    assert f"  {setting.flag} VALUE" in help_of(command)


def test_defaults_stand_as_one_would_write_them() -> None:
    text = " ".join(help_of("serve").split())
    assert "[default: GET /v1/models*]" in text
    assert "[default: false]" in text
