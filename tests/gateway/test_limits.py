"""How the gateway's limits relate to each other and to those of others."""

from gateway import auth, bodies, event_json, settings, tickets, watching
from store import following, reading

DEFAULTS = settings.Settings()


def test_a_close_fits_into_the_drain():
    assert DEFAULTS.drain_seconds > 2 * settings.CLOSE_S_MAX


def test_a_living_client_is_heard_of_before_it_is_given_up():
    assert 2 * settings.HEARTBEAT_S < settings.SEND_S_MAX


def test_an_answer_that_may_take_long_is_shorter_than_what_proxies_allow():
    assert max(settings.EVENTS_WAIT_S_MAX, DEFAULTS.send_wait_seconds) < 60 < settings.KEEP_ALIVE_S


def test_one_body_leaves_room_for_others():
    assert DEFAULTS.max_body_bytes * 2 <= DEFAULTS.body_memory_bytes
    assert bodies.Bodies(DEFAULTS.body_memory_bytes).take(DEFAULTS.max_body_bytes)


def test_what_one_stream_may_lag_is_encoded_once_for_all():
    assert event_json.CACHED_MAX >= following.FACTS_WAITING_MAX
    assert settings.FRAME_FACTS_MAX <= following.PAGE_FACTS


def test_names_outlive_what_is_encoded():
    assert watching.NAMES_MAX > event_json.CACHED_MAX


def test_a_list_fits_into_what_one_page_looks_at():
    assert settings.LIST_LIMIT <= settings.LIST_LIMIT_MAX <= reading.STRETCH_ROWS_MAX
    assert reading.TIMELINE_FACTS_MAX <= settings.LIST_LIMIT_MAX


def test_a_guesser_needs_longer_than_a_ticket_lives():
    assert auth.WINDOW_S / auth.WRONG_MAX > tickets.EXPIRES_S / tickets.OUTSTANDING_MAX
