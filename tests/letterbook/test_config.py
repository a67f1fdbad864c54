"""Reading the configuration: precedence, every kind of value, and one line for whatever is wrong."""

from pathlib import Path

import pytest

from events.payloads import Rule
from letterbook.config import Config, ConfigError, is_loopback, load
from letterbook.config_keys import KEYS


def write(folder: Path, text: str) -> Path:
    path = folder / "config.ini"
    path.write_text(text, encoding="utf-8")
    return path


def complaint(path: Path | None = None, **environ: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path, environ)
    text = str(caught.value)
    assert text and "\n" not in text
    return text


def test_without_file_and_environment_every_key_has_its_default():
    assert load(None, {"PATH": "/bin"}) == Config()


def test_environment_wins_over_file_and_file_over_default(tmp_path):
    path = write(tmp_path, "[server]\nport = 1\nmax_backlog = 7\n")
    config = load(path, {"LETTERBOOK_SERVER_PORT": "2"})
    assert (config.server.port, config.server.max_backlog, config.server.drain_seconds) == (2, 7, 25.0)


def test_an_empty_value_counts_as_not_set(tmp_path):
    path = write(tmp_path, "[server]\nport = 1\n[delivery]\nmax_batch =\n")
    config = load(path, {"LETTERBOOK_SERVER_PORT": "  "})
    assert (config.server.port, config.delivery.max_batch) == (1, 1000)


@pytest.mark.parametrize(
    ("section", "key", "text", "value"),
    [
        ("delivery", "send_interval_seconds", "0.25", 0.25),
        ("delivery", "retry_delays", "60, 300,\n  900.5", (60.0, 300.0, 900.5)),
        ("delivery", "default_priority", "High", 1),
        ("delivery", "default_priority", "0", 0),
        ("delivery", "in_doubt", "HOLD", "hold"),
        ("logging", "level", "Warning", "warning"),
        ("scheduler", "timezone", "Europe/Rome", "Europe/Rome"),
        ("scheduler", "active", "off", False),
        ("scheduler", "rules", '[{"interval_minutes": 15}]', (Rule(15),)),
        ("scheduler", "rules", '[{"days": [0],\n  "interval_minutes": 1}]', (Rule(1, days=(0,)),)),
        ("smtp", "use_tls", "YES", True),
        ("smtp", "use_tls", "0", False),
        ("smtp", "use_tls", "", None),
        ("smtp", "tls", "starttls-required", "starttls-required"),
        ("smtp", "auth", "", "auto"),
        ("smtp", "host", "2001:db8::25", "2001:db8::25"),
        ("storage", "db_path", "/var/lib/a b/letterbook.db", Path("/var/lib/a b/letterbook.db")),
        ("fetch", "url", "https://upstream.example:8443/mail/", "https://upstream.example:8443/mail"),
        ("server", "api_token", "a%b;c#d = e", "a%b;c#d = e"),
    ],
)
def test_each_kind_of_value_is_read(tmp_path, section, key, text, value):
    config = load(write(tmp_path, f"[{section}]\n{key} = {text}\n"), {})
    assert getattr(getattr(config, section), key) == value


@pytest.mark.parametrize(
    ("section", "key", "text"),
    [
        ("server", "port", "65536"),
        ("server", "port", "eighty"),
        ("server", "host", "http://localhost"),
        ("server", "max_body_mb", "0"),
        ("server", "drain_seconds", "-1"),
        ("server", "drain_seconds", "nan"),
        ("delivery", "send_wait_seconds", "inf"),
        ("delivery", "send_interval_seconds", "0"),
        ("delivery", "retry_delays", "60,,300"),
        ("delivery", "default_priority", "4"),
        ("delivery", "in_doubt", "maybe"),
        ("scheduler", "active", "maybe"),
        ("scheduler", "rules", "[{}]"),
        ("scheduler", "rules", "8 to 18"),
        ("scheduler", "rules", '[{"interval_minutes": 15, "start_hour": 9, "end_hour": 8}]'),
        ("scheduler", "rules", '[{"interval_minutes": 15, "pause": 1}]'),
        ("scheduler", "timezone", "Europe/Atlantis"),
        ("scheduler", "timezone", "../../etc/passwd"),
        ("scheduler", "timezone", "Europe"),
        ("smtp", "tls", "ssl"),
        ("smtp", "port", "0"),
        ("smtp", "auth", "digest-md5"),
        ("fetch", "url", "ftp://upstream.example"),
        ("fetch", "url", "https://upstream.example:port"),
        ("fetch", "url", "https://upstream.example/?a=1"),
    ],
)
def test_a_bad_value_names_file_section_key_and_what_to_write(tmp_path, section, key, text):
    path = write(tmp_path, f"[{section}]\n{key} = {text}\n")
    said = complaint(path)
    assert said.startswith(f"{path}: [{section}] {key} = {text}") and "write " in said
    variable = f"LETTERBOOK_{section.upper()}_{key.upper()}"
    assert complaint(**{variable: text}).startswith(f"environment: {variable} = {text}")


