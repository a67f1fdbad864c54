"""Moments and places in the log as they are written on the command line: types for click."""

import datetime as dt

import click

WRITE = "write it in ISO 8601, such as 2025-01-31T12:00:00Z"

EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)

SEQ_DIGITS_MAX = 18
"""All that fit SQLite's integers."""


def moment(text: str) -> int:
    """Microseconds since 1970 of a moment in ISO 8601; without a zone it is in UTC."""
    if (at_us := _microseconds(text)) is None:
        raise click.BadParameter(f"{text!r} is no moment: {WRITE}")
    return at_us


def place(text: str) -> tuple[str, int]:
    """("seq", n), or ("time", microseconds since 1970)."""
    digits = text.isascii() and text.isdigit()
    if digits and len(text) <= SEQ_DIGITS_MAX:
        return "seq", int(text)
    # A long row of digits can be read as a moment too, which nobody means.
    if digits or (at_us := _microseconds(text)) is None:
        raise click.BadParameter(f"{text!r} is neither a seq nor a moment: {WRITE}")
    return "time", at_us


def _microseconds(text: str) -> int | None:
    try:
        at = dt.datetime.fromisoformat(text)
        return ((at if at.tzinfo else at.replace(tzinfo=dt.UTC)) - EPOCH) // dt.timedelta(microseconds=1)
    except (ValueError, OverflowError):
        return None
