"""The exchange that an upstream starts: its messages go to ingest, its acknowledgement to control, and both answer.

What an exchange means stands in `events/exchange.py`. The two streams know nothing of each other: where no mail can be
taken now, the token is not confirmed, and the reports are told all the same.
"""

import hmac
from typing import Any

from events import commands, payloads
from events.exchange import Heard, Token, decide, fault
from events.exchange import State as Exchanging

from .door import STOPPING, Door
from .errors import Answer, Trouble, bad, unavailable
from .writing import Call

UNAUTHORIZED = "Invalid or missing sync_token"
UPSTREAM = "upstream"


async def proxy_sync(door: Door, call: Call) -> Answer:
    """The hand-off with confirmation tokens: takes a batch of messages, and gives results until they are acknowledged.

    Needs `sync_token` beside the API token. A batch is confirmed once it is stored, a token that was seen before too;
    a message that cannot be taken is its own rejection.
    """
    wanted: payloads.ProxySync = call.payload
    _check_token(door, wanted.sync_token or "")
    if sentence := fault(wanted, door.settings.max_batch):
        raise bad(sentence)
    if door.stopping.is_set():
        raise unavailable(STOPPING)
    token = decide(Exchanging(door.store.log_id), wanted).store
    confirm = await _store(door, call, wanted, token) if token is not None else None
    half: dict[str, Any] = await door.control(commands.Exchange(wanted), call.by)
    return Answer({**half, "confirm": confirm})


def _check_token(door: Door, shown: str) -> None:
    """Raises Trouble 401. Without a configured token nobody may come in."""
    token = door.settings.sync_token
    if not token or not hmac.compare_digest(shown.encode("utf-8", "surrogatepass"), token.encode()):
        raise Trouble(401, UNAUTHORIZED)


async def _store(door: Door, call: Call, heard: Heard, token: Token) -> Token | None:
    """The token, once its batch is on disk; None where it cannot be stored now, and is to be offered again."""
    digest = door.store.secrets.token_digest(str(token))
    try:
        await door.submit(heard.messages or (), UPSTREAM, call.lease, token=digest)
    except Trouble as trouble:
        if trouble.status != 503:
            raise
        return None
    return token
