"""Every view there is. All of them are folds of the log alone and can be dropped and refolded."""

from typing import Any

from .accounts import ACCOUNTS, RELAYS
from .attempts import ATTEMPTS
from .clock import CLOCK
from .dispatch import DISPATCH
from .messages import MESSAGES
from .reports import CURSORS, REFUSED, REPORTED_AT, TOKENS
from .rows import View
from .rules import RULES
from .volumes import VOLUMES

ROW_VIEWS: tuple[View[Any], ...] = (
    MESSAGES,
    ATTEMPTS,
    ACCOUNTS,
    RELAYS,
    DISPATCH,
    RULES,
    CLOCK,
    CURSORS,
    REPORTED_AT,
    REFUSED,
    TOKENS,
    VOLUMES,
)
"""Views folded row by row; the derived ones (totals, due_minutes and its sums, slots, results) are in `counts`."""

__all__ = [
    "ACCOUNTS",
    "ATTEMPTS",
    "CLOCK",
    "CURSORS",
    "DISPATCH",
    "MESSAGES",
    "REFUSED",
    "RELAYS",
    "REPORTED_AT",
    "ROW_VIEWS",
    "RULES",
    "TOKENS",
    "VOLUMES",
]
