"""config.ini and docs/configuration.md say what the code does, and say it of every key."""

from letterbook.config import Config, load
from letterbook.config_keys import KEYS

from .configuration_pages import (
    CHANGED_PAGE,
    CONFIG_INI,
    CONFIGURATION_PAGE,
    config_ini,
    configuration_page,
    with_old_names,
)

WRITE_AGAIN = "run: python -m tests.house.configuration_pages"


def test_config_ini_is_the_complete_list_with_each_key_documented_beside_it():
    assert CONFIG_INI.read_text(encoding="utf-8") == config_ini(), WRITE_AGAIN


def test_the_configuration_page_lists_every_key():
    assert CONFIGURATION_PAGE.read_text(encoding="utf-8") == configuration_page(), WRITE_AGAIN


def test_config_ini_as_it_stands_is_the_defaults():
    assert load(CONFIG_INI, {}) == load(None, {}) == Config()


def test_every_sentence_and_every_default_can_stand_in_the_file():
    for entry in KEYS:
        assert entry.sentence.endswith(".") and "\n" not in entry.sentence and "|" not in entry.sentence, entry
        assert not (entry.kind.secret and entry.default), f"{entry.name}: a secret has no default"


def test_who_comes_over_reads_every_old_name():
    page = CHANGED_PAGE.read_text(encoding="utf-8")
    assert page == with_old_names(page) and "`GMP_DB_PATH`" in page, WRITE_AGAIN
