"""The HTTP server: Hypercorn's protocols in a nursery of our own, with sends that end.

Hypercorn shields its sends from cancellation, so a client that takes no bytes would hold up the service's end for
ever. Here every send has a deadline and can be cancelled; a connection whose send was cut off is closed, since
nobody knows how much of it arrived.

What is wrong with one connection (a client that speaks no HTTP, or is gone) ends that connection alone. What Hypercorn
answers by itself, before there is a request that could be routed, is the same JSON error as everything else.
"""

import logging
import socket
from collections.abc import Callable
from functools import partial
from typing import Any

import h11
import trio
import wsproto.utilities
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData
from hypercorn.protocol import h11 as hypercorn_h11
from hypercorn.protocol.ws_stream import WSStream
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.utils import UnexpectedMessageError

from .app import SENTENCES, make_app
from .door import Door
from .errors import error
from .settings import (
    CONNECTIONS_MAX,
    KEEP_ALIVE_S,
    SEND_CHUNK_BYTES,
    SEND_S_MAX,
    STREAM_INPUT_BYTES_MAX,
    Settings,
)

log = logging.getLogger("letterbook.gateway")
