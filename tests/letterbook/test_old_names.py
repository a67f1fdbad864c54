"""The variables and the config.ini of the service before this one are taken where nothing of ours is set."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from letterbook.cli import main
from letterbook.config import ConfigError, load
from letterbook.config_keys import KEYS
from letterbook.old_names import OLD_NAMES

OLD_INI = """\
[storage]
db_path = /tmp/new.db
[server]
port = 8100
[client]
client_sync_url = https://app.example/sync
client_sync_user = syncuser
client_sync_password = syncpass
[scheduler]
active = true
[delivery]
send_interval_seconds = 0.5
test_mode = false
default_priority = 2
delivery_report_retention_seconds = 604800
batch_size_per_account = 50
[logging]
delivery_activity = true
"""

OURS = {(entry.section, entry.name) for entry in KEYS}


def heard(environ: dict[str, str], path: Path | None = None):
    lines: list[str] = []
    return load(path, environ, lines.append), lines


def test_an_old_variable_is_taken_where_nothing_else_says_it_with_one_line():
    config, lines = heard({"GMP_PORT": "8100", "GMP_LOG_LEVEL": "WARNING", "GMP_SCHEDULER_ACTIVE": "0"})
    assert (config.server.port, config.logging.level, config.scheduler.active) == (8100, "warning", False)
    assert len(lines) == 3
    assert lines[0] == "GMP_PORT is taken for [server] port: write LETTERBOOK_SERVER_PORT instead"


def test_ours_and_the_file_come_before_it(tmp_path):
    path = tmp_path / "c.ini"
    path.write_text("[server]\nport = 8200\n")
    config, lines = heard({"GMP_PORT": "8100", "GMP_HOST": "::1", "LETTERBOOK_SERVER_HOST": "127.0.0.2"}, path)
    assert (config.server.port, config.server.host) == (8200, "127.0.0.2")
    assert lines == ["GMP_HOST is ignored, for [server] host is set", "GMP_PORT is ignored, for [server] port is set"]


def test_a_secret_in_a_file_of_ours_comes_before_an_old_variable_and_none_is_shown(tmp_path):
    (tmp_path / "token").write_text("ours")
    environ = {"GMP_API_TOKEN": "theirs"}
    config, lines = heard({**environ, "LETTERBOOK_SERVER_API_TOKEN_FILE": str(tmp_path / "token")})
    assert config.server.api_token == "ours" and "theirs" not in lines[0]
    config, lines = heard(environ)
    assert config.server.api_token == "theirs" and "theirs" not in lines[0]


def test_what_is_unknown_empty_or_said_twice_is_ignored_with_one_line():
    environ = {"GMP_POOL_SIZE": "20", "GMP_HOST": "", "GMP_SCHEDULER_ACTIVE": "off", "GMP_START_ACTIVE": "on"}
    config, lines = heard(environ)
    assert config.scheduler.active is False
    assert lines == [
        "GMP_HOST is empty, and is ignored",
        "GMP_SCHEDULER_ACTIVE is taken for [scheduler] active: write LETTERBOOK_SCHEDULER_ACTIVE instead",
        "GMP_START_ACTIVE is ignored, for GMP_SCHEDULER_ACTIVE says [scheduler] active",
        "GMP_POOL_SIZE is no variable that is known here, and is ignored",
    ]


def test_a_bad_value_is_named_by_its_variable():
    with pytest.raises(ConfigError, match="environment: GMP_PORT = eighty cannot be used: write a whole number"):
        load(None, {"GMP_PORT": "eighty"})


def test_an_old_config_ini_is_taken_as_it_is(tmp_path):
    path = tmp_path / "config.ini"
    path.write_text(OLD_INI)
    config, lines = heard({}, path)
    assert (config.server.port, config.delivery.batch_size_per_account) == (8100, 50)
    absent = {name.place for name in OLD_NAMES if name.place not in OURS and f"{name.key} =" in OLD_INI}
    assert len(lines) == len(absent) and all("is the old service's, and ignored" in line for line in lines)


def test_the_lines_are_said_by_check_config_and_the_file_may_be_named_in_the_old_way(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "old.ini"
    path.write_text(f"[storage]\ndb_path = {tmp_path}/log.db\nkey_file = {tmp_path}/log.key\n")
    said = CliRunner().invoke(main, ["check-config"], env={"GMP_CONFIG": str(path), "GMP_PORT": "8100"})
    assert said.exit_code == 0, said.output
    assert said.stderr.splitlines() == [
        "letterbook: GMP_CONFIG is taken for the configuration file: write LETTERBOOK_CONFIG instead",
        "letterbook: GMP_PORT is taken for [server] port: write LETTERBOOK_SERVER_PORT instead",
    ]
