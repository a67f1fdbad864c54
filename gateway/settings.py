"""What the gateway needs of the configuration, as plain values that `system.py` fills, and the gateway's own limits."""

from typing import Literal

from msgspec import Struct

CLI_AGENT = "letterbook-cli"
"""The User-Agent of our command line: what it asks for is recorded as asked for by a person at a terminal."""

LIST_LIMIT = 1_000
LIST_LIMIT_MAX = 10_000
"""Rows in one answer, by default and at most, in every list."""

EVENTS_WAIT_S_MAX = 30.0
"""A long-poll that is longer meets the time-outs of proxies (60 s is usual)."""

FRAME_FACTS_MAX = 500
FRAME_BYTES_MAX = 256_000
"""One frame of the live stream: some milliseconds of work, so that no stream takes the loop for long."""

HEARTBEAT_S = 15.0
"""Four heartbeats within the time in which a silent connection is dropped."""

SEND_S_MAX = 60.0
"""A client that takes no bytes for so long is dropped."""

SEND_CHUNK_BYTES = 65_536
"""The deadline of a send is for so much, so a slow client is not taken for a stalled one."""

CLOSE_S_MAX = 2.0
"""At shutdown a stream has so long to take its last frame and the close: within the drain deadline, with room."""

BODY_S_MAX = 300.0
"""A whole body: 64 MB at 2 Mbit/s."""

PARTS_AHEAD_MAX = 10
"""Parts of a body, of 64 KB at most, that are read from the socket before somebody wants them; then TCP slows the
client down."""

BODY_DRAIN_S_MAX = 5.0
"""An answer that comes before the body's end waits so long for the rest: a client that still sends would meet a
reset connection and never see it."""

KEEP_ALIVE_S = 75.0
"""Longer than clients and proxies keep idle connections (60 s is usual), so that they close first and no request
is lost in the closing."""

CONNECTIONS_MAX = 1_000
"""Connections of clients at once, where the process may open so many files."""

FILES_KEPT = 400
"""Files that clients get none of: those of the relays' connections, the readers, the log."""

CONNECTIONS_MIN = 16
"""Connections of clients at once, however few files there are."""

STREAM_INPUT_BYTES_MAX = 65_536
"""A frame from a streaming client, who need send nothing."""

BACKLOG_EVERY_S = 1.0
"""How often the number of open messages is read anew; what was accepted since is added meanwhile."""

AUDITS_AT_ONCE = 1
"""Refolds at a time: each takes a core while it runs."""


class Settings(Struct, frozen=True, kw_only=True):
    """Sizes in bytes, times in seconds; `max_backlog` 0 is no limit, an empty `api_token` lets everybody in."""

    host: str = "127.0.0.1"
    port: int = 8000
    api_token: str = ""
    sync_token: str = ""
    max_body_bytes: int = 64_000_000
    body_memory_bytes: int = 256_000_000
    drain_seconds: float = 25.0
    max_backlog: int = 1_000_000
    max_batch: int = 1_000
    send_wait_seconds: float = 30.0
    timezone: str = "UTC"
    legacy_prefix: Literal["asyncmail", "gmp"] = "asyncmail"
