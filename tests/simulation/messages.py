"""Messages on their way into the service: the JSON of the contract."""

import trio

from .observed import Message

WALL_S = 1_700_000_000
"""The wall clock at virtual time 0, before anybody moves it."""


def as_json(message: Message) -> dict[str, object]:
    """The sender's local part is the id, so that a relay knows at MAIL what it is about."""
    now_s = WALL_S + trio.current_time()
    fields: dict[str, object] = {
        "id": message.id,
        "account_id": message.account,
        "from": f"{message.id}@{message.account}.example",
        "to": list(message.to),
        "subject": subject(message),
        "body": "x" * message.padding or "hello",
        "priority": message.priority,
    }
    if message.defer_s:
        fields["deferred_ts"] = int(now_s + message.defer_s)
    if message.expire_s:
        fields["expires_ts"] = int(now_s + message.expire_s)
    return fields


def subject(message: Message) -> str:
    return f"{message.id} version {message.version}"
