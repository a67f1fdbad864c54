"""Moments and places in the log as they are written on the command line."""

import datetime as dt
from typing import Any

import click

WRITE = "write it in ISO 8601, such as 2025-01-31T12:00:00Z"


def read_moment(text: str) -> int:
    """Microseconds since 1970 of a moment in ISO 8601; without a zone it is in UTC. Raises ValueError."""
    at = dt.datetime.fromisoformat(text)
    if at.tzinfo is None:
        at = at.replace(tzinfo=dt.UTC)
    return (at - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)) // dt.timedelta(microseconds=1)


class Moment(click.ParamType):
    """A moment in ISO 8601, as microseconds since 1970."""

    name = "moment"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            return read_moment(value)
        except (ValueError, OverflowError):
            self.fail(f"{value!r} is no moment: {WRITE}", param, ctx)


class Place(click.ParamType):
    """A place in the log: ("seq", n) or ("time", microseconds)."""

    name = "place"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, int]:
        if isinstance(value, tuple):
            return value
        if value.isascii() and value.isdigit() and len(value) < 19:
            return "seq", int(value)
        try:
            return "time", read_moment(value)
        except (ValueError, OverflowError):
            self.fail(f"{value!r} is neither a seq nor a moment: {WRITE}", param, ctx)


MOMENT = Moment()
PLACE = Place()
