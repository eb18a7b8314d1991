import pytest

import support


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture(scope="session")
def server():
    """A server with the bundled policies, for tests that leave it as it is."""
    with support.Server() as server:
        yield server
