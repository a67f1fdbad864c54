"""Delays: never sooner than configured, never beyond their bound, whatever chance says."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.smtp.retry import BACKOFF_SECONDS_MAX, backoff_seconds, delay_seconds

DELAYS = (60.0, 300.0, 900.0)
draws = st.floats(0, 1, exclude_max=True)


def test_the_last_delay_repeats():
    assert [delay_seconds(number, DELAYS, 0.0) for number in (1, 2, 3, 4, 99)] == [60, 300, 900, 900, 900]


@given(st.integers(1, 50), draws)
def test_a_tenth_later_at_most(number, draw):
    least = delay_seconds(number, DELAYS, 0.0)
    assert least <= delay_seconds(number, DELAYS, draw) <= least * 1.1


def test_retries_count_from_one():
    with pytest.raises(ValueError, match="count from 1"):
        delay_seconds(0, DELAYS, 0.0)
    with pytest.raises(ValueError, match="count from 1"):
        delay_seconds(1, (), 0.0)


def test_a_relay_is_left_alone_twice_as_long_each_time():
    assert [backoff_seconds(failures, 0.0) for failures in (1, 2, 3, 8, 9, 10, 10_000)] == [1, 2, 4, 128, 256, 300, 300]


@given(st.integers(0, 10_000), draws)
def test_back_off_is_bounded(failures, draw):
    assert 0.9 <= backoff_seconds(failures, draw) <= BACKOFF_SECONDS_MAX