def test_every_key_can_be_given_by_its_variable():
    for entry in KEYS:
        assert "cannot be used: write " in complaint(**{entry.variable: "\x01"}), entry.variable


def test_an_unknown_key_or_section_is_named(tmp_path):
    said = complaint(write(tmp_path, "[server]\nprot = 1\n"))
    assert "[server] prot is no key: write one of host, port, api_token, api_token_file" in said
    assert "[sever] is no section" in complaint(write(tmp_path, "[sever]\nport = 1\n"))
    assert "[DEFAULT] is no section" in complaint(write(tmp_path, "[DEFAULT]\nport = 1\n"))
    assert "LETTERBOOK_SERVER_PROT is no key" in complaint(LETTERBOOK_SERVER_PROT="1")
    assert "host_file is no key" in complaint(write(tmp_path, "[server]\nhost_file = x\n"))


def test_variables_of_no_section_of_ours_are_left_alone():
    assert load(None, {"LETTERBOOK_PORT_8000_TCP": "tcp://10.0.0.1:8000", "LETTERBOOK_CONFIG": "x"}) == Config()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("port = 1\n", "line 1 stands before any section"),
        ("[server]\nport = 1\nport = 2\n", "[server] port stands there twice (line 3)"),
        ("[server]\nport = 1\n[server]\n", "[server] stands there twice (line 3)"),
        ("[server]\nport = 1\nnonsense\n", "line 3 cannot be read"),
    ],
)
def test_a_file_that_is_no_ini_names_the_line(tmp_path, text, words):
    assert words in complaint(write(tmp_path, text))


def test_an_unreadable_file_is_named(tmp_path):
    assert "No such file or directory" in complaint(tmp_path / "absent.ini")
    assert "Is a directory" in complaint(tmp_path)
    latin = tmp_path / "latin.ini"
    latin.write_bytes(b"[smtp]\nuser = caf\xe9\n")
    assert "UTF-8" in complaint(latin)


def test_a_secret_may_stand_in_a_file_of_its_own(tmp_path):
    token = tmp_path / "token"
    token.write_text("s3cret\n")
    path = write(tmp_path, f"[server]\nhost = 0.0.0.0\napi_token_file = {token}\n")
    assert load(path, {}).server.api_token == "s3cret"
    assert load(path, {"LETTERBOOK_SERVER_API_TOKEN": "other"}).server.api_token == "other"
    assert load(None, {"LETTERBOOK_SERVER_API_TOKEN_FILE": str(token)}).server.api_token == "s3cret"


def test_a_secret_given_twice_or_by_a_bad_file_is_refused_without_being_shown(tmp_path):
    said = complaint(write(tmp_path, "[server]\napi_token = s3cret\napi_token_file = x\n"))
    assert "api_token_file too: write one of them" in said and "s3cret" not in said
    assert "No such file" in complaint(LETTERBOOK_SERVER_API_TOKEN_FILE=str(tmp_path / "absent"))
    empty = tmp_path / "empty"
    empty.write_text("\n")
    assert "api_token_file cannot be used" in complaint(LETTERBOOK_SERVER_API_TOKEN_FILE=str(empty)).lower()
    assert "s3cret" not in complaint(LETTERBOOK_SERVER_API_TOKEN="s3cret\x01")


def test_a_printed_configuration_shows_no_secret():
    config = load(None, {"LETTERBOOK_SERVER_API_TOKEN": "s3cret"})
    assert "s3cret" not in repr(config) and config.server.api_token == "s3cret"


