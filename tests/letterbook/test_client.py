"""The client of a running service: what a person is told where no answer comes."""

import socket

import pytest
from click.testing import CliRunner

from letterbook import client
from letterbook.cli import main
from letterbook.failures import Failure


def test_an_answer_that_is_late_is_not_taken_for_no_service(monkeypatch):
    """Letting go of a million messages takes minutes, and goes on when nobody waits for it."""
    monkeypatch.setattr(client, "ANSWER_MARGIN_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        target = client.Target(f"http://127.0.0.1:{silent.getsockname()[1]}", {}, 0.0)
        with pytest.raises(Failure, match="has not answered yet: what was asked for may be done all the same"):
            client.command(target, "/commands/cleanup-messages", {})


def test_a_digit_that_is_no_number_is_a_word_like_others(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = CliRunner().invoke(main, ["bulk", "hold", "--priority", "²", "--url", "http://127.0.0.1:9"])
    assert said.exit_code == 1 and "does not answer" in said.stderr, said
