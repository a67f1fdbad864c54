"""What the service says of itself over HTTP: the API's description, and the same as a page for people.

Both are open, since they tell nothing of any mail. They are made once, when they are first asked for, and in a thread:
what takes a few dozen milliseconds must not hold up the mail. Nor is what makes them imported before: most starts are
never asked.
"""

from collections.abc import Awaitable, Callable
from functools import cache

import trio

from .errors import JSON, Answer

Page = Callable[[str], Awaitable[Answer]]


async def show_description(version: str) -> Answer:
    """The description as JSON."""
    return await trio.to_thread.run_sync(_description, version)


async def show_docs(version: str) -> Answer:
    """The description as a page."""
    return await trio.to_thread.run_sync(_docs, version)


PAGES: dict[str, Page] = {"/openapi.json": show_description, "/docs": show_docs}
"""By their paths."""


@cache
def _description(version: str) -> Answer:
    from . import openapi

    return Answer(openapi.description(version), content_type=JSON)


@cache
def _docs(version: str) -> Answer:
    from . import docs_page, openapi

    headers = (("Content-Security-Policy", docs_page.POLICY), *docs_page.HEADERS)
    return Answer(docs_page.page(openapi.document(version)), content_type=openapi.HTML, headers=headers)
