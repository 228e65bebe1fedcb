"""The driver against a plain model, through any sequence of calls, with crashes in between."""

from __future__ import annotations

from typing import ClassVar

import pytest
from hypothesis import settings

from sandbox_agent.persist.base import SessionPersistDriver
from sandbox_agent.persist.redis.driver import RedisSessionPersistDriver
from sandbox_agent.testing.driver_machine import DriverMachine
from tests.support.effort import repeats
from tests.support.redis import RedisServer


class RedisMachine(DriverMachine):
    server: ClassVar[RedisServer]
    url: str = ""

    def make_driver(self) -> SessionPersistDriver:
        self.url = self.url or self.server.fresh_url()
        return RedisSessionPersistDriver(self.url)

    def _append(self, session_id: str, event_ids: list[str], text: str, generation: int) -> None:
        # Ids are unique within a session: a cluster keeps another's on another node. The model has them
        # unique in the store, so it is kept from other sessions' ids.
        if not self._foreign(session_id, event_ids):
            super()._append(session_id, event_ids, text, generation)


TestRedisMachine = pytest.mark.loops(RedisMachine.TestCase)
TestRedisMachine.settings = settings(max_examples=repeats(6, 20), stateful_step_count=30, deadline=None)


@pytest.fixture(autouse=True)
def _server(redis_server: RedisServer) -> None:  # pyright: ignore[reportUnusedFunction]
    RedisMachine.server = redis_server
