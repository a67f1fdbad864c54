"""Letterbook, an event-sourced outbound mail service.

In a program of one's own, under Trio:

    from letterbook import open_service
    from letterbook.config import load

    async with open_service(load("config.ini", os.environ)) as service:
        await service.handle_command("addMessages", {"messages": [...]})
        async for result in service.results(after=0): ...
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .system import open_service

__all__ = ["open_service"]


def __getattr__(name: str) -> Any:
    """The whole service is imported only for who asks for it: the command line need not wait for it."""
    if name == "open_service":
        from .system import open_service

        return open_service
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
