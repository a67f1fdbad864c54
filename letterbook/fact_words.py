"""A fact in a few words for people, from the JSON that lists, timelines and the live stream give alike.

One function a kind. A kind that has none, of a newer service for instance, is shown by its fields.
"""

import datetime as dt
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

Event = dict[str, Any]

PRIORITIES = ("immediate", "high", "medium", "low")

HEAD = frozenset({"seq", "at_us", "kind", "message_id", "account_id"})
"""Fields of every fact, which stand in columns of their own."""


class Line(NamedTuple):
    """A fact as one line of a list; `tone` is the word of printing.STYLES whose colour it has."""

    seq: int
    at_us: int
    kind: str
    about: str
    words: str
    tone: str = ""


def line(event: Event) -> Line:
    """The columns of a fact."""
    kind = event["kind"]
    words = WORDS.get(kind, _fields)(event)
    about = event.get("message_id") or event.get("account_id") or ""
    return Line(event["seq"], event["at_us"], kind, about, words, _tone(event))


def _tone(event: Event) -> str:
    kind = event["kind"]
    if kind == "AttemptEnded" or kind == "AttemptInterrupted":
        return {"done": "sent", "due": "deferred", "held": "held"}.get(event["next"], "error")
    if kind in ("MessageRejected", "MessageFailed", "RelayUnreachable"):
        return "error"
    return {"MessageHeld": "held", "AccountThrottled": "deferred"}.get(kind, "")


def clock(at_us: int | None) -> str:
    """A moment in UTC, to the second; `?` where it is not known."""
    if at_us is None:
        return "?"
    return f"{dt.datetime.fromtimestamp(at_us / 1_000_000, dt.UTC):%Y-%m-%d %H:%M:%S}Z"


def _by(event: Event) -> str:
    return f"by {event['by']}" if event.get("by") else ""


def _joined(*parts: str) -> str:
    return ", ".join(part for part in parts if part)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def _fields(event: Event) -> str:
    return " ".join(f"{name}={value}" for name, value in event.items() if name not in HEAD)


def _whom(event: Event) -> str:
    """To whom and under which subject, where `expand` has joined that."""
    to = f"to {', '.join(event['addresses'])}" if event.get("addresses") else ""
    return _joined(to, f"“{event['subject']}”" if event.get("subject") else "")


def _accepted(event: Event) -> str:
    due = f"due {clock(event['due_us'])}" if event["due_us"] > event["at_us"] else ""
    whom = _whom(event) or _count(len(event["recipients"]), "recipient")
    return _joined(whom, PRIORITIES[event["priority"]], f"{event['size']:,} bytes", due)


def _started(event: Event) -> str:
    return f"for {_count(len(event['recipients']), 'recipient')}"


def _ended(event: Event) -> str:
    return f"{_joined(*map(_outcome_of(event), _in_groups(event['outcomes'])))}; {_next(event)}"


Outcomes = list[dict[str, Any]]


def _in_groups(outcomes: Outcomes) -> Iterable[Outcomes]:
    """Outcomes that are the same but for the recipient."""
    groups: dict[tuple[Any, ...], Outcomes] = {}
    for outcome in outcomes:
        same = outcome["status"], outcome.get("code"), outcome.get("enhanced")
        groups.setdefault(same, []).append(outcome)
    return groups.values()


def _outcome_of(event: Event) -> Callable[[Outcomes], str]:
    """What happened to a group of recipients, with the relay's words about the first where they are joined."""
    replies = {reply["recipient"]: reply["reply"] for reply in event.get("replies", ())}
    addresses = event.get("addresses", ())

    def words(group: Outcomes) -> str:
        first = group[0]
        index = first["recipient"]
        if len(group) == 1 and index < len(addresses):
            who = addresses[index]
        else:
            who = _count(len(group), "recipient")
        said = replies.get(index) or " ".join(str(first[name]) for name in ("code", "enhanced") if name in first)
        return f"{who} {first['status']}" + (f" ({said})" if said else "")

    return words


def _next(event: Event) -> str:
    match event["next"]:
        case "done":
            return "sent"
        case "failed":
            return f"failed ({event.get('cause') or 'refused'})"
        case "held":
            return "held for a person"
    return f"again {_later(event)} ({event.get('due_cause') or 'retry'})"


def _later(event: Event) -> str:
    """How long after the fact it is due: closer to what one wants to know than the moment."""
    wait_s = max(0, event.get("due_us", 0) - event["at_us"]) / 1_000_000
    if wait_s < 60:
        return f"in {wait_s:.1f} s"
    return f"in {wait_s / 60:.0f} min" if wait_s < 7200 else f"in {wait_s / 3600:.1f} h"


