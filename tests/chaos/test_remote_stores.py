"""A database that is killed under a server: writers are told, nothing is lost, and it recovers."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from tests.chaos.test_store import fail_and_recover
from tests.support.databases import Database, database
from tests.support.servers import our_server

__all__ = ["database"]

pytestmark = pytest.mark.anyio

SECONDS = 90


@pytest.mark.soak_with("redis")
async def test_a_database_that_is_killed_and_started_again_loses_nothing(
    tmp_path: Path, database: Database
) -> None:
    with our_server(tmp_path, env={"SANDBOX_AGENT_STORE": database.url}) as server:
        with anyio.fail_after(SECONDS):
            await fail_and_recover(server, database.kill, database.start, readable=False)
