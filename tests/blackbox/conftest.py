"""Services for these tests: each is a process with its own log in the test's own folder, and is ended by its id."""

from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import trio
import trustme

from . import service as services
from .service import Service


@pytest.fixture
async def service(tmp_path):
    """`await service(delivery_max_retries=0)` starts a service; all of them end with the test."""
    async with AsyncExitStack() as stack:
        count = 0

        async def start(**settings: object) -> Service:
            nonlocal count
            count += 1
            folder = tmp_path / f"service-{count}"
            folder.mkdir()
            return await stack.enter_async_context(services.service(folder, **settings))

        yield start


@pytest.fixture(scope="module")
def standing(request, tmp_path_factory) -> Iterator[Service]:
    """One service for a module's tests, with the settings that the module names as STANDING."""
    folder = tmp_path_factory.mktemp("standing")
    it = Service(folder, request.module.STANDING)
    trio.run(started, it)
    try:
        yield it
    finally:
        trio.run(it.close)


async def started(it: Service) -> None:
    await it.start()
    await it.detach()


@pytest.fixture
async def shared(standing):
    """The module's service, with a client in this test's loop."""
    standing.attach()
    yield standing
    await standing.detach()


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="session")
def ca_file(authority, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("authority") / "ca.pem"
    authority.cert_pem.write_to_path(path)
    return path