def test_without_a_token_only_a_loopback_address_is_served():
    for host in ("127.0.0.1", "127.8.9.10", "::1", "localhost"):
        assert load(None, {"LETTERBOOK_SERVER_HOST": host}).server.host == host
    for host in ("0.0.0.0", "::", "192.0.2.1", "mail.example", "localhost.example"):
        assert "write an api_token, or host = 127.0.0.1" in complaint(LETTERBOOK_SERVER_HOST=host)
    open_to_others = {"LETTERBOOK_SERVER_HOST": "0.0.0.0", "LETTERBOOK_SERVER_API_TOKEN": "t"}
    assert load(None, open_to_others).server.host == "0.0.0.0"


def test_keys_that_contradict_each_other_are_refused():
    assert "body_memory_mb = 1 is less" in complaint(LETTERBOOK_SERVER_BODY_MEMORY_MB="1")
    assert "is also db_path" in complaint(LETTERBOOK_STORAGE_KEY_FILE="letterbook.db")
    assert "host is empty" in complaint(LETTERBOOK_SMTP_USER="u")
    assert "user is empty" in complaint(LETTERBOOK_SMTP_PASSWORD="p")
    assert "auth is cram-md5 and user is empty" in complaint(LETTERBOOK_SMTP_AUTH="cram-md5")


def test_two_that_would_report_every_result_are_refused_by_both_names():
    urls = {"client_sync_url": "http://user:secret@a.example/x", "proxy_sync_url": "http://b.example/y/?k=1"}
    variables = {f"LETTERBOOK_CLIENT_{name.upper()}": url for name, url in urls.items()}
    text = complaint(**variables)
    assert "client_sync_url" in text and "proxy_sync_url" in text and "secret" not in text
    for name, url in urls.items():
        config = load(None, {f"LETTERBOOK_CLIENT_{name.upper()}": url})
        assert getattr(config.client, name) == url, "called as it is written"
    assert "client_sync_user" in complaint(LETTERBOOK_CLIENT_CLIENT_SYNC_PASSWORD="p")
    assert "client_sync_token" in complaint(LETTERBOOK_CLIENT_CLIENT_SYNC_TOKEN="ü")


def test_loopback_is_judged_by_the_address_alone():
    assert is_loopback("LOCALHOST") and is_loopback("127.0.0.2") and not is_loopback("127.0.0.1.example")


VOLUME = '[volumes]\nvolume.Files.backend = s3\nvolume.files.config = {"bucket": "b", "secret_key": "hush"}\n'


def test_volumes_have_names_of_the_operators_choice(tmp_path):
    path = write(tmp_path, VOLUME + 'volume.v.2.backend = local\nvolume.v.2.config = {"path": "/srv"}\n')
    environ = {"LETTERBOOK_VOLUMES_VOLUME.FILES.ACCOUNT_ID": "shop"}
    files, other = sorted(load(path, environ).volumes, key=lambda volume: volume.name)
    assert (files.name, files.backend, files.account_id) == ("files", "s3", "shop")
    assert files.config == {"bucket": "b", "secret_key": "hush"} and "hush" not in repr(load(path, {}))
    assert (other.name, other.config, other.account_id) == ("v.2", {"path": "/srv"}, None)


def test_a_volumes_config_may_stand_in_a_file_of_its_own(tmp_path):
    (tmp_path / "secret.json").write_text('{"bucket": "b"}\n', encoding="utf-8")
    text = f"[volumes]\nvolume.f.backend = gcs\nvolume.f.config_file = {tmp_path}/secret.json\n"
    assert load(write(tmp_path, text), {}).volumes[0].config == {"bucket": "b"}
    assert "write one of them" in complaint(write(tmp_path, text + 'volume.f.config = {"bucket": "b"}\n'))


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("volume.f.backend = ftp", "volume.f.backend cannot be used: write one of s3"),
        ("volume.f.config = {}", "volume.f.backend cannot be used"),
        ("volume.f.backend = s3", "config.bucket is missing"),
        ("volume.f.backend = s3\nvolume.f.config = hush", "write a JSON object"),
        ('volume.f.backend = s3\nvolume.f.config = {"bucket": 1}', "write a JSON object"),
        ('volume.f.backend = local\nvolume.f.config = {"path": "hush"}', "config.path must be"),
        ("volume.base64.backend = memory", "base64"),
        ("volume.backend = memory", "is no key"),
        ("volume.f.secret = hush", "is no key"),
        ("invoices = hush", "is no key"),
    ],
)
def test_a_volume_that_does_not_fit_stops_the_start_and_shows_no_value(tmp_path, lines, words):
    text = complaint(write(tmp_path, f"[volumes]\n{lines}\n"))
    assert words in text and "hush" not in text
