"""A default deployment for tests that need nothing special."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.unit.gateway.deployment import Deployment, deployed


@pytest.fixture
async def gw() -> AsyncIterator[Deployment]:
    async with deployed() as deployment:
        yield deployment