def _rejected(event: Event) -> str:
    return str(event["reason"])


def _failed(event: Event) -> str:
    return _joined(event["cause"].replace("_", " "), _by(event))


def _account_saved(event: Event) -> str:
    limits = [f"{event[name]} a {name.removeprefix('limit_per_')}" for name in _LIMITS if event.get(name)]
    return _joined(f"{event['host']}:{event['port']}", *limits, _by(event))


_LIMITS = ("limit_per_minute", "limit_per_hour", "limit_per_day")


def _volume_saved(event: Event) -> str:
    whose = f"for {event['account_id']}" if event.get("account_id") else "for every account"
    return _joined(event["name"], event["backend"], whose, _by(event))


def _unreachable(event: Event) -> str:
    return f"{event['host']}:{event['port']}: {event['reason']}; next probe {clock(event['until_us'])}"


def _rule(event: Event) -> str:
    window = f"{event['start_hour']} to {event['end_hour']} h{' next day' if event['cross_midnight'] else ''}"
    name = f"“{event['name']}”" if event["name"] else ""
    state = "" if event["enabled"] else "disabled"
    every = f"every {_count(event['interval_minutes'], 'minute')}"
    number = event.get("rule") or event["seq"]
    return _joined(f"rule {number}", name, days_text(event["days"]), window, every, state, _by(event))


WEEKDAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")


def days_text(days: Sequence[int]) -> str:
    return "every day" if len(days) == len(WEEKDAYS) else " ".join(WEEKDAYS[day] for day in days)


def _taken(event: Event) -> list[str]:
    names = ("accounts", "volumes", "sent", "failed", "waiting", "rejected")
    return [f"{event[name]:,} {name}" for name in names if name in event]


WORDS: dict[str, Callable[[Event], str]] = {
    "MessageAccepted": _accepted,
    "MessageRevised": _accepted,
    "MessageRequeued": _by,
    "MessageExpedited": _by,
    "MessageRejected": _rejected,
    "MessageImported": lambda event: _joined(f"{event['ended']} {clock(event['ended_us'])}", _by(event)),
    "MessageWithdrawn": _by,
    "MessageHeld": _failed,
    "MessageFailed": _failed,
    "DoubtResolved": lambda event: _joined(f"as {event['resolution']}", _by(event)),
    "ContentErased": lambda event: _joined(_count(len(event["letters"]), "letter"), _by(event)),
    "RetentionPassed": lambda event: _joined(f"before {event['before']}", _by(event)),
    "AttemptStarted": _started,
    "AttemptEnded": _ended,
    "AttemptInterrupted": _ended,
    "AccountSaved": _account_saved,
    "AccountRemoved": _by,
    "AccountPaused": _by,
    "AccountResumed": _by,
    "AccountThrottled": lambda event: f"until {clock(event['until_us'])} (the limit of {event['window_s']} s)",
    "AccountSendsImported": lambda event: _joined(_count(sum(n for _, n in event["seconds"]), "send"), _by(event)),
    "RelayUnreachable": _unreachable,
    "RelayReached": lambda event: f"{event['host']}:{event['port']}",
    "DispatchSuspended": lambda event: _joined("a restored backup" if event.get("restored") else "", _by(event)),
    "DispatchActivated": _by,
    "RuleSaved": _rule,
    "RuleRemoved": lambda event: _joined(f"rule {event['rule']}", _by(event)),
    "ResultsReported": lambda event: f"up to {event['up_to']}",
    "ReportRefused": lambda event: f"the result {event['result']}, offered again {clock(event['again_us'])}",
    "ReportSettled": lambda event: _joined(f"the result {event['result']}", "given up" * event.get("given_up", False)),
    "TokensForgotten": lambda event: _joined(_count(len(event["tokens"]), "token"), _by(event)),
    "BatchFetched": lambda event: _count(event["messages"], "message"),
    "VolumeSaved": _volume_saved,
    "VolumeRemoved": lambda event: _joined(event["name"], _by(event)),
    "ServiceStarted": lambda event: _joined(event["version"], event["recovery"]),
    "ServiceStopped": lambda _: "",
    "ImportFinished": lambda event: _joined(*_taken(event), _by(event)),
    "ClockStepped": lambda event: f"by {event['by_us'] / 1_000_000:+.1f} s",
    "ClockTrusted": _by,
    "LogRestored": lambda event: f"of {event['previous_log']}, which had come to {event['marked_seq']}",
}
"""Every kind of fact in words."""
