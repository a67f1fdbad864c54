"""What a service manager is told, if one listens (sd_notify(3)): that the service is ready, or that it stops."""

import os
import socket

READY = b"READY=1"
STOPPING = b"STOPPING=1"


def tell_manager(state: bytes) -> None:
    """One datagram to the socket that the manager named; nothing where there is none, or nobody reads it."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return
    # A name that begins with @ is in the kernel's own space.
    address = f"\0{path[1:]}" if path.startswith("@") else path
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as manager:
            manager.sendto(state, address)
    except OSError:
        # Whoever set the variable has gone: the service goes on without them.
        return
